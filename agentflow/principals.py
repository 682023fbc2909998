"""Who acts: a person or a program, as authentication found out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Principal(BaseModel):
    """An authenticated caller. `roles` count where an approval names its approvers, `scopes` where a route needs one."""

    model_config = ConfigDict(frozen=True)

    id: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    tenant: str | None = None
