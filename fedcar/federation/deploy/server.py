"""The server of a real federation: what its folder is made of, and its processes."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_file, replace_json
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.deploy import front as deploy_front
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.folder import SERVE_LOCK, ServerFolder, ServerSettings
from fedcar.federation.deploy.link import START_SECONDS, link_of
from fedcar.federation.deploy.processes import Child, check_port, free_port
from fedcar.federation.device.device import documents_fingerprint
from fedcar.federation.wire.flower import Link, environment, superlink_command

LOOPBACK = ["127.0.0.1", "localhost"]
SERVED = "is being served already; stop that fedcar serve first"


def prepare_server(
    place: ServerFolder,
    host: str,
    bind: str | None,
    port: int,
    collection: Path,
    encoder: str,
    pooling: str | None,
    prompts: tuple[str | None, str | None] = (None, None),
) -> ServerSettings:
    """Make the folder with authority, certificates and secret where they are missing; the settings of the server.

    `prompts` stand before questions and before documents, where the encoder's own are not meant. A folder that was
    served before keeps its collection and encoder: devices were told their fingerprints.
    """
    bind = bind or host
    check_port(bind, port, "--port")
    documents = documents_fingerprint(Collection.read(collection, part=True))
    query, document = prompts
    model = Encoder.load(encoder, pooling, query_prompt=query, document_prompt=document)
    link_port = free_port()
    settings = ServerSettings(
        host,
        bind,
        port,
        link_port,
        str(collection.resolve()),
        documents,
        encoder,
        pooling,
        model.state_fingerprint,
        query_prompt=query,
        document_prompt=document,
    )
    if place.file.exists():
        if place.serving():  # nothing of what the running one relies on is written over
            raise FedcarError(f"{place.folder}: {SERVED}")
        before = place.settings()
        for what, then, now in (
            ("collection (its documents differ)", before.documents, documents),
            ("encoder", before.encoder_fingerprint, model.state_fingerprint),
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
    with place.locked(SERVE_LOCK) as free:
        if not free:
            raise FedcarError(f"{place.folder}: {SERVED}")
        child = superlink(place, settings)
        server = None
        try:
            child.start()
            wait_for(link_of(place), child)
            address = f"127.0.0.1:{settings.link_port}"
            server = deploy_front.start(address, place, settings.bind, settings.port, *front)
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
