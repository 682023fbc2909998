"""Who is calling: `auth="dev"`, API keys, or any dependency that returns a `Principal`. Always a dependency."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from agentflow.errors import ConfigurationError
from agentflow.http.problems import ProblemError
from agentflow.principals import Principal

SCOPES: Final = ("events:write", "runs:read", "runs:write", "signals:write", "approvals:decide", "admin")
ENVIRONMENT_VARIABLE: Final = "AGENTFLOW_API_KEYS"
SHORTEST_TOKEN: Final = 20

Authenticate = Callable[..., Any]
"""A dependency of FastAPI's that returns a `Principal`."""
Permit = Callable[..., Awaitable[Principal]]

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="agentflow"'}
_LOCAL_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_HEX_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_FORWARDED: Final = ("forwarded", "x-real-ip")
_bearer = HTTPBearer(auto_error=False, description="A key of this API")


def authenticator(auth: object) -> Authenticate:
    """The dependency that `auth=` stands for. Raises `ConfigurationError`."""
    if auth == "dev":
        return local_developer
    if callable(auth) and not isinstance(auth, type):
        return auth
    raise ConfigurationError(
        f'auth={auth!r}: give "dev", ApiKeys(...) of agentflow.auth, or a dependency that returns a Principal'
    )


def permission(authenticate: Authenticate, scope: str | None) -> Permit:
    """The dependency of a route that asks for a scope; `None`: anybody who is known."""

    async def permitted(principal: object = Depends(authenticate)) -> Principal:
        if not isinstance(principal, Principal):
            raise ConfigurationError(
                f"the auth= dependency returned a {type(principal).__name__}: it has to return an "
                "agentflow.auth.Principal, or raise HTTPException(401)"
            )
        if scope is not None and not {scope, "admin"} & set(principal.scopes):
            raise ProblemError("missing_scope", f"This needs the scope {scope!r}.")
        return principal

    return permitted


# ------------------------------------------------------------------------------------------------ dev


async def local_developer(request: Request) -> Principal:
    """`auth="dev"`: who sits at this machine may do everything; nobody else may do anything."""
    stranger = _why_not_local(request)
    if stranger is not None:
        raise ProblemError(
            "unauthenticated",
            f'auth="dev" answers to this machine alone, and {stranger}. For anybody else configure '
            "app.router(auth=ApiKeys(...)) with agentflow.auth.ApiKeys, or a dependency that returns a Principal.",
            headers=_CHALLENGE,
        )
    _refuse_cross_origin(request)
    return Principal(id="dev", scopes=("admin",))


def _why_not_local(request: Request) -> str | None:
    if request.client is None or not _is_loopback(request.client.host):
        return "this request comes from elsewhere"
    # A page of another name that resolves to this machine (DNS rebinding) sends its own name here.
    hosts = request.headers.getlist("host")
    if len(hosts) != 1 or not _LOCAL_HOST.fullmatch(hosts[0].strip()):
        return "this request names another host"
    if any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers):
        return "this request was forwarded by a proxy"
    return None


def _refuse_cross_origin(request: Request) -> None:
    """A page of anywhere may post to this machine through the developer's browser; its origin gives it away."""
    origin = request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers['host'].strip()}"
    if (origin is not None and origin.lower() != own.lower()) or (
        request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    ):
        raise ProblemError("cross_origin", f"This request comes from a page of {origin or 'another origin'}.")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# ----------------------------------------------------------------------------------------------- keys


class ApiKey:
    """A key's scopes, and the SHA-256 of its token. The token itself is not kept.

    `token` has 20 characters or more, best `secrets.token_urlsafe(32)`; or give its `sha256` in hex.
    """

    def __init__(
        self,
        token: str | SecretStr | None = None,
        *,
        scopes: Iterable[str],
        roles: Iterable[str] = (),
        sha256: str | None = None,
    ) -> None:
        self.scopes = _checked_scopes(scopes)
        self.roles = tuple(roles)
        self.sha256 = _hash_of(token, sha256)

    def __repr__(self) -> str:
        return f"<ApiKey {' '.join(self.scopes)}>"


class ApiKeys:
    """A dependency that knows callers by `Authorization: Bearer <token>`.

    The id of a key is the id of its `Principal`: what an approval is decided by.

        ApiKeys({"crm": ApiKey(os.environ["CRM_TOKEN"], scopes=["events:write", "runs:read"])})
    """

    def __init__(self, keys: Mapping[str, ApiKey] | None = None) -> None:
        if not keys:
            raise ConfigurationError(
                "ApiKeys() without keys: keys kept in the database are not in this version yet; give "
                'ApiKeys({"id": ApiKey(token, scopes=[...])}) or use ApiKeys.from_environment()'
            )
        self._keys: dict[str, ApiKey] = {}
        for key_id, key in keys.items():
            if not isinstance(key, ApiKey):
                raise ConfigurationError(f"ApiKeys: {key_id!r} is no ApiKey(token, scopes=[...])")
            if not key_id or any(key.sha256 == other.sha256 for other in self._keys.values()):
                raise ConfigurationError(
                    f"ApiKeys: {key_id!r}: ids are not empty, and every key has its own token"
                )
            self._keys[key_id] = key

    def __repr__(self) -> str:
        return f"<ApiKeys {', '.join(self._keys)}>"

    @classmethod
    def from_environment(cls, variable: str = ENVIRONMENT_VARIABLE) -> ApiKeys:
        """The keys of a JSON object in the environment: `{"crm": {"sha256": "...", "scopes": ["events:write"]}}`.

        `"token"` may stand for `"sha256"`, `"roles"` may be added.
        """
        text = os.environ.get(variable, "")
        try:
            given = json.loads(text)
            return cls({key_id: ApiKey(**entry) for key_id, entry in given.items()})
        except (ValueError, TypeError, AttributeError):
            # The cause is not shown: it would hold the text, and with it the tokens.
            raise ConfigurationError(
                f'{variable} has to hold {{"<id>": {{"sha256": "<hex>", "scopes": ["runs:read", ...]}}}}, as JSON'
            ) from None

    async def __call__(
        self, credentials: HTTPAuthorizationCredentials | None = Security(_bearer)
    ) -> Principal:
        found = None if credentials is None else await self._find(_sha256(credentials.credentials))
        if found is None:
            raise ProblemError(
                "unauthenticated",
                "Send Authorization: Bearer <token> with a key of this API.",
                headers=_CHALLENGE,
            )
        key_id, key = found
        return Principal(id=key_id, roles=key.roles, scopes=key.scopes)

    async def _find(self, sha256: str) -> tuple[str, ApiKey] | None:
        # All are compared, each in constant time: how long it takes says nothing of which one was near.
        found = [item for item in self._keys.items() if hmac.compare_digest(item[1].sha256, sha256)]
        return found[0] if found else None


def _checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    given = (scopes,) if isinstance(scopes, str) else tuple(scopes)
    unknown = [scope for scope in given if scope not in SCOPES]
    if unknown or not given:
        raise ConfigurationError(f"ApiKey(scopes={given!r}): give some of {', '.join(SCOPES)}")
    return given


def _hash_of(token: str | SecretStr | None, sha256: str | None) -> str:
    if (token is None) == (sha256 is None):
        raise ConfigurationError("ApiKey: give a token or its sha256")
    if sha256 is not None:
        if not _HEX_SHA256.fullmatch(sha256):
            raise ConfigurationError("ApiKey(sha256=...): 64 hexadecimal digits, as sha256sum writes them")
        return sha256.lower()
    text = token.get_secret_value() if isinstance(token, SecretStr) else str(token)
    if len(text) < SHORTEST_TOKEN:
        raise ConfigurationError(
            f"ApiKey: a token has {SHORTEST_TOKEN} characters at least, best secrets.token_urlsafe(32)"
        )
    return _sha256(text)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
