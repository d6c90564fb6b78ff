"""A server's folder, and its TLS front before a played SuperLink: what tests of the deployment share."""

from __future__ import annotations

import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedcar.common.files import replace_json
from fedcar.federation.deploy import front as deploy_front
from fedcar.federation.deploy import keys
from fedcar.federation.deploy import server as deploy
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.processes import free_port


@pytest.fixture
def place(tmp_path: Path, collection_folder: Path, encoder: Path) -> ServerFolder:
    """A server's folder that is not being served."""
    folder = ServerFolder(tmp_path / "server")
    deploy.prepare_server(folder, "127.0.0.1", None, free_port(), collection_folder, str(encoder), None)
    deploy.front_certificate(folder, "127.0.0.1", None)
    return folder


def one_line(result: Any) -> str:
    assert result.code == 1 and result.out == "", result
    lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


def let_in(place: ServerFolder, name: str) -> ec.EllipticCurvePrivateKey:
    """The key of a new device that the roster knows; no SuperLink is asked."""
    key = ec.generate_private_key(ec.SECP384R1())
    fingerprint = keys.key_fingerprint(keys.public_bytes(key.public_key()))
    nodes = place.nodes()
    replace_json(place.nodes_file, {**nodes, name: {"node": len(nodes) + 1, "key": fingerprint}})
    return key


def signed(key: ec.EllipticCurvePrivateKey, ahead: float = 0.0) -> dict[str, str]:
    """The headers by which Flower's devices show who they are, by a clock that is some seconds ahead."""
    time = (datetime.now(timezone.utc) + timedelta(seconds=ahead)).isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    public = keys.public_bytes(key.public_key())
    return {
        "flwr-public-key": b64encode(public).decode(), "flwr-timestamp": time,
        "flwr-signature": b64encode(signature).decode(),
    }  # fmt: skip


class Upstream(BaseHTTPRequestHandler):
    """Stands for the SuperLink: answers with what it got."""

    asked: list[tuple[str, bytes, dict[str, str]]] = []
    status = 200
    empty = False  # an answer of no bytes, which is one of Flower's too

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, content, dict(self.headers)))
        self.send_response(self.status)
        answer = b"" if self.empty else content[::-1]
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def front(place: ServerFolder) -> Iterator[str]:
    """The address of a front whose SuperLink is `Upstream`."""
    Upstream.asked.clear()
    Upstream.status = 200
    upstream = HTTPServer(("127.0.0.1", 0), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.folder / "link.pem", place.folder / "link.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port = free_port()
    link = f"127.0.0.1:{upstream.server_address[1]}"
    certificate, key = place.folder / "front.pem", place.folder / "front.key"
    server = deploy_front.start(link, place, "127.0.0.1", port, certificate, key)
    yield f"https://127.0.0.1:{port}"
    server.should_exit = True
    upstream.shutdown()
    upstream.server_close()
