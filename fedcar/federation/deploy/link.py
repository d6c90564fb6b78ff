"""The connection from a server's folder to its SuperLink on loopback."""

from __future__ import annotations

import time

from fedcar.errors import FedcarError
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.wire.flower import Link

START_SECONDS = 90.0
LOOK_SECONDS = 3.0  # in which a SuperLink answers that is not being started


def link_of(place: ServerFolder) -> Link:
    """The connection; it is not opened yet."""
    address = f"127.0.0.1:{place.settings().link_port}"
    return Link(address, place.ca.read_bytes(), place.secret.read_bytes())


def reached(place: ServerFolder, seconds: float = START_SECONDS) -> Link:
    """The connection, once the SuperLink answers: it may be starting, or be started again. FedcarError if not."""
    link, end = link_of(place), time.monotonic() + seconds
    while True:
        try:
            link.nodes()
            return link
        except Exception as error:
            if time.monotonic() > end or not place.serving():
                log = place.folder / "superlink.log"
                raise FedcarError(f"{place.folder}: its SuperLink does not answer; {log} says why") from error
        time.sleep(0.2)


def register(place: ServerFolder, key: bytes, name: str) -> int:
    """Let the device with this key in; its number."""
    return reached(place).register(key, name)


def node_states(place: ServerFolder) -> dict[int, str]:
    """Which devices are online and which offline, by number."""
    return {node.id: "online" if node.online else "offline" for node in reached(place, LOOK_SECONDS).nodes().values()}
