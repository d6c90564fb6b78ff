"""Ridge in closed form from sufficient statistics: they add up over clients, so one round is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRENGTH = 0.3


@dataclass(frozen=True)
class Statistics:
    """All that ridge needs of n questions: gram = sum phi phi^T (D, D), cross = sum phi y^T (D, documents), counts.

    `counts` (documents,) are the questions of each document. Statistics of disjoint questions add; subtracting a
    client's leaves what would have been without it. Pseudo-queries count by their weight in gram and cross and not at
    all in `counts` and `questions`: they come from the documents, so that one party adds them once.

    Formal guarantees: ridge_federated_equals_central; removing_a_client_equals_never_having_it (both up to rounding).
    """

    gram: NDArray[np.float32]
    cross: NDArray[np.float32]
    counts: NDArray[np.int64]
    questions: int

    @classmethod
    def of(cls, features: NDArray[np.float32], targets: NDArray[np.float32] | sparse.csr_array) -> Statistics:
        """Features phi (n, D) and targets y (n, documents), 1 at the relevant documents."""
        cross = np.asarray((targets.T @ features).T, dtype=np.float32, order="C")
        return cls(features.T @ features, cross, np.asarray((targets > 0).sum(axis=0), np.int64), len(features))

    @classmethod
    def of_pseudo_queries(cls, features: NDArray[np.float32], weights: sparse.csr_array) -> Statistics:
        """Features (n, D) and weights (n, documents), sparse: each text's weight at the document it stands for."""
        of_text = np.asarray(weights.sum(axis=1), dtype=np.float32).ravel()
        cross = np.asarray((weights.T @ features).T, dtype=np.float32, order="C")
        return cls(features.T @ (features * of_text[:, None]), cross, np.zeros(weights.shape[1], np.int64), 0)

    def __add__(self, other: Statistics) -> Statistics:
        parts = (self.gram + other.gram, self.cross + other.cross, self.counts + other.counts)
        return Statistics(*parts, self.questions + other.questions)

    def __sub__(self, other: Statistics) -> Statistics:
        parts = (self.gram - other.gram, self.cross - other.cross, self.counts - other.counts)
        if self.questions < other.questions or (parts[2] < 0).any():
            raise FedcarError("statistics of questions that are not in the sum cannot be taken out; check the client")
        return Statistics(*parts, self.questions - other.questions)


@dataclass(frozen=True)
class Ridge:
    """W (D, documents) = (gram + strength I)^-1 cross, with the Cholesky factor L (D, D) of the matrix inverted.

    A document without questions has a column of zeros: its row is untouched.
    """

    weights: NDArray[np.float32]
    factor: NDArray[np.float32]

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features phi (n, D) -> (n, documents): near 1 for documents that answered such questions."""
        return features @ self.weights

    def left_out(self, features: NDArray[np.float32], targets: NDArray[np.float32]) -> LeftOut:
        """Training questions made ready to be left out: features phi (n, D) and targets (n, documents)."""
        half = torch.linalg.solve_triangular(torch.from_numpy(self.factor), torch.from_numpy(features.T), upper=False)
        return LeftOut(half.numpy().T, self.predict(features), targets)


@dataclass(frozen=True)
class LeftOut:
    """Training questions as `projected` phi L^-T (n, D), what ridge predicts for them and their targets (n, documents).

    With H = Phi (gram + strength I)^-1 Phi^T = projected projected^T over a group, the held-out residual is (I - H)^-1
    times the residual: exact, and without solving again (block leave-one-out; Allen 1974).
    """

    projected: NDArray[np.float32]
    predicted: NDArray[np.float32]
    targets: NDArray[np.float32]

    def predict(self, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        """What ridge without the questions of a group would predict for them; by group numbers (n,), each whole."""
        residuals = self.targets - self.predicted
        order = np.argsort(groups, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        alone = np.concatenate([part for part in parts if len(part) == 1] or [order[:0]])
        alone_projected = self.projected[alone]
        residuals[alone] /= 1 - np.einsum("nd,nd->n", alone_projected, alone_projected)[:, None]
        for rows in parts:
            if len(rows) > 1:
                held = np.eye(len(rows), dtype=np.float32) - self.projected[rows] @ self.projected[rows].T
                residuals[rows] = np.linalg.solve(held, residuals[rows])
        return self.targets - residuals


def solve(statistics: Statistics, strength: float = STRENGTH) -> Ridge:
    """The ridge solution; `strength` is the penalty on the squared weights."""
    matrix = torch.from_numpy(statistics.gram).clone()
    matrix.diagonal().add_(strength)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        message = f"the statistics of {statistics.questions} questions are not a sum of squares"
        raise FedcarError(f"{message}; one client's are damaged: leave it out")
    weights = torch.cholesky_solve(torch.from_numpy(statistics.cross), factor)
    return Ridge(weights.numpy(), factor.numpy())
