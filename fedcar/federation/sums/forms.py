"""Sums as tensors and back: what a server checks before it adds them up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedcar.federation.sums.additive import statistics_of, sums_of
from fedcar.head.closed_form import Statistics
from fedcar.head.feature_map import LAYER_WEIGHT
from fedcar.head.naive_bayes import BUCKETS, NaiveBayes
from fedcar.training.ridge import RidgeSums

LENGTH = 2 + LAYER_WEIGHT**2  # of a question's features, squared: three parts of length 1, 1 and LAYER_WEIGHT
ROUNDING = 1e-3
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


def check_client(statistics: Statistics, questions: int, row_questions: Tensor) -> None:
    """ValueError where statistics cannot be those of the questions a client enrolled with: no one can be too loud."""
    if statistics.questions != questions or not np.array_equal(statistics.counts, row_questions.numpy()):
        raise ValueError(f"statistics of other questions than the {questions} it enrolled with")
    if float(np.trace(statistics.gram)) > LENGTH * questions * (1 + ROUNDING):
        raise ValueError("a gram that is longer than its questions can make it")
    lengths = np.linalg.norm(statistics.cross.astype(np.float64), axis=0)
    if (lengths > LENGTH**0.5 * statistics.counts * (1 + ROUNDING)).any():
        raise ValueError("cross terms that are longer than its questions can make them")
