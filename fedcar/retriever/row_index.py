"""An index over many rows (faiss): which are worth an exact product, in a fraction of the time for all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import top_k
from fedcar.errors import FedcarError
from fedcar.head.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

LISTS_PER_ROOT = 4  # lists of the inverted file for each square root of the number of rows
EXAMPLES_PER_LIST = 50  # rows that the lists' centres are found from
PROBED_ROWS, LEAST_PROBED = 1 << 15, 128  # as many lists are looked into as hold so many rows, and so many at least
RESCORED = 4  # candidates that are scored exactly, for each one wanted


class RowIndex:
    """An inverted file over N rows in eight bits, beside the rows themselves.

    Rows have a number that stays (`numbers` (N,), ascending), so that removing one moves no other in the file. What the
    file finds is scored again with the rows: no score comes from eight bits, only the choice of candidates does.

    Formal guarantees:
        found_scores_are_exact: every score is the product with the row.
        index_follows_add_and_remove: it finds what was added and never what was removed.
    """

    def __init__(self, index: Any, numbers: NDArray[np.int64]) -> None:  # noqa: ANN401 - the library has no types
        self._index = index
        self.numbers = numbers

    @classmethod
    def build(cls, rows: Rows | NDArray[np.float32], seed: int = 0) -> RowIndex:
        """Find the lists from a seeded sample of the rows and put all of them in."""
        faiss = library()
        count, dimension = rows.shape
        lists = max(1, min(int(LISTS_PER_ROOT * count**0.5), count // EXAMPLES_PER_LIST))
        inner = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, lists, faiss.ScalarQuantizer.QT_8bit, inner, False
        )
        index.cp.seed, index.cp.min_points_per_centroid = seed + 1, 1
        examples = min(count, max(EXAMPLES_PER_LIST * lists, 1000))
        sample = np.random.default_rng(seed).choice(count, examples, replace=False)
        index.train(rows[np.sort(sample)])
        result = cls(index, np.arange(0))
        return result._with(rows, 0)

    @property
    def size(self) -> int:
        """Bytes of the index alone, without the rows that it finds."""
        return int(library().serialize_index(self._index).nbytes)

    def added(self, rows: Rows | NDArray[np.float32]) -> RowIndex:
        """For all rows, of which those from the N-th on are new; this index stays as it is."""
        return RowIndex(library().clone_index(self._index), self.numbers)._with(rows, len(self))

    def without(self, places: Sequence[int] | NDArray[np.int64]) -> RowIndex:
        """Without these rows; the others move up."""
        index = library().clone_index(self._index)
        index.remove_ids(np.sort(self.numbers[np.asarray(places, dtype=np.int64)]))
        return RowIndex(index, np.delete(self.numbers, places))

    def _with(self, rows: Rows | NDArray[np.float32], first: int) -> RowIndex:
        start = int(self.numbers[-1]) + 1 if len(self.numbers) else 0
        new = np.arange(start, start + rows.shape[0] - first)
        for block in range(0, len(new), 1 << 16):
            part = new[block : block + (1 << 16)]
            vectors = np.ascontiguousarray(rows[first + block : first + block + len(part)])
            self._index.add_with_ids(vectors, part)
        self.numbers = np.concatenate([self.numbers, new])
        return self

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def search(
        self, queries: NDArray[np.float32], rows: Rows | NDArray[np.float32], k: int, rescored: int = RESCORED
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Queries (n, d) -> the exact products with the k best rows found and their places, (n, k) each, best first.

        Where fewer are found the rest has the score -inf.
        """
        self._index.nprobe = max(LEAST_PROBED, PROBED_ROWS * self._index.nlist // max(1, len(self)))
        wanted = min(k * rescored, len(self))
        _, numbers = self._index.search(np.ascontiguousarray(queries), wanted)
        places = np.searchsorted(self.numbers, np.maximum(numbers, 0))
        scores = np.einsum("nd,ncd->nc", queries, rows[places]).astype(np.float32)
        scores[numbers < 0] = -np.inf
        best = top_k(scores, k)
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)

    def write(self, folder: Path) -> None:
        """Write rows.faiss and rows.numbers.npy into the folder."""
        library().write_index(self._index, str(folder / "rows.faiss"))
        np.save(folder / "rows.numbers.npy", self.numbers)

    @classmethod
    def read(cls, folder: Path, *, mapped: bool = False) -> RowIndex | None:
        """What `write` wrote; None where it wrote nothing, or faiss is not installed and all rows are compared.

        With `mapped` the lists stay on the disk, and nothing can be added or removed.
        """
        file = folder / "rows.faiss"
        if not file.is_file() or not is_installed():
            return None
        try:
            index = library().read_index(str(file), library().IO_FLAG_MMAP if mapped else 0)
        except RuntimeError as error:
            raise FedcarError(f"{file}: faiss cannot read it; restore the folder from a copy") from error
        return cls(index, np.load(folder / "rows.numbers.npy"))


def is_installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def library() -> Any:  # noqa: ANN401 - the library has no types
    try:
        import faiss
    except ImportError as error:
        raise FedcarError("faiss is not installed; pip install 'fedcar[faiss]'") from error
    return faiss
