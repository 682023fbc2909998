"""`agentflow demo`, in a terminal and without one; killed in the middle: tests/crash/test_demo_kill.py."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forked import Forked

Shell = Callable[..., subprocess.CompletedProcess[str]]
QUESTION = "[a]pprove, [d]eny or [e]dit? "
APPROVED = "I have paid 189.00 euros back for order A-1001. I am sorry that it arrived broken."
DENIED = "I am sorry: a colleague has declined the refund. We will write to you about a repair."
SECONDS = 40.0


class Terminal:
    """The demo in a terminal of its own, and the person in front of it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = Forked(
            ["-P", "-m", "agentflow", "demo", "--fast", *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        )
        os.close(slave)
        self.shown = ""
        self._read_to = 0

    def expect(self, words: str) -> str:
        """Wait until these words appear behind those that came before."""
        deadline = time.monotonic() + SECONDS
        while words not in self.shown[self._read_to :]:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{words!r} does not come; the screen:\n{self.shown}"
            assert self._read(), f"it ended before {words!r}; the screen:\n{self.shown}"
        before = self.shown[self._read_to :]
        self._read_to = self.shown.index(words, self._read_to) + len(words)
        return before

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for the process's end; its exit code."""
        while self._read():
            pass
        return self.process.wait(timeout=SECONDS)

    def close(self) -> None:
        self.process.close()
        os.close(self._master)

    @property
    def last_lines(self) -> list[str]:
        return self.shown.rstrip().splitlines()[-3:]

    def _read(self) -> bool:
        try:
            block = os.read(self._master, 65536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.shown += block.decode().replace("\r\n", "\n")
        return bool(block)


@pytest.fixture
def terminal(empty_folder: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(empty_folder, *arguments))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def ledger(folder: Path) -> list[dict[str, object]]:
    path = folder / ".agentflow" / "refunds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def pending(shell: Shell) -> list[str]:
    return [request["id"] for request in json.loads(shell("approvals", "list", "--json").stdout)["data"]]


@pytest.mark.parametrize(("auto", "answer", "refunds"), [("approve", APPROVED, 1), ("deny", DENIED, 0)])
def test_it_decides_by_itself_and_sums_up_in_three_lines(
    empty_folder: Path, real_shell: Shell, auto: str, answer: str, refunds: int
) -> None:
    done = real_shell("demo", "--auto", auto, "--fast")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [f"answer: {answer}", "model calls: 5", f"refunds: {refunds}"]
    assert len(ledger(empty_folder)) == refunds
    assert sorted(path.name for path in empty_folder.iterdir()) == [".agentflow"]


def test_the_ledger_says_what_was_paid_under_which_key(empty_folder: Path, shell: Shell) -> None:
    shell("demo", "--auto", "approve", "--fast")
    [entry] = ledger(empty_folder)
    assert list(entry) == ["idempotency_key", "order_id", "amount"]
    assert (entry["order_id"], entry["amount"]) == ("A-1001", 189.0)


def test_a_finished_demo_starts_anew(empty_folder: Path, shell: Shell) -> None:
    runs = set()
    for auto, refunds in (("approve", 1), ("deny", 0), ("approve", 1)):
        done = shell("demo", "--auto", auto, "--fast")
        assert done.stdout.splitlines()[-2:] == ["model calls: 5", f"refunds: {refunds}"]
        runs |= set(re.findall(r"^run (run_\S+):", done.stdout, re.MULTILINE))
    assert len(runs) == 3
    assert len({entry["idempotency_key"] for entry in ledger(empty_folder)}) == 2


def test_with_nobody_there_it_says_how_to_decide_and_the_run_waits(empty_folder: Path, shell: Shell) -> None:
    left = shell("demo", "--fast")
    assert left.returncode == 6
    [id] = pending(shell)
    assert f"approvals approve {id.lstrip('-')}" in left.stderr
    assert "--auto" in left.stderr
    assert ledger(empty_folder) == []

    assert shell("approvals", "approve", id.lstrip("-"), "--by", "ana").returncode == 0
    rest = shell("demo", "--fast")
    assert rest.returncode == 0, rest.stderr
    assert "done before, not run again" in rest.stdout
    assert rest.stdout.splitlines()[-3:] == [f"answer: {APPROVED}", "model calls: 5", "refunds: 1"]


def test_an_answer_may_come_through_a_pipe(shell: Shell) -> None:
    done = shell("demo", "--fast", stdin=None, input="d\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "refunds: 0")


def test_a_person_approves_in_the_terminal(empty_folder: Path, terminal: Callable[..., Terminal]) -> None:
    person = terminal()
    asked = person.expect(QUESTION)
    assert '"A-1001"' in asked
    assert '"189.00"' in asked
    assert ledger(empty_folder) == []
    person.type("a\n")
    assert person.end() == 0
    assert person.last_lines == [f"answer: {APPROVED}", "model calls: 5", "refunds: 1"]


def test_what_is_no_answer_is_asked_again(empty_folder: Path, terminal: Callable[..., Terminal]) -> None:
    person = terminal()
    person.expect(QUESTION)
    for nonsense in ("\n", "what?\n", "\x1b[A\n"):
        person.type(nonsense)
        person.expect(QUESTION)
    person.type("D\n")
    assert person.end() == 0
    assert person.last_lines == [f"answer: {DENIED}", "model calls: 5", "refunds: 0"]


def test_a_person_edits_and_arguments_that_cannot_be_are_asked_again(
    empty_folder: Path, terminal: Callable[..., Terminal]
) -> None:
    person = terminal()
    person.expect(QUESTION)
    person.type("e\n")
    person.expect("amount [189.00]: ")
    person.type("a lot\n")
    person.expect("order_id [A-1001]: ")
    person.type("\n")
    person.expect("these cannot be used")
    person.expect("amount [189.00]: ")
    person.type("20.50\n")
    person.expect("order_id [A-1001]: ")
    person.type("\n")
    assert person.end() == 0
    assert "I have paid 20.50 euros back" in person.last_lines[0]
    assert [entry["amount"] for entry in ledger(empty_folder)] == [20.5]


def test_a_decision_from_elsewhere_ends_the_question(
    empty_folder: Path, shell: Shell, terminal: Callable[..., Terminal]
) -> None:
    person = terminal()
    person.expect(QUESTION)
    [id] = pending(shell)
    assert shell("approvals", "deny", id.lstrip("-"), "--by", "ana").returncode == 0
    person.expect("denied by ana elsewhere")
    assert person.end() == 0
    assert person.last_lines[-1] == "refunds: 0"


@pytest.mark.parametrize(("ending", "code"), [("\x03", 130), ("\x04", 6)])
def test_ctrl_c_and_ctrl_d_leave_the_run_waiting(
    empty_folder: Path, shell: Shell, terminal: Callable[..., Terminal], ending: str, code: int
) -> None:
    person = terminal()
    person.expect(QUESTION)
    person.type(ending)
    if ending == "\x03":
        os.killpg(person.process.pid, signal.SIGINT)  # the terminal is not its controlling one
    assert person.end() == code, person.shown
    assert "Traceback" not in person.shown
    assert len(pending(shell)) == 1
    assert shell("demo", "--fast", "--auto", "approve").stdout.splitlines()[-1] == "refunds: 1"


def test_killed_while_a_person_is_asked_it_asks_again(
    empty_folder: Path, terminal: Callable[..., Terminal]
) -> None:
    first = terminal()
    first.expect(QUESTION)
    first.process.kill()
    assert first.end() == -signal.SIGKILL
    second = terminal()
    told = second.expect(QUESTION)
    assert "done before, not run again" in told
    assert "asks the model" not in told
    second.type("a\n")
    assert second.end() == 0
    assert second.last_lines == [f"answer: {APPROVED}", "model calls: 5", "refunds: 1"]


def test_what_was_killed_while_the_model_was_asked_is_an_attempt_in_the_lines_and_in_the_table(
    empty_folder: Path, shell: Shell
) -> None:
    command = [sys.executable, "-P", "-m", "agentflow", "demo", "--auto", "approve"]
    for_ever = {**os.environ, "AGENTFLOW_DEMO_PAUSE": "3600"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=for_ever) as first:
        assert first.stdout is not None
        assert any("turn0/model  asks the model" in line for line in first.stdout)
        first.kill()
    told = shell("demo", "--auto", "approve", "--fast").stdout
    assert "▸ support#0/turn0/model  asks the model, attempt 2\n" in told
    assert "\nsupport#0/turn0/model\tinfer\tcompleted\t2\t" in told
    assert "\nsupport#0/turn1/model\tinfer\tcompleted\t1\t" in told


def test_a_torn_line_in_the_ledger_is_no_refund(empty_folder: Path, shell: Shell) -> None:
    shell("demo", "--auto", "approve", "--fast")
    with open(empty_folder / ".agentflow" / "refunds.jsonl", "a") as file:
        file.write('{"idempotency_key": "run_x:y", "order_')  # as a kill in the middle of a write leaves it
    done = shell("demo", "--auto", "approve", "--fast")
    assert done.stdout.splitlines()[-1] == "refunds: 1"
    assert len(ledger(empty_folder)) == 2


def test_a_database_that_was_removed_is_a_new_demo(empty_folder: Path, shell: Shell) -> None:
    assert shell("demo", "--fast").returncode == 6
    for path in (empty_folder / ".agentflow").glob("demo.db*"):
        if path.is_file():
            path.unlink()
    done = shell("demo", "--auto", "approve", "--fast")
    assert done.stdout.splitlines()[-3:] == [f"answer: {APPROVED}", "model calls: 5", "refunds: 1"]


def test_without_colours_where_they_are_not_wanted(
    empty_folder: Path, terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured = terminal("--auto", "approve")
    assert coloured.end() == 0
    assert "\x1b[" in coloured.shown
    monkeypatch.setenv("NO_COLOR", "1")
    plain = terminal("--auto", "approve")
    assert plain.end() == 0
    assert "\x1b[3" not in plain.shown


def test_a_model_that_nobody_knows_is_said(empty_folder: Path, shell: Shell) -> None:
    refused = shell("demo", env={**os.environ, "AGENTFLOW_DEMO_MODEL": "nosuch:model"})
    assert refused.returncode == 1
    assert "no provider 'nosuch' is known" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_that_cannot_be_made_is_said(empty_folder: Path, shell: Shell) -> None:
    (empty_folder / ".agentflow").write_text("a file is in the way")
    refused = shell("demo")
    assert refused.returncode == 1
    assert "cannot be written here" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_two_demos_in_one_folder_are_one(empty_folder: Path) -> None:
    command = [sys.executable, "-P", "-m", "agentflow", "demo", "--auto", "approve"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=SECONDS)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    endings = [text.splitlines()[-3:] for text in told]
    assert endings[0] == endings[1] == [f"answer: {APPROVED}", "model calls: 5", "refunds: 1"]
    assert len(ledger(empty_folder)) == 1


def test_the_example_runs_by_itself(empty_folder: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "agents" / "refund.py"
    environment = {**os.environ, "AGENTFLOW_DEMO_PAUSE": "0.02"}
    done = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=SECONDS, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == APPROVED
    assert len(ledger(empty_folder)) == 1


def test_a_terminal_that_knows_only_ascii_is_enough(real_shell: Shell) -> None:
    done = real_shell("demo", "--auto", "deny", "--fast", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "refunds: 0"), done.stderr
