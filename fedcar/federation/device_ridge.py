"""The method `ridge` behind a network: sums as tensors, and a device's side of the round."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedcar.closed_form import Statistics, solve
from fedcar.feature_map import LAYER_WEIGHT
from fedcar.features import FeatureCache
from fedcar.federation.additive import statistics_of, sums_of
from fedcar.federation.mixture import Evidence
from fedcar.federation.payload import Payload, refusal
from fedcar.federation.ridge_round import RidgeMember, feature_map
from fedcar.naive_bayes import BUCKETS, NaiveBayes
from fedcar.questions import Questions
from fedcar.retriever import Retriever
from fedcar.ridge import STRENGTHS, PseudoSums, Sums, Taught, right_without
from fedcar.selection import success_and_mrr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.federation.device import Setup

LENGTH = 2 + LAYER_WEIGHT**2  # of a question's features, squared: three parts of length 1, 1 and LAYER_WEIGHT
ROUNDING = 1e-3
STATISTICS, WORDS, PSEUDO = ("gram", "columns", "cross", "counts"), ("data", "grams", "starts"), "pseudo_"


# -------------------------------------------------------------------- sums as tensors


def tensors_of(sums: Sums) -> dict[str, Tensor]:
    """Sums as they travel: of the gram the upper triangle, of the cross terms the columns that are not 0."""
    whole = sums_of(sums.statistics)
    columns = torch.from_numpy(np.flatnonzero(sums.statistics.cross.any(axis=0)))
    cross = whole["cross"][:, columns].contiguous()
    return {
        "gram": whole["gram"],
        "columns": columns,
        "cross": cross,
        "counts": whole["counts"],
        **words_of(sums.words),
    }


def words_of(words: NaiveBayes, prefix: str = "") -> dict[str, Tensor]:
    counts = words.counts
    arrays = {"data": counts.data, "grams": counts.indices.astype(np.int32), "starts": counts.indptr.astype(np.int64)}
    return {prefix + name: torch.from_numpy(array) for name, array in arrays.items()}


def sums_from(tensors: Mapping[str, Tensor], questions: int, documents: int, dimension: int) -> Sums:
    """What `tensors_of` was given; ValueError, with the reason, for what is no sum of that many questions' features."""
    gram, columns, cross, counts = (tensors[name] for name in STATISTICS)
    if [tensor.dtype for tensor in (gram, columns, cross, counts)] != [torch.float32, torch.int64] * 2:
        raise ValueError("statistics of other types")
    fits = gram.shape == (dimension * (dimension + 1) // 2,) and counts.shape == (documents,)
    if not fits or columns.dim() != 1 or cross.shape != (dimension, len(columns)):
        raise ValueError("statistics of other shapes")
    if len(columns) and (columns[0] < 0 or columns[-1] >= documents or bool((columns.diff() <= 0).any())):
        raise ValueError("columns that are no documents")
    if not bool(torch.isfinite(gram).all()) or not bool(torch.isfinite(cross).all()):
        raise ValueError("statistics that are not finite")
    whole = torch.zeros(dimension, documents)
    whole[:, columns] = cross
    parts = {"gram": gram, "cross": whole, "counts": counts, "questions": torch.tensor(questions)}
    return Sums(statistics_of(parts), words_from(tensors, documents))


def words_from(tensors: Mapping[str, Tensor], documents: int, prefix: str = "") -> NaiveBayes:
    data, grams, starts = (tensors[prefix + name] for name in WORDS)
    if (data.dtype, grams.dtype, starts.dtype) != (torch.float32, torch.int32, torch.int64):
        raise ValueError("words of other types")
    if starts.shape != (documents + 1,) or data.dim() != 1 or data.shape != grams.shape:
        raise ValueError("words of other shapes")
    if starts[0] != 0 or starts[-1] != len(data) or bool((starts.diff() < 0).any()):
        raise ValueError("words that are not in order")
    if len(data) and (int(grams.min()) < 0 or int(grams.max()) >= BUCKETS):
        raise ValueError("words outside the table")
    if not bool(torch.isfinite(data).all()) or bool((data < 0).any()):
        raise ValueError("words that were counted less than never")
    parts = (data.numpy(), grams.numpy(), starts.numpy())
    return NaiveBayes(sparse.csr_array(parts, shape=(documents, BUCKETS)))


def check_client(statistics: Statistics, questions: int, row_questions: Tensor) -> None:
    """ValueError where statistics cannot be those of the questions a client enrolled with: no one can be too loud."""
    if statistics.questions != questions or not np.array_equal(statistics.counts, row_questions.numpy()):
        raise ValueError(f"statistics of other questions than the {questions} it enrolled with")
    if float(np.trace(statistics.gram)) > LENGTH * questions * (1 + ROUNDING):
        raise ValueError("a gram that is longer than its questions can make it")
    lengths = np.linalg.norm(statistics.cross.astype(np.float64), axis=0)
    if (lengths > LENGTH**0.5 * statistics.counts * (1 + ROUNDING)).any():
        raise ValueError("cross terms that are longer than its questions can make them")


def right_by(retriever: Retriever, questions: Questions, among: NDArray[np.float32]) -> list[int]:
    """How many questions a retriever gets right at first place with each of these weights (k, F)."""
    if not len(questions):
        return [0] * len(among)
    features, empty = retriever.features(questions), retriever.empty[questions.candidates]
    scores = (np.where(empty, -np.inf, features @ weights) for weights in among)
    return [round(success_and_mrr(questions.relevance, one)[0] * len(questions)) for one in scores]


# -------------------------------------------------------------------- the device's side


class RidgeSide:
    """Answers the requests of the round of `ridge`; after a restart it asks to hear everybody's sums again."""

    def __init__(self, untrained: Retriever, training: Questions, held_out: Questions, cache: FeatureCache) -> None:
        self.untrained, self.training, self.held_out, self.cache = untrained, training, held_out, cache
        self.member: RidgeMember | None = None
        self.taught: Taught | None = None
        self.trained: Retriever | None = None
        self.key, self.strength = "", 0.0

    def statistics(self, setup: Setup) -> Payload:
        member = self._member(setup)
        return Payload("statistics", {"questions": len(self.training)}, tensors_of(member.asked.sums()))

    def hear(self, setup: Setup, request: Payload) -> Payload:
        """Everybody's sums: how many sampled questions each strength gets right when each is left out."""
        member, documents = self._member(setup), len(self.untrained.documents)
        dimension = member.asked.features.shape[1]
        sums = sums_from(request.tensors, int(request.values["questions"]), documents, dimension)
        words, counts = words_from(request.tensors, documents, PSEUDO), request.tensors["pseudo_counts"].numpy()
        taught = Taught(sums, PseudoSums(None, words, counts))
        member.hear(taught)
        right = [right_without(ridge, member.sample) for ridge in taught.solutions()]
        self.taught, self.strength = taught, 0.0
        return Payload("taught", {}, {"right": torch.tensor(right, dtype=torch.float64)})

    def evidence(self, setup: Setup, strength: float, share: float) -> Evidence | None:
        """Its sampled questions as if they had not been trained on; None where the sums have to be heard again."""
        held = self._held(setup, strength)
        return None if held is None else held.evidence(share)

    def unseen(self, setup: Setup, request: Payload) -> Payload:
        held = self._held(setup, float(request.values["strength"]))
        if held is None:
            return refusal("taught")
        weights = request.tensors["weights"].numpy()
        right, questions = held.unseen_right(weights)
        (counted,) = right_by(self.trained or self.untrained, self.held_out, weights[None])
        values = {"right": float(right), "questions": questions, "held_out": len(self.held_out)}
        return Payload("unseen", {**values, "held_out_right": counted})

    def _held(self, setup: Setup, strength: float) -> RidgeMember | None:
        member = self._member(setup)
        if self.taught is None:
            return None
        if strength not in STRENGTHS:
            raise ValueError(f"strength {strength}")
        if strength != self.strength:
            ridge = solve(self.taught.statistics, strength)
            member.hold_out(ridge, self.taught)
            if len(self.held_out):
                self.trained = self.taught.retriever(self.untrained, ridge, self.fixed)
            self.strength = strength
        return member

    def _member(self, setup: Setup) -> RidgeMember:
        key = hashlib.sha256(setup.json.encode()).hexdigest()
        if self.member is None or key != self.key:
            seed = int(setup.settings["seed"])
            self.fixed = feature_map(self.untrained, self.cache, seed)
            self.member = RidgeMember.of(self.untrained, self.training, self.fixed, seed)
            self.key, self.taught = key, None
        return self.member
