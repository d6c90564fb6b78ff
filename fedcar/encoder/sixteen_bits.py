"""Large models: weights stay in 16 bits, mapped from their file, and each is float32 only while it multiplies."""

from __future__ import annotations

import copy
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedcar.common.files import encoders_folder
from fedcar.common.folders import made_once
from fedcar.encoder.model_files import fingerprint, parameter_count, precisions, weight_files
from fedcar.errors import FedcarError

LARGE_MODEL = 500_000_000  # parameters; below, all in float32 is at most 2 GB and the faster
TOKENS_OF_A_LARGE_MODEL = 1024  # in a batch
HALVES = (torch.bfloat16, torch.float16)


def is_large(folder: Path) -> bool:
    """Whether the model's blocks are held in 16 bits."""
    return parameter_count(folder) >= LARGE_MODEL


class SixteenBitLinear(nn.Linear):
    """x W^T + b with W in 16 bits; where x is float32, W is made float32 for this product alone.

    What 16 bits hold, float32 holds too: the product is that of a model read in float32, bit for bit.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype), bias)


class SixteenBitEmbedding(nn.Embedding):
    """The rows of a table in 16 bits, given as float32."""

    def forward(self, token_ids: Tensor) -> Tensor:
        rows = super().forward(token_ids)
        return rows.float() if rows.dtype in HALVES else rows


def computing_in_float32(model: Any) -> Any:  # noqa: ANN401 - any AutoModel
    """The model, read in 16 bits, changed in place so that it computes in float32; its large matrices stay as they are.

    What is neither a linear map nor a plain table (norms, biases of their own) is small, and made float32.
    """
    kept = {nn.Linear: SixteenBitLinear, nn.Embedding: SixteenBitEmbedding}
    held = set()
    for module in model.modules():
        if type(module) in kept:
            module.__class__ = kept[type(module)]
            held.add(id(module.weight))
    for parameter in model.parameters():
        if id(parameter) not in held:
            parameter.data = parameter.data.float()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in HALVES:
                setattr(module, name, buffer.float())
        if hasattr(module, "scalar_embed_scale"):  # Gemma's table multiplies by it; 16 bits have rounded it
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
    model.config.dtype = torch.float32  # what it computes in, and what an export of it is read in
    return model


def in_bfloat16(model: Any) -> Any:  # noqa: ANN401 - any AutoModel
    """A copy of the model in bfloat16; tensors that are in bfloat16 already are the very same ones."""
    tensors = chain(model.parameters(), model.buffers())
    same = {id(tensor): tensor for tensor in tensors if tensor.dtype == torch.bfloat16}
    return copy.deepcopy(model, same).to(torch.bfloat16)


def in_sixteen_bits(folder: Path) -> tuple[Path, torch.dtype]:
    """The folder and its 16 bits; where it has 32, a copy in bfloat16 in the user's cache, made the first time.

    Tensor by tensor, so that no more of the original is in memory than one of them.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    kinds = precisions(folder)
    if not kinds & {"F32", "F64"}:
        return folder, torch.float16 if "BF16" not in kinds else torch.bfloat16
    place = encoders_folder() / f"{fingerprint(folder)[:24]}-bfloat16"

    def write(temporary: Path) -> None:
        for file in weight_files(folder):
            tensors = {}
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
            for name in names:
                with safe_open(file, "pt") as opened:  # opened anew, so that what was read of it is let go of
                    tensor = opened.get_tensor(name)
                tensors[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor.clone()
                del tensor
            save_file(tensors, temporary / file.name, metadata={"format": "pt"})
        for file in folder.glob("*.json"):
            shutil.copyfile(file, temporary / file.name)

    try:
        return made_once(place, "config.json", write), torch.bfloat16
    except OSError as error:
        message = f"the model's copy in 16 bits cannot be written ({error.strerror}); free space"
        raise FedcarError(f"{place}: {message}") from error
