"""The method `ridge` behind a network: sums as tensors, and a device's side of the round."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedcar.encoder.cache import FeatureCache
from fedcar.federation.sums.forms import PSEUDO, sums_from, tensors_of, words_from
from fedcar.federation.sums.mixture import MixtureTerms
from fedcar.federation.sums.ridge import (
    QuestionSums,
    RidgeMember,
    RightByStrength,
    RightOnFolds,
    Solution,
    feature_map,
)
from fedcar.federation.wire.payload import Payload, refusal
from fedcar.head.closed_form import solve
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.ridge import STRENGTHS, PseudoSums, Taught
from fedcar.training.selection import success_and_mrr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.federation.wire.setup import Setup


def right_by(retriever: Retriever, questions: Questions, among: NDArray[np.float32]) -> list[int]:
    """How many questions a retriever gets right at first place with each of these weights (k, F)."""
    if not len(questions):
        return [0] * len(among)
    features, empty = retriever.features(questions), retriever.empty[questions.candidates]
    scores = (np.where(empty, -np.inf, features @ weights) for weights in among)
    return [round(success_and_mrr(questions.relevance, scored)[0] * len(questions)) for scored in scores]


class RidgeSide:
    """Answers the requests of the round of `ridge`; after a restart it asks to hear everybody's sums again."""

    def __init__(self, untrained: Retriever, training: Questions, held_out: Questions, cache: FeatureCache) -> None:
        self.untrained, self.training, self.held_out, self.cache = untrained, training, held_out, cache
        self.member: RidgeMember | None = None
        self.trained: Retriever | None = None
        self.solution: Solution | None = None
        self.key = ""

    def statistics(self, setup: Setup) -> Payload:
        sums = QuestionSums().answered_by(self.of(setup)).sums
        return Payload("statistics", {"questions": len(self.training)}, tensors_of(sums))

    def hear(self, setup: Setup, request: Payload) -> Payload:
        """Everybody's sums: how many sampled questions each strength gets right when each is left out."""
        member, documents = self.of(setup), len(self.untrained.documents)
        dimension = member.questions.features.shape[1]
        sums = sums_from(request.tensors, int(request.values["questions"]), documents, dimension)
        words, counts = words_from(request.tensors, documents, PSEUDO), request.tensors["pseudo_counts"].numpy()
        right = RightByStrength(Taught(sums, PseudoSums(None, words, counts))).answered_by(member)
        self.solution = None
        return Payload("taught", {}, {"right": torch.tensor(right, dtype=torch.float64)})

    def evidence(self, setup: Setup, strength: float, share: float) -> MixtureTerms | None:
        """Its sampled questions as if they had not been trained on; None where the sums have to be heard again."""
        solution = self._solved(setup, strength)
        return None if solution is None else self.of(setup).evidence(solution, share)

    def unseen(self, setup: Setup, request: Payload) -> Payload:
        solution = self._solved(setup, float(request.values["strength"]))
        if solution is None:
            return refusal("taught")
        weights = request.tensors["weights"].numpy()
        counts = RightOnFolds(solution, weights).answered_by(self.of(setup))
        (counted,) = right_by(self.trained or self.untrained, self.held_out, weights[None])
        values = {"right": float(counts.right), "questions": counts.questions, "held_out": len(self.held_out)}
        return Payload("unseen", {**values, "held_out_right": counted})

    def _solved(self, setup: Setup, strength: float) -> Solution | None:
        """The solution at this strength; None where the sums of all have to be heard again."""
        taught = self.of(setup).taught
        if taught is None:
            return None
        if strength not in STRENGTHS:
            raise ValueError(f"strength {strength}")
        if self.solution is None or strength != self.solution.strength:
            self.solution = Solution(strength, solve(taught.statistics, strength))
            if len(self.held_out):
                self.trained = taught.retriever(self.untrained, self.solution.ridge, self.of(setup).fixed)
        return self.solution

    def of(self, setup: Setup) -> RidgeMember:
        """The client of this run."""
        key = hashlib.sha256(setup.json.encode()).hexdigest()
        if self.member is None or key != self.key:
            seed = int(setup.settings["seed"])
            fixed = feature_map(self.untrained, self.cache, seed)
            self.member = RidgeMember(self.untrained, self.training, fixed, seed)
            self.key, self.solution = key, None
        return self.member
