"""The ledger: what a client has spent, on its own disk, one JSON line an entry, each chained to the one before.

    {"format", "number", "time", "kind", ..., "previous", "hash"}     hash = sha256 of the line without it

Kinds: "open" (the budget), "charge" (a release, written and fsynced BEFORE training), "update" (the sha256 of a noised
update, stored before it is sent), "recovered" (a half-written last line was dropped). Beside LEDGER stand LEDGER.head
(the number and hash of the last acknowledged line) and LEDGER.updates/ (the noised updates). All are for the owner of
the ledger alone.

A line counts from the moment it is complete, and `charge` returns only after line and head are on disk: a line torn by
a crash belongs to a charge that never returned, so nothing was trained on it. The head beside the ledger, and the copy
that the server keeps, tell such a line from a ledger that was cut. Who can rewrite the ledger, its head and the copy of
the server cannot be stopped by any of this; it keeps honest clients right through crashes, backups and edits.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from fedcar.privacy.accountant import epsilon_of, fits
from fedcar.privacy.errors import BudgetError, LedgerError, PrivacyError
from fedcar.privacy.release import Release, check_target

FORMAT = 1
_CLOCK_TOLERANCE = 5.0  # seconds: what a time server may take back without a question
_START = "0" * 64


@dataclass(frozen=True)
class Budget:
    """What this client is willing to give away in all, over every run that uses this ledger."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Entry:
    """One verified line."""

    number: int
    time: float
    kind: str
    hash: str
    values: dict[str, Any]


@dataclass(frozen=True)
class LedgerHead:
    """Where a ledger stands: hand it to the server with every update, and have it back with every round."""

    number: int
    hash: str


@dataclass(frozen=True)
class Receipt:
    """A charge that is on disk: training may begin."""

    number: int
    run: str
    round: int
    epsilon: float


class Ledger:
    """One client's ledger. Every operation locks the file, reads it again and verifies the whole chain.

    Formal guarantees: charged_before_training, refused_before_the_budget_is_crossed, a_repeated_round_is_charged_again,
    stored_update_is_sent_again_unchanged, truncated_ledger_is_refused, edited_ledger_is_refused,
    clock_going_backwards_is_refused, killed_at_any_point_never_under_counts.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time) -> None:
        """Of an existing ledger or one that `create` will make; nothing is read yet."""
        self.path = Path(path)
        self._clock = clock

    def create(self, budget: Budget, count: int | None = None) -> None:
        """Start a ledger with this budget; `count` is the client's number of units, against which delta is checked."""
        check_target(budget.epsilon, budget.delta, count)
        with self._locked(new=True):
            if self._head_path().exists() or (self.path.exists() and self._verified(None)):
                raise LedgerError(f"{self.path}: there is, or was, a ledger already; its budget does not change")
            self._append([], "open", {"epsilon": _to_json(budget.epsilon), "delta": budget.delta})

    def open(self, known_head: LedgerHead | None = None) -> list[Entry]:
        """Verify everything and return all entries; known_head is what the server last saw of this ledger."""
        with self._locked():
            return self._opened(known_head)

    def budget(self) -> Budget:
        """As it was set when the ledger was created."""
        return _budget(self.open())

    def head(self) -> LedgerHead:
        """Return the last entry's number and hash, for the server to keep."""
        last = self.open()[-1]
        return LedgerHead(last.number, last.hash)

    def releases(self) -> list[Release]:
        """Everything charged so far, in order."""
        return _releases(self.open())

    def spent(self) -> float:
        """Return the epsilon of everything charged so far, at the budget's delta."""
        entries = self.open()
        return epsilon_of(_releases(entries), _budget(entries).delta)

    def charge(self, run: str, round_number: int, release: Release, known_head: LedgerHead | None = None) -> Receipt:
        """Put the release on disk, then return: train only with the receipt in hand.

        A round that is charged a second time counts a second time: train again only where `stored_update` is None.
        Raises BudgetError (exit code 3) where the budget would be crossed; nothing is written then.
        """
        with self._locked():
            entries = self._opened(known_head)
            total = self._total_with(entries, round_number, release)
            values = {"run": run, "round": round_number, "release": release.to_json(), "epsilon": _to_json(total)}
            entry = self._append(entries, "charge", values)
            return Receipt(entry.number, run, round_number, total)

    def check_room(self, round_number: int, release: Release, known_head: LedgerHead | None = None) -> None:
        """Raise BudgetError where `charge` would; nothing is written."""
        with self._locked():
            self._total_with(self._opened(known_head), round_number, release)

    def store_update(self, receipt: Receipt, update: bytes) -> None:
        """Put the noised update of this charge on disk; call it before anything is sent."""
        with self._locked():
            entries = self._opened(None)
            charged = receipt.number < len(entries) and entries[receipt.number].kind == "charge"
            if not charged or entries[receipt.number].values["round"] != receipt.round:
                raise LedgerError(f"{self.path}: entry {receipt.number} is no charge for round {receipt.round}")
            if any(entry.kind == "update" and entry.values["charge"] == receipt.number for entry in entries):
                raise LedgerError(f"{self.path}: charge {receipt.number} has an update already; one charge, one update")
            place = self._update_path(receipt.number)
            place.parent.mkdir(exist_ok=True, mode=0o700)
            _write_whole(place, update)
            values = {"run": receipt.run, "round": receipt.round, "charge": receipt.number}
            self._append(entries, "update", values | {"sha256": hashlib.sha256(update).hexdigest()})

    def stored_update(self, run: str, round_number: int) -> bytes | None:
        """Return the update that this round was answered with, to be sent again; None where it needs training."""
        for entry in reversed(self.open()):
            if entry.kind == "update" and (entry.values["run"], entry.values["round"]) == (run, round_number):
                place = self._update_path(entry.values["charge"])
                update = place.read_bytes() if place.exists() else b""
                if hashlib.sha256(update).hexdigest() != entry.values["sha256"]:
                    raise LedgerError(f"{place}: is missing or was changed; the round cannot be sent again")
                return update
        return None

    def _total_with(self, entries: list[Entry], round_number: int, release: Release) -> float:
        """The epsilon with this release; BudgetError where that is above the budget."""
        budget, releases = _budget(entries), [*_releases(entries), release]
        total = epsilon_of(releases, budget.delta)
        if not math.isinf(budget.epsilon) and not fits(releases, budget.epsilon, budget.delta):
            raise BudgetError(
                f"{self.path}: round {round_number} would bring epsilon to {total:.4g}, the budget is "
                f"{budget.epsilon:.4g} at delta {budget.delta:g}; not trained, not charged, the model is kept"
            )
        return total

    def _update_path(self, charge: int) -> Path:
        return self.path.with_name(self.path.name + ".updates") / f"{charge:06d}.bin"

    def _head_path(self) -> Path:
        return self.path.with_name(self.path.name + ".head")

    @contextmanager
    def _locked(self, new: bool = False) -> Iterator[None]:
        """One process at a time; a crash gives the lock back."""
        try:
            if new:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with _opened_for_owner(self.path.with_name(self.path.name + ".lock"), "a") as lock:
                if not lock_descriptor(lock.fileno(), blocking=False):
                    raise LedgerError(f"{self.path}: in use by another process; wait until it is done")
                yield
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror or error}; nothing was trained") from None

    def _opened(self, known_head: LedgerHead | None) -> list[Entry]:
        if not self.path.exists():
            raise LedgerError(f"{self.path}: no ledger; it was removed, or never created")
        entries = self._verified(known_head)
        if not entries:
            raise LedgerError(f"{self.path}: holds no entry; it was truncated, or its creation was interrupted")
        return entries

    def _verified(self, known_head: LedgerHead | None) -> list[Entry]:
        """Every entry, after the chain, the head beside it, the server's head and the clock have been checked."""
        whole, separator, torn = self.path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if separator else []
        entries: list[Entry] = []
        for line in lines:
            entries.append(_parse(self.path, line, entries))
        heads = [self._own_head()] if self._head_path().exists() else []
        if entries and not heads and len(entries) > 1:
            raise LedgerError(f"{self._head_path()}: missing; the ledger cannot be told from a truncated one")
        for head, keeper in [*((head, "the file beside it") for head in heads), (known_head, "the server")]:
            if head is not None and (head.number >= len(entries) or entries[head.number].hash != head.hash):
                raise LedgerError(
                    f"{self.path}: {keeper} knows an entry {head.number} that it does not hold; "
                    "it was truncated, edited or restored from a copy"
                )
        if entries and self._clock() < entries[-1].time - _CLOCK_TOLERANCE:
            raise LedgerError(
                f"{self.path}: the clock is {entries[-1].time - self._clock():.0f} s before the last entry"
            )
        if entries and heads and heads[0].number < len(entries) - 1:
            self._write_head(entries[-1])
        if torn:
            entries = self._recover(entries, torn)
        return entries

    def _recover(self, entries: list[Entry], torn: bytes) -> list[Entry]:
        """Drop a half-written last line (its charge never returned), and say so in the ledger."""
        with self.path.open("r+b") as file:
            file.truncate(self.path.stat().st_size - len(torn))
            os.fsync(file.fileno())
        if entries:
            values = {"dropped_bytes": len(torn), "dropped_sha256": hashlib.sha256(torn).hexdigest()}
            entries = [*entries, self._append(entries, "recovered", values)]
        return entries

    def _own_head(self) -> LedgerHead:
        try:
            values = json.loads(self._head_path().read_bytes())
            return LedgerHead(int(values["number"]), str(values["hash"]))
        except (ValueError, KeyError, TypeError):
            raise LedgerError(f"{self._head_path()}: is not a ledger's head; it was edited") from None

    def _write_head(self, entry: Entry) -> None:
        # A head that a power cut takes back to an older one still tells: it only knows fewer entries than there are.
        _write_whole(self._head_path(), json.dumps({"number": entry.number, "hash": entry.hash}).encode())

    def _append(self, entries: list[Entry], kind: str, values: dict[str, Any]) -> Entry:
        """Line and fsync first, then the head: a crash between the two leaves one line that the head does not know."""
        now = max(self._clock(), entries[-1].time if entries else -math.inf)
        previous = entries[-1].hash if entries else _START
        record = {"format": FORMAT, "number": len(entries), "time": now, "kind": kind, **values, "previous": previous}
        digest = _hash(record)
        new = not self.path.exists()
        with _opened_for_owner(self.path, "ab") as file:
            file.write(json.dumps({**record, "hash": digest}, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync_folder(self.path.parent)
        entry = Entry(len(entries), now, kind, digest, values)
        self._write_head(entry)
        return entry


def _hash(record: dict[str, Any]) -> str:
    plain = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()


def _parse(path: Path, line: bytes, before: list[Entry]) -> Entry:
    """One line, checked against its own hash and the entries before it."""
    where = f"{path}:{len(before) + 1}"
    try:
        record = json.loads(line)
        digest = record.pop("hash")
        number, moment, kind, previous = record["number"], record["time"], record["kind"], record["previous"]
        form = record["format"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise LedgerError(f"{where}: is not a ledger entry; the ledger was edited") from None
    if form != FORMAT:
        raise LedgerError(f"{where}: has format {form}, this fedcar reads {FORMAT}")
    if digest != _hash(record) or number != len(before) or previous != (before[-1].hash if before else _START):
        raise LedgerError(f"{where}: does not fit the chain; the ledger was edited")
    if before and moment < before[-1].time:
        raise LedgerError(f"{where}: is older than the entry before it; the ledger was edited")
    known = ("format", "number", "time", "kind", "previous")
    return Entry(number, moment, kind, digest, {name: value for name, value in record.items() if name not in known})


def _budget(entries: list[Entry]) -> Budget:
    if entries[0].kind != "open":
        raise LedgerError("the first entry of a ledger must set the budget")
    return Budget(float(entries[0].values["epsilon"]), float(entries[0].values["delta"]))


def _releases(entries: list[Entry]) -> list[Release]:
    try:
        return [Release.from_json(entry.values["release"]) for entry in entries if entry.kind == "charge"]
    except PrivacyError as error:
        raise LedgerError(f"a charge cannot be read: {error}") from None


def _to_json(value: float) -> float | str:
    """JSON has no infinity; float() reads this word back."""
    return "infinity" if math.isinf(value) else value


def _write_whole(path: Path, content: bytes) -> None:
    """All or nothing: a temporary file, fsynced, renamed over the old one, the folder fsynced.

    Not the `written_whole` of the rest of fedcar: this package imports nothing of it, so that it can be read and
    trusted by itself. The lock is held, so that the temporary file needs no name of its own.
    """
    temporary = path.with_name(path.name + ".new")
    with _opened_for_owner(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _opened_for_owner(path: Path, how: str) -> IO[Any]:
    """Open a file that nobody else can read, whatever the umask says; a ledger from before stays as it is."""
    return open(path, how, opener=lambda name, flags: os.open(name, flags, 0o600))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
