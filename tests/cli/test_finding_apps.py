"""The app comes from `-a`, pyproject.toml, or main.py / app.py; what is wrong with it is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.exits import ExitCode, Stop
from agentflow.cli.find_app import find_app, find_ref, load_app

APP = "from agentflow import App\napp = App({!r})\n"


def test_an_app_is_named_by_module_and_attribute(empty_folder: Path) -> None:
    (empty_folder / "named_here.py").write_text(APP.format("first") + "other = App('second')\n")
    assert [load_app(ref).id for ref in ("named_here", "named_here:app", "named_here:other")] == [
        "first",
        "first",
        "second",
    ]


def test_an_app_is_named_by_its_file_also_inside_a_package(empty_folder: Path) -> None:
    package = empty_folder / "src" / "shop_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "names.py").write_text("NAME = 'packaged'\n")
    (package / "flow.py").write_text("from .names import NAME\nfrom agentflow import App\nflow = App(NAME)\n")
    assert load_app("src/shop_package/flow.py:flow").id == "packaged"


def test_pyproject_names_the_app_before_main_py_does(empty_folder: Path) -> None:
    (empty_folder / "main.py").write_text(APP.format("main"))
    assert find_ref(None) == "main.py"
    (empty_folder / "pyproject.toml").write_text('[tool.agentflow]\napp = "elsewhere:app"\n')
    assert find_ref(None) == "elsewhere:app"
    assert find_ref("given:app") == "given:app"


def test_a_module_may_hold_another_frameworks_app_beside_ours(empty_folder: Path) -> None:
    (empty_folder / "app.py").write_text("from agentflow import App\napp = object()\nflow = App('ours')\n")
    assert find_app(None).id == "ours"


@pytest.mark.parametrize(
    ("content", "ref", "told"),
    [
        ("x = 1", "broken_app", "has no agentflow App at its top level"),
        ("x = 1", "broken_app:x", "it is a int"),
        ("x = 1", "broken_app:y", "there is nothing of that name"),
        (APP.format("a") + "b = App('b')\ndel app\nc = App('c')", "broken_app", "has several apps (b, c)"),
        ("import nothing_of_this_name", "broken_app:app", "broken_app.py, line 1): ModuleNotFoundError"),
        ("x = 1\nprint(y)", "broken_app:app", "broken_app.py, line 2): NameError: name 'y' is not defined"),
        ("def f(:", "broken_app:app", "broken_app.py, line 1): SyntaxError"),
        ("", "no_such_module:app", "there is no module 'no_such_module'"),
        ("", "no_such_file.py:app", "there is no file no_such_file.py"),
    ],
)
def test_what_is_wrong_with_an_app_is_said(empty_folder: Path, content: str, ref: str, told: str) -> None:
    (empty_folder / "broken_app.py").write_text(content)
    with pytest.raises(Stop) as stopped:
        load_app(ref)
    assert told in str(stopped.value)


def test_a_configuration_that_is_no_toml_is_said(empty_folder: Path) -> None:
    (empty_folder / "pyproject.toml").write_text("[tool.agentflow\n")
    with pytest.raises(Stop, match=r"pyproject.toml cannot be read"):
        find_ref(None)


def test_without_an_app_the_command_says_how_to_name_one(empty_folder: Path) -> None:
    with pytest.raises(Stop, match="name one with -a module:app") as stopped:
        find_app(None)
    assert stopped.value.code is ExitCode.USAGE


def test_what_a_module_prints_while_it_is_imported_is_not_on_stdout(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "app.py").write_text("print('hello')\n" + APP.format("loud"))
    find_app(None)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
