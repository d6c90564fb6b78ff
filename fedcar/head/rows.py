"""Rows of vectors in 32, 16 or 8 bits, in memory or mapped from a file, and the exact products of a query with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("float32", "float16", "int8")
BLOCK = 1 << 12  # rows made float32 at once
PRODUCTS = 1 << 15  # rows whose products are held at once
HALF = np.float32(2.0**56)  # twice this power of two lies between a float16 and a float32 of the same bits


class Rows:
    """N vectors (N, d) as float32, float16 or int8 with a scale (N,) for each; an index gives float32 back.

    Arrays that are mapped from a file stay there: a product reads them block by block and keeps nothing. All numbers
    are finite.

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
            result: NDArray[np.float32] = queries @ self.values.T
            return result
        result = np.empty((len(queries), len(self)), dtype=np.float32)
        for part, products in self._by_block(queries):
            result[:, part] = products
        return result

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Queries (n, d) -> the k highest products and their rows, best first, as `top_k` orders them; (n, k) each.

        No more than n x `PRODUCTS` products are held.
        """
        k = max(0, min(k, len(self)))
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        places = np.zeros((len(queries), k), dtype=np.int64)
        for part, products in self._by_block(queries) if k else ():
            better = products > scores[:, -1:]  # an equal one that comes later stays behind
            for row in np.flatnonzero(better.any(axis=1)):
                new = np.flatnonzero(better[row])
                joined = np.concatenate([scores[row], products[row, new]])
                best = top_k(joined[None], k)[0]
                scores[row], places[row] = joined[best], np.concatenate([places[row], part.start + new])[best]
        return scores, places

    def _by_block(self, queries: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Parts of the rows and the products with them (n, b), which those of the next part overwrite.

        Through one small buffer for all of them, as fresh memory costs more.
        """
        memory = np.empty((len(queries), min(PRODUCTS, len(self))), dtype=np.float32)
        buffer = np.empty((0 if self.kind == "float32" else min(BLOCK, len(self)), self.shape[1]), dtype=np.float32)
        for start in range(0, len(self), PRODUCTS):
            part = slice(start, min(start + PRODUCTS, len(self)))
            values, products = self.values[part], memory[:, : part.stop - start]
            if self.kind == "float32":
                np.matmul(queries, values.T, out=products)
            elif self.kind == "float16" and sys.modules.get("torch") and values.flags.writeable:
                _multiply_by_torch(queries, values, buffer, products)
            else:
                _multiply(queries, values, buffer, products)
            if self.scales is not None:
                products *= self.scales[part]
            yield part, products

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """What a file keeps of them, under this name."""
        scales = {} if self.scales is None else {f"{name}.scales": self.scales}
        return {name: self.values, **scales}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Rows:
        return cls(arrays[name], arrays.get(f"{name}.scales"))


def _multiply(
    queries: NDArray[np.float32], values: NDArray[Any], buffer: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Queries (n, d) times values (b, d) of 16 or 8 bits, as many at once as the buffer has rows."""
    half = np.float32(HALF if values.dtype == np.float16 else 1)  # once on either side: nothing overflows
    queries = queries * half
    for start in range(0, len(values), len(buffer)):
        part = values[start : start + len(buffer)]
        wide = buffer[: len(part)]
        if values.dtype == np.float16:
            with_moved_bits(part, wide)
        else:
            np.copyto(wide, part)
        np.matmul(queries, wide.T, out=out[:, start : start + len(buffer)])
    out *= half


def _multiply_by_torch(
    queries: NDArray[np.float32], values: NDArray[np.float16], buffer: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """`_multiply` where torch is loaded, which converts float16 in one pass; it maps no array that is read-only.

    Its products too: threads of its own beside those of numpy's wait for each other.
    """
    import torch

    asked = torch.from_numpy(np.array(queries, dtype=np.float32, order="C"))  # a copy: it takes no other strides either
    stored, widened, products = map(torch.from_numpy, (values, buffer, out))
    for start in range(0, len(values), len(buffer)):
        part = stored[start : start + len(buffer)]
        wide = widened[: len(part)].copy_(part)
        if len(asked) == 1:
            torch.mv(wide, asked[0], out=products[0, start : start + len(buffer)])
        else:
            torch.mm(asked, wide.T, out=products[:, start : start + len(buffer)])


def with_moved_bits(values: NDArray[np.float16], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite float16 values, with their bits where a float32 has them: what `out` then holds is 2^112 times too small.

    numpy converts one float16 at a time, and takes six times as long as for moving the bits of many.
    """
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # without the three copies of the sign
    return out


def products(queries: NDArray[np.float32], vectors: NDArray[np.float32] | Rows) -> NDArray[np.float32]:
    """Queries (n, d) and vectors (N, d), stored or plain -> inner products (n, N)."""
    if isinstance(vectors, Rows):
        return vectors.products(queries)
    result: NDArray[np.float32] = queries @ vectors.T
    return result
