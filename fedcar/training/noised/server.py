"""Training under epsilon, the server's side: it sees noised sums alone, from one device or from many."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median_low
from typing import Any, Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.errors import FedcarError
from fedcar.head.head import START_SCALE
from fedcar.privacy.clip import next_clip_norm
from fedcar.privacy.errors import BudgetError
from fedcar.privacy.statement import Statement
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.clients import MANY, MOST_COUNTED
from fedcar.training.noised.clients import NoisedClients, NoisedRequest
from fedcar.training.noised.plan import (
    HELD_OUT,
    LARGEST_CLIP_NORM,
    LEAST_CLIP_NORM,
    LEAST_STRENGTH,
    MOST_WEIGHT,
    PrivatePlan,
)
from fedcar.training.noised.public import PublicQuestions, PublicTeacher
from fedcar.training.noised.record import ExchangeRecord
from fedcar.training.noised.robust import (
    CONTRADICTION,
    SPREAD_OF_A_MEDIAN,
    contradicting,
    cut,
    usual_counts,
)
from fedcar.training.noised.sums import ADAPTER_SCALE, BELOW, BELOW_SHARE, COUNT, EVIDENCE_SHARE, ROWS, load_adapter
from fedcar.training.noised.whitening import whitening
from fedcar.training.selection import Score, Standard, baseline_weights, best_weights

ROW_LENGTH, ROW_LENGTH_ALONE = 12.0, 20.0  # of a row made of class sums, before steps and without
PRIOR_QUESTIONS = 30.0  # a document's own embedding counts as so many questions in its class sum
PRIOR_QUESTIONS_WITHOUT_NOISE = 3.0  # in a class sum of public questions
PUBLIC = "public questions"
LONGEST_PATH = 400.0  # the rates of all steps together
LOGIT_NOISE = 0.8  # standard deviation that the noise of all steps together may give a score
ADAPTER_RATE = 1.0  # of the rows' rate
NORM_FACTOR = 30.0  # a client whose noised sum is longer than this many times the median is left out
LEAST_WEIGHT = 0.1
CLIP_QUANTILE, CLIP_RATE = 0.5, 0.2  # of an adaptive clip norm: Andrew et al. 2021
UNJUDGED = (
    "Whether hostile clients spoilt what is kept: no question could be asked about it. Public questions or --held-out "
    "could tell."
)
STEPS_PER_LOOK = 10  # at a public dev set, where every look means encoding it anew

Watch = Callable[[ExchangeRecord], None]


class Store(Protocol):
    """Where exchanges that are done are kept, so that a run goes on without asking again: record and sums."""

    def get(self, number: int) -> tuple[ExchangeRecord, dict[str, Tensor]] | None: ...
    def put(self, record: ExchangeRecord, sums: Mapping[str, Tensor]) -> None: ...


@dataclass
class Outcome:
    """What training under epsilon came to: the retriever kept, what it is called, the record of each exchange.

    `refusal` is what a client said that would have crossed its budget; the retriever is then the one so far.
    """

    retriever: Retriever
    name: str
    records: list[ExchangeRecord] = field(default_factory=list)
    statement: Statement | None = None
    refusal: BudgetError | None = None
    scores: dict[str, float] = field(default_factory=dict)
    selection: float | None = None  # the success of what was kept on public questions that choose


class PrivateTraining:
    """The server: adds up what the devices give out, and turns it into rows and adapter.

    `store` keeps what was added up, where devices are not there to be asked again.

    Formal guarantees:
        no_private_question_changes_anything_un_noised: what is here comes from documents, from noised sums, or from a
            dev set that was declared public.
    """

    def __init__(
        self,
        untrained: Retriever,
        clients: NoisedClients,
        plan: PrivatePlan,
        *,
        store: Store | None = None,
        public: PublicQuestions | None = None,
        adapter: Adapter | None = None,
        report: Silent | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.untrained = untrained
        self.clients = clients
        self.store = store
        self.plan = plan
        self.public = public or PublicQuestions()
        self.selection = self.public.selection
        self.teacher = None if self.public.training is None else PublicTeacher(untrained, self.public)
        self.whitening = whitening(untrained)
        self.adapter = adapter
        self.clip_norm = plan.clip_norm
        self.report = report or Silent()
        self.watch = watch or (lambda record: None)
        self.outcome = Outcome(untrained, "none")
        self.weights: dict[str, float] = {}
        self.many = len(clients.names) >= MANY
        self.contradicting: dict[str, str] = {}
        self.worth = 0.0  # where persons are the unit, how many of one question each they are worth
        self.latest: tuple[dict[str, Tensor], Score, str] | None = None
        self.best = self.before()

    # ---------------------------------------------------------------- the run, top to bottom

    def run(self) -> Outcome:
        """Count, class sums, steps; each charged before it is made. A refusal ends it with the model so far."""
        if self.teacher is not None and self.selection is not None:
            self.keep(PUBLIC, {ROWS: self.public_rows})
        try:
            self.train()
        except BudgetError as refusal:
            self.outcome.refusal = refusal
            self.report.say(f"stopped: {refusal}")
            self.compare()
        self.finish()
        return self.outcome

    def train(self) -> None:
        plan = self.plan
        units = self.counted()
        strength = plan.strength(self.worth or units, self.loudness)
        if strength < LEAST_STRENGTH and not plan.target.against_advice:
            self.report.say(advice(strength))
            return
        if plan.sums is None:
            state = {ROWS: self.public_rows}
        else:
            state = {ROWS: self.first_rows(self.exchange(NoisedRequest.of(plan, 1))[ROWS])}
            self.keep("ridge" if plan.step is None else "class sums", state)
        if plan.step is not None:
            state |= self.first_adapter()
            rates = self.rates(units)
            for number in range(1, plan.steps + 1):
                state = self.stepped(state, number, rates, units)
                self.keep(plan.method, state, number)
        if plan.held_out is not None:
            self.choose_by_held_out(state)

    def choose_by_held_out(self, state: dict[str, Tensor]) -> None:
        """Search stays where the clients' counts say, by more than their noise, that it gets more of theirs right."""
        request = NoisedRequest.of(self.plan, 2 + self.plan.steps, state)
        questions, search, trained = self.exchange(request)[HELD_OUT].tolist()
        self.report.say(f"held out, noised: {search:.0f} right by search, {trained:.0f} as trained, of {questions:.0f}")
        if questions > 0:
            self.outcome.scores |= {"before": search / questions, self.plan.method: trained / questions}
        noise = self.loudness * request.release.standard_deviation * 2**0.5  # of the difference
        if self.many:
            noise *= SPREAD_OF_A_MEDIAN
        if search - trained > noise:
            self.best = (None, None, "none")
        self.outcome.selection = self.outcome.scores.get("before" if self.best[0] is None else self.plan.method)

    def stepped(
        self, state: dict[str, Tensor], number: int, rates: Mapping[str, float], units: float
    ) -> dict[str, Tensor]:
        """One noised step over all devices. Divided by the (noised) number expected to take part, not by the actual."""
        adaptive = self.clip_norm if self.plan.target.adaptive_clip else None
        request = NoisedRequest.of(self.plan, number + 1, state, adaptive)
        expected = units * request.release.sampling_rate
        sums = self.exchange(request)
        if adaptive is not None:
            below = float(sums.pop(BELOW)) / (2 * BELOW_SHARE**0.5 * expected) + 0.5
            sums = {name: adaptive / (1 - BELOW_SHARE) ** 0.5 * tensor for name, tensor in sums.items()}
            moved = next_clip_norm(adaptive, below, CLIP_QUANTILE, CLIP_RATE)
            self.clip_norm = min(max(moved, LEAST_CLIP_NORM), LARGEST_CLIP_NORM)
            self.told(clip_norm=adaptive)
        return {name: tensor - rates[name] / expected * sums[name] for name, tensor in state.items()}

    def exchange(self, request: NoisedRequest) -> dict[str, Tensor]:
        """What all devices give out in this exchange, checked and added up; of the count each one's answer."""
        known = self.store.get(request.number) if self.store is not None else None
        if known is not None:
            record, sums = known
            self.clients.given.append(request.release)
            self.contradicting |= {n: why for n, why in record.refused.items() if why.startswith(CONTRADICTION)}
        else:
            record, passed = self.answered(request)
            sums = (
                {name: answer[COUNT] for name, answer in passed.items()} if not request.number else self.added(passed)
            )
            if self.store is not None:
                self.store.put(record, sums)
        self.outcome.records.append(record)
        self.watch(record)
        return sums

    def answered(self, request: NoisedRequest) -> tuple[ExchangeRecord, dict[str, Mapping[str, Tensor]]]:
        """The exchange's record, and the answers that passed."""
        answers = self.clients.ask(request)
        passed, refused = checked(answers.given)
        if self.many:
            if self.plan.sums is not None and request.number == 1:
                self.contradicting = contradicting(passed, request.release.standard_deviation)
            refused |= {name: why for name, why in self.contradicting.items() if name in passed}
            passed = cut({name: answer for name, answer in passed.items() if name not in refused})
        if not passed:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(refused.items())[:5])
            raise FedcarError(f"exchange {request.number}: no client gave out anything that can be used ({reasons})")
        sent = sum(4 * tensor.numel() for answer in answers.given.values() for tensor in answer.values())
        record = ExchangeRecord(
            round=request.number,
            clients=sorted(passed),
            refused=refused,
            failed=dict(answers.failed),
            bytes_up=sent,
            bytes_down=sent if request.number > 1 else 0,  # a step is taken at a state of the same shape
        )
        return record, passed

    def told(self, **more: Any) -> ExchangeRecord:  # noqa: ANN401 - fields of the record, by name
        """Of the last exchange also this."""
        self.outcome.records[-1] = replace(self.outcome.records[-1], **more)
        return self.outcome.records[-1]

    def added(self, passed: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The weighted sum. A client left out is missing from it and not from the divisor: its part of a step is 0."""
        names = next(iter(passed.values()))
        if HELD_OUT in names and self.many:
            return {HELD_OUT: usual_counts({name: one[HELD_OUT] for name, one in passed.items()}, self.weights)}
        weighted = {name: torch.zeros_like(tensor) for name, tensor in names.items()}
        for client, answer in passed.items():
            for name, tensor in answer.items():
                weighted[name] += self.weights.get(client, 1.0) * tensor
        return weighted

    def counted(self) -> float:
        """How many units train: clients are known to the server, questions are counted with noise.

        A client with few questions brings as much noise as one with many, so it counts n / median, at most 1, by the
        noised counts: what is made of them costs nothing more.
        """
        if self.plan.count is None:
            return float(self.clients.units)
        counts = self.exchange(NoisedRequest.of(self.plan, 0))
        noised = {name: max(0.0, float(count[0])) for name, count in counts.items()}
        self.clients.keep(sorted(noised))
        self.weights = dict.fromkeys(noised, 1.0)
        if not any(noised.values()):  # noise alone: nobody is known to have more than anybody else
            return 1.0
        usual = max(1.0, median_low(noised.values()))
        if self.many:  # one that counts a million would make all steps short
            noised = {name: min(number, MOST_COUNTED * usual) for name, number in noised.items()}
        self.weights = {name: min(1.0, number / usual) for name, number in noised.items()}
        if any(weight < LEAST_WEIGHT for weight in self.weights.values()):
            few = sum(weight < LEAST_WEIGHT for weight in self.weights.values())
            self.report.say(f"{few} of {len(noised)} clients have too few questions for this plan and hardly count")
        if self.plan.target.protects == "person":
            weighed = {name: max(0.0, float(count[1])) for name, count in counts.items()}
            if self.many:
                most = MOST_COUNTED * max(1.0, median_low(weighed.values()))
                weighed = {name: min(weighs, most) for name, weighs in weighed.items()}
            worth = sum(self.weights[name] * MOST_WEIGHT * weighs for name, weighs in weighed.items())
            self.worth = max(1.0, worth)
        return max(1.0, sum(self.weights[name] * number for name, number in noised.items()))

    @property
    def loudness(self) -> float:
        """How much louder the noise of all devices together is than that of one."""
        return math.sqrt(max(1e-9, sum(weight**2 for weight in self.weights.values()))) if self.weights else 1.0

    # ---------------------------------------------------------------- rows, rates, adapter

    @cached_property
    def public_rows(self) -> Tensor:
        """Rows by public questions alone."""
        return self.first_rows()

    def first_rows(self, sums: Tensor | float = 0.0) -> Tensor:
        """Rows along noised class sum + k e_d, e_d the document's own embedding, centred: a prior that costs nothing.

        All of one length: how many questions a document has is not asked. Where there are public questions the rows are
        then fitted to them; their class sums stand for noised ones where the plan has none.
        """
        head, teacher, questions = self.untrained.head, self.teacher, PRIOR_QUESTIONS
        prior = functional.normalize(head.embeddings - head.centre, dim=1) * head.embeddings.norm(dim=1, keepdim=True)
        if teacher is not None:
            sums = sums + teacher.class_sums
        if self.plan.sums is None:
            questions = PRIOR_QUESTIONS_WITHOUT_NOISE
        length = ROW_LENGTH_ALONE if self.plan.step is None else ROW_LENGTH
        rows = length * functional.normalize((sums + questions * prior @ self.whitening).float(), dim=1)
        return rows if teacher is None else teacher.fitted(rows)

    def rates(self, units: float) -> dict[str, float]:
        """Step sizes from the plan and the noised count: as far as LONGEST_PATH, unless the noise gets too loud.

        After T steps of rate r the noise on a score is r N / n sqrt(T) sigma (x has length 1).
        """
        plan, step = self.plan, self.plan.step
        assert step is not None
        expected = units * step.sampling_rate
        deviation = step.noise_multiplier * plan.clip_norm
        loudness = self.loudness * deviation * step.steps**0.5 * plan.documents / expected
        rate = min(LONGEST_PATH / step.steps, LOGIT_NOISE / loudness) * plan.documents
        return {ROWS: rate} | dict.fromkeys(("difference", "left", "right"), ADAPTER_RATE * rate)

    def first_adapter(self) -> dict[str, Tensor]:
        if self.adapter is None:
            return {}
        return {name: tensor.detach().clone() / ADAPTER_SCALE for name, tensor in self.adapter.named_parameters()}

    # ---------------------------------------------------------------- what is kept

    def retriever(self, state: Mapping[str, Tensor]) -> Retriever:
        return retriever_of(self.untrained, state, self.adapter)

    def keep(self, name: str, state: Mapping[str, Tensor], number: int = 0) -> None:
        """Take this state as the result; with public questions to choose by only where it is better than the others.

        Among the steps the last alone competes: the best of many on a few questions is often the luckiest.
        """
        last = name == self.plan.method and number == self.plan.steps
        what, shown = name if not number else f"{name}, step {number}", ""
        record = self.told(what=what) if name != PUBLIC else None
        look = self.adapter is None or last or number % STEPS_PER_LOOK == 0
        if self.selection is not None and look:
            retriever = self.retriever(state)
            reached = Standard().score(self.selection, retriever.scores_of(self.selection))
            if record is not None:
                self.told(selection=reached.success)
            shown = f": {reached.success:.3f} of the public dev questions right"
            self.outcome.scores[what] = reached.success
            self.latest = (dict(state), reached, name)
            if last or not number:
                self.compare()
        elif self.selection is None:
            self.best = (dict(state), None, name)
        if last or number % 10 == 0 or name != self.plan.method:
            self.report.say(f"{what} of {self.plan.steps}{shown}" if number else f"{name}{shown}")

    def compare(self) -> None:
        """The latest state that was looked at is the result where it is better than what was."""
        if self.latest is not None and (self.best[1] is None or self.latest[1] > self.best[1]):
            self.best = self.latest

    def before(self) -> tuple[dict[str, Tensor] | None, Score | None, str]:
        """Search as it is; with a public dev set the best of the baselines and the evidence."""
        if self.selection is None:
            return None, None, "none"
        among = Standard().fitted(self.untrained, (self.untrained.weights, *baseline_weights()))
        self.untrained_best, reached = best_weights(among, self.selection)
        self.outcome.scores["before"] = reached.success
        return None, reached, "none"

    def finish(self) -> None:
        state, reached, name = self.best
        if state is None:
            retriever = self.untrained if self.selection is None else self.untrained_best
            if len(self.outcome.records) > 1 and self.outcome.refusal is None:
                self.report.say("nothing trained under this budget was better on the public dev questions than search")
        else:
            retriever = self.retriever(state)
        self.outcome.retriever, self.outcome.name = retriever, name
        if reached is not None:
            self.outcome.selection = reached.success
        if reached is not None:
            self.report.say(f"kept: {name} ({reached.success:.3f} of the public dev questions right)")
        chosen = choices(self.plan, self.public)
        statement = self.plan.statement(tuple(self.clients.given), self.clients.units, chosen)
        if self.clients.units > 1 and self.selection is None and self.plan.held_out is None:
            statement = replace(statement, not_covered=(*statement.not_covered, UNJUDGED))
        self.outcome.statement = statement


def retriever_of(untrained: Retriever, state: Mapping[str, Tensor], adapter: Adapter | None) -> Retriever:
    """The retriever of a state: every row is active, whether or not its document has questions."""
    weights = weights_of(untrained.weights[:LEARNED])  # those of a document that is added later: no row, so all of it
    weights[:LEARNED] *= EVIDENCE_SHARE
    head = type(untrained.head)(untrained.head.embeddings.numpy(), centre=untrained.head.centre.numpy())
    with torch.no_grad():
        head.rows.copy_(state[ROWS].float() @ whitening(untrained) / START_SCALE)
        head.active.fill_(True)
    encoder = untrained.encoder
    if adapter is not None and len(state) > 1:
        adapter = copy.deepcopy(adapter)
        load_adapter(adapter, state)
        encoder = encoder.with_adapter(adapter)
    return replace(untrained, head=head, weights=weights, encoder=encoder)


def held_out_counts(
    untrained: Retriever, questions: Questions, adapter: Adapter | None, state: Mapping[str, Tensor]
) -> Tensor:
    """Held-out questions of a client, how many search gets right, and how many the state: (3,)."""
    if not len(questions):
        return torch.zeros(3, dtype=torch.float64)
    trained = retriever_of(untrained, state, adapter)
    with untrained.encoder.model.without_remarks():  # with an adapter the questions are read again
        scores = [retriever.scores_of(questions) for retriever in (untrained, trained)]
    by_search, by_state = (Standard().score(questions, one).success for one in scores)
    return len(questions) * torch.tensor([1.0, by_search, by_state], dtype=torch.float64)


def choices(plan: PrivatePlan, public: PublicQuestions) -> dict[str, str]:
    """For each choice of a run where it came from, as the statement says it."""
    by_dev = "public dev set" if plan.target.has_public else "fixed in advance"
    return {
        "method and number of steps": "fixed in advance",
        "the step that is kept": "charged" if plan.held_out is not None else by_dev,
        "weights of evidence and rows": by_dev,
        "confidence and answer threshold": by_dev,
        "clip norm": "charged" if plan.target.adaptive_clip else "fixed in advance",
        "centring": "fixed in advance",
        "prior of the rows": "documents alone",
        "whitening": "documents alone",
        **({} if public.training is None else {"rows that noised steps begin with": public.source}),
        "rates, and whether to train at all": "charged" if plan.count is not None else "fixed in advance",
    }


def advice(strength: float) -> str:
    return (
        f"advice: at this budget what is learned is expected to be worse than search, which costs none (strength "
        f"{strength:.1f}; training pays from {LEAST_STRENGTH:.0f} on); search is kept. More questions, fewer documents "
        "or clients, or a larger epsilon help; --against-advice trains all the same"
    )


def checked(
    answers: Mapping[str, Mapping[str, Tensor]],
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, str]]:
    """The answers that may be added up, and the others with the reason: not finite, another shape, far too long.

    Noise makes honest answers about equally long; counts may well be 30 times another's.
    """
    refused = {
        name: "not finite"
        for name, answer in answers.items()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in answer.values())
    }
    lengths = {
        name: float(torch.cat([tensor.flatten().double() for tensor in answer.values()]).norm())
        for name, answer in answers.items()
        if name not in refused
    }
    usual = median_low(lengths.values()) if lengths else 0.0
    counts = all(tensor.numel() <= 3 for answer in answers.values() for tensor in answer.values())
    for name, value in lengths.items():
        if len(lengths) > 2 and not counts and value > NORM_FACTOR * max(usual, 1e-12):
            refused[name] = f"length {value:.3g}, above {NORM_FACTOR:g} times the clients' median {usual:.3g}"
    return {name: answer for name, answer in answers.items() if name not in refused}, refused
