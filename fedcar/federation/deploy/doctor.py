"""What may be wrong on a server or a device, each with what to do."""

from __future__ import annotations

import shutil
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedcar.collection.collection import Collection
from fedcar.common.measure import free_memory
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError, typed_path
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.enroll import JoinFile
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.join import check_join, check_server
from fedcar.federation.deploy.link import link_of
from fedcar.federation.deploy.processes import check_port
from fedcar.federation.deploy.roster import clock_line
from fedcar.federation.device.device import documents_fingerprint
from fedcar.federation.wire.flower import CLOCK_AHEAD, CLOCK_BEHIND, knows
from fedcar.version import __version__

FLOWER = "1.41.0"
LEAST_DISK, LEAST_MEMORY = 1 << 30, 1 << 30


@dataclass(frozen=True)
class Finding:
    """One check: whether it is fine, and what there is to say."""

    what: str
    fine: bool
    says: str


def finding(what: str, check: Callable[[], str]) -> Finding:
    """The check's sentence; what it raises is the finding."""
    try:
        return Finding(what, True, check())
    except FedcarError as error:
        return Finding(what, False, str(error))
    except OSError as error:
        return Finding(what, False, f"{error.filename or ''} {error.strerror or error}".strip())


def server(folder: Path) -> list[Finding]:
    """The checks of a server's folder."""
    place = ServerFolder(folder)
    return [
        finding("versions", _versions),
        finding("certificates", lambda: _certificates(place)),
        finding("secret", lambda: _secret(place)),
        finding("port", lambda: _port(place)),
        finding("devices", lambda: _devices(place)),
        finding("collection", lambda: _servers_collection(place)),
        finding("disk", lambda: _disk(folder)),
        finding("memory", _memory),
    ]


def device(file: Path, key: Path | None, collection: Path | None, encoder: str | None) -> list[Finding]:
    """The checks of a device that has a join file."""
    try:
        join = JoinFile.read(file)
    except FedcarError as error:
        return [Finding("join file", False, str(error))]
    key_file = key or file.with_name(f"{join.node}.key")
    return [
        finding("versions", _versions),
        finding("join file", lambda: _join_file(join, key_file)),
        finding("certificate", lambda: _servers_certificate(join)),
        finding("clock", lambda: _clock(join)),
        finding("enrolment", lambda: _enrolment(join, key_file)),
        finding("collection", lambda: _devices_collection(join, collection)),
        finding("encoder", lambda: _encoder(join, encoder)),
        finding("disk", lambda: _disk(file.resolve().parent)),
        finding("memory", _memory),
    ]


# -------------------------------------------------------------------- on the server


def _certificates(place: ServerFolder) -> str:
    place.settings()
    files = [file for name in ("ca", "link", "front") if (file := place.folder / f"{name}.pem").exists()]
    left = {file: keys.days_left(file) for file in files}
    for file, days in left.items():
        if days < keys.LEFT_TO_RENEW:
            raise FedcarError(f"{file}: {days:.0f} days left; a restart of fedcar serve renews it")
    return ", ".join(f"{file.name} {days:.0f} days" for file, days in left.items())


def _secret(place: ServerFolder) -> str:
    if place.secret.stat().st_mode & 0o077:
        raise FedcarError(f"{place.secret}: others can read it; chmod 600 {typed_path(place.secret)}")
    return "readable by its owner alone"


def _port(place: ServerFolder) -> str:
    settings = place.settings()
    if place.serving():
        return f"{settings.bind} port {settings.port}, serving"
    check_port(settings.bind, settings.port, "--port")
    return f"{settings.bind} port {settings.port} is free; fedcar serve does not run"


def _devices(place: ServerFolder) -> str:
    if not place.serving():
        raise FedcarError(f"{place.folder}: fedcar serve does not run; start it")
    try:
        nodes = link_of(place).nodes()
    except Exception as error:
        raise FedcarError(f"the SuperLink does not answer; {place.folder / 'superlink.log'} says why") from error
    return f"{sum(node.online for node in nodes.values())} of {len(place.nodes())} devices online"


def _servers_collection(place: ServerFolder) -> str:

    settings = place.settings()
    loaded = Collection.read(settings.collection, part=True)
    if documents_fingerprint(loaded) != settings.documents:
        raise FedcarError(f"{settings.collection}: changed since devices were enrolled; restore it")
    dev = len(loaded.judged("dev"))
    return f"{len(loaded.documents)} documents, {dev or 'no'} questions to choose by{'' if dev else ': devices count'}"


# -------------------------------------------------------------------- on a device


def _join_file(join: JoinFile, key: Path) -> str:
    check_join(join, key)
    return f"for {join.node}, fedcar {join.fedcar}, server {join.address}"


def _servers_certificate(join: JoinFile) -> str:
    days = check_server(join)
    if days < keys.LEFT_TO_RENEW:
        raise FedcarError(f"{join.address}: its certificate has {days:.0f} days left; restart fedcar serve there")
    return f"{join.address} reached, {days:.0f} days left"


def _enrolment(join: JoinFile, key: Path) -> str:

    knows(join.address, join.ca.encode(), keys.read_private(key), join.id)
    return "the server knows this device's key"


def _devices_collection(join: JoinFile, collection: Path | None) -> str:

    if collection is None:
        return "not checked; give --collection"
    loaded = Collection.read(collection, part=True)
    if documents_fingerprint(loaded) != join.documents:
        raise FedcarError(f"{collection}: its documents differ from the server's; copy the server's corpus.jsonl")
    if not len(loaded.judged("train")):
        raise FedcarError(f"{collection}: no training question; add qrels/train.tsv")
    return f"{len(loaded.documents)} documents as on the server, {len(loaded.judged('train'))} training questions"


def _encoder(join: JoinFile, encoder: str | None) -> str:

    loaded = Encoder.load(
        encoder or join.encoder, join.pooling, query_prompt=join.query_prompt, document_prompt=join.document_prompt
    )
    if loaded.state_fingerprint != join.encoder_fingerprint:
        raise FedcarError(f"{loaded.name}: another encoder than the server's; give the same with --encoder")
    return f"{loaded.name} as on the server ({loaded.fingerprint[:12]})"


# -------------------------------------------------------------------- on both


def _versions() -> str:
    try:
        flower = version("flwr")
    except PackageNotFoundError as error:
        raise FedcarError('flwr is missing; pip install "fedcar[federation]"') from error
    if flower != FLOWER:
        raise FedcarError(f"flwr {flower}: fedcar carries its messages over flwr {FLOWER}; install that")
    return f"fedcar {__version__}, flwr {flower}, Python {sys.version.split()[0]}"


def _clock(join: JoinFile) -> str:
    """The server's clock by the date in its answer, which may be from a second or two before: never too mild."""
    import httpx

    try:
        context = ssl.create_default_context(cadata=join.ca)
        asked = time.time()  # as a signature is from before its way to the server
        answer = httpx.post(f"https://{join.address}/", verify=context, timeout=10.0)
    except httpx.HTTPError as error:
        raise FedcarError(f"{join.address}: does not answer ({error})") from error
    ahead = asked - parsedate_to_datetime(answer.headers["date"]).timestamp()
    if not -CLOCK_BEHIND < ahead < CLOCK_AHEAD:
        raise FedcarError(f"{clock_line(ahead)}; set both by NTP")
    return f"within {max(1.0, abs(ahead)):.0f} s of the server's"


def _disk(folder: Path) -> str:
    folder = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < LEAST_DISK:
        raise FedcarError(f"{folder}: {free / 1e9:.1f} GB free; make room for a checkpoint and the hidden states")
    return f"{free / 1e9:.0f} GB free"


def _memory() -> str:
    free = free_memory()
    if free is None:
        return "not known on this system"
    if free < LEAST_MEMORY:
        raise FedcarError(f"{free / 1e9:.1f} GB of memory free; an encoder and its training need at least 1 GB")
    return f"{free / 1e9:.0f} GB free"
