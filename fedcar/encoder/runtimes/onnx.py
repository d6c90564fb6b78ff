"""An encoder in ONNX Runtime: no torch, half a second to start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.encoder.reading import States
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("token_states", "pooled", "layers")


class OnnxRuntime:
    """Runs a file that `runtime.onnx_file.write` made; threads follow OMP_NUM_THREADS, by default all cores."""

    name = "onnx"

    def __init__(self, file: Path) -> None:
        onnxruntime = library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        options.enable_cpu_mem_arena = False  # it keeps the largest batch's memory for good
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises kinds of its own, none of them documented
            raise FedcarError(f"{file}: ONNX Runtime cannot read it ({str(error)[:200]}); export it again") from error

    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `reading.Runtime`. A file with an adapter gives n untrained rows, then n adapted ones."""
        return States(*self._session.run(list(OUTPUTS), dict(zip(INPUTS, (token_ids, mask), strict=True))))


def library() -> Any:  # noqa: ANN401 - it has no types
    """ONNX Runtime, told to send no telemetry before it is imported: it would, and keep a device id in the home."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise FedcarError("onnxruntime is not installed; pip install 'fedcar[bundle]'") from error
    return onnxruntime
