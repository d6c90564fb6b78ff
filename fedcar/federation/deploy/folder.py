"""A server's folder: what its files say, without asking the server.

`fedcar status`, `enroll` and `resume` begin here, so nothing heavy is imported.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcar.errors import FedcarError, typed_path
from fedcar.federation.deploy.processes import held, locked
from fedcar.version import __version__

FORMAT = 1
NOT_SERVED = 'no fedcar serve runs there; start it, and wait until it says "serving on"'
SERVE_LOCK = "serve.lock"


@dataclass(frozen=True)
class ServerSettings:
    """What a server keeps in server.json from its first start on; the fingerprints are those of its devices too."""

    host: str
    bind: str
    port: int
    link_port: int
    collection: str
    documents: str
    encoder: str
    pooling: str | None
    encoder_fingerprint: str
    version: str = __version__
    format: int = FORMAT
    query_prompt: str | None = None  # None: what the encoder declares
    document_prompt: str | None = None


class ServerFolder:
    """SERVER/server.json, ca.pem, nodes.json, runs/; secret, keys and the SuperLink's own files beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file, self.nodes_file, self.runs = folder / "server.json", folder / "nodes.json", folder / "runs"
        self.ca, self.secret = folder / "ca.pem", folder / "secret"

    def settings(self) -> ServerSettings:
        """FedcarError where there is no server yet, or one of a later fedcar."""
        if not self.file.exists():
            raise FedcarError(
                f"{self.folder}: no server's folder; make one with fedcar serve --data-dir {typed_path(self.folder)} "
                '(one that was just started is there once it says "serving on")'
            )
        content = json.loads(self.file.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise FedcarError(f"{self.file}: written by a later fedcar ({content['version']}); update this one")
        return ServerSettings(**content)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The devices that were let in, by name: node id and the key's fingerprint."""
        if not self.nodes_file.exists():
            return {}
        content: dict[str, dict[str, Any]] = json.loads(self.nodes_file.read_text(encoding="utf-8"))
        return content

    def serving(self) -> bool:
        """Whether fedcar serve runs on this folder."""
        return self.held(SERVE_LOCK)

    def held(self, name: str) -> bool:
        """Whether a process holds this lock of the folder."""
        return held(self.folder / name)

    def locked(self, name: str, what: str = "") -> AbstractContextManager[bool]:
        """Hold a lock of the folder (see `processes.locked`)."""
        return locked(self.folder / name, what)
