"""The server's side of a run under epsilon over a network: who is asked, and what is kept to go on from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedcar.common.files import replace_json, written_whole
from fedcar.errors import FedcarError
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.round import choose_cohort, note_failures, quorum
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.wire import schema
from fedcar.federation.wire.exchange import Replies
from fedcar.federation.wire.payload import GIVEN, REASONS, STATE, Payload, Value, named, with_prefix
from fedcar.federation.wire.setup import head_of, state_forms
from fedcar.privacy.errors import BudgetError
from fedcar.privacy.ledger import LedgerHead
from fedcar.privacy.release import Release
from fedcar.training.clients import Answers, Request
from fedcar.training.noised.clients import NoisedClient, NoisedRequest, poisson, within
from fedcar.training.noised.plan import HELD_OUT, PrivatePlan
from fedcar.training.noised.record import ExchangeRecord
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.sums import BELOW, COUNT, ROWS, Tensors

Given = TypeVar("Given")
MOST_DEVIATIONS = 1000.0  # of noise from its mean; adaptive counts have noise of their own, at most ten times this one


class Asking:
    """One request to several devices, and what they gave out, of the form that is due."""

    def __init__(self, network: RemoteNetwork) -> None:
        self.network = network
        settings = PrivateSettings.of(network.setup.settings)
        self.seed = settings.target.noise_seed
        self.places = {name: place for place, name in enumerate(sorted(network.clients))}
        forms = state_forms(network.retriever, settings.module(network.retriever.encoder.embedding_width))
        self.shapes = {name: shape for name, (_, shape) in forms.items()}

    def __call__(
        self, kind: str, request: NoisedRequest, names: Iterable[str], heads: Mapping[str, str], needed: int
    ) -> tuple[dict[str, Tensors], Replies]:
        """The sound answers by name; the replies' `failed` says why the others have none. `heads` are in text."""
        requests = {name: self._request(kind, request, name, heads.get(name, "")) for name in names}
        forms = self._expected(request)
        expected = schema.noised(forms, most_of(request.release)) if kind == "noised" else schema.clipped(forms)
        replies = self.network.ask(requests, dict.fromkeys(requests, expected), needed)
        return {name: named(payload.tensors, GIVEN) for name, payload in sorted(replies.payloads.items())}, replies

    def _request(self, kind: str, request: NoisedRequest, name: str, known: str) -> Payload:
        setup = self.network.setup
        if self.seed is not None:  # every device its own noise, as it is in one process
            target = {**setup.settings["target"], "noise_seed": self.seed + self.places[name]}
            setup = replace(setup, settings={**setup.settings, "target": target})
        values: dict[str, Value] = {"setup": setup.json, "number": request.number, "head": known}
        return Payload(kind, {**values, "adaptive": request.adaptive or 0.0}, with_prefix(request.state, STATE))

    def _expected(self, request: NoisedRequest) -> dict[str, tuple[torch.dtype, torch.Size]]:
        counts = 2 if request.release.unit == "person" else 1
        shapes = {0: {COUNT: torch.Size([counts])}, 1: {ROWS: self.shapes[ROWS]}}.get(request.number, self.shapes)
        if request.release.name == HELD_OUT:
            shapes = {HELD_OUT: torch.Size([3])}
        if request.adaptive is not None:
            shapes = {**shapes, BELOW: torch.Size([1])}
        return {name: (torch.float32, shape) for name, shape in shapes.items()}

    def zeros(self, request: NoisedRequest) -> dict[str, Tensor]:
        return {name: torch.zeros(shape, dtype=torch.float64) for name, (_, shape) in self._expected(request).items()}


def most_of(release: Release) -> float:
    """What no coordinate of a noised sum is above: all questions that anybody may have, and noise of its size."""
    return max(1.0, float(release.sensitivity or 0.0)) * (
        schema.MOST_QUESTIONS + MOST_DEVIATIONS * release.noise_multiplier
    )


class SeenLedgers(Protocol):
    """Where the server last saw each device's ledger, in this run and in former ones, and what it said was spent."""

    @property
    def heads(self) -> Mapping[str, LedgerHead]: ...
    def in_text(self, name: str) -> str: ...
    def note(self, name: str, head: LedgerHead, before: float, in_all: float) -> bool: ...
    def keep(self) -> None: ...


class RemoteDevices:
    """Devices behind a network, each with noise and ledger of its own (unit "example"); see `NoisedClients`.

    An exchange needs the quorum's share of those asked; a device that failed is asked again later (see `round`), and
    its part of the sum is 0 until then. `seen` is where the server last saw each ledger; it is kept at once.

    Formal guarantees:
        restored_ledger_is_refused_in_the_next_run: a device is told what former runs saw of its ledger.
    """

    def __init__(self, network: RemoteNetwork, plan: PrivatePlan, seen: SeenLedgers, settings: RoundSettings) -> None:
        self.network, self.plan, self.settings = network, plan, replace(settings, participation=1.0)
        self.seen = seen
        self.names = sorted(network.clients)
        self.given: list[Release] = []
        self.failures: dict[str, tuple[int, int]] = {}
        self.asking = Asking(network)

    @property
    def units(self) -> int:
        return len(self.names)

    def keep(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        """FedcarError where fewer than the quorum answer, however often they are asked."""
        assert isinstance(request, NoisedRequest), request
        answers: dict[str, Any] = {}
        failed: dict[str, str] = {}
        number = request.number + 1
        for attempt in range(1, self.settings.attempts + 1):
            everyone: dict[str, Any] = dict.fromkeys(self.names if names is None else names)
            cohort = choose_cohort(everyone, self.failures, self.settings, number, attempt)
            least = quorum(len(cohort), self.settings)
            missing = [name for name in cohort if name not in answers]
            known = {name: self.seen.in_text(name) for name in missing}
            given, replies = self.asking("noised", request, missing, known, max(0, least - len(answers)))
            self._note(replies)
            answers, failed = {**answers, **given}, {**failed, **replies.failed}
            self.failures = note_failures(self.failures, cohort, list(answers), number)
            if len(answers) >= least:
                self.given.append(request.release)
                failed = {name: why for name, why in failed.items() if name not in answers}
                return Answers(dict(sorted(answers.items())), failed)
            self._refused(request, {name: why for name, why in failed.items() if name not in answers}, everyone)
        raise too_few(request.number, self.settings, failed)

    @property
    def heads(self) -> Mapping[str, LedgerHead]:
        return self.seen.heads

    def _note(self, replies: Replies) -> None:
        for name, payload in replies.payloads.items():
            before, in_all = float(payload.values["before"]), float(payload.values["in_all"])
            if self.seen.note(name, head_of(payload.values["head"]), before, in_all):
                self.network.say(f"{name}: has another ledger than in former runs, with a budget of its own")
        self.seen.keep()

    def _refused(self, request: NoisedRequest, failed: Mapping[str, str], everyone: Collection[str]) -> None:
        """Devices whose budgets would be crossed end the run where too few have room left; one alone ends nothing."""
        refusing = sorted(name for name, why in failed.items() if why == REASONS["budget"])
        if len(everyone) - len(refusing) < quorum(len(everyone), self.settings):
            self.given.append(request.release)  # an answer may have left that did not come in time
            raise BudgetError(
                f"{', '.join(refusing)}: exchange {request.number} would cross the privacy budget there; not trained, "
                "not charged there, the model is kept"
            )


class RemoteCohort:
    """Clients behind a network whose sums a trusted server adds up and noises once (unit "client").

    `door` holds the server's noise and ledger. Each client is asked by its own coin; one that fails is missing from the
    sum as one that was not drawn. A mean longer than its bound is cut to it.

    Formal guarantees:
        charged_before_it_is_noised: the means reach a server that is trusted, so the release is the noised sum, and the
            charge is on the disk before that is made. Whether there is room is asked before any device is.
        below_the_quorum_nothing_is_charged: nothing noised was made of what came, and what came is let go.
        coins_are_tossed_once: those of an exchange that is repeated, also after a restart, are kept in the file
            `coins`. New ones would only count where the quorum is met, and favour those who answer: a client would be
            drawn more often than it is charged for.
    """

    def __init__(
        self, network: RemoteNetwork, plan: PrivatePlan, door: NoisedClient, settings: RoundSettings, coins: Path
    ) -> None:
        self.network, self.plan, self.door, self.settings, self.coins = network, plan, door, settings, coins
        self.names = sorted(network.clients)
        self.asking = Asking(network)
        self.last: Answers[Tensors] = Answers({})

    @property
    def units(self) -> int:
        return len(self.names)

    @property
    def given(self) -> list[Release]:
        return self.door.given

    @property
    def heads(self) -> dict[str, LedgerHead]:
        return {} if self.door.known_head is None else {self.door.name: self.door.known_head}

    def spent(self, delta: float) -> tuple[float, float]:
        """What the server's ledger counts before this run, and with it."""
        assert self.door.ledger is not None
        return self.door.ledger.spent_by(self.door.run, delta)

    def keep(self, names: Sequence[str]) -> None:
        """Nobody is counted under this unit."""

    def ask(self, request: Request[Any, Given], names: Sequence[str] | None = None) -> Answers[Given]:
        """They are asked as one, by their coins, so that nobody can be named."""
        assert isinstance(request, NoisedRequest) and names is None, request
        self.last, total = Answers({}), {}
        if made := self.door.has_to_be_made(request.number, request.release):
            total = self._summed(request)
        given: Any = self.door.release(request.number, request.release, lambda: total)
        if made:
            self.coins.unlink(missing_ok=True)
        return Answers({self.door.name: given}, self.last.failed)

    def _drawn(self, request: NoisedRequest) -> list[str]:
        if self.coins.exists():
            stored = json.loads(self.coins.read_text(encoding="utf-8"))
            if stored["exchange"] == request.number:
                return [str(name) for name in stored["clients"]]
        drawn = [self.names[place] for place in poisson(len(self.names), request.release.sampling_rate).tolist()]
        replace_json(self.coins, {"exchange": request.number, "clients": drawn})
        return drawn

    def _summed(self, request: NoisedRequest) -> dict[str, Tensor]:
        """The drawn clients' means, summed; FedcarError where fewer than the quorum of them answer."""
        drawn = self._drawn(request)
        total, least = self.asking.zeros(request), quorum(len(drawn), self.settings) if drawn else 0
        answers: dict[str, Tensors] = {}
        failed: dict[str, str] = {}
        for _ in range(self.settings.attempts):
            missing = [name for name in drawn if name not in answers]
            given, replies = self.asking("clipped", request, missing, {}, max(0, least - len(answers)))
            answers, failed = {**answers, **given}, {**failed, **replies.failed}
            if len(answers) >= least:
                break
        else:
            raise too_few(request.number, self.settings, failed)
        bound = float(request.release.sensitivity or 0.0)
        for _, tensors in sorted(answers.items()):
            for name, tensor in within(tensors, bound).items():
                total[name] += tensor
        self.last = Answers({}, {name: why for name, why in failed.items() if name not in answers})
        return total


def too_few(number: int, settings: RoundSettings, failed: Mapping[str, str]) -> FedcarError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(failed.items())[:5])
    return FedcarError(
        f"exchange {number}: too few devices after {settings.attempts} attempts ({reasons}); what was given out so far "
        f"is kept: bring devices back, or lower the quorum ({settings.quorum:g}), and go on with --resume"
    )


class Exchanges:
    """RUN/exchanges: of every exchange that is done its record and its sums, so that no device is asked for it again.

    What stands there is noised sums: what a server may know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, number: int) -> tuple[ExchangeRecord, dict[str, Tensor]] | None:
        file = self._file(number)
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as content:
            record = ExchangeRecord(**json.loads(content.metadata()["record"]))
            return record, {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping

    def put(self, record: ExchangeRecord, sums: Mapping[str, Tensor]) -> None:
        self.folder.mkdir(exist_ok=True)
        told = {"record": json.dumps(record.to_json())}
        with written_whole(self._file(record.round)) as new:
            save_file({name: tensor.contiguous() for name, tensor in sums.items()}, new, told)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"
