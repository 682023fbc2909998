"""Step keys keep the user's id, and never mistake a part of it for their own marks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentflow.keys import escape, make_key, step_id_of

branches = st.lists(st.integers(0, 20), max_size=3).map(lambda path: ".".join(map(str, path)))


@given(st.text(alphabet=st.sampled_from("ab:@\\./01#"), min_size=1), st.integers(0, 12), branches)
def test_the_id_comes_back_from_its_key(step_id: str, ordinal: int, branch: str) -> None:
    assert step_id_of(make_key(escape(step_id), ordinal, branch)) == step_id


@given(*[st.tuples(st.text(alphabet=st.sampled_from("a:@\\1"), min_size=1), st.integers(0, 2), branches)] * 2)
def test_two_calls_never_share_a_key(one: tuple[str, int, str], two: tuple[str, int, str]) -> None:
    keys = [make_key(escape(step_id), ordinal, branch) for step_id, ordinal, branch in (one, two)]
    assert (keys[0] == keys[1]) == (one == two)
