"""A device's side of a run under epsilon: it makes the plan itself, and keeps its own ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedcar.common.progress import Silent
from fedcar.errors import FedcarError
from fedcar.federation.ledgers import Ledgers
from fedcar.federation.wire.payload import GIVEN, STATE, Payload, Value, named, with_prefix
from fedcar.federation.wire.setup import heads_of, in_text, state_forms
from fedcar.privacy.noise import NoiseSource
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import NoisedClient, NoisedRequest, mean
from fedcar.training.noised.plan import LARGEST_CLIP_NORM, LEAST_CLIP_NORM
from fedcar.training.noised.server import held_out_counts
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import ClippedSums, Tensors

if TYPE_CHECKING:
    from fedcar.federation.wire.setup import Setup


class PrivateSide:
    """Answers the requests of a run under epsilon.

    Formal guarantees:
        The ledger has the charge on disk before a question is read for it, the answer before it leaves; a request that
        comes again gets the stored answer, also after kill -9.
        No server can have less noise added than is charged: the releases follow from the plan made here, whose
            sampling rate is the plan's own (see `PrivateSettings.check`).
    """

    def __init__(
        self,
        untrained: Retriever,
        training: Questions,
        held_out: Callable[[], Questions],
        ledgers: Ledgers,
        report: Silent,
        persons: Callable[[str], list[str]],
    ) -> None:
        """`held_out` makes its dev questions ready, those that stand in train too: no choice is made by train.

        `persons` says of a field of the questions' metadata whose each training question is.
        """
        self.untrained, self.training, self.held_out = untrained, training, held_out
        self.ledgers, self.report, self.persons = ledgers, report, persons
        self.key = ""

    def noised(self, setup: Setup, request: Payload) -> Payload:
        """This device's noised sums, charged to its ledger; what stands in the ledger is sent again."""
        due = self._due(setup, request)
        known, former = heads_of(request.values["head"])
        ledger, known = self.ledgers.ledger(setup.run, known, self.settings.target, former)
        door = NoisedClient("", self.private_questions, self.source, ledger, setup.run, known, held_out=self._counts)
        tally = self.ledgers.tally(setup.run, self.plan)
        if tally is not None and door.has_to_be_made(due.number, due.release):
            tally.charge(due.number, due.release, ledger.charges(setup.run, due.number))
        given = door.answer(due)
        head = ledger.head()
        if self.ledgers.budget is None:  # a ledger of this run alone
            head = replace(head, ledger="")
        before, in_all = (ledger if tally is None else tally.ledger).spent_by(setup.run, self.settings.target.delta)
        values: dict[str, Value] = {"head": in_text(head), "before": before, "in_all": in_all}
        return Payload("noised", values, with_prefix(given, GIVEN))

    def clipped(self, setup: Setup, request: Payload) -> Payload:
        """The mean of this client's clipped parts, un-noised: a server that is trusted adds the noise."""
        due = self._due(setup, request)
        return Payload("clipped", {}, with_prefix(mean(due, self.private_questions), GIVEN))

    def _counts(self, state: Tensors) -> Tensor:
        return held_out_counts(self.untrained, self.held_out(), self.private_questions.adapter, state)

    def _due(self, setup: Setup, request: Payload) -> NoisedRequest:
        """What is asked for, by the plan made here; ValueError where that has no such exchange."""
        if setup.json != self.key:
            self._prepare(setup)
        adaptive = float(request.values["adaptive"]) if request.values["adaptive"] else None
        if adaptive is not None and not LEAST_CLIP_NORM <= adaptive <= LARGEST_CLIP_NORM:
            raise ValueError(f"a clip norm of {adaptive}")
        due = NoisedRequest.of(self.plan, int(request.values["number"]), named(request.tensors, STATE), adaptive)
        expected = state_forms(self.untrained, self.private_questions.adapter) if due.number > 1 else {}
        if {name: (tensor.dtype, tensor.shape) for name, tensor in due.state.items()} != expected:
            raise ValueError("a state of another form")
        if (due.release.unit == "client") != (request.kind == "clipped"):
            raise ValueError(f"{request.kind} of a plan with unit {due.release.unit}")
        return due

    def _prepare(self, setup: Setup) -> None:
        """Plan, noise and settings of one and the same setup: all of them or, where one cannot be had, none.

        Nothing here depends on the questions, so that no answer tells how many there are.
        """
        self.key = ""
        settings = PrivateSettings.of(setup.settings)
        try:
            plan = settings.plan(len(self.untrained.documents))
        except FedcarError as error:  # none of this fedcar's: the server hears that it is not understood, the log why
            raise ValueError(str(error)) from error
        if settings.target.noise_seed is not None and not self.ledgers.seeded:
            raise ValueError("noise that can be repeated is for tests")
        source = NoiseSource(settings.target.noise_seed)
        module = settings.module(self.untrained.encoder.embedding_width)
        column = settings.target.column
        persons = None if column is None else self.persons(column)
        private_questions = ClippedSums(self.untrained, self.training, module, persons)
        self.settings, self.plan, self.source, self.private_questions, self.key = (
            settings,
            plan,
            source,
            private_questions,
            setup.json,
        )
        self.report.say(f"{setup.run}: {self._in_words()}")

    def _in_words(self) -> str:
        target = self.settings.target
        what = f"epsilon {target.epsilon:g}, delta {target.delta:g}, unit {target.unit}, method {self.plan.method}"
        if target.unit == "client":
            return f"{what}: clipped means leave this device un-noised, the server adds the noise"
        return f"{what}: what leaves this device is noised here and charged to its own ledger"
