"""A torch encoder written as an ONNX file: what a text becomes, in float32 or with the weights in eight bits."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedcar.encoder.model import FrozenModel
from fedcar.encoder.pooling import states_of
from fedcar.encoder.runtimes.onnx import INPUTS, OUTPUTS, library
from fedcar.errors import FedcarError, first_line

if TYPE_CHECKING:
    from fedcar.encoder.adapter import Adapter

PRECISIONS = ("fp32", "int8")


class Graph(nn.Module):
    """Token ids and mask (n, t) -> the three states; with two tables of an untrained and then an adapted batch.

    The transformer is the graph's own copy (`FrozenModel.behind`): its settings are changed.
    """

    def __init__(self, transformer: Any, model: FrozenModel, both: bool = False) -> None:  # noqa: ANN401 - AutoModel
        super().__init__()
        self.model, self.layers, self.both = transformer, model.layers, both
        self.pooler = copy.deepcopy(model.pooler).cpu()
        if hasattr(transformer.config, "use_cache"):  # a decoder's is for going on with a text, which nobody does here
            transformer.config.use_cache = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.both:
            input_ids, attention_mask = (torch.cat([one, one]) for one in (input_ids, attention_mask))
        return states_of(self.model, input_ids, attention_mask, self.layers, self.pooler)


class _TwoTables(nn.Module):
    """The encoder's embedding for the first half of a batch, the one with the adapter folded in for the second."""

    def __init__(self, embedding: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.embedding = embedding
        self.folded = copy.deepcopy(embedding).float()
        folded: Any = self.folded
        with torch.no_grad():
            folded.weight.copy_(adapter(folded.weight))

    def forward(self, token_ids: Tensor) -> Tensor:
        half = token_ids.shape[0] // 2
        return torch.cat([self.embedding(token_ids[:half]), self.folded(token_ids[half:])])


def write(model: FrozenModel, file: Path, precision: str = "fp32", adapter: Adapter | None = None) -> None:
    """Write the model; with an adapter without it and with it, the blocks' weights once.

    Inputs are `input_ids` and `attention_mask` (n, t), padded on the right; outputs `token_states` (n, t, d), `pooled`
    (n, d) and `layers` (n, k, d), with an adapter all of them twice as many rows: first untrained, then adapted.

    Raises FedcarError where the exporter's packages are missing or cannot express the model.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FedcarError(f"{error.name} is not installed; pip install 'fedcar[onnx]'") from error
    try:
        embedding = model.embedding if adapter is None else _TwoTables(model.embedding, adapter)
        _write(Graph(on_processor(model.behind(embedding)), model, adapter is not None).eval(), file, precision)
    except FedcarError:
        raise
    except Exception as error:  # the exporter raises many kinds; each means that this model cannot be written
        message = f"{model.name}: cannot be written as ONNX ({first_line(error)})"
        raise FedcarError(f"{message}; take --format transformers") from error


def on_processor(transformer: nn.Module) -> nn.Module:
    """The transformer, or a copy of one that lies on a GPU: a file belongs to no device."""
    devices = {parameter.device.type for parameter in transformer.parameters()}
    return transformer if devices == {"cpu"} else copy.deepcopy(transformer).cpu()


def _write(graph: nn.Module, file: Path, precision: str) -> None:
    token_ids, mask = torch.ones((2, 3), dtype=torch.long), torch.tensor([[1, 1, 1], [1, 1, 0]])
    shape = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    level = logging.root.manager.disable
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # the exporter tells of its own passes
        try:
            full = Path(folder) / "full.onnx" if precision == "int8" else file
            with contextlib.redirect_stdout(io.StringIO()):
                torch.onnx.export(
                    graph,
                    (token_ids, mask),
                    full,
                    input_names=list(INPUTS),
                    output_names=list(OUTPUTS),
                    dynamic_shapes=(shape, shape),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
            if precision == "int8":
                _quantise(full, file)
        finally:
            logging.disable(level)


def _quantise(full: Path, file: Path) -> None:
    """Weights and tables in eight bits, a scale for each output; activations are made eight bits as they come."""
    library()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(full, file, op_types_to_quantize=["MatMul", "Gemm", "Gather"], **options)
