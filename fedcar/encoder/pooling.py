"""Pooling: token states become one vector a text, and what a sentence-transformers folder puts behind that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedcar.encoder.manner import Manner
from fedcar.encoder.model_files import read_json
from fedcar.errors import FedcarError, first_line, quoted

ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.activation.SiLU": nn.SiLU,
    "torch.nn.modules.activation.Sigmoid": nn.Sigmoid,
    "torch.nn.modules.linear.Identity": nn.Identity,
}


class Pooling(nn.Module):
    """Token states (n, t, d) and mask (n, t) -> vectors (n, D), with frozen modules behind.

    A 2 in the mask stands for a token that is read and not pooled: one of a prompt that the model leaves out.
    """

    def __init__(self, pooling: str, behind: Sequence[nn.Module] = (), leaves_out: bool = False) -> None:
        super().__init__()
        self.kinds = tuple(pooling.split("+"))
        self.behind = nn.ModuleList(behind)
        self.leaves_out = leaves_out

    @property
    def is_elsewhere(self) -> bool:
        """Whether the vectors lie in another space than the token states."""
        return len(self.kinds) > 1 or len(self.behind) > 0

    def read(self, mask: Tensor) -> Tensor:
        """The mask of all tokens that the model reads."""
        return mask.clamp(max=1) if self.leaves_out else mask

    def pooled(self, mask: Tensor) -> Tensor:
        """The mask of those that are pooled."""
        return (mask == 1).to(mask.dtype) if self.leaves_out else mask

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        kept = self.pooled(mask)
        parts = [pool(hidden_states, kept, kind) for kind in self.kinds]
        found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        for module in self.behind:
            found = module(found if found.dtype == torch.float64 else found.float())
        return found


class Dense(nn.Module):
    """A linear map, its activation, and the input beside it where the folder says so."""

    def __init__(self, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.linear = _linear(tensors, "linear")
        self.activation = ACTIVATIONS[str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))]()
        self.residual = _linear(tensors, "residual") if "residual.weight" in tensors else None
        self.beside = bool(settings.get("use_residual", False))

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.activation(self.linear(vectors))
        if not self.beside:
            return found
        return found + (vectors if self.residual is None else self.residual(vectors))


class Normalize(nn.Module):
    """Vectors of unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.nn.functional.normalize(vectors, dim=-1)


def pooling_of(folder: Path, pooling: str, manner: Manner) -> Pooling:
    """The pooling with the modules that the folder puts behind it."""
    behind = [_module(folder / name) for name in manner.modules]
    return Pooling(pooling, behind, not manner.include_prompt).requires_grad_(False).eval()


def width_behind(folder: Path, pooling: str, manner: Manner, width: int) -> int:
    """How wide the vectors are that come out, from the folder's configuration alone."""
    width *= len(pooling.split("+"))
    for name in manner.modules:
        file = folder / name / "config.json"
        width = int(read_json(file).get("out_features", width)) if file.is_file() else width
    return width


def _module(folder: Path) -> nn.Module:
    """One module; its kind follows from what its folder holds."""
    settings = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    file = folder / "model.safetensors"
    if "in_features" not in settings and "dimension" not in settings:
        return Normalize()
    if not file.is_file():
        raise FedcarError(f"{folder}: no model.safetensors, and a pickle can run code when read; convert the weights")
    if (name := settings.get("activation_function")) is not None and name not in ACTIVATIONS:
        raise FedcarError(f"{folder}: the activation {quoted(name)} is not known here; take another encoder")
    if any(settings.get(f"module_{end}_name") not in (None, "sentence_embedding") for end in ("input", "output")):
        raise FedcarError(f"{folder}: a module over something else than the pooled vector; take another encoder")
    try:
        tensors = load_file(file)
        if "in_features" in settings:
            return Dense(settings, tensors)
        norm = nn.LayerNorm(int(settings["dimension"]))
        norm.load_state_dict({name.removeprefix("norm."): tensor for name, tensor in tensors.items()})
        return norm
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise FedcarError(f"{file}: cannot be read ({first_line(error)}); fetch the encoder again") from error


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"].float(), tensors.get(f"{name}.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def pool(hidden_states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (n, t, d) and mask (n, t) -> (n, d), by the tokens that the mask keeps.

    `mean`, `max`, `last` and `cls` (the first) say what they do; `mean_sqrt_len_tokens` is the sum over the root of
    their number, `weightedmean` weighs a token by its place. Right with padding on either side, but for the last.
    """
    if pooling in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        weights = mask.unsqueeze(-1).to(hidden_states.dtype)
        if pooling == "weightedmean":
            weights = weights * torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=weights.dtype)[:, None]
        total = weights.sum(1).clamp(min=1)
        return (hidden_states * weights).sum(1) / (total.sqrt() if pooling == "mean_sqrt_len_tokens" else total)
    if pooling == "max":
        return hidden_states.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(hidden_states.dtype).min).amax(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (mask * (positions + 1)).argmax(1) if pooling == "last" else mask.argmax(1)
    chosen = index[:, None, None].expand(-1, 1, hidden_states.shape[2])
    return hidden_states.gather(1, chosen).squeeze(1)


def states_of(
    model: Any,  # noqa: ANN401 - any AutoModel
    token_ids: Tensor,
    mask: Tensor,
    layers: Sequence[int],
    pooler: Pooling,
) -> tuple[Tensor, Tensor, Tensor]:
    """The last hidden states (n, t, d), the vectors (n, D), and the mean states of the layers (n, k, d)."""
    output = model(input_ids=token_ids, attention_mask=pooler.read(mask), output_hidden_states=True)
    last, kept = output.last_hidden_state, pooler.pooled(mask)
    means = torch.stack([pool(output.hidden_states[layer], kept, "mean") for layer in layers], dim=1)
    return last, pooler(last, mask), means
