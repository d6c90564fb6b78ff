"""A fixed map from a question to many features, the same on every client: what the closed form is linear in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import unit
from fedcar.head.view import View

if TYPE_CHECKING:
    from numpy.typing import NDArray

FREQUENCIES = 1024
FREQUENCY_SCALE = 1.5
LAYER_WEIGHT = 0.7


@dataclass(frozen=True)
class FeatureMap:
    """phi(question) of shape (D,): nothing in it is fitted to a question, so sums over clients are exact.

    Three parts: the centred hidden state; random Fourier features of it (Rahimi and Recht 2007; orthogonal frequencies,
    Yu et al. 2016) and of the mean states of lower layers. `centre` (d,), `layer_centre` (k, d) and `layer_spread` are
    the means and the distance from them of the packaged reference texts, the same everywhere. `drawn` holds the two
    sets of frequencies where they need not be drawn from the seed again, which takes a third of a second. Of a hopeless
    encoder what its `view` makes of the states stands in the hidden state's place. With a second encoder `beside` the
    first, its own three are the fourth part.
    """

    centre: NDArray[np.float32]
    layer_centre: NDArray[np.float32]
    layer_spread: float = 1.0
    seed: int = 0
    drawn: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    view: View | None = None
    beside: Beside | None = None

    @classmethod
    def of_reference(cls, states: NDArray[np.void], seed: int = 0, view: View | None = None) -> FeatureMap:
        """The map for an encoder, from its states on the reference texts (records of `FrozenModel.state_type`)."""
        layers = _unit_layers(states)
        centre = layers.mean(0)
        spread = float(np.sqrt(np.square(layers - centre).sum((1, 2)).mean()))
        return cls(unit(_hidden(states, view)).mean(0), centre, spread or 1.0, seed, view=view)

    @property
    def dimension(self) -> int:
        return len(self.centre) + 4 * FREQUENCIES + (self.beside.dimension if self.beside is not None else 0)

    @property
    def frequencies(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Those of the hidden state (m, d) and those of the layers (m, k d)."""
        if self.drawn is not None:
            return self.drawn
        return frequencies(len(self.centre), self.seed), frequencies(self.layer_centre.size, self.seed + 1)

    def __call__(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """States of questions, records (n,) of `FrozenModel.state_type` -> features (n, D), float32."""
        parts = self.parts(states, *self.frequencies)
        parts += [] if self.beside is None else [self.beside(states)]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def parts(
        self, states: NDArray[np.void], of_hidden: NDArray[np.float32], of_layers: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """The three parts, (n, .) each, with these frequencies."""
        hidden = centred(_hidden(states, self.view), self.centre)
        layers = (_unit_layers(states) - self.layer_centre) / np.float32(self.layer_spread)
        layers = layers.reshape(len(states), self.layer_centre.size)
        return [hidden, fourier(hidden, of_hidden), LAYER_WEIGHT * fourier(layers, of_layers)]


@dataclass(frozen=True)
class Beside:
    """What a map takes of a second encoder: all that a map of its own gives, with half as many frequencies."""

    own: FeatureMap

    @classmethod
    def of_reference(cls, states: NDArray[np.void], seed: int, view: View | None = None) -> Beside:
        """From the second encoder's states on the reference texts, and the seed of the first's map."""
        return cls(FeatureMap.of_reference(states, seed + 2, view))

    @property
    def dimension(self) -> int:
        return len(self.own.centre) + 4 * (FREQUENCIES // 2)

    def __call__(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """Joined records (n,) -> (n, D)."""
        of_hidden, of_layers = (drawn[: FREQUENCIES // 2] for drawn in self.own.frequencies)
        return np.concatenate(self.own.parts(states["beside"], of_hidden, of_layers), axis=1, dtype=np.float32)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Everything but the seed, as plain arrays."""
        own, view = self.own, {} if self.own.view is None else self.own.view.tensors()
        spread = np.array([own.layer_spread], dtype=np.float64)
        arrays: dict[str, NDArray[Any]] = {
            "centre": own.centre,
            "layer_centre": own.layer_centre,
            "layer_spread": spread,
        }
        return arrays | {f"view.{name}": array for name, array in view.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], seed: int) -> Beside:
        """What `tensors` gave, with the seed of the first's map."""
        of_view = below(tensors, "view.")
        view, spread = View.from_tensors(of_view) if of_view else None, float(tensors["layer_spread"][0])
        return cls(FeatureMap(tensors["centre"], tensors["layer_centre"], spread, seed + 2, view=view))


def centred(hidden_states: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit hidden states less their usual direction, of unit length again: weak decoders point nearly one way."""
    return unit(unit(hidden_states) - centre)


@lru_cache(maxsize=8)
def frequencies(dimension: int, seed: int) -> NDArray[np.float32]:
    """(FREQUENCIES, dimension) Gaussian frequencies, orthogonal in blocks."""
    generator = np.random.default_rng([seed, dimension])
    blocks: list[NDArray[np.float64]] = []
    while sum(map(len, blocks)) < FREQUENCIES:
        count = min(dimension, FREQUENCIES - sum(map(len, blocks)))
        basis, _ = np.linalg.qr(generator.standard_normal((dimension, count)))
        blocks.append(basis.T * np.sqrt(generator.chisquare(dimension, size=count))[:, None])
    return (FREQUENCY_SCALE * np.concatenate(blocks)).astype(np.float32)


def fourier(vectors: NDArray[np.float32], frequency: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, d) -> cosines and sines of the projections (n, 2 m), of unit length."""
    angles = vectors @ frequency.T
    waves: NDArray[np.float32] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    return waves / np.float32(np.sqrt(len(frequency)))


def below(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Those whose name begins so, by the rest of their name."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _hidden(states: NDArray[np.void], view: View | None) -> NDArray[np.float32]:
    hidden: NDArray[np.float32] = states["pooled"] if view is None else view(states)
    return hidden


def _unit_layers(states: NDArray[np.void]) -> NDArray[np.float32]:
    layers = states["layers"].astype(np.float32)
    result: NDArray[np.float32] = layers / np.maximum(np.linalg.norm(layers, axis=2, keepdims=True), 1e-12)
    return result
