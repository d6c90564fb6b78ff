"""A device's side of a run under epsilon: it makes the plan itself, and keeps its own ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch
from torch import Tensor

from fedcar.adapter import Adapter
from fedcar.federation.payload import GIVEN, STATE, Payload, named, with_prefix
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.ledger import Budget, Head, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import check_target
from fedcar.private_devices import Device, Order, mean
from fedcar.private_plan import LARGEST_CLIP_NORM, LEAST_CLIP_NORM, PrivatePlan, Target, make_plan
from fedcar.private_sums import ROWS, Asked, Tensors
from fedcar.private_training import held_out_counts
from fedcar.progress import Silent
from fedcar.questions import Questions
from fedcar.retriever import Retriever

if TYPE_CHECKING:
    from fedcar.federation.device import Setup

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class PrivateSettings:
    """All that a plan follows from: devices and server make the same of it, so nobody is told how much noise to add."""

    target: Target
    method: str
    steps: int | None
    sampling_rate: float | None
    adapter: str
    seed: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PrivateSettings:
        """Of what came over a network; TypeError or KeyError for what is none."""
        return cls(**{**values, "target": Target(**values["target"])})

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    def plan(self, documents: int) -> PrivatePlan:
        return make_plan(self.target, self.method, documents, steps=self.steps, sampling_rate=self.sampling_rate)

    def module(self, embedding_width: int) -> Adapter | None:
        """The adapter as every device and the server begin with it."""
        return Adapter(self.adapter, embedding_width, self.seed) if self.method == "adapter" else None


class Books:
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

    def ledger(self, run: str, head: Head | None, target: Target) -> Ledger:
        """That of a run, checked against what the server last saw of it."""
        if self.kept is not None or self.budget is not None:
            ledger = opened_ledger(self._kept_ledger().path, head, target)
            self.budget = ledger.budget()
            return ledger
        return opened_ledger(self.folder / hashlib.sha256(run.encode()).hexdigest()[:24] / LEDGER, head, target)


def opened_ledger(path: Path, head: Head | None, target: Target) -> Ledger:
    """A client's ledger, made with the run's budget where there is none and the server knows of none."""
    ledger = Ledger(path)
    if not path.exists() and head is None:
        seeded = target.noise_seed is not None  # then every charge is infinite, and so must the budget be
        ledger.create(Budget(float("inf") if seeded else target.epsilon, target.delta))
    ledger.open(head)
    return ledger


def head_of(text: object) -> Head:
    """Where a ledger stands, as it is written on the wire; ValueError for what is none."""
    number, _, digest = str(text).partition(":")
    if not (number.isdecimal() and len(number) <= 12 and len(digest) == 64):
        raise ValueError("no head of a ledger")
    return Head(int(number), digest)


def file_name(name: str) -> str:
    """A client's name as that of a folder."""
    label = quote(name, safe="")
    return label if len(label) <= 80 else hashlib.sha256(name.encode()).hexdigest()[:24]


def state_forms(untrained: Retriever, module: Adapter | None) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of every tensor of a state under epsilon: rows, and those of the adapter."""
    forms = {ROWS: (torch.float32, untrained.head.rows.shape)}
    if module is not None:
        forms |= {name: (tensor.dtype, tensor.shape) for name, tensor in module.named_parameters()}
    return forms


class PrivateSide:
    """Answers the requests of a run under epsilon.

    Formal guarantees:
        The ledger has the charge on disk before a question is read for it, the answer before it leaves; a request that
        comes again gets the stored answer, also after kill -9.
        No server can have less noise added than is charged: the releases follow from the plan made here.
    """

    def __init__(
        self,
        untrained: Retriever,
        training: Questions,
        held_out: Callable[[], Questions],
        books: Books,
        report: Silent,
    ) -> None:
        """`held_out` makes its dev questions ready, those that stand in train too: no choice is made by train."""
        self.untrained, self.training, self.held_out = untrained, training, held_out
        self.books, self.report = books, report
        self.key = ""

    def noised(self, setup: Setup, request: Payload) -> Payload:
        """This device's noised sums, charged to its ledger; what stands in the ledger is sent again."""
        order = self._order(setup, request)
        head = None
        if request.values["head"]:
            head = head_of(request.values["head"])
        ledger = self.books.ledger(setup.run, head, self.settings.target)
        door = Device("", self.asked, self.source, ledger, setup.run, head, held_out=self._counts)
        given = door.answer(order)
        found = ledger.head()
        return Payload("noised", {"head": f"{found.number}:{found.hash}"}, with_prefix(given, GIVEN))

    def clipped(self, setup: Setup, request: Payload) -> Payload:
        """The mean of this client's clipped parts, un-noised: a server that is trusted adds the noise."""
        order = self._order(setup, request)
        return Payload("clipped", {}, with_prefix(mean(order, self.asked), GIVEN))

    def _counts(self, state: Tensors) -> Tensor:
        return held_out_counts(self.untrained, self.held_out(), self.asked.adapter, state)

    def _order(self, setup: Setup, request: Payload) -> Order:
        """What is asked for, by the plan made here; ValueError where that has no such exchange."""
        if setup.json != self.key:
            self._prepare(setup)
        adaptive = float(request.values["adaptive"]) if request.values["adaptive"] else None
        if adaptive is not None and not LEAST_CLIP_NORM <= adaptive <= LARGEST_CLIP_NORM:
            raise ValueError(f"a clip norm of {adaptive}")
        order = Order.of(self.plan, int(request.values["number"]), named(request.tensors, STATE), adaptive)
        expected = state_forms(self.untrained, self.asked.adapter) if order.number > 1 else {}
        if {name: (tensor.dtype, tensor.shape) for name, tensor in order.state.items()} != expected:
            raise ValueError("a state of another form")
        if (order.release.unit == "client") != (request.kind == "clipped"):
            raise ValueError(f"{request.kind} of a plan with unit {order.release.unit}")
        return order

    def _prepare(self, setup: Setup) -> None:
        """Plan, noise and settings of one and the same setup: all of them or, where one cannot be had, none.

        Nothing here depends on the questions, so that no answer tells how many there are.
        """
        self.key = ""
        settings = PrivateSettings.of(setup.settings)
        settings.target.check()
        if settings.target.noise_seed is not None and not self.books.seeded:
            raise ValueError("noise that can be repeated is for tests")
        plan, source = settings.plan(len(self.untrained.documents)), NoiseSource(settings.target.noise_seed)
        module = settings.module(self.untrained.encoder.embedding_width)
        asked = Asked(self.untrained, self.training, module)
        self.settings, self.plan, self.source, self.asked, self.key = settings, plan, source, asked, setup.json
        self.report.say(f"{setup.run}: {self._in_words()}")

    def _in_words(self) -> str:
        target = self.settings.target
        what = f"epsilon {target.epsilon:g}, delta {target.delta:g}, unit {target.unit}, method {self.plan.method}"
        if target.unit == "client":
            return f"{what}: clipped means leave this device un-noised, the server adds the noise"
        return f"{what}: what leaves this device is noised here and charged to its own ledger"
