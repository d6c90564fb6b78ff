"""What an update gives away: the words in an adapter update, the documents behind head rows, questions in class sums.

These are attacks as a reader of updates would run them (docs/privacy.md has what they found). They show a leak; a
failed one shows nothing: only the statement's epsilon says what no attack can do. Arrays are numpy or CPU tensors.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcar.privacy.errors import require

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_SPARE_RANK = 6  # fewer free dimensions than this, and some unused token of 30,000 is in the row space by chance


@dataclass(frozen=True)
class Attack:
    """A score for each candidate (higher: more likely there), and the candidates called present."""

    scores: Floats
    recovered: Indices
    rank: int = 0


@dataclass(frozen=True)
class Quality:
    """How well an attack did against the truth; auc .5 is a coin."""

    precision: float
    recall: float
    auc: float


def row_space_tokens(update: ArrayLike, table: ArrayLike, noise_deviation: float = 0.0) -> Attack:
    """Which tokens an adapter's update was made of: G = sum_t g_t x_t^T, so its row space is the span of the x_t.

    update: (d, d), of A in y = A x, from one step or several (A - I after training); table: (vocabulary, d), public.
    Without noise the rank is where the singular values fall most; a token counts as recovered when it lies in the row
    space (residual below .01). With d - 5 tokens or more the row space is nearly everything and tells nothing: then,
    and with noise, the score is the energy ||G x||^2 / ||x||^2 along the token. With noise of a known standard
    deviation that is chi-square with d degrees of freedom where the token was not used; it counts at p < 1e-6 over all.
    """
    gradient, rows = _matrix("update", update), _matrix("table", table)
    require(gradient.shape[1] == rows.shape[1], f"update {gradient.shape} and table {rows.shape} differ in width")
    lengths = np.linalg.norm(rows, axis=1)
    directions = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    energies = np.sum((directions @ gradient.T) ** 2, axis=1)
    if noise_deviation > 0:
        threshold = noise_deviation**2 * _chi_square_bound(gradient.shape[0], 1e-6 / len(rows))
        return Attack(energies, np.flatnonzero(energies > threshold), min(gradient.shape))
    _, values, right = np.linalg.svd(gradient)
    rank = _rank(values)
    if rank == 0 or rank > gradient.shape[1] - _SPARE_RANK:
        return Attack(energies, np.array([], dtype=np.int64), rank)
    projected = directions @ right[:rank].T
    residuals = np.sqrt(np.clip(1 - np.sum(projected**2, axis=1), 0.0, 1.0))
    return Attack(1 - residuals, np.flatnonzero((residuals < 0.01) & (lengths > 0)), rank)


def row_labels(update: ArrayLike, rows: ArrayLike, noise_deviation: float = 0.0) -> Attack:
    """Which documents had questions: their rows move towards the mean query, all others away from it.

    update: (documents, d), in the direction of descent (row after - row before); rows: (documents, d), the public
    embeddings, whose mean stands in for the mean query. The sign of the true label's gradient is the leak of Zhao,
    Mopuri and Bilen, "iDLG", 2020. With noise of a known deviation a row counts at p < 1e-6 over all rows.
    """
    moved, embeddings = _matrix("update", update), _matrix("rows", rows)
    require(moved.shape == embeddings.shape, f"update {moved.shape} and rows {embeddings.shape} must have one shape")
    mean = embeddings.mean(axis=0)
    scores = moved @ (mean / max(float(np.linalg.norm(mean)), 1e-12))
    threshold = noise_deviation * _normal_bound(1e-6 / len(moved)) if noise_deviation > 0 else 0.0
    largest = float(np.abs(scores).max(initial=0.0))
    return Attack(scores, np.flatnonzero(scores > max(threshold, 1e-6 * largest)))


def nearest_texts(direction: ArrayLike, candidates: ArrayLike, count: int = 5) -> tuple[Indices, Floats]:
    """Return the candidate texts whose embeddings (texts, d) point most along this direction (d,); their cosines."""
    vector, texts = np.asarray(direction, np.float64), _matrix("candidates", candidates)
    lengths = np.linalg.norm(texts, axis=1) * max(float(np.linalg.norm(vector)), 1e-300)
    cosines = texts @ vector / np.where(lengths > 0, lengths, 1.0)
    order = np.argsort(-cosines, kind="stable")[:count]
    return order.astype(np.int64), cosines[order]


def class_sum_questions(sums: ArrayLike, candidates: ArrayLike) -> Attack:
    """Which of some candidate questions stand behind class sums: the best cosine of each with any document's sum.

    sums: (documents, d), sum of the unit query vectors of each document; candidates: (texts, d). A sum over one
    question IS its embedding (cosine 1), over few it is close to each. Recovered: candidates with cosine above .999,
    that is, sums over a single question.
    """
    totals, texts = _matrix("sums", sums), _matrix("candidates", candidates)
    rows = totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-300)
    directions = texts / np.maximum(np.linalg.norm(texts, axis=1, keepdims=True), 1e-300)
    best = (directions @ rows.T).max(axis=1, initial=-1.0)
    return Attack(best, np.flatnonzero(best > 0.999))


def quality(attack: Attack, truth: Collection[int], candidates: Collection[int] | None = None) -> Quality:
    """Precision and recall of what was recovered, AUC of the scores, over these candidates (default: all).

    Precision is 1 where nothing was recovered; AUC is NaN where truth or its complement is empty.
    """
    among = np.array(sorted(range(len(attack.scores)) if candidates is None else set(candidates)), dtype=np.int64)
    present = np.isin(among, np.array(sorted(truth), dtype=np.int64))
    recovered = np.isin(among, attack.recovered)
    hits = int(np.sum(recovered & present))
    precision = hits / int(recovered.sum()) if recovered.any() else 1.0
    recall = hits / int(present.sum()) if present.any() else math.nan
    return Quality(precision, recall, area_under_curve(attack.scores[among], present))


def area_under_curve(scores: Floats, present: NDArray[np.bool_]) -> float:
    """Return the chance that a present candidate scores above an absent one, ties counting half (Mann and Whitney)."""
    positives, negatives = scores[present], np.sort(scores[~present])
    if len(positives) == 0 or len(negatives) == 0:
        return math.nan
    below = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    return float(below.sum()) / (2 * len(positives) * len(negatives))


def _rank(values: Floats) -> int:
    """How many singular values stand before their largest fall, which must be fivefold; all of them where none is."""
    if len(values) == 0 or values[0] == 0:
        return 0
    falls = values[:-1] / np.maximum(values[1:], values[0] * 1e-15)
    return int(falls.argmax()) + 1 if len(falls) and falls.max() >= 5 else len(values)


def _chi_square_bound(freedom: int, probability: float) -> float:
    """Return a value that chi-square exceeds with at most this probability (Laurent and Massart 2000, lemma 1)."""
    log = -math.log(probability)
    return freedom + 2 * math.sqrt(freedom * log) + 2 * log


def _normal_bound(probability: float) -> float:
    """Return a value that a standard normal exceeds with at most this probability."""
    return math.sqrt(-2 * math.log(2 * probability))


def _matrix(name: str, values: ArrayLike) -> Floats:
    matrix = np.asarray(values, dtype=np.float64)
    require(matrix.ndim == 2, f"{name} has shape {matrix.shape}, must be a matrix")
    require(bool(np.isfinite(matrix).all()), f"{name} holds values that are not finite")
    return matrix
