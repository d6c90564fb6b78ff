"""What a collection has given away over all its runs: where its ledger lies, and how a run is counted in it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_json, user_folder
from fedcar.errors import FedcarError, typed_path
from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.errors import LedgerError
from fedcar.privacy.ledger import Budget, Entry, Ledger, budget_of, in_json, releases_of
from fedcar.privacy.release import Release, of_a_question
from fedcar.training.clients import Answers
from fedcar.training.noised.clients import Behind, NoisedClients, NoisedRequest
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.target import check_budget

LEDGER = "ledger.jsonl"
REGISTER = "collection.json"  # beside a collection's ledger: which collection it is, and where its ledger lies


@dataclass(frozen=True)
class Counting:
    """Where a run under epsilon is counted: the ledger of the collection's folder, or `ledger`, a file or folder.

    With `budget` the runs of the ledger together stay within this epsilon, from now on; otherwise they are counted and
    not limited. `off` counts nowhere, and the statement then says nothing of other runs.
    """

    ledger: str | Path | None = None
    off: bool = False
    budget: float | None = None

    def check(self, delta: float) -> None:
        """FedcarError for what makes no sense together, or is no budget."""
        if self.off and (self.ledger is not None or self.budget is not None):
            other = "--ledger" if self.ledger is not None else "--budget"
            raise FedcarError(f"--no-ledger and {other}: one or the other")
        if self.budget is not None:
            check_budget(self.budget, delta, "--budget")


@dataclass(frozen=True)
class Spent:
    """The epsilon that a collection's ledger counts: before a run, and with it, at the run's delta."""

    before: float
    in_all: float


class Tally:
    """One run in a collection's ledger. A question is with one client, so clients count once and not each.

    What the run will give out of one kind (the count, the class sums, all steps) is charged when the first of it is
    asked for, so that a run which is interrupted has charged at least what it gave out.

    Formal guarantees:
        counted_before_a_question_is_read, a_run_without_room_is_refused_before_it_spends.
    """

    def __init__(self, ledger: Ledger, run: str, plan: PrivatePlan) -> None:
        self.ledger, self.run, self.plan = ledger, run, plan
        self.releases = [of_a_question(release) for release in plan.releases]

    def check(self) -> None:
        """BudgetError where the ledger has no room for the whole run, unless it is under way already."""
        if not self._charges():
            self.ledger.check_room("this run", self.releases)

    def charge(self, number: int, release: Release, again: int = 0) -> None:
        """Before exchange `number` is made; `again` is how often it was made and lost before, each charged anew."""
        whole = next(one for one in self.releases if one.name == release.name)
        charges, written = self._charges(), whole.to_json()
        if written not in [charge["release"] for charge in charges]:  # those of another plan do not count for this one
            self.ledger.charge(self.run, number, whole)
            charges = self._charges()
        first = next(charge["round"] for charge in charges if charge["release"] == written)
        lost = sum(charge["round"] == number for charge in charges) - (first == number)
        for _ in range(again - lost):
            self.ledger.charge(self.run, number, of_a_question(release))

    def spent(self) -> Spent:
        return Spent(*self.ledger.spent_by(self.run, self.plan.target.delta))

    def _charges(self) -> list[Mapping[str, Any]]:
        entries = self.ledger.open()
        return [entry.values for entry in entries if entry.kind == "charge" and entry.values["run"] == self.run]


class Tallied(Behind):
    """Clients whose collection's ledger counts each exchange before they are asked.

    `lost` says of an exchange how often it was made and lost before.
    """

    def __init__(self, clients: NoisedClients, tally: Tally, lost: Callable[[int], int] = lambda number: 0) -> None:
        super().__init__(clients)
        self.tally, self.lost = tally, lost

    def ask(self, request: Any, names: Sequence[str] | None = None) -> Answers[Any]:  # noqa: ANN401 - see `Clients`
        assert isinstance(request, NoisedRequest), request
        self.tally.charge(request.number, request.release, self.lost(request.number))
        return self.clients.ask(request, names)


def tally_of(
    collection: Collection, plan: PrivatePlan, run: str, counting: Counting, say: Callable[[str], None]
) -> Tally | None:
    """This run in the ledger of its collection; None where it is counted nowhere.

    That is so where it was asked for, where a collection was made in Python and no ledger is named, and for noise that
    can be repeated, which is for tests: what that gives away no number says, and the statement promises nothing.
    """
    counting.check(plan.target.delta)
    seeded = plan.target.noise_seed is not None
    if counting.off or (counting.ledger is None and (collection.folder is None or seeded)):
        return None
    named = None if counting.ledger is None else ledger_file(Path(counting.ledger))
    try:
        file = named if collection.folder is None or seeded else registered(collection, named, say)
    except FedcarError as error:
        raise FedcarError(f"{error}, or give --ledger, or --no-ledger to count nowhere") from error
    assert file is not None
    if plan.target.unit == "client":  # what hides clients and what hides questions do not add up to one number
        file = file.with_name(f"{file.stem}-client{file.suffix}")
    budget = None if counting.budget is None else Budget(counting.budget, plan.target.delta)
    tally = Tally(opened(file, None, plan.target.delta), run, plan)
    spent = tally.spent().before
    say(f"{file}: counts this run; epsilon {spent:.3g} was spent before at delta {plan.target.delta:g}")
    if budget is not None:
        tally.ledger.limit(budget, plan.releases)
    tally.check()
    return tally


def ledger_file(place: Path) -> Path:
    """The ledger that a user names by its file or its folder."""
    return place if place.suffix == ".jsonl" or place.is_file() else place / LEDGER


def witnessed(file: Path, *folders: Path) -> Ledger:
    """A ledger whose witnesses lie with the user's data and in these folders (see `Ledger`)."""
    try:
        folders = (user_folder("data") / "witnesses", *folders)
    except FedcarError:  # no home to write to: the ledger then has those of the server and of the folders alone
        pass
    return Ledger(file, witnesses=folders)


def opened(file: Path, budget: Budget | None, delta: float, *witnesses: Path) -> Ledger:
    """A ledger over runs, made where there is none: with this budget, or to be counted in without any limit."""
    ledger = witnessed(file, *witnesses)
    if not file.exists():
        try:
            ledger.create(budget or Budget(math.inf, delta))
        except LedgerError:
            if not file.exists():  # and nobody else has made it in the meantime
                raise
    if budget is not None:
        ledger.limit(budget)
    return ledger


def registered(
    collection: Collection, named: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Path:
    """The file of the collection's ledger: the one named first, or one in the user's state folder.

    It follows from the folder's resolved path, so that whoever trains on this folder counts in the same ledger. Another
    one that is named takes its place for this run alone. FedcarError where the user has no folder to write to.
    """
    assert collection.folder is not None
    named = named and named.resolve()
    try:
        home = home_of(collection.folder)
    except FedcarError:
        if named is None:
            raise
        return named
    register = home / REGISTER
    if register.exists():
        stands = _ledger_in(register)
        if named is not None and named != stands:
            say(f"{named}: takes the place of this collection's own ledger, {stands}, which does not count this")
        return named or stands
    documents = replace(collection, queries={}, judgements={}).fingerprint
    for other, ledger in _moved(home.parent, documents):
        say(
            f"{collection.folder}: begins a ledger; {other} had the same documents and is gone: if it was moved here, "
            f"count on in its own with --ledger {typed_path(ledger)}"
        )
    ledger = named or home / LEDGER
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = {"collection": str(collection.folder), "documents": documents, "ledger": str(ledger)}
        replace_json(register, content)
    except OSError as error:
        if named is None:
            raise FedcarError(f"{home}: {error.strerror or error}; name a folder with XDG_STATE_HOME") from error
    return ledger


def home_of(collection: Path) -> Path:
    """Where the user's state folder has what belongs to a collection's folder."""
    place = collection.resolve()
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", place.name)[:40]
    return user_folder("state") / "ledgers" / f"{name}-{digest}"


def found_of(collection: Path) -> Path | None:
    """The file of a collection's ledger, where there is one."""
    register = home_of(collection) / REGISTER
    return _ledger_in(register) if register.exists() else None


def _ledger_in(register: Path) -> Path:
    try:
        return Path(json.loads(register.read_text(encoding="utf-8"))["ledger"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedcarError(f"{register}: cannot be read; put back the file that says where the ledger lies") from error


def _moved(home: Path, documents: str) -> list[tuple[str, Path]]:
    """Folders with the same documents that are gone, and their ledgers."""
    gone = []
    for register in sorted(home.glob(f"*/{REGISTER}")):
        try:
            content = json.loads(register.read_text(encoding="utf-8"))
            if content["documents"] == documents and not Path(content["collection"]).exists():
                if (ledger := Path(content["ledger"])).exists():
                    gone.append((str(content["collection"]), ledger))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return gone[-1:]


def account(ledger: Ledger) -> dict[str, Any]:
    """What a ledger allows and what was spent, run by run, in plain values; whatever the clock says."""
    entries = ledger.look()
    budget, runs = budget_of(entries), dict[str, list[Entry]]()
    for entry in entries:
        if entry.kind == "charge":
            runs.setdefault(str(entry.values["run"]), []).append(entry)
    return {
        "ledger": str(ledger.path),
        "budget": in_json(budget.epsilon),
        "delta": budget.delta,
        "spent": in_json(epsilon_of(releases_of(entries), budget.delta)),
        "runs": [
            {
                "run": run,
                "begun": _moment(charges[0].time),
                "charges": len(charges),
                "epsilon": in_json(epsilon_of(releases_of(charges), budget.delta)),
            }
            for run, charges in runs.items()
        ],
        "ahead": max(0.0, round(entries[-1].time - time.time(), 1)),
    }


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a clock that was never set
        return f"at {seconds:.0f} s"
