"""Who acts: a person or a program, as authentication found out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Principal(BaseModel):
    """An authenticated caller. `roles` count for an approval's approvers, `scopes` for what a route needs."""

    model_config = ConfigDict(frozen=True)

    id: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    tenant: str | None = None
