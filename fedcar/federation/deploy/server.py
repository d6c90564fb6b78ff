"""The server of a real federation: its folder, its processes, and the devices it lets in."""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_file, replace_json
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, typed_path
from fedcar.federation.deploy import front as deploy_front
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.processes import Child, check_port, free_port, held, locked
from fedcar.federation.device.device import documents_fingerprint
from fedcar.federation.wire.flower import Link, environment, superlink_command
from fedcar.version import __version__

FORMAT = 1
START_SECONDS = 90.0
LOOPBACK = ["127.0.0.1", "localhost"]
SERVED = "is being served already; stop that fedcar serve first"
NOT_SERVED = 'no fedcar serve runs there; start it, and wait until it says "serving on"'


@dataclass(frozen=True)
class ServerSettings:
    """What a server keeps in server.json from its first start on; the fingerprints are those of its devices too."""

    host: str
    bind: str
    port: int
    link_port: int
    collection: str
    documents: str
    encoder: str
    pooling: str | None
    encoder_fingerprint: str
    version: str = __version__
    format: int = FORMAT


class ServerFolder:
    """SERVER/server.json, ca.pem, nodes.json, runs/; secret, keys and the SuperLink's own files beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file, self.nodes_file, self.runs = folder / "server.json", folder / "nodes.json", folder / "runs"
        self.ca, self.secret = folder / "ca.pem", folder / "secret"

    def settings(self) -> ServerSettings:
        """FedcarError where there is no server yet, or one of a later fedcar."""
        if not self.file.exists():
            raise FedcarError(
                f"{self.folder}: no server's folder; make one with fedcar serve --data-dir {typed_path(self.folder)} "
                '(one that was just started is there once it says "serving on")'
            )
        content = json.loads(self.file.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise FedcarError(f"{self.file}: written by a later fedcar ({content['version']}); update this one")
        return ServerSettings(**content)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The devices that were let in, by name: node id and the key's fingerprint."""
        if not self.nodes_file.exists():
            return {}
        content: dict[str, dict[str, Any]] = json.loads(self.nodes_file.read_text(encoding="utf-8"))
        return content

    def link(self) -> Link:
        """The connection to the SuperLink on loopback; it is not opened yet."""
        address = f"127.0.0.1:{self.settings().link_port}"
        return Link(address, self.ca.read_bytes(), self.secret.read_bytes())

    def reached(self, seconds: float = START_SECONDS) -> Link:
        """The connection, once the SuperLink answers: it may be starting, or be started again. FedcarError if not."""
        link, end = self.link(), time.monotonic() + seconds
        while True:
            try:
                link.nodes()
                return link
            except Exception as error:
                if time.monotonic() > end or not self.serving():
                    log = self.folder / "superlink.log"
                    raise FedcarError(f"{self.folder}: its SuperLink does not answer; {log} says why") from error
            time.sleep(0.2)

    def serving(self) -> bool:
        """Whether fedcar serve runs on this folder."""
        return self.held("serve.lock")

    def held(self, name: str) -> bool:
        """Whether a process holds this lock of the folder."""
        return held(self.folder / name)

    def locked(self, name: str, what: str = "") -> AbstractContextManager[bool]:
        """Hold a lock of the folder (see `processes.locked`)."""
        return locked(self.folder / name, what)


def prepare_server(
    place: ServerFolder, host: str, bind: str | None, port: int, collection: Path, encoder: str, pooling: str | None
) -> ServerSettings:
    """Make the folder with authority, certificates and secret where they are missing; the settings of the server.

    A folder that was served before keeps its collection and encoder: devices were told their fingerprints.
    """
    bind = bind or host
    check_port(bind, port, "--port")
    documents = documents_fingerprint(Collection.read(collection, part=True))
    model = Encoder.load(encoder, pooling)
    link_port = free_port()
    settings = ServerSettings(
        host, bind, port, link_port, str(collection.resolve()), documents, encoder, pooling, model.fingerprint
    )
    if place.file.exists():
        if place.serving():  # nothing of what the running one relies on is written over
            raise FedcarError(f"{place.folder}: {SERVED}")
        before = place.settings()
        for what, then, now in (
            ("collection (its documents differ)", before.documents, documents),
            ("encoder", before.encoder_fingerprint, model.fingerprint),
        ):
            if then != now:
                raise FedcarError(
                    f"{place.folder}: serves another {what} ({then[:12]}, now {now[:12]}); its devices were told the "
                    "former one, so give that, or start another server in a new --data-dir"
                )
    elif place.folder.exists() and any(place.folder.iterdir()):
        raise FedcarError(f"--data-dir {place.folder}: exists and is no server's folder; give another")
    place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.make_authority(place.folder)
    keys.make_certificate(place.folder, "link", LOOPBACK)
    if not place.secret.exists():
        keys.write_private(place.secret, secrets.token_hex(32).encode())
    replace_json(place.file, asdict(settings))
    return settings


def front_certificate(place: ServerFolder, host: str, given: tuple[Path, Path, Path] | None) -> tuple[Path, Path]:
    """Certificate and key of the TLS front: the folder's own for `host`, or the given ones (and their authority)."""
    authority = place.folder / "front-ca.pem"
    if given is None:
        keys.make_certificate(place.folder, "front", list(dict.fromkeys([host, *LOOPBACK])))
        authority.unlink(missing_ok=True)
        return place.folder / "front.pem", place.folder / "front.key"
    certificate, key, ca = given
    left = keys.days_left(certificate)
    if left < 0:
        raise FedcarError(f"--certificate {certificate}: ran out {-left:.0f} days ago; give a new one")
    if host not in keys.hosts_of(certificate):
        raise FedcarError(f"--certificate {certificate}: is not for {host}; give one that is, or another --host")
    keys.days_left(ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # also ssl.SSLError
        raise FedcarError(f"--certificate-key {key}: cannot be read, or is not the key of {certificate}") from error
    replace_file(authority, ca.read_bytes())
    return certificate, key


def superlink(place: ServerFolder, settings: ServerSettings) -> Child:
    """The SuperLink as a child process, not started yet."""
    tls = {"ca": place.ca, "certificate": place.folder / "link.pem", "key": place.folder / "link.key"}
    command = superlink_command(settings.link_port, place.folder / "superlink.sqlite", place.secret, tls)
    return Child(command, place.folder / "superlink.log", environment(place.folder / "flower"))


def wait_for(link: Link, child: Child, seconds: float = START_SECONDS) -> None:
    """Until the SuperLink answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            link.nodes()
            return
        except Exception as error:
            if not child.alive:
                raise FedcarError(f"the SuperLink did not start: {child.last_line()} ({child.log})") from error
            time.sleep(0.2)
    raise FedcarError(f"the SuperLink does not answer after {seconds:.0f} s; {child.log} says why")


def serve(
    place: ServerFolder,
    settings: ServerSettings,
    front: tuple[Path, Path],
    say: Callable[[str], None],
    until: Callable[[], bool] = lambda: False,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run SuperLink and TLS front, and restart the SuperLink when it dies; returns when `until` says so.

    `started` is called once devices can reach it.
    """
    with place.locked("serve.lock") as free:
        if not free:
            raise FedcarError(f"{place.folder}: {SERVED}")
        child = superlink(place, settings)
        server = None
        try:
            child.start()
            wait_for(place.link(), child)
            address = f"127.0.0.1:{settings.link_port}"
            server = deploy_front.start(address, place.ca.read_bytes(), settings.bind, settings.port, *front)
            say(f"serving on {settings.host} port {settings.port}; devices: {len(place.nodes())} enrolled")
            started()
            while not until():
                if child.keep_alive():
                    say(f"the SuperLink died and was started again ({child.log})")
                time.sleep(0.2)
        finally:
            if server is not None:
                server.should_exit = True
            child.stop()


def enroll(place: ServerFolder, public: Path, address: str | None, out: Path | None) -> Path:
    """Let a device in by its public key and write what it joins with: address, authority, fingerprints; no secret."""
    settings = place.settings()
    name, key = keys.read_public(public)
    with place.locked("enroll.lock") as free:
        if not free:
            raise FedcarError(f"{place.folder}: another fedcar enroll is on; wait for it, then enroll {name} again")
        node = _registered(place, public, name, key)
    file = out or public.with_suffix(".join")
    given = place.folder / "front-ca.pem"
    replace_json(
        file,
        {
            "format": FORMAT, "fedcar": __version__, "node": name, "id": node["node"], "key": node["key"],
            "address": address or f"{settings.host}:{settings.port}",
            "ca": (given if given.exists() else place.ca).read_text(),
            "documents": settings.documents, "encoder": settings.encoder, "pooling": settings.pooling,
            "encoder_fingerprint": settings.encoder_fingerprint,
        },
    )  # fmt: skip
    return file


def _registered(place: ServerFolder, public: Path, name: str, key: bytes) -> dict[str, Any]:
    """What the server knows the device by; it is let in where it is new."""
    fingerprint = keys.key_fingerprint(key)
    known = place.nodes()
    if name in known and known[name]["key"] != fingerprint:
        raise FedcarError(f"{public}: a device {name} with another key is enrolled; give this one another name")
    if taken := [other for other, node in known.items() if node["key"] == fingerprint and other != name]:
        raise FedcarError(f"{public}: this key is enrolled as {taken[0]}; one device has one name")
    if not place.serving():
        raise FedcarError(f"{place.folder}: {NOT_SERVED}")
    if name not in known:
        known[name] = {"node": place.reached().register(key, name), "key": fingerprint}
        replace_json(place.nodes_file, known)
    return known[name]
