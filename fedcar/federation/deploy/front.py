"""The TLS front: the only door to the SuperLink from outside, and only for what enrolled devices need.

Everything is bounded before anything is passed on. A connection has a place (`places`), and a few seconds until it
shows an enrolled device's signature, which is in its headers (`roster`): of anybody else no body is read. A device's
body is taken in whole, on disk where it is large, before a connection to the SuperLink is taken; so is the answer.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from tempfile import SpooledTemporaryFile

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedcar.errors import FedcarError
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.listener import Listener, listening_on, more_files
from fedcar.federation.deploy.places import Places
from fedcar.federation.deploy.roster import Roster, Unknown

PATHS = {
    f"/v1/fleet/{name}"
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "push-object",
        "pull-object", "confirm-message-received", "get-run", "get-fab",
    )
}  # fmt: skip
HEARTBEAT = "/v1/fleet/send-node-heartbeat"
LARGEST_REQUEST = 8 << 20  # bytes; Flower's objects have 5 MB, fedcar's 4
LARGEST_HEAD = 16 << 10  # bytes of a request's line and headers
SMALL = 256 << 10  # bytes of a body that are held in memory; more lie in a file without a name
LARGE_AT_ONCE = 4  # bodies above SMALL on their way to the SuperLink, which holds each several times
SECONDS = 60.0  # until the SuperLink answers, and for a body to come, which has a second more for each SLOWEST bytes
SLOWEST = 32 << 10
STAYS = 30  # seconds of a device's connection between two requests
PASSED_ON = ("accept", "content-type")  # and what Flower adds
PASSED_BACK = ("content-type",)
FLOWERS = "flwr-"


class Front:
    """What becomes of a request: refused by its head, or taken in, passed on to the SuperLink, and answered."""

    def __init__(self, link: str, place: ServerFolder, places: Places) -> None:
        context = ssl.create_default_context(cadata=place.ca.read_text())
        self.client = httpx.AsyncClient(verify=context, timeout=SECONDS, base_url=f"https://{link}")
        self.folder, self.roster, self.places = place.folder, Roster(place), places
        self.large = asyncio.Semaphore(LARGE_AT_ONCE)

    async def answer(self, request: Request) -> Response:
        """Whatever is asked, and by whomever: no exception, and nothing of a stranger's reaches the SuperLink."""
        checked = self.checked(request)
        if not isinstance(checked, dict):
            return checked
        length = int(checked["content-length"])
        try:
            with SpooledTemporaryFile(SMALL, dir=str(self.folder)) as body:
                await asyncio.wait_for(taken_in(request.stream(), body), SECONDS + length / SLOWEST)
                async with self.large if length > SMALL else nullcontext():
                    return await self.passed_on(request.scope["path"], checked, body)
        except (asyncio.TimeoutError, ClientDisconnect):
            return refusal(408, "the body did not come in time")
        except httpx.HTTPError:
            return refusal(503, "the server is starting, or being restarted")
        except OSError:
            return refusal(503, "the server has no room; see fedcar doctor there")

    def checked(self, request: Request) -> dict[str, str] | Response:
        """The headers of an enrolled device's request; of any other the refusal. The head says it all."""
        path, length = request.scope["path"], request.headers.get("content-length", "")
        if path not in PATHS or request.scope["query_string"]:
            return refusal(404, "not here")
        try:
            headers = {name.decode("ascii"): value.decode("ascii") for name, value in request.scope["headers"]}
        except UnicodeDecodeError:
            return refusal(400, "headers are ASCII")
        try:
            device = self.roster.device_of(headers)
        except Unknown as reason:
            return refusal(401, str(reason))
        self.places.know(request.scope["state"]["place"], device)
        if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > LARGEST_REQUEST:
            return refusal(413, "too large, or of unknown length")
        passed = {name: value for name, value in headers.items() if name in PASSED_ON or name.startswith(FLOWERS)}
        return {**passed, "content-length": length}

    async def passed_on(self, path: str, headers: dict[str, str], body: SpooledTemporaryFile[bytes]) -> Response:
        """The SuperLink's answer, taken in whole, so that a slow device keeps none of its connections."""
        asked = self.client.build_request("POST", path, headers=headers, content=pieces(body))
        came = await self.client.send(asked, stream=True)
        content: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(SMALL, dir=str(self.folder))  # noqa: SIM115
        try:
            await taken_in(came.aiter_raw(), content)
        except BaseException:
            content.close()
            raise
        finally:
            await came.aclose()
        status = 503 if path == HEARTBEAT and came.status_code == 500 else came.status_code  # Flower's own ends at 500
        back = {name: value for name, value in came.headers.items() if name in PASSED_BACK or name.startswith(FLOWERS)}
        return StreamingResponse(pieces(content, last=True), status, {**back, "content-length": str(content.tell())})


def refusal(status: int, says: str) -> Response:
    """An answer that ends the connection, and with it what was not read of the request."""
    return PlainTextResponse(f"{says}\n", status, {"connection": "close"})


async def taken_in(parts: AsyncIterator[bytes], spool: SpooledTemporaryFile[bytes]) -> None:
    async for part in parts:
        spool.write(part)


async def pieces(spool: SpooledTemporaryFile[bytes], last: bool = False) -> AsyncIterator[bytes]:
    """The content from its beginning; with `last` the spool is closed behind it."""
    try:
        spool.seek(0)
        while part := spool.read(64 << 10):
            yield part
    finally:
        if last:
            spool.close()


def application(front: Front) -> Starlette:
    """The front as an application of its own: POST alone."""

    @asynccontextmanager
    async def closing(_: Starlette) -> AsyncIterator[None]:
        yield
        await front.client.aclose()

    app = Starlette(routes=[Route("/{path:path}", front.answer, methods=["POST"])], lifespan=closing)
    app.router.redirect_slashes = False
    return app


def start(link: str, place: ServerFolder, host: str, port: int, certificate: Path, key: Path) -> uvicorn.Server:
    """Serve the front of the SuperLink at `link` from a thread of this process; returns once it listens."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # of what strangers send no line is written
    places = Places()
    config = uvicorn.Config(
        application(Front(link, place, places)), ssl_certfile=str(certificate), ssl_keyfile=str(key),
        access_log=False, log_level="error", server_header=False, proxy_headers=False, http="h11", ws="none",
        timeout_keep_alive=STAYS, h11_max_incomplete_event_size=LARGEST_HEAD,
    )  # fmt: skip
    more_files()
    try:
        server = Listener(config, listening_on(host, port), places)
    except OSError as error:
        raise FedcarError(f"the TLS front cannot listen on {host} port {port}; give another --port") from error
    thread = threading.Thread(target=server.run, name="front", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    if not server.started:
        raise FedcarError(f"the TLS front cannot start on {host} port {port}; its certificate or key cannot be read")
    return server
