"""The encoder in torch in float32: the reference for all others, and what an adapter runs in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcar.encoder.model import FrozenModel
from fedcar.encoder.pooling import states_of
from fedcar.encoder.reading import States

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TorchFloat32:
    """Runs a transformer, the model's own or one that shares its weights; with `twice` each batch two times over."""

    def __init__(self, transformer: Any, model: FrozenModel, twice: bool = False) -> None:  # noqa: ANN401 - AutoModel
        self._transformer, self._twice = transformer, twice
        self._device, self._layers, self._pooler = model.device, model.layers, model.pooler

    @torch.inference_mode()
    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """See `protocol.Runtime`."""
        if self._twice:
            token_ids, mask = np.concatenate([token_ids, token_ids]), np.concatenate([mask, mask])
        ids, kept = (torch.from_numpy(array).to(self._device) for array in (token_ids, mask))
        states = states_of(self._transformer, ids, kept, self._layers, self._pooler)
        return States(*(tensor.float().cpu().numpy() for tensor in states))
