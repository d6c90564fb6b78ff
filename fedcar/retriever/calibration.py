"""Confidence: how likely a hit is relevant, whether a question has an answer, and when to say "I don't know"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcar.common.vectors import unit
from fedcar.retriever.evidence import Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPERATURES = np.geomspace(0.05, 20.0, 60)
TARGET = 0.95
LEAST_QUESTIONS = 50  # for a threshold
LEAST_FOR_CONFIDENCE = 20
LOG_ODDS = 15.0  # of a share of the softmax, at most
OF_THE_SHARE = (0.0, 1.0, 0.0, 0.0)  # the weights that leave it as it is
ABSOLUTE = ("cosine", "sentence", "coverage", "tokens", "sentence_tokens")  # evidence that compares with no document
OF_ANSWERABLE = 5.0  # the pull of its weights to 0
REMOVED_SHARE, MOST_WEIGHT = 0.25, 5.0  # of questions made unanswerable, beside real ones; of a real one
FOLDS = 5
STEPS = np.arange(12.0, -8.25, -0.25)  # log-odds of trust at which answers are counted
RISKS = tuple(percent / 100 for percent in range(1, 100))  # that are tried where another is not supported
DOUBT = 0.01  # the chance that a promise about wrong answers does not hold
OLD_PROMISE = "nothing is answered: this retriever promises nothing about wrong answers; train again"
NO_PROMISE = f"nothing is answered: a promise takes {LEAST_QUESTIONS} dev questions (under epsilon public ones)"
NO_CONFIDENCE = f"no confidence: it takes {LEAST_FOR_CONFIDENCE} dev questions (under epsilon public ones)"


class Scored(NamedTuple):
    """What confidence is drawn from: scores (n, c), -inf for no hit, evidence (n, c, F), untrained states (n, d)."""

    scores: NDArray[np.float32]
    evidence: NDArray[np.float32]
    hidden_states: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """The chosen questions."""
        return Scored(self.scores[rows], self.evidence[rows], self.hidden_states[rows])


class Asked(NamedTuple):
    """Questions to learn confidence from: which candidates are relevant (n, c), and all without those.

    `unanswered` are questions known to have no answer, `centre` (d,) the mean unit state of training questions.
    """

    scored: Scored
    relevant: NDArray[np.bool_]
    removed: Scored
    unanswered: Scored | None = None
    centre: NDArray[np.float32] | None = None

    def take(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> Asked:
        """These questions, and these of those without an answer."""
        unanswered = None if self.unanswered is None else self.unanswered.take(others)
        return Asked(self.scored.take(rows), self.relevant[rows], self.removed.take(rows), unanswered, self.centre)


class Limit(NamedTuple):
    """The least trust of an answer, and why there is none or why it cannot be reached."""

    trust: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Calibration:
    """Turns scores into the confidence of each hit, and says which questions are answered.

    A hit's confidence is the probability that it is relevant to a question that has an answer: a logistic model
    (`hits`) of its score, its rank and the log-odds of its share in softmax(temperature * score). Several hits may
    be relevant. `answerable` holds the weights of a logistic model of "the question has an answer", over scores, the
    evidence of the first hit, and nearness to `centre`, the mean of the training questions. Trust is the product of
    both: the probability that the first hit is right. A question is answered where it is at least `threshold`, or what
    a promised risk takes. `counts` are the numbers of dev questions of at least the trust of each of STEPS, and how
    many of them have a wrong first hit, each by a model that has not seen it.

    Without a temperature nothing supports a confidence. Calibrations saved before have no `hits`: their confidence
    is the share itself, and `known` the weights of "the first hit is right".
    """

    temperature: float | None = None
    known: tuple[float, ...] | None = None
    threshold: float | None = None
    hits: tuple[float, ...] | None = None
    answerable: tuple[float, ...] | None = None
    centre: tuple[float, ...] | None = None
    counts: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def of_json(cls, saved: Mapping[str, Any]) -> Calibration:
        """What a saved retriever or bundle has of it."""
        named = {one.name: saved[one.name] for one in fields(cls) if saved.get(one.name) is not None}
        for name in named.keys() & {"known", "hits", "answerable", "centre"}:
            named[name] = tuple(named[name])
        if "counts" in named:
            named["counts"] = tuple((answered, wrong) for answered, wrong in named["counts"])
        return cls(**named)

    @classmethod
    def fit(cls, asked: Asked) -> Calibration:
        """Learn from dev questions; with fewer than 20 nothing is, with fewer than 50 confidence alone.

        The temperature has the highest likelihood (Guo et al. 2017); the weights over hits are pulled to leaving the
        share as it is (Platt 1999). `answerable` is learned from the questions, the same without their relevant
        candidates, and those that nothing answers. The threshold is the lowest from which on at least 95 % of the
        answered questions are right; None where the questions are too few to support one.
        """
        if len(asked.relevant) < LEAST_FOR_CONFIDENCE:
            return cls()
        if len(asked.relevant) < LEAST_QUESTIONS or asked.relevant.shape[1] < 2:
            return cls._of_hits(asked)
        trust, right = cross_fitted(asked)
        odds = np.log(np.maximum(trust, 1e-9)) - np.log(np.maximum(1 - trust, 1e-9))
        inside = odds >= STEPS[:, None]
        counts = tuple((int(rows.sum()), int((rows & ~right).sum())) for rows in inside)
        fitted = cls._models(asked)
        return replace(fitted, threshold=answer_threshold(trust, right), counts=counts)

    @classmethod
    def _of_hits(cls, asked: Asked) -> Calibration:
        """The confidence of hits alone."""
        scores, relevant = asked.scored.scores, asked.relevant

        def loss(temperature: float) -> float:
            right = (softmax(scores, temperature) * relevant).sum(axis=1)
            return -float(np.log(np.maximum(right, 1e-12)).mean())

        temperature = float(min(TEMPERATURES, key=loss))
        hits = np.isfinite(scores)
        inputs = hit_signals(scores, temperature)[hits]
        return cls(temperature, hits=logistic(inputs, relevant[hits], prior=OF_THE_SHARE, of_constant=1.0))

    @classmethod
    def _models(cls, asked: Asked) -> Calibration:
        """The same, and whether a question has an answer."""
        scores = asked.scored.scores
        centre = None if asked.centre is None else tuple(round(float(value), 6) for value in asked.centre)
        fitted = replace(cls._of_hits(asked), centre=centre)
        removed = asked.removed.take(np.flatnonzero(np.isfinite(asked.removed.scores).any(axis=1)))
        without = 0 if asked.unanswered is None else len(asked.unanswered.scores)
        of_real = min(MOST_WEIGHT, (1 - REMOVED_SHARE) * len(scores) / max(1, without))
        importance = [1.0, 1 - of_real * without / len(scores), of_real]
        kinds = [asked.scored, removed, *([asked.unanswered] if asked.unanswered is not None else [])]
        inputs = np.concatenate([fitted._signals(kind) for kind in kinds])
        counted = np.concatenate([np.full(len(kind.scores), one) for kind, one in zip(kinds, importance, strict=False)])
        known = np.arange(len(inputs)) < len(scores)
        return replace(fitted, answerable=logistic(inputs, known, counted, strength=OF_ANSWERABLE))

    def confidences(self, scores: NDArray[np.float32]) -> NDArray[np.float64] | None:
        """Scores (n, c), -inf allowed -> how likely each hit is relevant (n, c), never less than that of a later one.

        None where nothing supports a confidence.
        """
        if self.temperature is None:
            return None
        if self.hits is None:
            return softmax(scores, self.temperature)
        order = np.argsort(-scores, axis=1, kind="stable")
        confidence = probability(hit_signals(scores, self.temperature), self.hits)
        falling = np.minimum.accumulate(np.take_along_axis(confidence, order, axis=1), axis=1)
        np.put_along_axis(confidence, order, falling, axis=1)
        return np.where(np.isfinite(scores), confidence, 0.0)

    def has_answer(self, scored: Scored) -> NDArray[np.float64]:
        """How likely each question has an answer among the documents (n,); 1 where that was not learned."""
        if self.answerable is not None:
            return probability(self._signals(scored), self.answerable)
        if self.known is not None and self.temperature is not None:
            return probability(signals(scored.scores, self.temperature), self.known)
        return np.ones(len(scored.scores))

    def trust(self, scored: Scored) -> NDArray[np.float64]:
        """How sure it is that the first hit is right (n,): low for a question that no document answers."""
        confidence = self.confidences(scored.scores)
        if confidence is None:
            return np.zeros(len(scored.scores))
        if self.known is not None:
            return self.has_answer(scored)
        first: NDArray[np.float64] = confidence.max(axis=1, initial=0.0)
        return first * self.has_answer(scored)

    def limit(self, risk: float | None = None) -> Limit:
        """The least trust of an answer: the threshold, or what keeps the share of wrong answers within `risk`.

        The promise for a risk: with a chance of 99 % over the dev questions, at most that share of the answers to
        questions like them have a wrong first hit, whatever number of hits is shown. It holds for all questions
        together, not within a group of them, and not for questions of another kind than those of dev. By Learn then
        Test (Angelopoulos et al. 2021), which controls the share among the answers; conformal risk control (2022)
        needs a loss that falls with the threshold, so it bounds the share of wrong answers among all questions, in the
        mean. What is tested is whether so few of the dev questions of at least this trust would be wrong by chance, by
        the binomial law, down from all, the surest half, quarter and so on, which share the doubt of 1 %. So the share
        that is seen on dev must be lower than the risk: with 1,000 answered questions .05 takes .031 or less,
        and fewer than 90 dev questions support no risk of .05. Where nothing supports the promise, nothing is answered.

        Formal guarantees: a_promised_risk_is_kept.
        """
        if risk is None:
            no_confidence = self.temperature is None
            return Limit(None, NO_CONFIDENCE) if no_confidence else Limit(self.threshold, self.no_threshold)
        if self.counts is None:
            return Limit(math.inf, NO_PROMISE if self.known is None else OLD_PROMISE)
        least = [step for step, _ in _passing(self.counts, risk)]
        if not least:
            lowest = next((one for one in RISKS if any(_passing(self.counts, one))), None)
            other = "" if lowest is None else f"; the least that they support is {lowest:g}"
            return Limit(math.inf, f"nothing is answered: the dev questions support no risk of {risk:g}{other}")
        return Limit(1 / (1 + math.exp(-min(least))))

    @property
    def no_threshold(self) -> str | None:
        """Why there is no threshold; None where there is one."""
        if self.threshold is not None:
            return None
        if self.known is None and self.answerable is None:
            return f"no threshold: fewer than {LEAST_QUESTIONS} dev questions"
        return f"no threshold: among the surest dev questions fewer than {TARGET:.0%} have a right first hit"

    def answers(self, scored: Scored, risk: float | None = None) -> NDArray[np.bool_]:
        """Which of the questions are answered (n,); all of them where it is not known."""
        least = self.limit(risk).trust
        answered: NDArray[np.bool_] = self.trust(scored) >= (0.0 if least is None else least)
        return answered

    def _signals(self, scored: Scored) -> NDArray[np.float64]:
        """What tells questions with an answer from others (n, 10): four of the scores, the first hit's, nearness."""
        assert self.temperature is not None
        first = scored.scores.argmax(axis=1)
        places = [Evidence.NAMES.index(name) for name in ABSOLUTE]
        evidence = scored.evidence[np.arange(len(first)), first][:, places].astype(np.float64)
        near = np.zeros(len(first))
        if self.centre is not None:
            near = unit(scored.hidden_states) @ np.array(self.centre)
        return np.column_stack([signals(scored.scores, self.temperature), evidence, near])


def cross_fitted(asked: Asked) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Trust of the questions, those without an answer behind, each by models that have not seen it; who is right."""
    numbers = len(asked.relevant), 0 if asked.unanswered is None else len(asked.unanswered.scores)
    generator = np.random.default_rng(0)
    folds = [generator.permutation(np.arange(number) % FOLDS) for number in numbers]
    trust = [np.zeros(number) for number in numbers]
    for fold in range(FOLDS):
        inside, outside = ([np.flatnonzero((one == fold) == held) for one in folds] for held in (True, False))
        models = Calibration._models(asked.take(*outside))
        parts = asked.take(*inside)
        trust[0][inside[0]] = models.trust(parts.scored)
        if parts.unanswered is not None:
            trust[1][inside[1]] = models.trust(parts.unanswered)
    first = asked.scored.scores.argmax(axis=1)
    right = asked.relevant[np.arange(numbers[0]), first]
    return np.concatenate(trust), np.concatenate([right, np.zeros(numbers[1], dtype=bool)])


def _passing(counts: tuple[tuple[int, int], ...], risk: float) -> Iterator[tuple[float, int]]:
    """The steps at which so few are wrong that a larger risk than this is refuted, with how many are answered."""
    from scipy.special import bdtr

    starts = [counts[-1][0]]
    while starts[-1] // 2 * math.log1p(-risk) <= math.log(DOUBT / (len(starts) + 1)):
        starts.append(starts[-1] // 2)
    for start in starts:
        rows = [row for row, (answered, _) in enumerate(counts) if answered >= start]
        for row in rows:
            answered, wrong = counts[row]
            if bdtr(wrong, answered, risk) > DOUBT / len(starts):
                break
            yield float(STEPS[row]), answered


def hit_signals(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """What the confidence of a hit is made of (n, c, 4): 1, the log-odds of its share, log of its rank, its score."""
    share = softmax(scores, temperature)
    odds = np.log(np.maximum(share, 1e-300)) - np.log(np.maximum(1 - share, 1e-300))
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable") + 1
    score = np.where(np.isfinite(scores), scores, 0.0)
    return np.stack([np.ones(share.shape), np.clip(odds, -LOG_ODDS, LOG_ODDS), np.log(rank), score], axis=2)


def signals(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """What tells a right first hit from a wrong one (n, 4): 1, its score, its lead, its log-confidence."""
    alone = np.full((len(scores), max(0, 2 - scores.shape[1])), -np.inf)  # one document has no second
    first_two = np.concatenate([-np.sort(-scores, axis=1)[:, :2].astype(np.float64), alone], axis=1)
    first_two = np.where(np.isfinite(first_two), first_two, -1e3)
    confidence = softmax(scores, temperature).max(axis=1)
    lead = np.minimum(first_two[:, 0] - first_two[:, 1], 1e3)
    return np.stack([np.ones(len(scores)), first_two[:, 0], lead, np.log(np.maximum(confidence, 1e-12))], axis=1)


def logistic(
    inputs: NDArray[np.float64],
    right: NDArray[np.bool_],
    importance: NDArray[np.float64] | None = None,
    *,
    prior: tuple[float, ...] | None = None,
    strength: float = 1.0,
    of_constant: float = 1e-6,
) -> tuple[float, ...]:
    """Weights (f,) of a logistic regression whose first input is the constant, by Newton steps that lower the loss.

    A ridge of `strength` pulls them to the prior (0 without one), each by its input's standard deviation; the constant
    by `of_constant`.
    """
    spread = np.maximum(inputs.std(axis=0), 1e-9)
    spread[0] = 1.0
    start = np.zeros(inputs.shape[1]) if prior is None else np.array(prior) * spread
    counted = np.ones(len(inputs)) if importance is None else importance
    scaled, weights = inputs / spread, start
    penalty = np.diag([of_constant, *np.full(inputs.shape[1] - 1, strength)])

    def loss(weights: NDArray[np.float64]) -> float:
        slopes, away = scaled @ weights, weights - start
        return float(counted @ (np.logaddexp(0, slopes) - right * slopes) + away @ penalty @ away / 2)

    least = loss(weights)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        gradient = scaled.T @ (counted * (chance - right)) + penalty @ (weights - start)
        curvature = (scaled * (counted * chance * (1 - chance))[:, None]).T @ scaled + penalty
        step = np.linalg.solve(curvature + 1e-9 * np.eye(len(weights)), gradient)
        while (reached := loss(weights - step)) > least and np.abs(step).max() > 1e-9:  # too far
            step = step / 2
        if reached >= least - 1e-9:
            break
        weights, least = weights - step, reached
    return tuple(float(weight) for weight in weights / spread)


def probability(inputs: NDArray[np.float64], weights: tuple[float, ...]) -> NDArray[np.float64]:
    """The logistic model's probability, one for each of the inputs' rows."""
    chance: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(inputs @ np.array(weights), -30, 30)))
    return chance


def softmax(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Softmax of temperature * score over the last axis; 0 where the score is -inf."""
    best = scores.max(axis=1, keepdims=True, initial=-np.inf)
    differences = np.subtract(scores, best, where=np.isfinite(best), out=np.full(scores.shape, -np.inf))
    powers = np.exp(temperature * differences.astype(np.float64))
    shares: NDArray[np.float64] = powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-300)
    return shares


def answer_threshold(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """The lowest confidence from which on the share of right answers is at least TARGET on these questions."""
    if len(confidence) < LEAST_QUESTIONS:
        return None
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= TARGET)
    if not len(enough) or enough[-1] + 1 < LEAST_QUESTIONS // 5:
        return None
    return 0.0 if enough[-1] + 1 == len(order) else float(confidence[order[enough[-1]]])
