"""The form of an update on the wire: only rows that changed, whole, in bfloat16 or in int8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

LOSSLESS, BFLOAT16, INT8 = "none", "bfloat16", "int8"
ROWS, VALUES, SCALE = "|rows", "|values", "|scale"
INT8_LIMIT = 127
MOMENTS = "optimizer."  # how the names of shared moments begin

Tensors = Mapping[str, Tensor]


def encode(
    tensors: Tensors, reference: Tensors, kind: str = LOSSLESS, residual: Tensors | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors as they travel to someone who has `reference`, and the error to carry over to the next time.

    A tensor of two dimensions of which some rows do not differ travels as `NAME|rows` (int32) and `NAME|values`.
    `none`: the values as they are, bit by bit. `bfloat16` and `int8` (with `NAME|scale`, one a row): the
    differences, to which `residual`, what was lost the last time, is added first (error feedback, Seide et al. 2014,
    Karimireddy et al. 2019). Numbers without dimension always travel whole.
    """
    wire: dict[str, Tensor] = {}
    lost: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if kind == LOSSLESS or tensor.dim() == 0:
            rows = changed_rows(tensor, reference[name])
            wire.update(_named(name, tensor, rows))
            continue
        difference = tensor - reference[name]
        if residual is not None and name in residual:
            difference = difference + residual[name]
        rows = changed_rows(difference, torch.zeros_like(difference))
        small, scale = _quantised(difference, kind_of(name, kind))
        wire.update(_named(name, small, rows))
        if scale is not None:
            wire[name + SCALE] = scale if rows is None else scale[rows.long()]
        lost[name] = difference - _restored(small, scale)
    return wire, lost


def decode(wire: Tensors, reference: Tensors, kind: str = LOSSLESS) -> dict[str, Tensor]:
    """What `encode` was given, up to what its kind loses; ValueError, with the reason, for what is malformed."""
    expected = {part for name in reference for part in (name, name + ROWS, name + VALUES, name + SCALE)}
    if unknown := sorted(set(wire) - expected):
        raise ValueError(f"unknown tensor {unknown[0][:60]!r}")
    kinds = {name: kind_of(name, kind) if known.dim() else LOSSLESS for name, known in reference.items()}
    return {name: _decoded(name, wire, known, kinds[name]) for name, known in reference.items()}


def dtype_of(name: str, tensor: Tensor, kind: str) -> torch.dtype:
    """The type in which the values of this tensor travel."""
    return _dtype(kind_of(name, kind) if tensor.dim() else LOSSLESS, tensor)


def _dtype(kind: str, tensor: Tensor) -> torch.dtype:
    return {BFLOAT16: torch.bfloat16, INT8: torch.int8}.get(kind, tensor.dtype)


def kind_of(name: str, kind: str) -> str:
    """Moments of an optimiser span too many sizes for int8: they travel in bfloat16 there."""
    return BFLOAT16 if kind == INT8 and name.startswith(MOMENTS) else kind


def wire_bytes(wire: Tensors) -> int:
    """The bytes that travel: a safetensors payload with its header."""
    return len(save({name: tensor.contiguous() for name, tensor in wire.items()}))


def changed_rows(tensor: Tensor, reference: Tensor) -> Tensor | None:
    """The numbers (int32) of the rows that differ; None where all do, or for one dimension."""
    if tensor.dim() < 2:
        return None
    rows = (tensor != reference).flatten(1).any(1).nonzero().squeeze(1)
    return rows.to(torch.int32) if len(rows) < len(tensor) else None


def _named(name: str, tensor: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
    if rows is None:
        return {name: tensor.contiguous()}
    return {name + ROWS: rows, name + VALUES: tensor[rows.long()].contiguous()}


def _quantised(difference: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    if kind == BFLOAT16:
        return difference.to(torch.bfloat16), None
    matrix = difference.reshape(len(difference), -1) if difference.dim() > 1 else difference.reshape(1, -1)
    scale = (matrix.abs().amax(1) / INT8_LIMIT).clamp(min=torch.finfo(torch.float32).tiny)
    small = (matrix / scale[:, None]).round().clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8)
    return small.reshape(difference.shape), scale


def _restored(small: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return small.float()
    matrix = small.reshape(len(scale), -1).float() * scale[:, None]
    return matrix.reshape(small.shape)


def _decoded(name: str, wire: Tensors, known: Tensor, kind: str) -> Tensor:
    sparse = name + ROWS in wire
    values = wire.get(name + VALUES if sparse else name)
    if values is None:
        raise ValueError(f"no tensor {name!r}")
    dtype = _dtype(kind, known)
    rows = _checked_rows(name, wire[name + ROWS], known) if sparse else None
    shape = known.shape if rows is None else torch.Size((len(rows), *known.shape[1:]))
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(f"{name!r} is {form(values)}, not {str(dtype).removeprefix('torch.')} {tuple(shape)}")
    if kind != LOSSLESS:
        scale = _checked_scale(name, wire, len(values) if known.dim() > 1 else 1) if kind == INT8 else None
        values = _restored(values, scale) + (known if rows is None else known[rows])
    if rows is None:
        return values.clone()
    whole = known.clone()
    whole[rows] = values
    return whole


def _checked_rows(name: str, rows: Tensor, known: Tensor) -> Tensor:
    if known.dim() < 2 or rows.dtype != torch.int32 or rows.dim() != 1 or len(rows) > len(known):
        raise ValueError(f"the row numbers of {name!r} are {form(rows)}")
    ordered = rows.long()
    if len(rows) and (ordered[0] < 0 or ordered[-1] >= len(known) or (ordered.diff() <= 0).any()):
        raise ValueError(f"the row numbers of {name!r} are not ascending within 0 to {len(known) - 1}")
    return ordered


def _checked_scale(name: str, wire: Tensors, rows: int) -> Tensor:
    scale = wire.get(name + SCALE)
    if scale is None or scale.dtype != torch.float32 or scale.shape != (rows,):
        raise ValueError(f"the scale of {name!r} is {'missing' if scale is None else form(scale)}")
    return scale


def form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
