"""One question to several devices, over a carrier that only carries: deadline, repetition and what counts as enough."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedcar.federation.wire.parts import Talk, conversation
from fedcar.federation.wire.payload import REASONS, REPLIES, Payload
from fedcar.federation.wire.schema import Schema

POLL = 0.1
LOOK = 3.0  # seconds between two looks at who is there
AGAIN = 2.0  # seconds until a device that was away is asked again
PATIENCE = 90.0  # seconds for a device that is away to come back, where it is needed


class Away(str):
    """Why a device did not get the message, or cannot answer it any more: it may come back."""

    __slots__ = ()


class Carrier(Protocol):
    """What carries messages: sends one to a node, and brings what came back. See `flower.Session`."""

    def send(self, node: int, payload: Payload, seconds: float) -> str: ...
    def collect(self, ids: Iterable[str]) -> list[tuple[str, Payload | str]]: ...
    def there(self) -> Mapping[int, str]:
        """The nodes that are online, each with the time since when."""
        ...

    def close(self) -> None: ...


@dataclass
class Replies:
    """What an exchange came to: payloads and failures by device, and the seconds it took."""

    payloads: dict[str, Payload] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Addressee:
    """Where the exchange with one device stands; `message` is None while it is away."""

    node: int
    payload: Payload
    talk: Talk
    message: str | None = None
    since: str | None = None
    again: float = 0.0
    reason: str = ""


class Exchange:
    """Asks each device its payload until all have answered, `enough` have, or the deadline is over.

    A reply that is not as `expected` of its device (see `schema`) is none: the device has failed, with the reason.

    A device that is away, or went away and came back, is asked again from the beginning; it is waited for only while
    fewer than `needed` others have answered, and no longer than PATIENCE.
    """

    def __init__(
        self,
        carrier: Carrier,
        nodes: Mapping[str, int],
        deadline: float,
        needed: int,
        enough: int | None = None,
        expected: Mapping[str, Schema] | None = None,
    ) -> None:
        self.carrier, self.nodes, self.deadline = carrier, nodes, deadline
        self.needed, self.enough, self.expected = needed, enough or 1 << 62, expected or {}
        self.replies = Replies()
        self.devices: dict[str, Addressee] = {}
        self.start = self.looked = time.monotonic()

    def run(self, payloads: Mapping[str, Payload]) -> Replies:
        self.online = dict(self.carrier.there())
        for name, payload in payloads.items():
            self.devices[name] = Addressee(self.nodes[name], payload, self._talk(name, payload))
            self._begin(name)
        while self.devices and not self._over():
            name_of = {device.message: name for name, device in self.devices.items() if device.message is not None}
            for message, reply in self.carrier.collect(list(name_of)):
                self._heard(name_of[message], reply)
            self._look()
            if self.devices:
                time.sleep(POLL)
        self._leave()
        return self.replies

    @property
    def passed(self) -> float:
        return time.monotonic() - self.start

    def _over(self) -> bool:
        answered = len(self.replies.payloads)
        if self.passed > self.deadline or answered >= self.enough:
            return True
        away = all(device.message is None for device in self.devices.values())
        return away and (answered >= self.needed or self.passed > PATIENCE)

    def _talk(self, name: str, payload: Payload) -> Talk:
        return conversation(payload, REPLIES, self.expected.get(name))

    def _begin(self, name: str) -> None:
        """Start the talk with a device from its beginning."""
        device = self.devices[name]
        device.talk, device.message = self._talk(name, device.payload), None
        if device.node not in self.online:
            self._away(name, "not online")
            return
        device.since = self.online[device.node]
        self._send(name, next(device.talk))

    def _send(self, name: str, payload: Payload) -> None:
        device = self.devices[name]
        try:
            device.message = self.carrier.send(device.node, payload, max(1.0, self.deadline - self.passed))
        except ValueError as error:
            self._away(name, str(error)[:200])

    def _away(self, name: str, reason: str) -> None:
        device = self.devices[name]
        device.message, device.again, device.reason = None, time.monotonic() + AGAIN, reason

    def _heard(self, name: str, reply: Payload | str) -> None:
        if isinstance(reply, Away):
            self._away(name, str(reply))
            return
        try:
            self._send(name, self.devices[name].talk.send(reply))
        except StopIteration as end:
            self._done(name, end.value)

    def _done(self, name: str, reply: Payload | str) -> None:
        request = self.devices.pop(name).payload
        if isinstance(reply, str):
            self.replies.failed[name] = reply
        elif reply.kind == "refused":
            detail = f" ({reply.values['found']})" if str(reply.values["found"]).isalnum() else ""
            self.replies.failed[name] = REASONS[str(reply.values["reason"])] + detail
        elif reply.kind != request.kind:
            self.replies.failed[name] = f"answered {reply.kind!r} to {request.kind!r}"
        else:
            self.replies.payloads[name] = reply

    def _look(self) -> None:
        """Every LOOK seconds: who came back is asked again, whose message is lost too."""
        now = time.monotonic()
        if now - self.looked < LOOK and not any(device.message is None for device in self.devices.values()):
            return
        if now - self.looked < min(LOOK, AGAIN):
            return
        self.looked, self.online = now, dict(self.carrier.there())
        for name, device in list(self.devices.items()):
            if device.message is None:
                if now >= device.again:
                    self._begin(name)
            elif self.online.get(device.node) != device.since:
                self._away(name, "went away")

    def _leave(self) -> None:
        """Whoever has not answered by now has failed."""
        self.replies.seconds = self.passed
        for name, device in self.devices.items():
            if device.message is None:
                self.replies.failed[name] = device.reason
            elif self.passed <= self.deadline:
                self.replies.failed[name] = "not needed, others were faster"
            else:
                self.replies.failed[name] = f"no answer within {self.deadline:g} s"
