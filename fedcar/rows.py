"""Rows of vectors in 32, 16 or 8 bits, in memory or mapped from a file, and the exact products of a query with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("float32", "float16", "int8")
BLOCK = 1 << 12  # rows made float32 at once


class Rows:
    """N vectors (N, d) as float32, float16 or int8 with a scale (N,) for each; an index gives float32 back.

    Arrays that are mapped from a file stay there: a product reads them block by block and keeps nothing.

    Formal guarantees:
        products_of_stored_rows_are_those_of_their_float32_values: whatever the kind and the block.
    """

    def __init__(self, values: NDArray[Any], scales: NDArray[np.float32] | None = None) -> None:
        self.values = values
        self.scales = scales

    @classmethod
    def of(cls, vectors: NDArray[np.float32], kind: str = "float32") -> Rows:
        """Rows of this kind; an int8 entry is the value in 127ths of its row's largest."""
        if kind != "int8":
            return cls(np.ascontiguousarray(vectors, dtype=kind))
        scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)
        values = np.round(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
        return cls(values, scales.astype(np.float32))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:  # noqa: ANN401 - whatever an array takes
        """These rows, or all of a shape of row numbers, as float32."""
        values: NDArray[np.float32] = np.asarray(self.values[rows], dtype=np.float32)
        return values if self.scales is None else values * self.scales[rows][..., None]

    @property
    def kind(self) -> str:
        return str(self.values.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def products(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Queries (n, d) -> inner products (n, N), float32."""
        if self.kind == "float32" and self.scales is None:
            found: NDArray[np.float32] = queries @ self.values.T
            return found
        result = np.empty((len(queries), len(self)), dtype=np.float32)
        for start in range(0, len(self), BLOCK):
            part = slice(start, start + BLOCK)
            np.matmul(queries, self.values[part].astype(np.float32).T, out=result[:, part])
        if self.scales is not None:
            result *= self.scales
        return result

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """What a file keeps of them, under this name."""
        scales = {} if self.scales is None else {f"{name}.scales": self.scales}
        return {name: self.values, **scales}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Rows:
        return cls(arrays[name], arrays.get(f"{name}.scales"))


def products(queries: NDArray[np.float32], vectors: NDArray[np.float32] | Rows) -> NDArray[np.float32]:
    """Queries (n, d) and vectors (N, d), stored or plain -> inner products (n, N)."""
    if isinstance(vectors, Rows):
        return vectors.products(queries)
    found: NDArray[np.float32] = queries @ vectors.T
    return found
