"""`App`: the one place where functions, database, worker, client and router are put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agentflow.audit import Audit
from agentflow.budgets import as_budgets
from agentflow.client import Approvals, Client, Events, Functions, Runs
from agentflow.clock import Clock, OffsetClock, SystemClock
from agentflow.context import Context
from agentflow.durations import Duration
from agentflow.errors import AgentflowError, ConfigurationError
from agentflow.events import CronTrigger, EventTrigger
from agentflow.expressions import Expression
from agentflow.flow import (
    Batch,
    Budget,
    CancelOn,
    Concurrency,
    Debounce,
    Idempotency,
    Key,
    ModelRateLimit,
    RateLimit,
    RunFailure,
    Singleton,
    Throttle,
    Timeouts,
    as_cancel_on,
    as_concurrency,
)
from agentflow.flow_control import FlowControl
from agentflow.functions import Function, FunctionConfig, Registry, Target, function_types, kebab
from agentflow.handles import RunHandle
from agentflow.model_limits import as_model_limits
from agentflow.models.clients import held_clients
from agentflow.principals import Principal
from agentflow.retry import Retry
from agentflow.settings import Settings, resolve
from agentflow.starts import tick_input
from agentflow.step import EventLike, Step
from agentflow.store.operation_types import RegisterFunctions
from agentflow.store.protocol import Store
from agentflow.threads import Threads
from agentflow.timetable import Schedule, checked_schedule
from agentflow.usage import BudgetReport, Grouping, UsageReport

if TYPE_CHECKING:
    from fastapi import APIRouter

    from agentflow.agents.agent import Agent
    from agentflow.engine.worker import Worker

T = TypeVar("T")
R = TypeVar("R")
UserFunction = Callable[[Context[T], Step], Awaitable[R]]

Trigger = EventTrigger | CronTrigger | str

MOST_TRIGGERS = 10


class App:
    """A set of durable functions on one database.

    Nothing is opened before `async with app:`, `app.running()`, a worker or the router does it; an open App belongs to
    the event loop that opened it.
    """

    def __init__(
        self,
        id: str,
        *,
        database_url: str | None = None,
        settings: Settings | None = None,
        model_limits: Sequence[ModelRateLimit] = (),
        budgets: Sequence[Budget] = (),
    ) -> None:
        if not id or not id.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigurationError(f"App({id!r}): an app's id has letters, digits, '-', '_' and '.'")
        try:
            self._model_limits = as_model_limits(model_limits)
            self._budgets = as_budgets(budgets)
        except ConfigurationError as error:
            raise ConfigurationError(f"App({id!r}): {error}") from None
        self.id = id
        self._settings = resolve(settings, database_url=database_url)
        self._registry = Registry(id)
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._users = 0
        self._clients = AsyncExitStack()
        """Holds the model providers' connections while the App is open."""

    def __repr__(self) -> str:
        return f"<App {self.id}: {len(self._registry)} function(s)>"

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def registered(self) -> list[Function[Any, Any]]:
        """The functions and agents of this process."""
        return list(self._registry)

    # ------------------------------------------------------------------------------------ registration

    @overload
    def function(self, fn: UserFunction[T, R], /) -> Function[T, R]: ...

    @overload
    def function(
        self,
        id: str | None = None,
        *,
        on: Trigger | Sequence[Trigger] | None = ...,
        retries: int = ...,
        retry: Retry | None = ...,
        step_timeout: Duration | None = ...,
        on_failure: UserFunction[RunFailure, Any] | None = ...,
        timeouts: Timeouts | None = ...,
        cancel_on: CancelOn | Sequence[CancelOn] | None = ...,
        concurrency: int | Concurrency | Sequence[Concurrency] | None = ...,
        throttle: Throttle | None = ...,
        rate_limit: RateLimit | None = ...,
        debounce: Debounce | None = ...,
        batch: Batch | None = ...,
        priority: Key | None = ...,
        singleton: Singleton | None = ...,
        idempotency: Idempotency | None = ...,
        **config: Any,
    ) -> Callable[[UserFunction[T, R]], Function[T, R]]: ...

    def function(
        self,
        id: Any = None,
        *,
        on: Trigger | Sequence[Trigger] | None = None,
        retries: int = 4,
        retry: Retry | None = None,
        step_timeout: Duration | None = None,
        on_failure: UserFunction[RunFailure, Any] | None = None,
        timeouts: Timeouts | None = None,
        cancel_on: CancelOn | Sequence[CancelOn] | None = None,
        concurrency: int | Concurrency | Sequence[Concurrency] | None = None,
        throttle: Throttle | None = None,
        rate_limit: RateLimit | None = None,
        debounce: Debounce | None = None,
        batch: Batch | None = None,
        priority: Key | None = None,
        singleton: Singleton | None = None,
        idempotency: Idempotency | None = None,
        **config: Any,
    ) -> Any:
        """Register `async def f(ctx: Context[T], step: Step) -> R` as a durable function.

        `on` names the events that start it; `retries` counts for each step and for the code between steps.
        `on_failure=async def (ctx: Context[RunFailure], step)` runs once, as `<id>-failure`, after a run that has
        failed. `timeouts=Timeouts(start=, finish=)` cancel a run that begins too late or takes too long,
        `cancel_on=CancelOn(event, match=)` one for which such an event arrives. The others are flow control: see the
        values in `agentflow.flow`; `priority` is a path, an expression or a function of the event that gives how many
        seconds ahead of others a run goes (-600 to 600).
        Errors in what is registered are raised here, as `ConfigurationError`.

            @app.function(on="ticket.created", retries=2)
            async def handle_ticket(ctx: Context[Ticket], step: Step) -> Resolution: ...
        """
        if callable(id):
            return self._register(id, None, (), FunctionConfig())

        def register(fn: Any) -> Function[Any, Any]:
            name = id or kebab(fn.__name__)
            _refuse_unknown(name, config)
            try:
                settings = FunctionConfig(
                    retries=retries,
                    retry=retry,
                    step_timeout=step_timeout,
                    on_failure=on_failure,
                    timeouts=timeouts,
                    cancel_on=as_cancel_on(cancel_on),
                    flow=FlowControl(
                        concurrency=as_concurrency(concurrency),
                        throttle=throttle,
                        rate_limit=rate_limit,
                        debounce=debounce,
                        batch=batch,
                        priority=priority,
                        singleton=singleton,
                        idempotency=idempotency,
                    ),
                )
            except ConfigurationError as error:
                raise ConfigurationError(f"function {name!r}: {error}") from error
            return self._register(fn, name, _triggers(name, on), settings)

        return register

    def add(self, agent: Agent[Any, Any]) -> None:
        """Register an agent as `agents/<name>`, with its sub-agents and handoffs."""
        pending: list[Any] = [agent]
        while pending:
            function = pending.pop().as_function(self.id)
            known = self._registry.find(function.id)
            if known is function:
                continue
            self._registry.add(function)
            pending.extend(function.related)

    def _register(
        self, fn: Any, id: str | None, triggers: tuple[EventTrigger | Schedule, ...], config: FunctionConfig
    ) -> Function[Any, Any]:
        input_type, output_type = function_types(fn)
        function: Function[Any, Any] = Function(
            fn,
            id=id or kebab(fn.__name__),
            app=self.id,
            triggers=triggers,
            config=config,
            input_type=input_type,
            output_type=output_type,
            description=(fn.__doc__ or "").strip(),
        )
        _refuse_data_that_no_tick_has(function)
        self._registry.add(function)
        for other in function.related:
            self._registry.add(other.as_function())
        return function

    # ------------------------------------------------------------------------------- opening and closing

    async def open(self) -> None:
        """Connect to the database, and tell it which functions there are."""
        async with self._opening:
            if self._client is None:
                await self._connect(await _open_store(self._settings))
            elif self._loop is not asyncio.get_running_loop():
                raise ConfigurationError(
                    f"app {self.id!r} was opened by another event loop: close it there, or make one App per loop"
                )
            self._users += 1

    async def connect(self, store: Store, *, clock: Clock, settings: Settings) -> None:
        """Open the App on a store that somebody else has opened, with a clock of theirs (the test harness)."""
        async with self._opening:
            if self._client is not None:
                raise ConfigurationError(f"app {self.id!r} is open already: close it first")
            await self._connect(store, clock=clock, settings=settings)
            self._users = 1

    async def _connect(
        self, store: Store, *, clock: Clock | None = None, settings: Settings | None = None
    ) -> None:
        used = settings or self._settings
        try:
            if clock is None:
                clock = (
                    SystemClock() if used.database_url.startswith("sqlite") else await _database_clock(store)
                )
            if len(self._registry):
                infos = tuple(function.info() for function in self._registry)
                await store.submit(RegisterFunctions(infos, clock.now()))
        except BaseException:
            await store.close()
            raise
        await self._clients.enter_async_context(held_clients())
        self._client = Client(self.id, store, self._registry, used, clock)
        self._loop = asyncio.get_running_loop()
        store.subscribe(self._client.watchers.hear)

    async def close(self) -> None:
        """Disconnect, once everybody who opened the App, its workers too, has closed it."""
        async with self._opening:
            if self._client is None:
                return
            self._users -= 1
            if self._users > 0:
                return
            client, self._client, self._loop = self._client, None, None
            self._users = 0
            await client.watchers.close()
            await self._clients.aclose()
            await client.store.close()

    async def __aenter__(self) -> App:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def running(self, concurrency: int | None = None) -> AsyncIterator[App]:
        """Open the App with one worker in this process."""
        worker = self.worker(concurrency)
        await worker.start()
        try:
            yield self
        finally:
            await worker.stop()

    def worker(self, concurrency: int | None = None) -> AppWorker:
        """A worker with `run()` and `stop()`; it opens the App where that is not open. `concurrency` runs are in
        memory at most."""
        return AppWorker(self, concurrency)

    def engine_worker(self, concurrency: int | None = None, *, replay_every_step: bool = False) -> Worker:
        """The engine's part of a worker, on the opened App; it begins what is started in this process at once."""
        from agentflow.engine.worker import Worker

        client = self.client
        self._registry.freeze("started")
        client.local_worker = worker = Worker(
            self.id,
            client.store,
            self._registry,
            settings=client.settings,
            clock=client.clock,
            list_functions=client.list_functions,
            on_written=client.watchers.note_written,
            on_ended=client.watchers.note_end,
            concurrency=client.settings.concurrency if concurrency is None else concurrency,
            model_limits=self._model_limits,
            budgets=self._budgets,
            replay_every_step=replay_every_step,
        )
        return worker

    async def migrate(self) -> None:
        """Bring the database's tables up to date."""
        if self._client is not None:
            await self._client.store.migrate()
            return
        from agentflow.store.opening import open_store

        store = open_store(self._settings.database_url, settings=self._settings)
        await store.migrate()
        await store.close()

    # ---------------------------------------------------------------------------------------- operations

    @property
    def client(self) -> Client:
        """The operations on the opened database."""
        if self._client is None:
            raise ConfigurationError(
                f"app {self.id!r} is not open: use `async with app:`, `async with app.running():` or its router"
            )
        return self._client

    async def send(self, event_or_events: EventLike | Sequence[EventLike]) -> list[str]:
        """Send one event or many in one transaction; give their ids. A future `ts` delays the runs they start."""
        return list((await self.client.send(event_or_events)).event_ids)

    @overload
    async def start(
        self,
        function: Function[Any, R],
        data: Any = ...,
        *,
        idempotency_key: str | None = ...,
        tags: Sequence[str] = ...,
        by: str | Principal | None = ...,
    ) -> RunHandle[R]: ...

    @overload
    async def start(
        self,
        function: Target,
        data: Any = ...,
        *,
        idempotency_key: str | None = ...,
        tags: Sequence[str] = ...,
        by: str | Principal | None = ...,
    ) -> RunHandle[Any]: ...

    async def start(
        self,
        function: Any,
        data: Any = None,
        *,
        idempotency_key: str | None = None,
        tags: Sequence[str] = (),
        by: str | Principal | None = None,
    ) -> RunHandle[Any]:
        """Start one run without an event. `data` is the function's input, or what validates to it.

        The key holds for 24 hours per function: used again it gives the first run's handle, with other data it raises
        `IdempotencyConflict`. `by` is who starts it: `Approval(bar_starter=True)` keeps them from deciding. Raises
        `InvalidInput`, `NotFound`.
        """
        return await self.client.start(function, data, idempotency_key=idempotency_key, tags=tags, by=by)

    async def signal(self, name: str, data: Any = None, *, buffer: Duration | None = None) -> str | None:
        """Resolve the one waiter of that name, exactly once; give its run id.

        Nobody waits: `NoWaiter`, or with `buffer="1h"` it is kept for a wait that comes in that time, and `None` is
        returned; a second one kept for the same name is a `SignalConflict`.
        """
        return await self.client.signal(name, data, buffer=buffer)

    async def usage(
        self,
        run: str | None = None,
        thread: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: datetime | None = None,
    ) -> UsageReport:
        """Tokens, cost, and how often a call was billed or possibly billed; of a run and its children, or of the turns
        of a thread."""
        return await self.client.usage(run=run, thread=thread, tag=tag, agent=agent, since=since)

    async def usage_by(
        self,
        by: Grouping,
        *,
        run: str | None = None,
        thread: str | None = None,
        tag: str | None = None,
        agent: str | None = None,
        since: datetime | None = None,
    ) -> dict[str, UsageReport]:
        """The same for each `"run"`, `"agent"`, `"model"` or `"day"` (of UTC), by its name."""
        return await self.client.usage_by(by, run=run, thread=thread, tag=tag, agent=agent, since=since)

    async def budgets(self, name: str | None = None) -> list[BudgetReport]:
        """How budgets stand of which something was used in their present period, of all apps on the database."""
        return await self.client.budgets(name)

    @property
    def runs(self) -> Runs:
        return self.client.runs

    @property
    def approvals(self) -> Approvals:
        return self.client.approvals

    @property
    def audit(self) -> Audit:
        return self.client.audit

    @property
    def threads(self) -> Threads:
        return self.client.threads

    @property
    def functions(self) -> Functions:
        return self.client.functions

    @property
    def events(self) -> Events:
        return self.client.events

    def router(
        self, prefix: str = "", *, auth: Any = "dev", dashboard: bool = True, run_worker: bool = True
    ) -> APIRouter:
        """A FastAPI router with the HTTP API; its lifespan opens the App, with a worker unless `run_worker=False`.

        api.include_router(app.router(prefix="/agentflow"))
        """
        from agentflow.http.router import make_router

        self._registry.freeze("given a router")
        return make_router(
            prefix=prefix,
            auth=auth,
            registry=self._registry,
            client=lambda: self.client,
            lifespan=self.running if run_worker else self._opened,
        )

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[App]:
        async with self:
            yield self


class AppWorker:
    """A worker of an App in this process. It holds the App open for as long as it works."""

    def __init__(self, app: App, concurrency: int | None) -> None:
        self._app = app
        self._concurrency = concurrency
        self._worker: Worker | None = None
        self._was_started = False
        self._is_to_stop = False
        self._changing = asyncio.Lock()
        """To stop a worker that is just starting is to wait until it has started."""

    async def run(self) -> None:
        """Work until `stop` is called, or this is cancelled, which stops it too."""
        await self.start()
        if self._worker is not None:
            try:
                await self._worker.stopped()
            finally:
                await self.stop()

    async def start(self) -> None:
        """Begin to work, and return. One that was told to stop before does not begin."""
        if self._was_started:
            raise ConfigurationError("this worker was started before: make a new one with app.worker()")
        self._was_started = True
        async with self._changing:
            if self._is_to_stop:
                return
            await self._app.open()
            try:
                worker = self._app.engine_worker(self._concurrency)
                try:
                    await worker.start()
                except BaseException:
                    await worker.stop()  # it may hold a lease by now
                    raise
            except BaseException:
                await self._app.close()
                raise
            self._worker = worker

    async def stop(self) -> None:
        """Take no more runs, hand over those without a running body, give the others their grace, and end."""
        self._is_to_stop = True
        async with self._changing:
            if self._worker is None or self._worker.is_stopping:
                return
            try:
                await self._worker.stop()
            finally:
                await self._app.close()

    @property
    def running(self) -> int:
        """How many runs are in memory."""
        return 0 if self._worker is None else self._worker.running


async def _open_store(settings: Settings) -> Store:
    from agentflow.store.opening import open_store

    store = open_store(settings.database_url, settings=settings)
    await store.open()
    return store


READINGS = 4
"""Of the database's clock. The first waits for a connection; the best counts, so that what another process has made due
is due here at once."""


async def _database_clock(store: Store) -> Clock:
    clock = OffsetClock()
    for _ in range(READINGS):
        await clock.read(store.database_now)
    return clock


def _refuse_unknown(function: str, config: dict[str, Any]) -> None:
    for name in config:
        raise ConfigurationError(f"function {function!r}: there is no setting {name!r}")


def _refuse_data_that_no_tick_has(function: Function[Any, Any]) -> None:
    for schedule in function.schedules:
        try:
            function.input_codec.decode(tick_input(schedule, 0))
        except AgentflowError as error:
            raise ConfigurationError(
                f"function {function.id!r}: on=cron({schedule.expr!r}): its data is an agentflow.flow.CronTick, which "
                f"the function does not take: {error}"
            ) from error


def _schedule(name: str, trigger: CronTrigger, others: Sequence[EventTrigger | Schedule]) -> Schedule:
    try:
        schedule = checked_schedule(trigger)
    except ConfigurationError as error:
        raise ConfigurationError(f"function {name!r}: on={error}") from None
    if any(
        isinstance(other, Schedule) and (other.expr, other.tz) == (schedule.expr, schedule.tz)
        for other in others
    ):
        raise ConfigurationError(f"function {name!r}: on=cron(expr={trigger.expr!r}) is there twice")
    return schedule


def _triggers(name: str, on: Trigger | Sequence[Trigger] | None) -> tuple[EventTrigger | Schedule, ...]:
    given = [] if on is None else [on] if isinstance(on, EventTrigger | CronTrigger | str) else list(on)
    if len(given) > MOST_TRIGGERS:
        raise ConfigurationError(f"function {name!r} has {len(given)} triggers: {MOST_TRIGGERS} at most")
    triggers: list[EventTrigger | Schedule] = []
    for trigger in given:
        if isinstance(trigger, str):
            trigger = EventTrigger(name=trigger)
        if isinstance(trigger, CronTrigger):
            triggers.append(_schedule(name, trigger, triggers))
            continue
        if not isinstance(trigger, EventTrigger):
            raise ConfigurationError(f"function {name!r}: on={trigger!r} is no trigger; give an event's name")
        if not trigger.name:
            raise ConfigurationError(f"function {name!r}: on='' names no event")
        if trigger.if_ is not None:
            try:
                Expression.condition(trigger.if_)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"function {name!r}: on=on_event({trigger.name!r}, if_=...): {error}"
                ) from error
        triggers.append(trigger)
    return tuple(triggers)
