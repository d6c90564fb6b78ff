"""A device of a real federation: everything is checked first, then it answers the server until it is stopped."""

from __future__ import annotations

import math
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_file
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.enroll import JoinFile
from fedcar.federation.deploy.processes import Child, free_port, locked
from fedcar.federation.device.device import Device, documents_fingerprint
from fedcar.federation.ledgers import Ledgers, remembered
from fedcar.federation.wire import flower
from fedcar.privacy.ledger import Budget
from fedcar.privacy.release import check_target
from fedcar.training.noised.tally import ledger_file, registered, witnessed
from fedcar.training.target import check_budget, delta_warning
from fedcar.version import __version__

CONNECT_SECONDS = 10.0


def check_join(join: JoinFile, key: Path) -> None:
    """Refuse another version's or another device's join file."""
    if join.fedcar != __version__:
        raise FedcarError(
            f"{join.file}: the server runs fedcar {join.fedcar}, this device {__version__}; install the same on both "
            "(where the server was updated since, fedcar enroll there writes a new file)"
        )
    fingerprint = keys.key_fingerprint(keys.public_bytes(keys.read_private(key).public_key()))
    if fingerprint != join.key:
        raise FedcarError(
            f"{join.file}: is for {join.node}, whose key is not {key}; give that device's own join file and key"
        )


def check_server(join: JoinFile) -> float:
    """Connect over TLS; the days that the server's certificate has left. FedcarError, with the way out, if it fails."""
    host, port = join.server
    context = ssl.create_default_context(cadata=join.ca)
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as plain:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                certificate = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise FedcarError(f"{join.address}: {_certificate_line(error)}") from error
    except (OSError, ValueError) as error:
        raise FedcarError(
            f"{join.address}: cannot be reached ({error}); is fedcar serve running there, and the port open?"
        ) from error
    return (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86400


def _certificate_line(error: ssl.SSLCertVerificationError) -> str:
    reason = error.verify_message
    if "expired" in reason:
        return "its certificate has run out (or this device's clock is ahead); restart fedcar serve, which renews it"
    if "not yet valid" in reason:
        return "its certificate is not valid yet, so this device's clock is behind; set the clock"
    if "mismatch" in reason or "not valid for" in reason:
        return f"its certificate is for another name ({reason}); enroll with the --address that it is for"
    return f"its certificate is not of the server that enrolled this device ({reason}); ask for a new join file"


@dataclass(frozen=True)
class DeviceOptions:
    """What a device takes part with: its key, its questions, and the folder of what it remembers from round to round.

    With `budget` one ledger counts over all runs, and nothing leaves that is not noised and charged to it: the folder
    `ledger`, or that of the collection (see `ledgers_of`). `encoder` says where the model lies, if not where the
    server's is.
    """

    key: Path
    collection: Path
    folder: Path
    encoder: str | None = None
    cache: Path | None = None
    ledger: Path | None = None
    budget: Budget | None = None


def join(
    file: JoinFile,
    device: DeviceOptions,
    *,
    report: Silent | None = None,
    until: Callable[[], bool] = lambda: False,
    started: Callable[[int], None] = lambda questions: None,
) -> None:
    """Check, prepare, then run the SuperNode and the worker that answers for it; the SuperNode is restarted at death.

    Returns when `until` says so. `started` is called with the number of training questions once all is ready.

    Formal guarantees:
        a_device_is_joined_once: a second process over the same `folder` is refused before it reaches the server.
    """
    report, folder = report or Silent(), device.folder
    if device.budget is not None:
        check_budget(device.budget.epsilon, device.budget.delta)
    check_join(file, device.key)
    days = check_server(file)
    if days < keys.LEFT_TO_RENEW:
        report.say(f"the server's certificate runs out in {days:.0f} days; a restart of fedcar serve renews it")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(folder / "join.lock") as free:
        if not free:
            raise FedcarError(f"{folder}: {file.node} is joined already by another process; stop that first")
        _take_part(file, device, report, until, started)


def ledgers_of(options: DeviceOptions, collection: Collection, report: Silent) -> Ledgers:
    """The ledgers of a device: whatever its name and its folder, those over one collection share one budget.

    The ledger over runs is the one that is named; or the one that this device had before, in its folder or elsewhere;
    or else that of the collection's folder. Where that has no budget, and none is given, each run has a ledger of its
    own and is counted there too, as far as the user has a folder for that.

    Formal guarantees:
        two_devices_over_one_collection_share_one_budget, a_ledger_from_before_is_gone_on_with.
    """
    folder, say = options.folder / "ledgers", report.say
    own = ledger_file(folder)
    if options.ledger is not None:
        ledgers = Ledgers(folder, options.ledger, options.budget)
        registered(collection, ledgers.file, say)
        return ledgers
    if own.exists() or own.with_name(own.name + ".head").exists():
        ledgers = Ledgers(folder, None, options.budget)
        registered(collection, own, say)
        return ledgers
    if (before := remembered(folder)) is not None:
        return Ledgers(folder, before, options.budget)
    try:
        file = registered(collection, None, say)
    except FedcarError as error:
        if options.budget is not None:
            say(f"{error}; the ledger lies in {folder}, and another device over this collection has another budget")
        return Ledgers(folder, None, options.budget)
    if options.budget is not None or (file.exists() and math.isfinite(witnessed(file).budget().epsilon)):
        return Ledgers(folder, file, options.budget)
    return Ledgers(folder, counted=file)


def _take_part(
    file: JoinFile,
    options: DeviceOptions,
    report: Silent,
    until: Callable[[], bool],
    started: Callable[[int], None],
) -> None:

    folder = options.folder

    def knock(make_room: bool = True) -> None:
        flower.knows(file.address, file.ca.encode(), keys.read_private(options.key), file.id, make_room=make_room)

    knock(make_room=False)  # what is refused below signs nobody off
    loaded = Collection.read(options.collection, part=True)
    if (documents := documents_fingerprint(loaded)) != file.documents:
        raise FedcarError(
            f"{options.collection}: its documents differ from the server's ({documents[:12]}, there "
            f"{file.documents[:12]}); copy the server's corpus.jsonl"
        )
    model = Encoder.load(
        options.encoder or file.encoder,
        file.pooling,
        query_prompt=file.query_prompt,
        document_prompt=file.document_prompt,
    )
    if model.state_fingerprint != file.encoder_fingerprint:
        raise FedcarError(
            f"{model.name}: another encoder than the server's ({model.state_fingerprint[:12]}, there "
            f"{file.encoder_fingerprint[:12]}); give the same model with --encoder"
        )
    ledgers = ledgers_of(options, loaded, report)
    device = Device(loaded, folder, model, FeatureCache(options.cache), report, ledgers)
    if ledgers.budget is None:
        report.say(
            "no --epsilon of this device: what it gives out is noised as the server's run says, or not at all; with "
            "--epsilon nothing un-noised leaves"
        )
    else:
        try:
            check_target(ledgers.budget.epsilon, ledgers.budget.delta, len(device.training) or None)
        except ValueError as error:
            raise FedcarError(f"--delta {ledgers.budget.delta:g}: {error}") from error
        report.say(
            f"{ledgers.file}: the ledger of this device, with epsilon {ledgers.budget.epsilon:g} at delta "
            f"{ledgers.budget.delta:g} over all runs"
        )
        if warning := delta_warning(ledgers.budget.delta, len(device.training)):
            report.say(warning)
    secret = secrets.token_hex(32).encode()
    keys.write_private(folder / "secret", secret)
    replace_file(folder / "server-ca.pem", file.ca.encode())
    port = free_port()
    command = flower.supernode_command(port, file.address, folder / "server-ca.pem", options.key, folder / "secret")
    child = Child(command, folder / "supernode.log", flower.environment(folder / "flower"))
    stopped = threading.Event()
    worker = threading.Thread(
        target=flower.work, args=(f"127.0.0.1:{port}", secret, device.answer, stopped), name="worker", daemon=True
    )
    few = "" if len(device.training) else " (none to learn from: under epsilon it gives out noise alone, else nothing)"
    report.say(f"{file.node}: {len(device.training)} training questions ready{few}, joining {file.address}")
    try:
        with suppress(FedcarError):  # a server that is away now is waited for by the SuperNode
            knock()
        child.start()
        worker.start()
        started(len(device.training))
        while not until():
            if child.keep_alive(knock):
                report.say(f"the SuperNode ended ({child.last_line()}) and was started again")
            if not worker.is_alive():
                raise FedcarError(f"{file.node}: the worker died; {folder / 'supernode.log'} may say why; join again")
            time.sleep(0.2)
    finally:
        stopped.set()
        child.stop()
