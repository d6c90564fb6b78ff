"""Large payloads travel as several messages, so that neither side, nor what carries them, holds them several times.

The sender's parts are views of its tensors; the receiver writes each part into the tensors it has made room for. A
device answers each part with `taken`, the last one with its reply, and what is large of that is asked for with `more`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator, Mapping

import torch
from torch import Tensor

from fedcar.errors import first_line, quoted
from fedcar.federation.wire.payload import (
    MOST_NAMES,
    Form,
    Payload,
    ReplyError,
    Value,
    bytes_of,
    checked,
    checked_form,
    flat_bytes,
    read_json,
    refusal,
)
from fedcar.federation.wire.schema import REFUSED, Schema

LIMIT = 16 << 20  # bytes of tensors in one message
MOST = 64 << 20  # bytes of a reply, where nothing else is known of it
RUBBISH = "sent rubbish"  # how the reason begins that marks a device
PART = {"number": int, "count": int, "head": str}
REQUEST_PARTS: Mapping[str, Form] = {"part": Form(PART, ("part/",)), "more": Form({"number": int})}
REPLY_PARTS: Mapping[str, Form] = {"part": Form(PART, ("part/",)), "taken": Form({"number": int})}

Talk = Generator[Payload, "Payload | str", "Payload | str"]


def is_large(payload: Payload) -> bool:
    return sum(tensor.nbytes for tensor in payload.tensors.values()) > LIMIT


def split(payload: Payload) -> Iterator[Payload]:
    """The payload in parts of at most LIMIT bytes; the first says what is to come."""
    cuts = list(_cuts(payload.tensors))
    shapes = {name: [_type(tensor), list(tensor.shape)] for name, tensor in payload.tensors.items()}
    head = json.dumps({"kind": payload.kind, "values": dict(payload.values), "tensors": shapes})
    for number, pieces in enumerate(cuts):
        values: dict[str, Value] = {"number": number, "count": len(cuts), "head": "" if number else head}
        yield Payload("part", values, {f"part/{name}": piece for name, piece in pieces.items()})


def _cuts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    pieces: dict[str, Tensor] = {}
    room = LIMIT
    for name, tensor in tensors.items():
        flat, start = flat_bytes(tensor), 0
        while start < len(flat):
            pieces[name] = flat[start : start + room]
            start, room = start + len(pieces[name]), room - len(pieces[name])
            if not room:
                yield pieces
                pieces, room = {}, LIMIT
    if pieces:
        yield pieces


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class Joiner:
    """Puts the parts of one payload together; ReplyError for what does not fit, or is above `most` bytes.

    Room is made for what the first part announces, if the `schema` (where there is one) admits it.
    """

    def __init__(self, most: int, schema: Schema | None = None) -> None:
        self.most, self.schema = most, schema
        self.next = self.count = 0

    def add(self, part: Payload) -> bool:
        """Take a part, in its turn; whether it was the last."""
        number, count = int(part.values["number"]), int(part.values["count"])
        if number == 0:
            self._begin(str(part.values["head"]), count)
        if number != self.next or count != self.count or not self.next < self.count:
            raise ReplyError(f"part {quoted(number)} of {quoted(count)} out of turn")
        for key, piece in part.tensors.items():
            name = key.removeprefix("part/")
            known = name in self.flat and piece.dtype == torch.uint8 and piece.dim() == 1
            if not known or self.filled[name] + len(piece) > len(self.flat[name]):
                raise ReplyError(f"a part of {quoted(name)} does not fit")
            self.flat[name][self.filled[name] : self.filled[name] + len(piece)] = piece
            self.filled[name] += len(piece)
        self.next += 1
        return self.next == self.count

    def _begin(self, text: str, count: int) -> None:
        self.kind, self.values, self.forms = head_of_parts(text)
        if self.schema is not None:
            if self.kind != self.schema.kind:
                raise ReplyError(f"answered {quoted(self.kind)} to {self.schema.kind!r}")
            self.schema.admit(self.values, self.forms)
        sizes = {name: bytes_of(dtype, shape) for name, (dtype, shape) in self.forms.items()}
        total = sum(sizes.values())
        if total > self.most:
            raise ReplyError(f"{total} bytes, above {self.most}")
        if count != max(1, -(-total // LIMIT)):
            raise ReplyError(f"{quoted(count)} parts of {total} bytes")
        self.flat = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
        self.filled = dict.fromkeys(sizes, 0)
        self.next, self.count = 0, count

    def whole(self, forms: Mapping[str, Form]) -> Payload:
        """The payload, checked against the allow-list as any other; the joiner lets go of it."""
        if any(self.filled[name] != len(flat) for name, flat in self.flat.items()):
            raise ReplyError("bytes are missing")
        announced = self.forms
        tensors = {name: flat.view(announced[name][0]).reshape(announced[name][1]) for name, flat in self.flat.items()}
        self.flat = {}
        return checked(Payload(self.kind, self.values, tensors), forms)


def head_of_parts(text: str) -> tuple[str, dict[str, Value], dict[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """The kind, the values, and type and shape of the tensors that a first part announces; ReplyError for no such."""
    head = read_json(text)
    kind, values, tensors = (
        (head.get(name) for name in ("kind", "values", "tensors")) if type(head) is dict else [0] * 3
    )
    if type(kind) is not str or type(values) is not dict or type(tensors) is not dict or len(tensors) > MOST_NAMES:
        raise ReplyError("a first part that does not say what is to come")
    if not all(type(form) is list and len(form) == 2 for form in tensors.values()):
        raise ReplyError("a first part that does not say what is to come")
    return kind, values, {name: checked_form(*form) for name, form in tensors.items()}


def conversation(payload: Payload, forms: Mapping[str, Form], schema: Schema | None = None) -> Talk:
    """What the server sends one device, given what comes back; returns the whole reply, or why there is none.

    Every reply that is returned went through the `schema` (or REFUSED); what is wrong with one that did not is the
    reason in its place, and nothing that a device sends raises anything else.
    """
    try:
        reply = yield from _spoken(payload, forms, schema)
        if isinstance(reply, str):
            return reply
        return REFUSED.parsed(reply) if reply.kind == "refused" else reply if schema is None else schema.parsed(reply)
    except Exception as error:  # whatever came, it is this device's alone
        return rubbish(error)


def rubbish(error: Exception) -> str:
    """The reason that marks a device: one line, as short as it is printable."""
    line = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
    return f"{RUBBISH}: {''.join(sign if sign.isprintable() else '?' for sign in line)}"[:200]


def _spoken(payload: Payload, forms: Mapping[str, Form], schema: Schema | None) -> Talk:
    if is_large(payload):
        reply: Payload | str = "nothing was sent"
        for part in split(payload):
            reply = yield part
            last = part.values["number"] == int(part.values["count"]) - 1
            if not last and (isinstance(reply, str) or reply.kind != "taken"):
                return reply
    else:
        reply = yield payload
    if isinstance(reply, str) or reply.kind != "part":
        return reply
    joiner = Joiner(MOST if schema is None else schema.bytes, schema)
    while not joiner.add(reply):
        reply = yield Payload("more", {"number": joiner.next})
        if isinstance(reply, str) or reply.kind != "part":
            return reply
    return joiner.whole(forms)


class InParts:
    """A device's `answer` for requests and replies of any size; keeps no more than one of each."""

    def __init__(self, answer: Callable[[Payload], Payload], forms: Mapping[str, Form], most: int = 8 << 30) -> None:
        self.answer, self.forms, self.most = answer, forms, most
        self.joiner = Joiner(most)
        self.parts: Iterator[Payload] = iter(())

    def __call__(self, request: Payload) -> Payload:
        try:
            if request.kind == "more":
                part = next(self.parts, None)
                if part is None or part.values["number"] != request.values["number"]:
                    raise ValueError("nothing more")
                return part
            self.parts = iter(())
            if request.kind == "part":
                if not self.joiner.add(request):
                    return Payload("taken", {"number": request.values["number"]})
                request, self.joiner = self.joiner.whole(self.forms), Joiner(self.most)
        except Exception as error:  # whatever the server sent
            self.joiner = Joiner(self.most)
            print(f"a request that was not understood: {rubbish(error)}", file=sys.stderr)  # noqa: T201 - its log
            return refusal("memory" if isinstance(error, MemoryError) or "alloc" in str(error) else "request")
        reply = self.answer(request)
        if not is_large(reply):
            return reply
        self.parts = split(reply)
        return next(self.parts)
