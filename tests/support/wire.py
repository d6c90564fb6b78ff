"""A carrier without any network: devices in this process, every message seen by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.federation.device.device import Device, documents_fingerprint
from fedcar.federation.ledgers import Ledgers, file_name
from fedcar.federation.remote import network as remote
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.wire import exchange
from fedcar.federation.wire.parts import REPLY_PARTS, REQUEST_PARTS, InParts
from fedcar.federation.wire.payload import REPLIES, REQUESTS, Payload, checked, joined, parts
from fedcar.retriever.retriever import Retriever

MARKER = "xylophone"  # stands in every question of a marked collection, and nowhere else
Spoil = Callable[[Payload, Payload], "Payload | str | None"]  # request and honest reply -> what arrives; None: nothing


def over_the_wire(payload: Payload) -> Payload:
    """The payload as bytes and back."""
    tensors = {}
    for name, tensor in payload.tensors.items():
        tensors[name] = joined(parts(tensor), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    return Payload(payload.kind, dict(payload.values), tensors)


def marked(collection: Collection) -> Collection:
    """With MARKER in every question."""
    queries = {name: replace(query, text=f"{query.text} {MARKER}") for name, query in collection.queries.items()}
    return replace(collection, queries=queries)


def check_fields(replies: Iterable[Payload], collection: Collection, expected: Mapping[str, set[str]]) -> None:
    """Of every kind these tensors and no other, values of the allow-list, and nowhere a word or id of a question."""
    found: dict[str, set[str]] = {}
    for reply in replies:
        assert checked(reply, REPLIES) is reply
        found.setdefault(reply.kind, set()).update(reply.tensors)
        content = repr(sorted(reply.values.items())).encode() + b"".join(
            name.encode() + b"".join(parts(tensor)) for name, tensor in reply.tensors.items()
        )
        assert MARKER.encode() not in content, reply.kind
        assert not any(query.encode() in content for query in collection.queries), reply.kind
    assert found == dict(expected)


class Wire:
    """Carries payloads to devices and back; `seen` keeps every one, `spoil` changes what a device's reply becomes."""

    def __init__(self, devices: Mapping[int, Device], spoil: Mapping[int, Spoil] | None = None) -> None:
        self.devices, self.spoil = dict(devices), dict(spoil or {})
        self.answers = {node: InParts(device.answer, REQUESTS) for node, device in devices.items()}
        self.seen: list[tuple[int, Payload, Payload]] = []
        self.waiting: dict[str, Payload | str] = {}
        self.opened = self.sent = 0
        self.breaks_at: set[int] = set()  # the numbers of messages at which the connection breaks

    def open(self) -> Wire:
        self.opened += 1
        self.waiting.clear()
        return self

    def send(self, node: int, payload: Payload, seconds: float) -> str:
        self.sent += 1
        if self.sent in self.breaks_at:
            raise ConnectionError("cable pulled")
        request = over_the_wire(checked(payload, {**REQUESTS, **REQUEST_PARTS}))
        reply: Payload | str | None = over_the_wire(checked(self.answers[node](request), {**REPLIES, **REPLY_PARTS}))
        assert isinstance(reply, Payload)
        self.seen.append((node, request, reply))
        if node in self.spoil:
            reply = self.spoil[node](request, reply)
        message = str(self.sent)
        if reply is not None:
            self.waiting[message] = reply
        return message

    def collect(self, ids: Iterable[str]) -> list[tuple[str, Payload | str]]:
        return [(message, self.waiting.pop(message)) for message in ids if message in self.waiting]

    def there(self) -> dict[int, str]:
        return dict.fromkeys(self.devices, "ever")

    def close(self) -> None:
        self.waiting.clear()


@contextmanager
def over_wire(folder: Path, encoder: Path, cache: Path, **options: Any) -> Iterator[Any]:
    """What `federate(over=...)` takes; the value has the wire as `wire` once the devices are there."""

    def over(untrained: Retriever, shares: Mapping[str, Collection], ledgers: Path | None = None) -> RemoteNetwork:
        devices = {
            number: Device(
                share,
                folder / name,
                Encoder.load(encoder),
                FeatureCache(cache),
                ledgers=Ledgers(folder / name, ledgers and ledgers / file_name(name), seeded=True),
            )  # fmt: skip
            for number, (name, share) in enumerate(sorted(shares.items()), 1)
        }
        nodes = {name: number for number, name in enumerate(sorted(shares), 1)}
        spoil = {nodes[name]: how for name, how in options.pop("spoil", {}).items()}
        over.wire = Wire(devices, spoil)  # type: ignore[attr-defined]
        documents = documents_fingerprint(next(iter(shares.values())))
        network = RemoteNetwork(over.wire.open, nodes, untrained, documents, folder.name, **options)  # type: ignore[attr-defined]
        over.network = network  # type: ignore[attr-defined]
        return network

    with patch.object(exchange, "POLL", 0.001), patch.object(remote, "BREATH", 0.01):  # nothing is on its way here
        yield over
