"""How connections come to the front: each takes a place before TLS is spoken, and a stranger's ends in seconds.

HTTP is uvicorn's, over h11, which bounds what it holds of a request's head.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedcar.federation.deploy.places import Place, Places

STRANGER_SECONDS = 10.0  # for TLS and the head of the first signed request, whatever else is sent
BACKLOG = 128
LEAST_FILES = 8192  # open files of this process, as far as the system allows: each connection is one


class Connection(H11Protocol):
    """A connection of uvicorn's that gives its place back, and ends where its bytes cannot be answered any more."""

    place: Place
    places: Places
    limit: asyncio.TimerHandle

    def connection_lost(self, exc: Exception | None) -> None:
        self.limit.cancel()  # which would keep what is gone until it ends
        self.places.leave(self.place)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.ProtocolError:  # such as rubbish behind an answer that has begun
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # its own answer would be a second one
        super().send_400_response(msg)


class Listener(uvicorn.Server):
    """uvicorn on sockets that listen already; connections are let in here, one at a time."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], places: Places) -> None:
        super().__init__(config)
        self.listening, self.places = sockets, places
        self.under_way: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        for listening in self.listening:
            listening.setblocking(False)
            self._start(self.let_in(listening))
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in list(self.under_way):
            task.cancel()
        for listening in self.listening:
            listening.close()
        await super().shutdown()

    async def let_in(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, client = await loop.sock_accept(listening)
            except OSError:  # no file is left for it, or it is gone again
                await asyncio.sleep(0.1)
                continue
            self._start(self.greeted(connected, client[0]))
            await asyncio.sleep(0)  # what is under way goes on between any two that come

    async def greeted(self, connected: socket.socket, host: str) -> None:
        """Speak TLS; the connection is uvicorn's from then on, and closed where its place is given up."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        connection = Connection(self.config, self.server_state, dict(self.lifespan.state), loop)

        def close() -> None:
            if connection.transport is not None:
                connection.transport.abort()
            elif task is not None:
                task.cancel()

        def end() -> None:
            if place.group[0] == "address":
                close()

        place = self.places.take(host, close)
        connection.place, connection.places, connection.app_state["place"] = place, self.places, place
        connection.limit = loop.call_later(STRANGER_SECONDS, end)
        try:
            await loop.connect_accepted_socket(
                lambda: connection, connected, ssl=self.config.ssl, ssl_handshake_timeout=STRANGER_SECONDS
            )
        except (OSError, asyncio.CancelledError):
            connection.limit.cancel()
            self.places.leave(place)
            connected.close()

    def _start(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)


def listening_on(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of the host; OSError where one cannot."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets, missing = [], OSError(errno.EADDRNOTAVAIL, "no address")
    for family, address in sorted({(family, address[:2]) for family, _, _, _, address in found}):
        try:
            sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error
    if not sockets:
        raise missing
    return sockets


def more_files() -> None:
    """As many open files as the front may need, where the system has a limit below and lets it be raised."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows, which has no such limit

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = LEAST_FILES if hard == resource.RLIM_INFINITY else min(LEAST_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
