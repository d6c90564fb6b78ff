"""The TLS front: the only door to the SuperLink from outside, and only to what devices need."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PATHS = {
    f"/v1/fleet/{name}"
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "push-object",
        "pull-object", "confirm-message-received", "get-run", "get-fab",
    )
}  # fmt: skip
LARGEST_REQUEST = 64 << 20  # bytes; Flower's objects have 5 MB
SECONDS = 60.0
HOP_BY_HOP = {
    "host",
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "proxy-authorization",
}


def application(link: str, ca: bytes) -> Starlette:
    """Passes POST to PATHS on to the SuperLink at `link`, and nothing else; bodies stream through."""
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import Request  # noqa: F401 - for the annotations
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    context = ssl.create_default_context(cadata=ca.decode())
    client = httpx.AsyncClient(verify=context, timeout=SECONDS, base_url=f"https://{link}")

    async def forward(request: Request) -> Response:
        path = request.url.path
        length = request.headers.get("content-length", "")
        if path not in PATHS or request.url.query:
            return PlainTextResponse("not here\n", 404)
        if not length.isdigit() or int(length) > LARGEST_REQUEST:
            return PlainTextResponse("too large, or of unknown length\n", 413)
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        try:
            passed_on = client.build_request("POST", path, headers=headers, content=request.stream())
            answer = await client.send(passed_on, stream=True)
        except httpx.HTTPError:
            return PlainTextResponse("the server is starting, or being restarted\n", 503)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        passed_back = {
            name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP | {"server", "date"}
        }
        return StreamingResponse(body(), answer.status_code, passed_back)

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])], lifespan=closing)


def start(link: str, ca: bytes, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Server:
    """Serve the front from a thread of this process; returns once it listens."""
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(
        uvicorn.Config(
            application(link, ca), host=host, port=port, ssl_certfile=str(certificate), ssl_keyfile=str(key),
            access_log=False, log_level="warning", server_header=False, timeout_keep_alive=30,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, name="front", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    if not server.started:
        raise FedcarError(f"the TLS front cannot listen on {host} port {port}; give another --port")
    return server
