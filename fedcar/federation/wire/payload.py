"""What travels between server and device: a kind, named values and named tensors, each from an allow-list.

Whatever is not in the lists below cannot be sent: `checked` stands on both sides of the wire.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedcar.errors import quoted

Value = int | float | str

PART_BYTES = 4 << 20  # a tensor travels in parts of this many bytes, so that nobody holds it twice for the wire
UPDATE, STATE, GIVEN = "update/", "state/", "given/"
MOST_NAMES = 1024  # tensors of one payload; an adapter has a few dozen
MOST_DIMENSIONS, MOST_SIZE = 8, 1 << 40  # of a tensor, and of any dimension and of its bytes
MOST_TEXT = 1 << 20  # characters of a text that is read as json
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.bfloat16, torch.float16,
        torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8,
    )
}  # fmt: skip

# Every reason a device may give for not answering; nothing of the error itself leaves it.
REASONS = {
    "version": "has another fedcar version",
    "encoder": "has another encoder",
    "documents": "has another collection (its documents differ)",
    "questions": "has no training question about these documents",
    "memory": "is out of memory",
    "disk": "has no space left on its disk",
    "taught": "has not heard the sums of all; was it restarted?",
    "budget": "has no room left in its privacy budget; its ledger says what was spent",
    "ledger": "cannot use its ledger (cut, edited, in use, disk full); its log says which",
    "un-noised": "gives out nothing un-noised, since it joined with --epsilon",
    "failed": "failed; its log says why",
    "request": "did not understand the request",
}


class ReplyError(ValueError):
    """A message that is not what it has to be, in one line: it marks the device that sent it, and ends nothing else."""


@dataclass(frozen=True)
class Form:
    """The fields of one kind: values by name and type, tensors by name; a name that ends in / is a prefix."""

    values: Mapping[str, type]
    tensors: tuple[str, ...] = ()


SUMS = ("gram", "columns", "cross", "counts", "data", "grams", "starts")  # of the method ridge
PRIVATE = {"setup": str, "number": int, "adaptive": float, "head": str}
REQUESTS: Mapping[str, Form] = {
    "greet": Form({"setup": str}),
    "enrol": Form({"setup": str}),
    "spread": Form({"setup": str, "strength": float, "share": float}),
    "sums": Form({"setup": str, "strength": float, "share": float}, ("weights",)),
    "statistics": Form({"setup": str}),
    "taught": Form(
        {"setup": str, "questions": int},
        (*SUMS, "pseudo_data", "pseudo_grams", "pseudo_starts", "pseudo_counts"),
    ),
    "unseen": Form({"setup": str, "strength": float}, ("weights",)),
    "train": Form({"setup": str, "round": int}, ("weights", STATE)),
    "count": Form({"setup": str, "round": int}, ("weights", "among", STATE)),
    "noised": Form(PRIVATE, (STATE,)),
    "clipped": Form(PRIVATE, (STATE,)),
}
REPLIES: Mapping[str, Form] = {
    "greet": Form({}),
    "enrol": Form({"questions": int, "held_out": int}, ("row_questions",)),
    "spread": Form({"speaking": int, "counted": float}, ("spread",)),
    "sums": Form({"loss": float}, ("gradient", "hessian")),
    "statistics": Form({"questions": int}, SUMS),
    "taught": Form({}, ("right",)),
    "unseen": Form({"right": float, "questions": int, "held_out": int, "held_out_right": int}),
    "train": Form({"questions": int, "loss": float, "seconds": float, "held_out": int, "right": int}, (UPDATE,)),
    "count": Form({"held_out": int, "trained": int}, ("right",)),
    "noised": Form({"head": str, "before": float, "in_all": float}, (GIVEN,)),
    "clipped": Form({}, (GIVEN,)),
    "refused": Form({"reason": str, "found": str}),
}


@dataclass(frozen=True)
class Payload:
    """One message: its kind, plain values, tensors by name."""

    kind: str
    values: Mapping[str, Value] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The bytes of its tensors and values, without what the carrier adds."""
        return sum(tensor.nbytes for tensor in self.tensors.values()) + sum(len(str(v)) for v in self.values.values())


def refusal(reason: str, found: str = "") -> Payload:
    """The reply of a device that cannot do what was asked; `found` is a version or a fingerprint."""
    return Payload("refused", {"reason": reason, "found": found[:64]})


def checked(payload: Payload, forms: Mapping[str, Form]) -> Payload:
    """The payload itself; ValueError, with the reason, for a kind, a field or a type that is not in the list."""
    form = forms.get(payload.kind)
    if form is None:
        raise ValueError(f"unknown kind {quoted(payload.kind)}")
    if len(payload.tensors) > MOST_NAMES:
        raise ValueError(f"{payload.kind}: {len(payload.tensors)} tensors, above {MOST_NAMES}")
    if set(payload.values) != set(form.values):
        raise ValueError(f"{payload.kind}: fields {quoted(sorted(payload.values))}, not {sorted(form.values)}")
    for name, kind in form.values.items():
        value = payload.values[name]
        if type(value) is not kind:
            raise ValueError(f"{payload.kind}: {name} is {type(value).__name__}, not {kind.__name__}")
    prefixes = tuple(name for name in form.tensors if name.endswith("/"))
    for name in payload.tensors:
        if name not in form.tensors and not (prefixes and name.startswith(prefixes)):
            raise ValueError(f"{payload.kind}: unknown tensor {quoted(name)}")
    if missing := [name for name in form.tensors if name not in prefixes and name not in payload.tensors]:
        raise ValueError(f"{payload.kind}: no tensor {missing[0]!r}")
    if payload.kind == "refused" and payload.values["reason"] not in REASONS:
        raise ValueError(f"refused: unknown reason {quoted(payload.values['reason'])}")
    return payload


def bytes_of(dtype: torch.dtype, shape: Iterable[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def checked_form(dtype: object, shape: object) -> tuple[torch.dtype, tuple[int, ...]]:
    """A tensor's type and shape as a message says them; ReplyError for what no tensor has."""
    sizes = tuple(shape) if isinstance(shape, list | tuple) and len(shape) <= MOST_DIMENSIONS else (-1,)
    possible = all(type(size) is int and 0 <= size <= MOST_SIZE for size in sizes)
    if not isinstance(dtype, str) or dtype not in DTYPES or not possible or bytes_of(DTYPES[dtype], sizes) > MOST_SIZE:
        raise ReplyError(f"a tensor of type {quoted(dtype, 20)} and shape {quoted(shape)}")
    return DTYPES[dtype], sizes


def read_json(text: object) -> Any:  # noqa: ANN401 - whatever stands there
    """What a message's text says as json; ReplyError for what is too long or too deep."""
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise ReplyError(f"no text of at most {MOST_TEXT} characters")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ReplyError("lists in lists without end") from error


def flat_bytes(tensor: Tensor) -> Tensor:
    """A tensor's bytes, as a view of it where it lies in one piece."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)  # an empty one may have strides that no view is made of
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def parts(tensor: Tensor) -> list[bytes]:
    """A tensor's bytes in parts of at most PART_BYTES; one empty part for an empty tensor."""
    flat = flat_bytes(tensor.cpu())
    return [flat[start : start + PART_BYTES].numpy().tobytes() for start in range(0, max(1, len(flat)), PART_BYTES)]


def joined(content: list[bytes], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """What `parts` was given; the list is emptied on the way. ValueError where bytes, type and shape do not agree."""
    kind, shape = checked_form(dtype, shape)
    expected = bytes_of(kind, shape)
    if sum(map(len, content)) != expected:
        raise ValueError(f"{sum(map(len, content))} bytes for {dtype} {shape}")
    flat, start = torch.empty(expected, dtype=torch.uint8), 0
    while content:
        part = content.pop(0)
        if part:
            flat[start : start + len(part)] = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        start += len(part)
    return flat.view(kind).reshape(shape)


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
