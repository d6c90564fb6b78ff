"""A view: which of an encoder's states cosines are taken of, where its own hidden states are of no use for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIRECTIONS = 64  # of a layer, those in which texts differ most


@dataclass(frozen=True)
class View:
    """The mean states of all kept layers, each whitened, added up: nothing in it is fitted to a collection.

    A decoder's states point nearly one way, and what is left differs most by length and first token, not by meaning.
    So from each layer's unit mean the `centres` (k, d) of the packaged reference texts are taken, and in the main
    `directions` (k, r, d) in which these differ the `shares` (k, r) of what is there: "all but the top" (Mu and
    Viswanath 2018), softly, as whitening with a ridge does. The layers share one residual stream, hence the sum.
    """

    centres: NDArray[np.float32]
    directions: NDArray[np.float32]
    shares: NDArray[np.float32]

    @classmethod
    def of_reference(cls, states: NDArray[np.void]) -> View:
        """From the states on the reference texts (records of `FrozenModel.state_type`)."""
        parts = [_whitening(layer) for layer in np.moveaxis(states["layers"].astype(np.float64), 1, 0)]
        return cls(*(np.stack(part).astype(np.float32) for part in zip(*parts, strict=True)))

    def __call__(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """Records (n,) of `FrozenModel.state_type` -> unit vectors (n, d), 0 where there was no text."""
        result = np.zeros((len(states), self.centres.shape[1]), dtype=np.float32)
        for place, (centre, directions, shares) in enumerate(
            zip(self.centres, self.directions, self.shares, strict=True)
        ):
            moved = unit(states["layers"][:, place].astype(np.float32)) - centre
            result += unit(moved - (moved @ directions.T * shares) @ directions)
        result[~states["layers"].any(axis=(1, 2))] = 0.0
        return unit(result)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return dict(vars(self))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> View:
        """What `tensors` gave."""
        return cls(tensors["centres"], tensors["directions"], tensors["shares"])


def _whitening(
    vectors: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre, main directions and their shares of vectors (n, d).

    (C + s)^-1/2 up to a factor, with C the covariance and s its mean over all directions.
    """
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    centre = vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(vectors - centre, full_matrices=False)
    variance = np.square(spread) / max(1, len(vectors))
    usual = variance.sum() / vectors.shape[1]
    shares = 1.0 - np.sqrt(usual / np.maximum(variance + usual, 1e-12))
    return centre, directions[:DIRECTIONS], shares[:DIRECTIONS]
