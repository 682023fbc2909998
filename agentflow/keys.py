"""Step keys: the identity of a step in its run, made from the id the user wrote and from where it was called.

`load` is the first call with that id in its task, `load:1` the second one, `load@0.2` the first in that branch.
"""

from __future__ import annotations

import re

CANCELLED = "@cancelled "
"""Begins the key under which it is kept that the await of a step was cancelled; no step's key begins so."""
_SLASH = r"\/"
_SCOPE = re.compile(r"^.*(?<!\\)(?:\\\\)*@(?:[^/\\]|\\.)*/", re.DOTALL)
_SUFFIX = re.compile(r"(?<!\\)(?:\\\\)*(?P<suffix>(?::\d+)?(?:@\d+(?:\.\d+)*)?)\Z")


def escape(step_id: str) -> str:
    """A user's step id as it stands in a key, where `:` and `@` have a meaning."""
    if ":" in step_id or "@" in step_id or "\\" in step_id:
        return step_id.replace("\\", "\\\\").replace(":", "\\:").replace("@", "\\@")
    return step_id


def race_scope(key: str, branch: str) -> str:
    """What every key in a branch of a race begins with; `key` is the race's own. No other key begins so."""
    return f"{key}@{escape(branch).replace('/', _SLASH)}/"


def make_key(name: str, ordinal: int, branch: str) -> str:
    """The key of the call with this ordinal, of an escaped id, in a branch (`""` for the function's own task)."""
    if ordinal:
        name = f"{name}:{ordinal}"
    return f"{name}@{branch}" if branch else name


def branch_of(key: str) -> str:
    """Where a key was taken: the path of the task, after the scope of the race branch that the task belongs to."""
    if "@" not in key:
        return ""
    found, scope = _SUFFIX.search(key), _SCOPE.match(key)
    return (scope[0] if scope else "") + (found["suffix"].partition("@")[2] if found else "")


def step_id_of(key: str) -> str:
    """The id in a key, as the user wrote it; with its scope in front where it has one (`support#0/turn1/model`)."""
    found = _SUFFIX.search(key)
    own = key[: found.start("suffix")] if found else key
    return re.sub(r"\\(.)", r"\1", own)
