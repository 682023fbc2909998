"""Finding the user's App: `-a module:app`, `[tool.agentflow] app=` in pyproject.toml, or `main.py` / `app.py`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agentflow.cli.exits import ExitCode, Stop

if TYPE_CHECKING:
    from agentflow.app import App

USUAL_FILES = ("main.py", "app.py")
HOW_TO_NAME_ONE = (
    'name one with -a module:app, or in pyproject.toml as [tool.agentflow] app = "module:app", '
    "or put it into main.py or app.py here"
)


def find_app(ref: str | None) -> App:
    """The App that `ref` names, or the one this folder has."""
    found = find_ref(ref)
    if found is None:
        raise Stop(f"there is no app in {Path.cwd()}: {HOW_TO_NAME_ONE}", ExitCode.USAGE)
    return load_app(found)


def find_ref(ref: str | None) -> str | None:
    """What names the App: `module:attribute`, `module` or `path/to/file.py:attribute`; None when nothing does."""
    if ref:
        return ref
    if configured := _configured(Path.cwd() / "pyproject.toml"):
        return configured
    return next((name for name in USUAL_FILES if Path(name).is_file()), None)


def load_app(ref: str) -> App:
    """Import it. Raises `Stop` with a sentence that says what is wrong."""
    place, _, attribute = ref.partition(":")
    # What a module prints while it is imported must not mix with the command's own output.
    with contextlib.redirect_stdout(sys.stderr):
        module = _import(place, ref)
    return _app_in(module, attribute, ref)


def _configured(pyproject: Path) -> str | None:
    if not pyproject.is_file():
        return None
    import tomllib

    try:
        table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Stop(f"{pyproject} cannot be read: {error}") from error
    app = table.get("tool", {}).get("agentflow", {}).get("app")
    if app is not None and not (isinstance(app, str) and app):
        raise Stop(f'{pyproject}: [tool.agentflow] app = {app!r}: give a text such as "module:app"')
    return app


def _import(place: str, ref: str) -> ModuleType:
    is_file = place.endswith(".py")
    if is_file:
        folder, name = _importable(Path(place))
    else:
        folder, name = Path.cwd(), place
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        if is_file:
            return import_file(Path(place).resolve(), name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise Stop(
                f"there is no module {missing!r} (for the app {ref!r}) in {folder} or installed"
            ) from error
        raise Stop(_of_the_user(error, ref)) from error
    except Exception as error:
        raise Stop(_of_the_user(error, ref)) from error


def _importable(file: Path) -> tuple[Path, str]:
    """The folder to import from and the dotted name there: a file inside packages keeps its full name."""
    if not file.is_file():
        raise Stop(f"there is no file {file}")
    folder, name = file.resolve().parent, file.stem
    while (folder / "__init__.py").is_file():
        name = f"{folder.name}.{name}"
        folder = folder.parent
    return folder, name


def import_file(path: Path, name: str) -> ModuleType:
    """Import by the path: another module of the same name may come first on sys.path."""
    if "." in name or (name in sys.modules and sys.modules[name].__dict__.get("__file__") == str(path)):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Stop(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _app_in(module: ModuleType, attribute: str, ref: str) -> App:
    from agentflow.app import App

    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if isinstance(found, App):
            return found
        what = "there is nothing of that name" if found is None else f"it is a {type(found).__name__}"
        raise Stop(f"{ref!r} names no agentflow App: {what}{_hint(module)}")
    apps = {id(value): (name, value) for name, value in vars(module).items() if isinstance(value, App)}
    if isinstance(getattr(module, "app", None), App):
        return module.app  # type: ignore[no-any-return]
    if len(apps) == 1:
        return next(iter(apps.values()))[1]
    if not apps:
        raise Stop(f"{module.__name__} has no agentflow App at its top level: {HOW_TO_NAME_ONE}")
    names = ", ".join(sorted(name for name, _ in apps.values()))
    raise Stop(
        f"{module.__name__} has several apps ({names}): say which, as in -a {ref}:{names.split(', ')[0]}"
    )


def _hint(module: ModuleType) -> str:
    from agentflow.app import App

    names = sorted(name for name, value in vars(module).items() if isinstance(value, App))
    return f"; {module.__name__} has {', '.join(names)}" if names else ""


def _of_the_user(error: Exception, ref: str) -> str:
    """What went wrong in the user's module, with the line of theirs it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith((ours + os.sep, "<"))
        and "site-packages" not in frame.filename
        and f"{os.sep}importlib{os.sep}" not in frame.filename
    ]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    told = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"the app {ref!r} cannot be imported{place}: {type(error).__name__}: {told}"
