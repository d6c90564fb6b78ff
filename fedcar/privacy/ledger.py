"""The ledger: what a client has spent, on its own disk, one JSON line an entry, each chained to the one before.

    {"format", "number", "time", "kind", ..., "previous", "hash"}     hash = sha256 of the line without it

Kinds: "open" (the budget), "budget" (one for a ledger that was opened without any), "charge" (a release, written and
fsynced BEFORE training), "update" (the sha256 of a noised update, stored before it is sent), "recovered" (a
half-written last line was dropped), "clock" (the clock was set back on purpose). Beside LEDGER stand LEDGER.head (the
number and hash of the last acknowledged line) and LEDGER.updates/ (the noised updates). All are for the owner of the
ledger alone.

A line counts from the moment it is complete, and `charge` returns only after line and head are on disk: a line torn by
a crash belongs to a charge that never returned, so nothing was trained on it. The head beside the ledger tells such a
line from a ledger that was cut. Witnesses, each a copy of the head in another folder, and the copy that the server
keeps tell the same where ledger and head come from a backup: each of them alone. Who can rewrite the ledger, its head,
the witnesses and the copy of the server cannot be stopped by any of this, nor who begins a new ledger; it keeps honest
clients right through crashes, backups and edits.
"""

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from fedcar.privacy.accountant import epsilon_of, fits
from fedcar.privacy.errors import BudgetError, LedgerError, PrivacyError
from fedcar.privacy.release import Release, check_target

FORMAT = 1
LOCK_SECONDS, _LOCK_POLL = 10.0, 0.02  # how long another process over this ledger is waited for
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
    """Where a ledger stands: hand it to the server with every update, and have it back with every round.

    `ledger` is the hash of its first entry, by which a ledger is known over runs; empty where it is one run's own.
    """

    number: int
    hash: str
    ledger: str = field(default="", compare=False)


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
    clock_going_backwards_is_refused, killed_at_any_point_never_under_counts, restored_ledger_is_refused_by_its_witness.
    """

    def __init__(
        self, path: str | Path, clock: Callable[[], float] = time.time, witnesses: Sequence[Path] = ()
    ) -> None:
        """Of an existing ledger or one that `create` will make; nothing is read yet. `witnesses` are folders."""
        self.path = Path(path)
        self.witnesses = tuple(witnesses)
        self._clock = clock

    def create(self, budget: Budget, count: int | None = None) -> None:
        """Start a ledger with this budget; `count` is the client's number of units, against which delta is checked."""
        check_target(budget.epsilon, budget.delta, count)
        with self._locked(new=True):
            if self._head_path().exists() or (self.path.exists() and self._verified(None)):
                raise LedgerError(f"{self.path}: there is, or was, a ledger already; its budget does not change")
            self._append([], "open", {"epsilon": in_json(budget.epsilon), "delta": budget.delta})

    def limit(self, budget: Budget, planned: Sequence[Release] = ()) -> None:
        """Give a ledger that was opened without a budget this one, for good; LedgerError where it has another.

        BudgetError, and it is not set, where what was spent leaves no room in it for what is planned.
        """
        check_target(budget.epsilon, budget.delta)
        with self._locked():
            entries = self._opened(None)
            stands = budget_of(entries)
            if stands == budget:
                return
            if not math.isinf(stands.epsilon):
                raise LedgerError(
                    f"{self.path}: its budget is epsilon {stands.epsilon:g}, delta {stands.delta:g} and does not "
                    "change; give that"
                )
            if planned:
                self._total_with(entries, "this run", planned, budget)
            self._append(entries, "budget", {"epsilon": in_json(budget.epsilon), "delta": budget.delta})

    def set_clock(self) -> float:
        """Go on by the clock of now where an entry was written by one that was ahead; the seconds it goes back.

        No charge is touched: an entry of its own says what stood and what is now.
        """
        with self._locked():
            entries = self._opened(None, by_clock=False)
            stood, now = entries[-1].time, self._clock()
            if now < stood:
                self._append(entries, "clock", {"stood": stood, "now": now})
            return max(0.0, stood - now)

    def open(self, known_head: LedgerHead | None = None) -> list[Entry]:
        """Verify everything and return all entries; known_head is what the server last saw of this ledger."""
        with self._locked():
            return self._opened(known_head)

    def budget(self) -> Budget:
        """As it was set when the ledger was created."""
        return budget_of(self.open())

    def look(self) -> list[Entry]:
        """All entries, verified, whatever the clock says."""
        with self._locked():
            return self._opened(None, by_clock=False)

    def head(self) -> LedgerHead:
        """Return the last entry's number and hash, and the first one's hash, for the server to keep."""
        entries = self.open()
        return LedgerHead(entries[-1].number, entries[-1].hash, entries[0].hash)

    def releases(self) -> list[Release]:
        """Everything charged so far, in order."""
        return releases_of(self.open())

    def spent(self) -> float:
        """Return the epsilon of everything charged so far, at the budget's delta."""
        entries = self.open()
        return epsilon_of(releases_of(entries), budget_of(entries).delta)

    def charges(self, run: str, round_number: int) -> int:
        """How often this round of this run was charged."""
        of_run = [entry for entry in self.open() if entry.kind == "charge" and entry.values["run"] == run]
        return sum(entry.values["round"] == round_number for entry in of_run)

    def spent_by(self, run: str, delta: float) -> tuple[float, float]:
        """The epsilon of what was charged before this run, and of all that is charged now, at this delta."""
        charges = [entry for entry in self.open() if entry.kind == "charge"]
        first = next((place for place, entry in enumerate(charges) if entry.values["run"] == run), len(charges))
        return epsilon_of(releases_of(charges[:first]), delta), epsilon_of(releases_of(charges), delta)

    def charge(self, run: str, round_number: int, release: Release, known_head: LedgerHead | None = None) -> Receipt:
        """Put the release on disk, then return: train only with the receipt in hand.

        A round that is charged a second time counts a second time: train again only where `stored_update` is None.
        Raises BudgetError (exit code 3) where the budget would be crossed; nothing is written then.
        """
        with self._locked():
            entries = self._opened(known_head)
            total = self._total_with(entries, f"round {round_number}", [release])
            values = {"run": run, "round": round_number, "release": release.to_json(), "epsilon": in_json(total)}
            entry = self._append(entries, "charge", values)
            return Receipt(entry.number, run, round_number, total)

    def check_room(self, what: str, releases: Sequence[Release], known_head: LedgerHead | None = None) -> None:
        """Raise BudgetError where `charge` would, for all of these together; nothing is written."""
        with self._locked():
            self._total_with(self._opened(known_head), what, releases)

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

    def _total_with(
        self, entries: list[Entry], what: str, more: Sequence[Release], budget: Budget | None = None
    ) -> float:
        """The epsilon with these releases; BudgetError where that is above the budget, by default the ledger's."""
        budget, releases = budget or budget_of(entries), [*releases_of(entries), *more]
        total = epsilon_of(releases, budget.delta)
        if not math.isinf(budget.epsilon) and not fits(releases, budget.epsilon, budget.delta):
            raise BudgetError(
                f"{self.path}: {what} would bring epsilon to {total:.4g}, the budget is "
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
                end = time.monotonic() + LOCK_SECONDS
                while not (free := lock_descriptor(lock.fileno(), blocking=False)) and time.monotonic() < end:
                    time.sleep(_LOCK_POLL)
                if not free:
                    raise LedgerError(f"{self.path}: in use by another process; wait until it is done")
                yield
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror or error}; nothing was trained") from None

    def _opened(self, known_head: LedgerHead | None, by_clock: bool = True) -> list[Entry]:
        if not self.path.exists():
            raise LedgerError(f"{self.path}: no ledger; it was removed, or never created")
        entries = self._verified(known_head, by_clock)
        if not entries:
            raise LedgerError(f"{self.path}: holds no entry; it was truncated, or its creation was interrupted")
        return entries

    def _verified(self, known_head: LedgerHead | None, by_clock: bool = True) -> list[Entry]:
        """Every entry, after the chain, its head, the witnesses, the server's head and the clock have been checked."""
        whole, separator, torn = self.path.read_bytes().rpartition(b"\n")
        lines = whole.split(b"\n") if separator else []
        entries: list[Entry] = []
        for line in lines:
            entries.append(_parse(self.path, line, entries))
        heads = [self._own_head()] if self._head_path().exists() else []
        if entries and not heads and len(entries) > 1:
            raise LedgerError(f"{self._head_path()}: missing; the ledger cannot be told from a truncated one")
        seen = self._seen(entries)
        keepers = [*((head, "the file beside it") for head in heads), *((head, str(place)) for place, head in seen)]
        for head, keeper in [*keepers, (known_head, "the server")]:
            if head is not None and (head.number >= len(entries) or entries[head.number].hash != head.hash):
                raise LedgerError(
                    f"{self.path}: {keeper} knows an entry {head.number} that it does not hold; "
                    "it was truncated, edited or restored from a copy"
                )
        if entries and by_clock and self._clock() < entries[-1].time - _CLOCK_TOLERANCE:
            raise LedgerError(
                f"{self.path}: the clock is {entries[-1].time - self._clock():.0f} s before the last entry; set it, or "
                f"go on by it with fedcar privacy ledger {shlex.quote(str(self.path))} --set-clock"
            )
        if entries and heads and heads[0].number < len(entries) - 1:
            self._write_head(entries[-1])
        if entries and any(head is None or head.number < len(entries) - 1 for _, head in seen):
            self._write_witnesses(entries[0], entries[-1])
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
        return _head_in(self._head_path())

    def _seen(self, entries: list[Entry]) -> list[tuple[Path, LedgerHead | None]]:
        """What each witness saw last of this ledger; a missing one has seen nothing."""
        files = [_witness(folder, entries[0]) for folder in self.witnesses] if entries else []
        return [(file, _head_in(file) if file.exists() else None) for file in files]

    def _write_witnesses(self, first: Entry, last: Entry) -> None:
        head = {"ledger": str(self.path.resolve()), "number": last.number, "hash": last.hash}
        for file in (_witness(folder, first) for folder in self.witnesses):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_whole(file, json.dumps(head).encode())

    def _write_head(self, entry: Entry) -> None:
        # A head that a power cut takes back to an older one still tells: it only knows fewer entries than there are.
        _write_whole(self._head_path(), json.dumps({"number": entry.number, "hash": entry.hash}).encode())

    def _append(self, entries: list[Entry], kind: str, values: dict[str, Any]) -> Entry:
        """Line and fsync first, then the head: a crash between the two leaves one line that the head does not know."""
        now = max(self._clock(), entries[-1].time if entries and kind != "clock" else -math.inf)
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
        self._write_witnesses(entries[0] if entries else entry, entry)
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
    if before and kind != "clock" and moment < before[-1].time:
        raise LedgerError(f"{where}: is older than the entry before it; the ledger was edited")
    known = ("format", "number", "time", "kind", "previous")
    return Entry(number, moment, kind, digest, {name: value for name, value in record.items() if name not in known})


def budget_of(entries: Sequence[Entry]) -> Budget:
    """What stands in them; the last that was set."""
    if entries[0].kind != "open":
        raise LedgerError("the first entry of a ledger must set the budget")
    last = [entry for entry in entries if entry.kind in ("open", "budget")][-1]
    return Budget(float(last.values["epsilon"]), float(last.values["delta"]))


def _witness(folder: Path, first: Entry) -> Path:
    """The witness of the ledger with this first entry."""
    return folder / f"{first.hash[:32]}.json"


def _head_in(file: Path) -> LedgerHead:
    try:
        values = json.loads(file.read_bytes())
        return LedgerHead(int(values["number"]), str(values["hash"]))
    except (ValueError, KeyError, TypeError):
        raise LedgerError(f"{file}: is not a ledger's head; it was edited") from None


def releases_of(entries: Sequence[Entry]) -> list[Release]:
    """What was charged, in order."""
    try:
        return [Release.from_json(entry.values["release"]) for entry in entries if entry.kind == "charge"]
    except PrivacyError as error:
        raise LedgerError(f"a charge cannot be read: {error}") from None


def in_json(value: float) -> float | str:
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
