"""The tables: made, brought up to date, refused when they are newer; and which URLs open."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection

from agentflow.errors import ConfigurationError
from agentflow.settings import Settings
from agentflow.store.migrations import REVISIONS, VERSION_TABLE, upgrade
from agentflow.store.opening import open_store
from tests.store.support import make_store, with_worker


async def test_a_fresh_database_is_migrated_and_again_does_nothing(database_url: str) -> None:
    store = make_store(database_url)
    await store.migrate()
    await store.migrate()
    await store.open(migrate=False)
    world = await with_worker(store)
    await world.step(await world.start())
    await store.close()


async def test_two_at_once_migrate_once(database_url: str) -> None:
    stores = [make_store(database_url) for _ in range(3)]
    await asyncio.gather(*(store.migrate() for store in stores))
    await stores[0].open(migrate=False)
    await stores[0].close()


async def test_missing_tables_are_refused_where_nobody_asked_to_make_them(
    postgres_url: str, sqlite_url: str
) -> None:
    for url, migrate in ((postgres_url, None), (postgres_url, False), (sqlite_url, False)):
        store = make_store(url)
        with pytest.raises(ConfigurationError, match="agentflow db upgrade"):
            await store.open(migrate=migrate)
        await store.close()


async def test_sqlite_migrates_by_itself(sqlite_url: str) -> None:
    store = make_store(sqlite_url)
    await store.open()
    await store.close()


async def test_a_newer_database_is_refused(database_url: str) -> None:
    store = make_store(database_url)
    await store.migrate()
    statement = f"UPDATE {VERSION_TABLE} SET version_num = '9999'"
    if database_url.startswith("sqlite"):
        with sqlite3.connect(database_url.removeprefix("sqlite:///")) as connection:
            connection.execute(statement)
        connection.close()
    else:
        database = await asyncpg.connect(database_url)
        await database.execute(statement)
        await database.close()
    for attempt in (store.open, store.migrate):
        with pytest.raises(ConfigurationError, match="9999"):
            await attempt()
    await store.close()


def test_the_known_revisions_are_alembic_s() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    import agentflow.store.migrations

    config = Config()
    config.set_main_option("script_location", str(Path(agentflow.store.migrations.__file__).parent))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
async def test_the_scripts_make_what_the_rows_say(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import create_engine

    from agentflow.store.rows import Base

    await make_store(database_url).migrate()

    def differences(connection: Connection) -> list[object]:
        # An expression in an index cannot be read back from SQLite, nor compared; the test after this one does.
        options = {
            "version_table": VERSION_TABLE,
            "include_object": lambda _, name, *others: name != "agentflow_run_claim",
        }
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Base.metadata))

    if database_url.startswith("sqlite"):
        engine = create_engine(database_url)
        with engine.connect() as connection:
            assert differences(connection) == []
        engine.dispose()
    else:
        from agentflow.store.postgres.reading import make_engine

        pool = make_engine(database_url)
        async with pool.connect() as reader:
            assert await reader.run_sync(differences) == []
        await pool.dispose()


async def test_the_scripts_make_the_indexes_that_the_rows_say(
    sqlite_url: str, postgres_url: str, second_postgres_url: str
) -> None:
    """As the database itself writes them down, their expressions and conditions included."""
    from sqlalchemy import create_engine

    from agentflow.store.postgres.reading import make_engine
    from agentflow.store.rows import Base

    other_sqlite_url = f"{sqlite_url}-rows"
    await make_store(sqlite_url).migrate()
    await make_store(postgres_url).migrate()
    engine = create_engine(other_sqlite_url)
    Base.metadata.create_all(engine)
    engine.dispose()
    pool = make_engine(second_postgres_url)
    async with pool.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await pool.dispose()

    ours = _sqlite_indexes(other_sqlite_url)
    assert _sqlite_indexes(sqlite_url) == ours
    assert "crash_count" in ours["agentflow_run_claim"]
    ours = await _postgres_indexes(second_postgres_url)
    assert await _postgres_indexes(postgres_url) == ours
    assert "crash_count" in ours["agentflow_run_claim"]


def _sqlite_indexes(url: str) -> dict[str, str]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        found = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        )
        indexes = {name: " ".join(sql.split()) for name, sql in found}
    connection.close()
    return indexes


async def _postgres_indexes(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    found = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> $1",
        VERSION_TABLE,
    )
    await connection.close()
    return dict(map(tuple, found))


def test_no_table_has_more_than_six_indexes_and_none_is_tied_to_another() -> None:
    from agentflow.store.rows import Base

    for table in Base.metadata.tables.values():
        assert table.name.startswith("agentflow_")
        # Beside the primary key; the sixth of runs is that of lanes, which holds none but runs that are blocked.
        assert len(table.indexes) <= 6, table.name
        assert not table.foreign_keys


async def test_an_up_to_date_file_opens_fast(sqlite_ready: str) -> None:
    fastest = 1.0
    for _ in range(5):
        store = make_store(sqlite_ready)
        began = time.perf_counter()
        await store.open()
        fastest = min(fastest, time.perf_counter() - began)
        await store.close()
    assert fastest < 0.1, "what alembic needs to look alone takes longer"


def test_opening_an_up_to_date_file_does_not_import_alembic(sqlite_ready: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from agentflow.settings import Settings\n"
        "from agentflow.store import protocol\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "from agentflow.store.opening import open_store\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1], settings=Settings())\n"
        "    await store.open(); await store.close()\n"
        "asyncio.run(main())\n"
        "assert 'alembic' not in sys.modules and 'asyncpg' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, sqlite_ready], check=True)


def test_migrating_an_up_to_date_postgresql_database_does_not_import_alembic(postgres_ready: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from agentflow.settings import Settings\n"
        "from agentflow.store.opening import open_store\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1], settings=Settings())\n"
        "    await store.open(migrate=True); await store.close()\n"
        "asyncio.run(main())\n"
        "assert 'asyncpg' in sys.modules and 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, postgres_ready], check=True)


def test_without_its_driver_postgresql_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['asyncpg'] = None\n"
        "from agentflow.errors import ConfigurationError\n"
        "from agentflow.settings import Settings\n"
        "from agentflow.store.opening import open_store\n"
        "try:\n"
        "    open_store('postgresql://host/db', settings=Settings())\n"
        "except ConfigurationError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "[postgres]" in told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://root:secret@host/db", "mysql"),
        ("agentflow.db", "sqlite:///relative.db"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://host/file.db", "names no file"),
        ("sqlite:///:memory:", "outlive"),
    ],
)
def test_a_url_that_cannot_be_opened_says_what_to_write(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        open_store(url, settings=Settings())
    assert "secret" not in str(raised.value)


async def test_a_relative_url_is_relative_and_an_absolute_one_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url, expected in (
        ("sqlite:///here.db", "here.db"),
        (f"sqlite:///{tmp_path}/there%20x.db", "there x.db"),
    ):
        store = make_store(url)
        await store.open()
        await store.close()
        assert (tmp_path / expected).is_file()


async def test_a_folder_that_is_not_there_and_a_file_that_is_no_database_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text, and a long one, not a database of SQLite" * 40)
    for name, told in (("nowhere/a.db", "no folder"), ("text.db", "not a database"), ("", "cannot be used")):
        store = make_store(f"sqlite:///{tmp_path}/{name}" if name else f"sqlite:///{tmp_path}")
        with pytest.raises(ConfigurationError, match=told):
            await store.open()
        await store.close()


async def test_a_server_that_is_not_there_is_told() -> None:
    store = make_store("postgresql://nobody:secret@127.0.0.1:1/nothing")
    with pytest.raises(ConfigurationError, match="cannot be used") as raised:
        await store.open()
    assert "secret" not in str(raised.value)
    await store.close()


async def test_a_migration_that_pauses_between_two_statements_goes_on(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine with too much to do: a connection that idles for so long elsewhere loses its transaction.
    monkeypatch.setattr("agentflow.store.postgres.connection.IDLE_IN_TRANSACTION", "100ms")

    def slow(connection: Connection) -> None:
        time.sleep(0.4)
        upgrade(connection)

    monkeypatch.setattr("agentflow.store.postgres.schema.upgrade", slow)
    store = make_store(postgres_url)
    await store.migrate()
    monkeypatch.undo()
    await store.open(migrate=False)
    await store.close()
