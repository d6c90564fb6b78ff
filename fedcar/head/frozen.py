"""A trained head as plain arrays: what it adds to the score, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import unit
from fedcar.head.inputs import inputs_of
from fedcar.head.rows import Rows, products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.head.head import Head

PARTS = ("centre", "map", "inner", "outer", "centres")


@dataclass(frozen=True)
class FrozenHead:
    """`Head` after training: `rows` (a, d) of the documents `active` (a,), and what the question goes through.

    With g the question's vector (pre-classifier `inner`, `outer` and adapter applied), u its untrained one and M the
    query `map`, what training adds to the score of a document is s (g - u) . e_d + (M g) . e_d, and for an active one
    s x . r_d too. A linear head multiplies its rows with x = g less `centre`, of unit length; a cosine head with x = g,
    and r_d here is how far training turned e_d. `centres` are those of two encoders, where it is over both.

    Formal guarantees:
        frozen_head_equals_head: the same scores, to float32's last digits.
    """

    embeddings: Rows
    rows: Rows
    active: NDArray[np.int64]
    scale: float
    centre: NDArray[np.float32] | None = None
    map: NDArray[np.float32] | None = None
    inner: NDArray[np.float32] | None = None
    outer: NDArray[np.float32] | None = None
    centres: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, head: Head, embeddings: Rows, kind: str = "float32") -> FrozenHead:
        """The head with its rows stored in this kind; `embeddings` are those of its documents."""
        state = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
        return cls.of_state(state, head.kind, embeddings, kind)

    @classmethod
    def of_state(
        cls, state: Mapping[str, NDArray[Any]], kind_of_head: str, embeddings: Rows, kind: str = "float32"
    ) -> FrozenHead:
        """The same from the head's tensors as arrays, linear or cosine."""
        active = np.flatnonzero(state["active"])
        rows, linear = state["rows"][active], kind_of_head == "linear"
        if not linear:
            embedded = state["embeddings"][active]
            embedded = np.pad(embedded, ((0, 0), (0, rows.shape[1] - embedded.shape[1])))
            rows = unit(embedded + rows) - embedded
        parts = {name: state[name] for name in ("map", "inner", "outer", "centres") if name in state}
        centre = state["centre"] if linear else None
        return cls(embeddings, Rows.of(rows, kind), active, float(np.exp(state["log_scale"])), centre, **parts)

    @property
    def query_map(self) -> bool:
        return self.map is not None

    @property
    def has_row(self) -> NDArray[np.bool_]:
        """Which documents have a trained row (N,)."""
        result = np.zeros(len(self.embeddings), dtype=bool)
        result[self.active] = True
        return result

    def inputs(self, states: NDArray[np.void]) -> NDArray[np.float32]:
        """States of questions, records (n,) -> what everything here calls hidden states; see `Head.inputs`."""
        return inputs_of(states, self.centres)

    def learned_scores(
        self,
        hidden_states: NDArray[np.float32],
        untrained: NDArray[np.float32],
        candidates: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """What training adds, given the question's hidden states (n, d) with the adapter and without: (n, N) or (n, c).

        See `Head.learned`, whose numbers these are.
        """
        query = unit(hidden_states)
        if self.inner is not None and self.outer is not None:
            query = unit(query + gelu(query @ self.inner.T) @ self.outer.T)
        moved = np.float32(self.scale) * (query - unit(untrained))[:, : self.embeddings.shape[1]]
        if self.map is not None:
            moved = moved + query @ self.map.T
        vectors = query if self.centre is None else unit(query - self.centre)
        scores = np.zeros((len(query), len(self.embeddings)), dtype=np.float32)
        scores[:, self.active] = np.float32(self.scale) * self.rows.products(vectors)
        if candidates is None:
            return scores + products(moved, self.embeddings) if moved.any() else scores
        scores = np.take_along_axis(scores, candidates, axis=1)
        return scores + np.einsum("nd,ncd->nc", moved, self.embeddings[candidates]) if moved.any() else scores

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the embeddings, for one file."""
        parts = {name: getattr(self, name) for name in PARTS}
        more = {f"head.{name}": array for name, array in parts.items() if array is not None}
        scale = np.array([self.scale], dtype=np.float64)
        return {**self.rows.arrays("head.rows"), "head.active": self.active, "head.scale": scale, **more}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], embeddings: Rows) -> FrozenHead:
        """What `arrays` gave, and the embeddings."""
        parts = {name: arrays.get(f"head.{name}") for name in PARTS}
        rows = Rows.from_arrays(arrays, "head.rows")
        return cls(embeddings, rows, arrays["head.active"], float(arrays["head.scale"][0]), **parts)


def gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """X times the normal distribution's share below x, as torch has it by default."""
    error_function = np.vectorize(math.erf, otypes=[np.float64])
    below = 0.5 * (1 + error_function(values / math.sqrt(2))) if values.size else values
    result: NDArray[np.float32] = (values * below).astype(np.float32)
    return result
