"""The encoder in torch with bfloat16 weights: twice as fast where the processor multiplies them, slow elsewhere."""

from __future__ import annotations

from fedcar.encoder.model import FrozenModel
from fedcar.encoder.runtimes.torch_float32 import TorchFloat32
from fedcar.encoder.sixteen_bits import in_bfloat16


def torch_bfloat16(model: FrozenModel) -> TorchFloat32:
    """Runs a copy of the model in bfloat16; states come back in float32."""
    return TorchFloat32(in_bfloat16(model.transformer), model)
