"""The ledgers of one run: what is charged, by client, before anything is noised."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.ledger import Budget, Ledger, LedgerHead
from fedcar.privacy.release import check_target
from fedcar.training.target import Target

LEDGER = "ledger.jsonl"


class Ledgers:
    """Where a device's ledgers lie: one a run with that run's budget, or one over all runs (`kept`).

    With a `budget` of its own the device gives out nothing that is not noised and charged. A ledger that was once kept
    over all runs stays the device's, also where the budget is not given again. `seeded`, for tests, takes a server's
    word for noise that can be repeated.
    """

    def __init__(
        self, folder: Path, kept: Path | None = None, budget: Budget | None = None, seeded: bool = False
    ) -> None:
        """PrivacyError where a ledger with another budget stands there."""
        self.folder, self.kept, self.budget, self.seeded = folder, kept, budget, seeded
        ledger = self._kept_ledger()
        if budget is not None:
            check_target(budget.epsilon, budget.delta)
            if not ledger.path.exists():
                ledger.create(budget)
        if ledger.path.exists():
            self.budget = ledger.budget()
        if budget is not None and self.budget != budget:
            before = ledger.budget()
            raise PrivacyError(
                f"{ledger.path}: its budget is epsilon {before.epsilon:g}, delta {before.delta:g} and does not change; "
                "give that"
            )

    def _kept_ledger(self) -> Ledger:
        return Ledger((self.kept or self.folder) / LEDGER)

    def ledger(self, run: str, head: LedgerHead | None, target: Target) -> Ledger:
        """That of a run, checked against what the server last saw of it."""
        if self.kept is not None or self.budget is not None:
            ledger = opened_ledger(self._kept_ledger().path, head, target)
            self.budget = ledger.budget()
            return ledger
        return opened_ledger(self.folder / hashlib.sha256(run.encode()).hexdigest()[:24] / LEDGER, head, target)


def opened_ledger(path: Path, head: LedgerHead | None, target: Target) -> Ledger:
    """A client's ledger, made with the run's budget where there is none and the server knows of none."""
    ledger = Ledger(path)
    if not path.exists() and head is None:
        seeded = target.noise_seed is not None  # then every charge is infinite, and so must the budget be
        ledger.create(Budget(float("inf") if seeded else target.epsilon, target.delta))
    ledger.open(head)
    return ledger


def file_name(name: str) -> str:
    """A client's name as that of a folder."""
    label = quote(name, safe="")
    return label if len(label) <= 80 else hashlib.sha256(name.encode()).hexdigest()[:24]
