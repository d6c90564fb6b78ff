"""The encoder in OpenVINO, converted from torch."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fedcar.encoder.reading import States
from fedcar.encoder.runtimes.onnx import INPUTS, OUTPUTS
from fedcar.encoder.runtimes.onnx_file import Graph, on_processor
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcar.encoder.model import FrozenModel


class OpenVino:
    """Runs a file that `write` made, in float32 or where the processor has it in bfloat16."""

    def __init__(self, file: Path, precision: str = "f32") -> None:
        library = _library()
        core = library.Core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads := int(os.environ.get("OMP_NUM_THREADS") or 0):
            settings["INFERENCE_NUM_THREADS"] = threads
        self._of_thread = threading.local()  # a request holds the numbers of one batch, so each thread has its own
        try:
            self._model = core.compile_model(core.read_model(str(file)), "CPU", settings)
        except RuntimeError as error:
            raise FedcarError(f"{file}: OpenVINO cannot read it ({str(error)[:200]}); take another runtime") from error

    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `reading.Runtime`."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._model.create_infer_request()
        states = self._of_thread.request.infer(dict(zip(INPUTS, (token_ids, mask), strict=True)), share_outputs=False)
        return States(*(states[name] for name in OUTPUTS))


def write(model: FrozenModel, file: Path, onnx: Callable[[], Path]) -> None:
    """Write the encoder as it is in OpenVINO's own form: FILE.xml, and its weights in a .bin beside it.

    Straight from torch where OpenVINO reads the model there, in half of the time that an ONNX file takes; else from an
    ONNX file, which `onnx` gives. Inputs and outputs are those of `runtime.onnx_file.write`.

    Raises FedcarError where neither can express the model.
    """
    library = _library()
    try:
        found = _converted(library, model)
    except Exception:  # the library raises many kinds; each means that it cannot read this model from torch
        found = library.convert_model(str(onnx()))
    library.save_model(found, str(file), compress_to_fp16=False)


def _converted(library: Any, model: FrozenModel) -> Any:  # noqa: ANN401 - the library has no types
    token_ids, mask = torch.ones((2, 3), dtype=torch.long), torch.tensor([[1, 1, 1], [1, 1, 0]])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        graph = Graph(on_processor(model.behind(model.embedding)), model).eval()
        found = library.convert_model(graph, example_input=(token_ids, mask))
    for ports, names in ((found.inputs, INPUTS), (found.outputs, OUTPUTS)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return found


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
