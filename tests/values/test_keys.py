"""Step keys keep the user's id, and never mistake a part of it for their own marks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentflow.keys import branch_of, escape, make_key, race_scope, step_id_of

branches = st.lists(st.integers(0, 20), max_size=3).map(lambda path: ".".join(map(str, path)))


@given(st.text(alphabet=st.sampled_from("ab:@\\./01#"), min_size=1), st.integers(0, 12), branches)
def test_the_id_comes_back_from_its_key(step_id: str, ordinal: int, branch: str) -> None:
    assert step_id_of(make_key(escape(step_id), ordinal, branch)) == step_id


@given(*[st.tuples(st.text(alphabet=st.sampled_from("a:@\\1"), min_size=1), st.integers(0, 2), branches)] * 2)
def test_two_calls_never_share_a_key(one: tuple[str, int, str], two: tuple[str, int, str]) -> None:
    keys = [make_key(escape(step_id), ordinal, branch) for step_id, ordinal, branch in (one, two)]
    assert (keys[0] == keys[1]) == (one == two)


ids = st.text(alphabet=st.sampled_from("ab:@\\./01#"), min_size=1)
calls = st.tuples(ids, st.integers(0, 2), branches)
scopes = st.lists(st.tuples(calls, ids), max_size=2)


def key_in(races: list[tuple[tuple[str, int, str], str]], call: tuple[str, int, str]) -> tuple[str, str]:
    """The key of a call inside of these races' branches, the outermost first; with its scope."""
    scope = ""
    for (race_id, ordinal, branch), name in races:
        scope = race_scope(scope + make_key(escape(race_id), ordinal, branch), name)
    step_id, ordinal, branch = call
    return scope + make_key(escape(step_id), ordinal, branch), scope


@given(scopes, calls)
def test_a_key_tells_the_branch_of_the_race_and_the_task_in_it(
    races: list[tuple[tuple[str, int, str], str]], call: tuple[str, int, str]
) -> None:
    key, scope = key_in(races, call)
    assert branch_of(key) == scope + call[2]


@given(scopes, calls, scopes, calls)
def test_no_step_has_the_key_of_one_in_another_branch_of_a_race(
    races: list[tuple[tuple[str, int, str], str]],
    call: tuple[str, int, str],
    other_races: list[tuple[tuple[str, int, str], str]],
    other_call: tuple[str, int, str],
) -> None:
    (key, _), (other, other_scope) = key_in(races, call), key_in(other_races, other_call)
    assert (key == other) == ((races, call) == (other_races, other_call))
    if key.startswith(other_scope):
        assert races[: len(other_races)] == other_races
