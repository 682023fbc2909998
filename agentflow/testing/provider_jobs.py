"""What the fake provider keeps: responses that are worked on in the background, and stored chat completions."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentflow.models.replies import Reply
from agentflow.testing.wire import Event, Json, openai_responses


@dataclass(frozen=True)
class Job:
    """A reply for a request with `background=True`, or in a batch, that takes its time.

    It is `queued` for so many looks, and with None for ever: then nothing is generated. `cuts` are the shares after
    which its first streams break off; a job that `fails` has no answer, and one of a batch that `expires` neither.
    """

    reply: Reply = "done in the background"
    queued: int | None = 1
    cuts: tuple[float, ...] = ()
    fails: bool = False
    expires: bool = False


@dataclass
class _KeptJob:
    plan: Job
    answer: Json
    is_streamed: bool
    looks: int = 0
    streams: int = 0
    ended: Json | None = None

    def look(self) -> Json:
        """The response as it is now; each look is a step on its way."""
        self.looks += 1
        if self.plan.queued is not None and self.looks > self.plan.queued:
            self.end()
        return self.ended or openai_responses.queued(self.answer)

    def end(self) -> Json:
        if self.ended is None:
            error = {"code": "server_error", "message": "the job has failed"}
            failed = {**self.answer, "status": "failed", "output": [], "error": error}
            self.ended = failed if self.plan.fails else self.answer
        return self.ended

    def cancel(self) -> Json:
        """Ended where it is; one that has ended stays as it is."""
        if self.ended is None:
            self.ended = {**openai_responses.queued(self.answer), "status": "cancelled"}
        return self.ended


class Refusal(Exception):
    """The request is answered with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Shelf:
    """The jobs and completions of one server."""

    completions: list[Json] = field(default_factory=list)
    responses: dict[str, _KeptJob] = field(default_factory=dict)
    hidden_looks: int = 0
    """So many times a list of stored completions does not show them yet."""

    def keep_job(self, job: Job, answer: Json, *, is_streamed: bool) -> None:
        self.responses[answer["id"]] = _KeptJob(job, answer, is_streamed)

    def look(self, id: str) -> Json:
        """GET /v1/responses/{id}."""
        return self._job(id).look()

    def cancel(self, id: str) -> Json:
        """POST /v1/responses/{id}/cancel."""
        return self._job(id).cancel()

    def stream(self, id: str, after: int) -> tuple[list[Event], float | None]:
        """GET /v1/responses/{id}?stream=true: the events after that number, and the share after which to break off; of
        a job that is stuck there are none."""
        job = self._job(id)
        if not job.is_streamed:
            raise Refusal(400, f"Response with id '{id}' was not created with stream=true.")
        if job.plan.queued is None:
            return [], None
        cut = job.plan.cuts[job.streams] if job.streams < len(job.plan.cuts) else None
        job.streams += 1
        events = openai_responses.events(job.end() if cut is None else job.answer)
        return [event for event in events if event[1]["sequence_number"] > after], cut

    def found(self, metadata: Json) -> list[Json]:
        """GET /v1/chat/completions: the stored completions with this metadata."""
        if self.hidden_looks > 0:
            self.hidden_looks -= 1
            return []
        return [answer for answer in self.completions if metadata.items() <= answer["metadata"].items()]

    def _job(self, id: str) -> _KeptJob:
        if id not in self.responses:
            raise Refusal(404, f"Response with id '{id}' not found.")
        return self.responses[id]
