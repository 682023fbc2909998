"""Authentication for `App.router(auth=...)`."""

from agentflow.http.auth import ApiKey, ApiKeys
from agentflow.principals import Principal

__all__ = ["ApiKey", "ApiKeys", "Principal"]
