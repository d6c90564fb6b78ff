"""The encoder in OpenVINO, read from its ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.errors import FedcarError
from fedcar.runtime.onnx import INPUTS, OUTPUTS
from fedcar.runtime.protocol import States

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenVino:
    """Runs a file that `runtime.onnx_file.write` made, in float32 or where the processor has it in bfloat16."""

    def __init__(self, file: Path, precision: str = "f32") -> None:
        library = _library()
        core = library.Core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads := int(os.environ.get("OMP_NUM_THREADS") or 0):
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = core.compile_model(core.read_model(str(file)), "CPU", settings)
        except RuntimeError as error:
            raise FedcarError(f"{file}: OpenVINO cannot read it ({str(error)[:200]}); take another runtime") from error

    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `runtime.protocol.Runtime`."""
        found = self._model(dict(zip(INPUTS, (token_ids, mask), strict=True)))
        return States(*(found[name] for name in OUTPUTS))


def _library() -> Any:  # noqa: ANN401 - the library has no types
    """The library, without the event that it sends when it is imported: it keeps quiet where CI is set."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    except ImportError as error:
        raise FedcarError("openvino is not installed; pip install 'fedcar[openvino]'") from error
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
    return openvino
