"""Whose sums for ridge surely harm the questions that judge, or would outweigh all others': they are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from fedcar.errors import FedcarError
from fedcar.federation.rounds.robust import HARM, MOST_JUDGED, Harm, judging
from fedcar.head.closed_form import STRENGTH, Statistics, solve
from fedcar.head.feature_map import FeatureMap
from fedcar.retriever.questions import Questions
from fedcar.training.clients import MANY
from fedcar.training.ridge import RidgeSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAR = 30.0  # times the median of n_i: more cannot be looked past


@dataclass(frozen=True)
class SumsJudge:
    """Questions that choose, as ridge sees them: features (m, D), and which of the documents are right (m, N)."""

    features: NDArray[np.float32]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, questions: Questions, fixed: FeatureMap, document_rows: Mapping[str, int]) -> SumsJudge:
        those = judging(questions)
        return cls(fixed(those.states), those.targets(document_rows).toarray() > 0)

    def margins(self, statistics: Statistics) -> NDArray[np.float64]:
        """By how much a right document's row says more of each question than all others' do, within -1 and 1 (m,)."""
        said = solve(statistics, STRENGTH).predict(self.features).astype(np.float64)
        best = np.where(self.right, said, -np.inf).max(axis=1)
        other = np.where(self.right, -np.inf, said).max(axis=1)
        margins: NDArray[np.float64] = np.nan_to_num(best - other, nan=-1.0).clip(-1.0, 1.0)
        return margins


def left_out(sums: Mapping[str, RidgeSums], judge: SumsJudge | None) -> dict[str, str]:
    """From five clients on: who is left out, and why. Whose questions outnumber all others', and who surely harms.

    At most a minority is left out. The others' sums are added up as they are, so that the round stays exact for them.
    That sums can be those of a client's questions at all is checked where they arrive (see `forms.check_client`).
    """
    refused: dict[str, str] = {}
    kept = {name: one.statistics for name, one in sums.items()}
    most = (len(sums) - 1) // 2
    if len(sums) < MANY:
        return refused
    usual = median_low([one.questions for one in kept.values()])
    for name, one in sums.items():
        if one.statistics.questions > FAR * usual:
            refused[name] = f"{one.statistics.questions} questions; the median is {usual}"
            del kept[name]
    while judge is not None and len(kept) <= MOST_JUDGED and len(refused) < most:
        found = _worst(kept, judge)
        if found is None:
            break
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
