"""The ledgers of one run: what is charged, by client, before anything is noised."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from fedcar.errors import FedcarError
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.ledger import Budget, Ledger, LedgerHead
from fedcar.privacy.release import check_target
from fedcar.training.noised.plan import PrivatePlan
from fedcar.training.noised.tally import LEDGER, Tally, ledger_file, opened, witnessed
from fedcar.training.target import Target


class Ledgers:
    """Where a device's ledgers lie: one a run with that run's budget, or one over all runs (`kept`).

    With a `budget` of its own the device gives out nothing that is not noised and charged. A ledger that was once kept
    over all runs stays the device's, also where the budget is not given again. One a run is counted in the ledger
    `counted` too, without any limit. `seeded`, for tests, takes a server's word for noise that can be repeated.

    Formal guarantees:
        a_budget_is_the_devices_own_word: no request of a server makes a ledger over runs, or sets its budget.
    """

    def __init__(
        self,
        folder: Path,
        kept: Path | None = None,
        budget: Budget | None = None,
        seeded: bool = False,
        counted: Path | None = None,
    ) -> None:
        """PrivacyError where a ledger with another budget stands there, or where one over runs would have none."""
        self.folder, self.seeded, self.counted = folder, seeded, counted
        self.file, self.budget = ledger_file(kept or folder), None
        if budget is not None:
            check_target(budget.epsilon, budget.delta)
            self.budget = opened(self.file, budget, budget.delta, folder / WITNESSES).budget()
        elif self.file.exists() or self.file.with_name(self.file.name + ".head").exists():
            self.budget = self._kept().budget()
        if kept is not None and (self.budget is None or (math.isinf(self.budget.epsilon) and not seeded)):
            raise PrivacyError(
                f"{self.file}: no ledger with a budget stands there; give this device's own with --epsilon, over all "
                "runs: no server is to say it"
            )

    def _kept(self) -> Ledger:
        return witnessed(self.file, self.folder / WITNESSES)

    def ledger(
        self, run: str, head: LedgerHead | None, target: Target, former: Sequence[LedgerHead] = ()
    ) -> tuple[Ledger, LedgerHead | None]:
        """That of a run, checked against what the server last saw of it in this run and in `former` ones."""
        if self.budget is None:
            place = self.folder / hashlib.sha256(run.encode()).hexdigest()[:24]
            return opened_ledger(place / LEDGER, head, target), head
        ledger = self._kept()
        if head is None:
            name = ledger.head().ledger
            head = next((one for one in former if one.ledger == name), None)
        ledger.open(head)
        return ledger, head

    def tally(self, run: str, plan: PrivatePlan) -> Tally | None:
        """The run in the ledger that counts over runs, where that is not the run's own ledger."""
        if self.counted is None or self.budget is not None or plan.target.noise_seed is not None:
            return None
        return Tally(opened(self.counted, None, plan.target.delta), run, plan)


WITNESSES = "witnesses"  # in the folder of a device's ledgers: of those that lie elsewhere


def remembered(folder: Path) -> Path | None:
    """The file of the ledger over runs that a device had last, by its witness; FedcarError where that is gone."""
    witnesses = sorted((folder / WITNESSES).glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not witnesses:
        return None
    try:
        ledger = Path(json.loads(witnesses[-1].read_text(encoding="utf-8"))["ledger"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedcarError(f"{witnesses[-1]}: cannot be read; it says where this device's ledger lies") from error
    if not ledger.exists():
        raise FedcarError(
            f"{ledger}: the ledger of this device is gone, with what was spent; bring it back, or name the one that "
            "counts from now on with --ledger"
        )
    return ledger


def opened_ledger(path: Path, head: LedgerHead | None, target: Target, kept: bool = False) -> Ledger:
    """A client's ledger, made with the run's budget where there is none and the server knows of none.

    One that is `kept` over runs has a witness.
    """
    ledger = witnessed(path) if kept else Ledger(path)
    if not path.exists() and head is None:
        seeded = target.noise_seed is not None  # then every charge is infinite, and so must the budget be
        ledger.create(Budget(float("inf") if seeded else target.epsilon, target.delta))
    ledger.open(head)
    return ledger


def file_name(name: str) -> str:
    """A client's name as that of a folder."""
    label = quote(name, safe="")
    return label if len(label) <= 80 else hashlib.sha256(name.encode()).hexdigest()[:24]
