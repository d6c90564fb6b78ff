"""How a device is let in: its public key goes to the server, and a file without a secret comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedcar.common.files import replace_json
from fedcar.errors import FedcarError
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.folder import FORMAT, NOT_SERVED, ServerFolder
from fedcar.version import __version__

Register = Callable[[ServerFolder, bytes, str], int]


@dataclass(frozen=True)
class JoinFile:
    """What fedcar enroll wrote for a device."""

    file: Path
    fedcar: str
    node: str
    id: int
    key: str
    address: str
    ca: str
    documents: str
    encoder: str
    pooling: str | None
    encoder_fingerprint: str
    query_prompt: str | None = None
    document_prompt: str | None = None

    @classmethod
    def read(cls, file: Path) -> JoinFile:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(file, **{name: content[name] for name in FIELDS if name in content or name not in LATER})
        except OSError as error:
            raise FedcarError(f"{file}: cannot be read ({error.strerror}); ask the server's side for it") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FedcarError(f"{file}: not a file of fedcar enroll; ask the server's side for it again") from error

    def write(self) -> None:
        replace_json(self.file, {"format": FORMAT, **{name: getattr(self, name) for name in FIELDS}})

    @property
    def server(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


FIELDS = tuple(field.name for field in fields(JoinFile))[1:]
LATER = ("query_prompt", "document_prompt")  # which files from before they were there lack


def enroll(place: ServerFolder, public: Path, address: str | None, out: Path | None, register: Register) -> Path:
    """Let a device in by its public key and write what it joins with: address, authority, fingerprints; no secret.

    `register` tells the server the key of a new device, and gives its number there.
    """
    settings = place.settings()
    name, key = keys.read_public(public)
    with place.locked("enroll.lock") as free:
        if not free:
            raise FedcarError(f"{place.folder}: another fedcar enroll is on; wait for it, then enroll {name} again")
        node = _registered(place, public, name, key, register)
    given = place.folder / "front-ca.pem"
    join = JoinFile(
        out or public.with_suffix(".join"), __version__, name, node["node"], node["key"],
        address or f"{settings.host}:{settings.port}", (given if given.exists() else place.ca).read_text(),
        settings.documents, settings.encoder, settings.pooling, settings.encoder_fingerprint,
        settings.query_prompt, settings.document_prompt,
    )  # fmt: skip
    join.write()
    return join.file


def _registered(place: ServerFolder, public: Path, name: str, key: bytes, register: Register) -> dict[str, Any]:
    """What the server knows the device by; it is let in where it is new."""
    fingerprint = keys.key_fingerprint(key)
    known = place.nodes()
    if name in known and known[name]["key"] != fingerprint:
        raise FedcarError(f"{public}: a device {name} with another key is enrolled; give this one another name")
    if taken := [other for other, node in known.items() if node["key"] == fingerprint and other != name]:
        raise FedcarError(f"{public}: this key is enrolled as {taken[0]}; one device has one name")
    if not place.serving():
        raise FedcarError(f"{place.folder}: {NOT_SERVED}")
    if name not in known:
        known[name] = {"node": register(place, key, name), "key": fingerprint}
        replace_json(place.nodes_file, known)
    return known[name]
