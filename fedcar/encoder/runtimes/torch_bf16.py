"""The encoder in torch with bfloat16 weights: twice as fast where the processor multiplies them, slow elsewhere."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model import states_of
from fedcar.encoder.runtimes.protocol import States

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TorchBfloat16:
    """A copy of the encoder's model in bfloat16; states come back in float32."""

    def __init__(self, encoder: Encoder) -> None:
        self._model = copy.deepcopy(encoder.model).to(torch.bfloat16)
        self._device, self._layers, self._pooling = encoder.device, encoder.layers, encoder.pooling

    @torch.inference_mode()
    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `runtime.protocol.Runtime`."""
        ids, kept = (torch.from_numpy(array).to(self._device) for array in (token_ids, mask))
        found = states_of(self._model, ids, kept, self._layers, self._pooling)
        return States(*(tensor.float().cpu().numpy() for tensor in found))
