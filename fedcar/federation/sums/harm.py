"""Which clients' sums for ridge cannot be of questions, or surely harm the judge's: they are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from fedcar.errors import FedcarError
from fedcar.federation.rounds.aggregate import MANY
from fedcar.federation.rounds.robust import HARM, MOST_JUDGED, Harm
from fedcar.head.closed_form import STRENGTH, Statistics, solve
from fedcar.head.feature_map import FREQUENCIES, LAYER_WEIGHT, FeatureMap
from fedcar.retriever.questions import Questions
from fedcar.training.ridge import RidgeSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

JUDGING = 1000  # of the questions that choose, at most
FAR = 30.0  # times the median of n_i: more cannot be looked past
ROUNDING = 1e-3


def beyond_bounds(statistics: Statistics) -> str | None:
    """Why these cannot be the statistics of so many questions; None where they can.

    A gram's diagonal is known: each cosine and sine of a frequency makes a fixed part of a question's length. What is
    off it is at most the root of the two on it (Cauchy and Schwarz). A document's cross terms are no longer than its
    questions.
    """
    gram, questions = statistics.gram, statistics.questions
    diagonal = np.diagonal(gram).astype(np.float64)
    slack = ROUNDING * max(1, questions)
    if not np.isfinite(gram).all() or not np.isfinite(statistics.cross).all():
        return "statistics that are not finite"
    if (diagonal < -slack).any() or (diagonal > questions * (1 + ROUNDING)).any():
        return "a gram whose diagonal no questions make"
    hidden = len(diagonal) - 4 * FREQUENCIES
    if hidden > 0:
        first = diagonal[hidden : hidden + 2 * FREQUENCIES].reshape(2, FREQUENCIES).sum(0)
        second = diagonal[hidden + 2 * FREQUENCIES :].reshape(2, FREQUENCIES).sum(0) / LAYER_WEIGHT**2
        for part in (first, second):
            if (np.abs(part * FREQUENCIES - questions) > slack).any():
                return "a gram whose waves are not as long as its questions make them"
    roots = np.sqrt(diagonal.clip(min=0)).astype(np.float32)
    if (np.abs(gram) > np.outer(roots, roots) * (1 + ROUNDING) + slack).any():
        return "a gram with more off its diagonal than on it"
    return None


@dataclass(frozen=True)
class SumsJudge:
    """Questions that choose, as ridge sees them: features (m, D), and which of the documents are right (m, N)."""

    features: NDArray[np.float32]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, questions: Questions, fixed: FeatureMap, document_rows: Mapping[str, int]) -> SumsJudge:
        judging = questions.take(np.sort(np.random.default_rng(len(questions)).permutation(len(questions))[:JUDGING]))
        return cls(fixed(judging.states), judging.targets(document_rows).toarray() > 0)

    def margins(self, statistics: Statistics) -> NDArray[np.float64]:
        """By how much a right document's row says more of each question than all others' do, within -1 and 1 (m,)."""
        said = solve(statistics, STRENGTH).predict(self.features).astype(np.float64)
        best = np.where(self.right, said, -np.inf).max(axis=1)
        other = np.where(self.right, -np.inf, said).max(axis=1)
        margins: NDArray[np.float64] = np.nan_to_num(best - other, nan=-1.0).clip(-1.0, 1.0)
        return margins


def left_out(sums: Mapping[str, RidgeSums], judge: SumsJudge | None) -> dict[str, str]:
    """Who is left out, and why: whose sums cannot be, and, from five clients on, who surely harms the judge.

    At most a minority is judged out. The others' sums are added up as they are, so that the round stays exact for
    them.
    """
    refused = {name: why for name, one in sums.items() if (why := beyond_bounds(one.statistics)) is not None}
    kept = {name: one for name, one in sums.items() if name not in refused}
    if len(sums) < MANY:
        return refused
    usual = median_low([one.statistics.questions for one in kept.values()] or [0])
    for name, one in list(kept.items()):
        if one.statistics.questions > FAR * usual:
            refused[name] = f"{one.statistics.questions} questions; the median is {usual}"
            del kept[name]
    if judge is None or not MANY - 1 <= len(kept) <= MOST_JUDGED:
        return refused
    most = (len(sums) - 1) // 2
    while len(refused) < most:
        found = _worst({name: one.statistics for name, one in kept.items()}, judge)
        if found is None:
            return refused
        name, harm = found
        refused[name] = f"left out: the judge's questions are surely better off without it (by {harm.mean:.3f})"
        del kept[name]
    return refused


def _worst(kept: Mapping[str, Statistics], judge: SumsJudge) -> tuple[str, Harm] | None:
    """The client without which the judge's questions are surely better off, and by how much; None for nobody."""
    whole = reduce(add, kept.values())
    try:
        now = judge.margins(whole)
    except FedcarError:  # no sum of squares: one of them is none
        now = np.full(len(judge.right), -1.0)
    harms = {}
    for name, one in kept.items():
        try:
            harms[name] = Harm.of(judge.margins(whole - one) - now)
        except FedcarError:
            continue
    sure = {name: harm for name, harm in harms.items() if harm.surely(HARM)}
    if not sure:
        return None
    name = max(sure, key=lambda one: sure[one].mean)
    return name, sure[name]
