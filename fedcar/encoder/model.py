"""The frozen model: one batch of tokens in, states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def states_of(
    model: Any,  # noqa: ANN401 - any AutoModel
    token_ids: Tensor,
    mask: Tensor,
    layers: Sequence[int],
    pooling: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The last hidden states (n, t, d), pooled (n, d), and the mean states of the layers (n, k, d)."""
    output = model(input_ids=token_ids, attention_mask=mask, output_hidden_states=True)
    last = output.last_hidden_state
    means = torch.stack([pool(output.hidden_states[layer], mask, "mean") for layer in layers], dim=1)
    return last, pool(last, mask, pooling), means


def pool(hidden_states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (n, t, d) and mask (n, t) -> (n, d): the mean, the last or the first token that the mask keeps.

    Right with padding on either side.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden_states.dtype)
        return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (mask * (positions + 1)).argmax(1) if pooling == "last" else mask.argmax(1)
    chosen = index[:, None, None].expand(-1, 1, hidden_states.shape[2])
    return hidden_states.gather(1, chosen).squeeze(1)


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Frozen blocks are deterministic, in training mode too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
