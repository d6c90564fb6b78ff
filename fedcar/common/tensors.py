"""Tensors in safetensors files, in memory or left on disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from fedcar.common.files import reason_of
from fedcar.common.folders import RESTORE
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file; nothing else is read, a pickle least of all."""
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[Any]] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise FedcarError(f"{file}: not a safetensors file ({reason_of(error)}); {RESTORE}") from error
    return tensors


class RowsOnDisk:
    """An array (n, ...) in a file, of which slices of rows are read when they are asked for.

    Where a few rows here and there are wanted: a mapped file then takes many times their size of memory, since the
    system maps what lies around them too.
    """

    def __init__(self, file: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, dtype
        self._offset, self._row_bytes = offset, dtype.itemsize * math.prod(shape[1:])
        self._stream = file.open("rb", buffering=0)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Return the rows from one place to another, read from the disk."""
        import numpy as np

        first, last, _ = rows.indices(len(self))
        result = np.empty((max(0, last - first), *self.shape[1:]), self.dtype)
        where = self._offset + first * self._row_bytes  # told with each reading: threads share the file's own place
        if os.preadv(self._stream.fileno(), [result.reshape(-1).view(np.uint8).data], where) != result.nbytes:
            raise FedcarError(f"{self._stream.name}: cut off since it was opened; {RESTORE}")
        return result


def mapped_tensors(file: Path, on_disk: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors of a safetensors file, mapped into memory: each is read from the disk as far as it is used.

    Those of the names `on_disk` are `RowsOnDisk`.
    """
    import numpy as np

    types = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
    types |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
    tensors: dict[str, Any] = {}
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        content = np.memmap(file, np.uint8, "r", offset=8 + size) if file.stat().st_size > 8 + size else None
        for name, about in header.items():
            first, last = about["data_offsets"]
            if name in on_disk:
                kind, shape = np.dtype(types[about["dtype"]]), tuple(about["shape"])
                tensors[name] = RowsOnDisk(file, 8 + size + first, kind, shape)
                continue
            part = np.zeros(0, np.uint8) if content is None or first == last else content[first:last]
            tensors[name] = np.asarray(part).view(types[about["dtype"]]).reshape(about["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedcarError(f"{file}: not a safetensors file ({error}); {RESTORE}") from error
    return tensors
