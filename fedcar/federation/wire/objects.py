"""The pieces that Flower takes a message apart into: what those of a reply may be, before one is made of them again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedcar.errors import quoted
from fedcar.federation.wire.parts import LIMIT
from fedcar.federation.wire.payload import MOST_NAMES, MOST_TEXT, PART_BYTES, ReplyError, read_json

if TYPE_CHECKING:
    import httpx

MOST_ARRAYS = MOST_NAMES + LIMIT // PART_BYTES  # of one message
MOST_OBJECTS = 2 * MOST_ARRAYS + 4  # each array has its bytes beside it
MOST_BYTES = LIMIT + (4 << 20)  # of one message with its names and heads
MOST_OBJECT = PART_BYTES + (64 << 10)


@dataclass
class Coming:
    """A reply that was announced, and those of its parts that are there."""

    message: str
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)

    def take(self, content: bytes) -> None:
        """The next part; ReplyError where that is more than any message of ours has."""
        self.parts[self.missing.pop(0)] = content
        if len(content) > MOST_OBJECT or sum(map(len, self.parts.values())) > MOST_BYTES:
            raise ReplyError(f"more than {MOST_BYTES} bytes in one message")


def refuse_what_is_too_large(response: httpx.Response) -> None:
    """Before the body of a reply's part is read: ReplyError where no part of ours is so large."""
    length = response.headers.get("content-length", "")
    if response.request.url.path.endswith("/pull-object") and (not length.isdigit() or int(length) > 2 * MOST_OBJECT):
        raise ReplyError(f"a part of {quoted(length)} bytes")


def check_object(content: bytes) -> None:
    """ReplyError for an object of which Flower would make many times its bytes, or that takes long to read.

    An array of ours has its bytes in one piece, which Flower repeats as often as an array says.
    """
    head, _, body = content.partition(b"\0")
    kind, children, _ = head.decode().split(" ")
    if kind == "ArrayChunk":
        return
    if len(content) > MOST_TEXT or children.count(",") > MOST_ARRAYS:
        raise ReplyError(f"{len(content)} bytes of {quoted(kind)}")
    if kind == "Array" and len(read_json(body.decode())["arraychunk_ids"]) > 1:
        raise ReplyError("an array in many pieces")
    if kind == "ArrayRecord" and len(read_json(body.decode())) > MOST_ARRAYS:
        raise ReplyError(f"more than {MOST_ARRAYS} arrays")
