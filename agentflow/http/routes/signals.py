"""`POST /signals`: a message to the one run that waits for its name."""

from __future__ import annotations

from agentflow.http.api import Api
from agentflow.http.schemas import SignalBody, SignalledBody


def add_routes(api: Api) -> None:
    async def send_signal(body: SignalBody) -> SignalledBody:
        """Wake the run that waits for this signal, exactly once; 404 when nobody does."""
        return SignalledBody(run_id=await api.client.signal(body.signal, body.data, buffer=body.buffer))

    api.add(
        "POST", "/signals", send_signal, permit=api.permit("signals:write"), status_code=202, tags=["signals"]
    )
