"""Sums as tensors and back: what a server checks before it adds them up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedcar.federation.sums.additive import statistics_of, sums_of
from fedcar.federation.wire.schema import MOST_GRAMS, ROUNDING
from fedcar.head import feature_map
from fedcar.head.closed_form import Statistics
from fedcar.head.feature_map import LAYER_WEIGHT
from fedcar.head.naive_bayes import BUCKETS, NaiveBayes
from fedcar.training.ridge import STRENGTHS, RidgeSums

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH = 2 + LAYER_WEIGHT**2  # of a question's features, squared: three parts of length 1, 1 and LAYER_WEIGHT
ROWS_AT_ONCE = 512
STATISTICS, WORDS, PSEUDO = ("gram", "columns", "cross", "counts"), ("data", "grams", "starts"), "pseudo_"


def tensors_of(sums: RidgeSums) -> dict[str, Tensor]:
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


def sums_from(tensors: Mapping[str, Tensor], questions: int, documents: int, dimension: int) -> RidgeSums:
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
    return RidgeSums(statistics_of(parts), words_from(tensors, documents))


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


def check_client(sums: RidgeSums, questions: int, row_questions: Tensor) -> None:
    """ValueError where sums cannot be those of the questions a client enrolled with: no entry can be too loud.

    A question's features are three parts of lengths 1, 1 and LAYER_WEIGHT, the last two of waves that are each at most
    so long; what it is right about counts at most 1. The rest is Cauchy and Schwarz: an entry of the gram is no larger
    than the root of its two diagonal ones, a cross term no larger than the root of its diagonal one times that of the
    document's questions.
    """
    statistics, counts = sums.statistics, sums.statistics.counts
    if statistics.questions != questions or not np.array_equal(counts, row_questions.numpy()):
        raise ValueError(f"statistics of other questions than the {questions} it enrolled with")
    diagonal, slack = statistics.gram.diagonal().astype(np.float64), questions * ROUNDING**2
    if (diagonal < -slack).any() or (diagonal > questions * largest_squares(len(diagonal)) * (1 + ROUNDING)).any():
        raise ValueError("a gram whose diagonal is not that of its questions")
    if diagonal.sum() > LENGTH * questions * (1 + ROUNDING):
        raise ValueError("a gram that is longer than its questions can make it")
    roots = np.sqrt(diagonal.clip(0)).astype(np.float32) * np.float32(1 + ROUNDING)
    for rows in range(0, len(roots), ROWS_AT_ONCE):
        part = slice(rows, rows + ROWS_AT_ONCE)
        if (np.abs(statistics.gram[part]) > np.outer(roots[part], roots) + np.float32(slack)).any():
            raise ValueError("a gram that is larger beside its diagonal than on it")
        if (np.abs(statistics.cross[part]) > np.outer(roots[part], np.sqrt(counts)) + np.float32(slack)).any():
            raise ValueError("cross terms that are larger than its gram allows")
    lengths = np.linalg.norm(statistics.cross.astype(np.float64), axis=0)
    if (lengths > LENGTH**0.5 * counts * (1 + ROUNDING)).any():
        raise ValueError("cross terms that are longer than its questions can make them")
    words = sums.words.counts
    most = counts.repeat(np.diff(words.indptr)) * (np.log2(1 + MOST_GRAMS) * (1 + ROUNDING))
    if (words.data > most).any() or (sums.words.of_document > counts * float(MOST_GRAMS)).any():
        raise ValueError("words that were counted more often than its questions can have them")


def largest_squares(dimension: int) -> NDArray[np.float64]:
    """The most that each feature of a question may be, squared (D,)."""
    waves = feature_map.FREQUENCIES
    parts = ((dimension - 4 * waves, 1.0), (2 * waves, 1 / waves), (2 * waves, LAYER_WEIGHT**2 / waves))
    return np.concatenate([np.full(size, most) for size, most in parts])


def damaged(parts: Mapping[str, Statistics]) -> dict[str, str]:
    """Whose gram is no sum of squares, where that of all could not be solved; none where it can.

    Each has its questions' share of the least strength to be one with, so that without them it can.
    """
    if not parts or _solvable(reduce(np.add, (part.gram for part in parts.values())), STRENGTHS[0]):
        return {}
    questions = sum(part.questions for part in parts.values())
    shares = {name: STRENGTHS[0] * part.questions / questions for name, part in parts.items()}
    reason = "a gram that is no sum of squares"
    return {name: reason for name, part in parts.items() if not _solvable(part.gram, shares[name])}


def _solvable(gram: NDArray[np.float32], strength: float) -> bool:
    matrix = torch.from_numpy(gram).clone()
    matrix.diagonal().add_(strength)
    return not int(torch.linalg.cholesky_ex(matrix)[1])
