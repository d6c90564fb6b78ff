"""Large payloads travel as several messages, so that neither side, nor what carries them, holds them several times.

The sender's parts are views of its tensors; the receiver writes each part into the tensors it has made room for. A
device answers each part with `taken`, the last one with its reply, and what is large of that is asked for with `more`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping

import torch
from torch import Tensor

from fedcar.federation.wire.payload import DTYPES, Form, Payload, Value, checked, flat_bytes, refusal

LIMIT = 16 << 20  # bytes of tensors in one message
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
    """Puts the parts of one payload together; ValueError for what does not fit, or is above `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.next = self.count = 0

    def add(self, part: Payload) -> bool:
        """Take a part, in its turn; whether it was the last."""
        number, count = int(part.values["number"]), int(part.values["count"])
        if number == 0:
            self._begin(str(part.values["head"]), count)
        if number != self.next or count != self.count or not self.next < self.count:
            raise ValueError(f"part {number} of {count} out of turn")
        for name, piece in part.tensors.items():
            tensor, start = self.flat[name.removeprefix("part/")], self.filled[name.removeprefix("part/")]
            if piece.dtype != torch.uint8 or piece.dim() != 1 or start + len(piece) > len(tensor):
                raise ValueError(f"a part of {name[:60]!r} does not fit")
            tensor[start : start + len(piece)] = piece
            self.filled[name.removeprefix("part/")] += len(piece)
        self.next += 1
        return self.next == self.count

    def _begin(self, text: str, count: int) -> None:
        head = json.loads(text)
        self.kind, self.values, self.shapes = str(head["kind"]), dict(head["values"]), dict(head["tensors"])
        sizes = {}
        for name, (dtype, shape) in self.shapes.items():
            if dtype not in DTYPES or any(type(size) is not int or size < 0 for size in shape):
                raise ValueError(f"a tensor of type {str(dtype)[:20]!r} and shape {str(shape)[:40]}")
            sizes[name] = torch.Size(shape).numel() * DTYPES[dtype].itemsize
        if sum(sizes.values()) > self.most:
            raise ValueError(f"{sum(sizes.values())} bytes, above {self.most}")
        self.flat = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
        self.filled = dict.fromkeys(sizes, 0)
        self.next, self.count = 0, count

    def whole(self, forms: Mapping[str, Form]) -> Payload:
        """The payload, checked against the allow-list as any other; the joiner lets go of it."""
        if any(self.filled[name] != len(flat) for name, flat in self.flat.items()):
            raise ValueError("bytes are missing")
        tensors = {name: flat.view(DTYPES[self.shapes[name][0]]) for name, flat in self.flat.items()}
        tensors = {name: tensor.reshape(self.shapes[name][1]) for name, tensor in tensors.items()}
        self.flat = {}
        return checked(Payload(self.kind, self.values, tensors), forms)


def conversation(payload: Payload, forms: Mapping[str, Form], most: int) -> Talk:
    """What the server sends one device, given what comes back; returns the whole reply, or why there is none.

    A reply in parts may have `most` bytes.
    """
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
    joiner = Joiner(most)
    try:
        while not joiner.add(reply):
            reply = yield Payload("more", {"number": joiner.next})
            if isinstance(reply, str) or reply.kind != "part":
                return reply
        return joiner.whole(forms)
    except (ValueError, KeyError, TypeError) as error:
        return f"sent rubbish: {str(error).splitlines()[0]}"[:200]


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
        except (ValueError, KeyError, TypeError):
            self.joiner = Joiner(self.most)
            return refusal("request")
        reply = self.answer(request)
        if not is_large(reply):
            return reply
        self.parts = split(reply)
        return next(self.parts)
