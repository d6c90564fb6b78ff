"""Keys, certificates, the TLS front and the refusals of the real federation; whole deployments are in test_flower."""

from __future__ import annotations

import errno
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import environment, fedcar, learnable

pytest.importorskip("flwr")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

from fedcar import __version__  # noqa: E402
from fedcar.collection import Collection  # noqa: E402
from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation import deploy, deploy_front, deploy_run, flower  # noqa: E402
from fedcar.federation import deploy_keys as keys  # noqa: E402
from fedcar.federation.exchange import Exchange  # noqa: E402
from fedcar.federation.payload import REPLIES, REQUESTS, Payload  # noqa: E402
from fedcar.federation.processes import Child, free_port  # noqa: E402


@pytest.fixture(scope="module")
def collection(toy_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "collection"
    learnable(Collection.read(toy_collection)).write(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture
def place(tmp_path: Path, collection: Path, encoder: Path) -> deploy.ServerFolder:
    """A server's folder that is not being served."""
    folder = deploy.ServerFolder(tmp_path / "server")
    deploy.prepare_server(folder, "127.0.0.1", None, free_port(), collection, str(encoder), None)
    deploy.front_certificate(folder, "127.0.0.1", None)
    return folder


def one_line(result: Any) -> str:
    assert result.code == 1 and result.out == "", result
    lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    return lines[0]


# -------------------------------------------------------------------- keys


def test_a_private_key_is_readable_by_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    result = fedcar("keygen", "--node", "hospital-a", "--out", tmp_path)
    assert result.code == 0 and "fedcar enroll hospital-a.pub" in result.out
    private = tmp_path / "hospital-a.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    assert "is there already" in one_line(fedcar("keygen", "--node", "hospital-a", "--out", tmp_path))
    assert private.read_bytes() == before
    key = keys.read_private(private)
    assert key.curve.name == "secp384r1"
    name, public = keys.read_public(tmp_path / "hospital-a.pub")
    assert name == "hospital-a" and public == keys.public_bytes(key.public_key())
    assert b"PRIVATE" not in (tmp_path / "hospital-a.pub").read_bytes()


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "ä", "-a", "x" * 64])
def test_a_name_that_is_no_name_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    assert "--node" in one_line(fedcar("keygen", f"--node={name}", "--out", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_public_key_is_refused(tmp_path: Path, place: deploy.ServerFolder) -> None:
    (tmp_path / "text.pub").write_text("ssh-rsa nothing me\n")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    line = other.public_bytes(keys.OPENSSH, keys.serialization.PublicFormat.OpenSSH)
    (tmp_path / "curve.pub").write_bytes(line + b" me\n")
    for file, says in (("text.pub", "not the .pub file"), ("curve.pub", "P-384"), ("none.pub", "cannot be read")):
        assert says in one_line(fedcar("enroll", tmp_path / file, "--data-dir", place.folder))


# -------------------------------------------------------------------- certificates


def test_certificates_are_made_once_and_again_before_they_run_out(place: deploy.ServerFolder) -> None:
    before = {name: (place.folder / name).read_bytes() for name in ("ca.pem", "link.pem", "front.pem")}
    for name in ("ca.key", "link.key", "front.key", "secret"):
        assert stat.S_IMODE((place.folder / name).stat().st_mode) == 0o600
    keys.make_authority(place.folder)
    keys.make_certificate(place.folder, "link", deploy.LOOPBACK)
    assert before == {name: (place.folder / name).read_bytes() for name in before}
    keys.make_certificate(place.folder, "link", ["elsewhere.example"])
    assert (place.folder / "link.pem").read_bytes() != before["link.pem"], "another host needs another certificate"
    keys.make_certificate(place.folder, "short", ["127.0.0.1"], days=10)
    short = (place.folder / "short.pem").read_bytes()
    keys.make_certificate(place.folder, "short", ["127.0.0.1"])
    assert (place.folder / "short.pem").read_bytes() != short and keys.days_left(place.folder / "short.pem") > 800


def test_a_certificate_is_signed_by_the_folders_authority(place: deploy.ServerFolder) -> None:
    authority = x509.load_pem_x509_certificate(place.ca.read_bytes())
    front = x509.load_pem_x509_certificate((place.folder / "front.pem").read_bytes())
    front.verify_directly_issued_by(authority)
    assert set(keys.hosts_of(place.folder / "front.pem")) >= {"127.0.0.1"}


def test_a_stale_certificate_of_ones_own_is_refused(place: deploy.ServerFolder, tmp_path: Path) -> None:
    keys.make_certificate(place.folder, "stale", ["127.0.0.1"], days=-3)
    given = (place.folder / "stale.pem", place.folder / "stale.key", place.ca)
    with pytest.raises(FedcarError, match=r"stale.pem: ran out 3 days ago; give a new one"):
        deploy.front_certificate(place, "127.0.0.1", given)
    keys.make_certificate(place.folder, "other", ["other.example"])
    with pytest.raises(FedcarError, match=r"is not for 127.0.0.1"):
        deploy.front_certificate(place, "127.0.0.1", (place.folder / "other.pem", place.folder / "other.key", place.ca))


# -------------------------------------------------------------------- the TLS front


class Upstream(BaseHTTPRequestHandler):
    """Stands for the SuperLink: answers with what it got."""

    asked: list[tuple[str, bytes, dict[str, str]]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, content, dict(self.headers)))
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[::-1])

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def front(place: deploy.ServerFolder) -> Iterator[str]:
    """The address of a front whose SuperLink is `Upstream`."""
    Upstream.asked.clear()
    upstream = HTTPServer(("127.0.0.1", 0), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.folder / "link.pem", place.folder / "link.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port = free_port()
    link = f"127.0.0.1:{upstream.server_address[1]}"
    certificate, key = place.folder / "front.pem", place.folder / "front.key"
    server = deploy_front.start(link, place.ca.read_bytes(), "127.0.0.1", port, certificate, key)
    yield f"https://127.0.0.1:{port}"
    server.should_exit = True
    upstream.shutdown()
    upstream.server_close()


def test_the_front_passes_only_the_fleet_prefix(
    front: str, place: deploy.ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    context = ssl.create_default_context(cadata=place.ca.read_text())
    content = os.urandom(1 << 20)
    with httpx.Client(verify=context) as client:
        answer = client.post(f"{front}/v1/fleet/push-object", content=content, headers={"flwr-signature": "s"})
        assert answer.status_code == 200 and answer.content == content[::-1]
        path, came, headers = Upstream.asked[0]
        assert (path, came, headers["flwr-signature"]) == ("/v1/fleet/push-object", content, "s")
        for path in (
            "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/docs", "/",
            "/v1/fleet/", "/v1/fleet/a/b", "/v1/fleet/register-node", "/v1/fleet/pull-messages?run=1",
            "/v1/fleet/%2e%2e/control/list-nodes",
        ):  # fmt: skip
            assert client.post(front + path, content=b"x").status_code == 404, path
        assert client.get(f"{front}/v1/fleet/pull-messages").status_code == 405
        assert client.post(f"{front}/v1/fleet/push-object", content=iter([b"x"])).status_code == 413
        monkeypatch.setattr(deploy_front, "LARGEST_REQUEST", 100)
        assert client.post(f"{front}/v1/fleet/push-object", content=b"x" * 101).status_code == 413
    assert len(Upstream.asked) == 1, "nothing else reached the SuperLink"


def test_the_front_speaks_tls_alone_and_says_when_the_superlink_is_away(place: deploy.ServerFolder) -> None:
    import httpx

    port = free_port()
    certificate, key = place.folder / "front.pem", place.folder / "front.key"
    nobody = f"127.0.0.1:{free_port()}"
    server = deploy_front.start(nobody, place.ca.read_bytes(), "127.0.0.1", port, certificate, key)
    try:
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{port}/v1/fleet/pull-messages", content=b"x")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages", content=b"x")
        context = ssl.create_default_context(cadata=place.ca.read_text())
        answer = httpx.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages", content=b"x", verify=context)
        assert answer.status_code == 503
    finally:
        server.should_exit = True


# -------------------------------------------------------------------- joining with what does not fit


@pytest.fixture
def joined(place: deploy.ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's folder with key and join file; the SuperLink's part of enrolling is played."""

    class Played:
        def register(self, key: bytes, name: str) -> int:
            return 17

    monkeypatch.setattr(deploy.ServerFolder, "link", lambda self: Played())
    monkeypatch.setattr(deploy.ServerFolder, "serving", lambda self: True)
    keys.keygen(tmp_path, "a")
    deploy.enroll(place, tmp_path / "a.pub", None, None)
    return tmp_path


def test_a_join_file_holds_no_secret(joined: Path, place: deploy.ServerFolder) -> None:
    content = (joined / "a.join").read_text()
    assert "PRIVATE" not in content and place.secret.read_text() not in content
    assert json.loads(content).keys() == {
        "format", "fedcar", "node", "id", "key", "address", "ca", "documents", "encoder", "pooling",
        "encoder_fingerprint",
    }  # fmt: skip


def test_enrolling_again_writes_the_same_and_another_key_is_refused(joined: Path, place: deploy.ServerFolder) -> None:
    before = (joined / "a.join").read_bytes()
    assert fedcar("enroll", joined / "a.pub", "--data-dir", place.folder).code == 0
    assert (joined / "a.join").read_bytes() == before
    keys.keygen(joined / "other", "a")
    line = one_line(fedcar("enroll", joined / "other" / "a.pub", "--data-dir", place.folder))
    assert "another key is enrolled" in line
    (joined / "b.pub").write_bytes((joined / "a.pub").read_bytes().replace(b" a\n", b" b\n"))
    assert "enrolled as a" in one_line(fedcar("enroll", joined / "b.pub", "--data-dir", place.folder))


def join(folder: Path, collection: Path, *more: object) -> str:
    return one_line(fedcar("join", "--file", folder / "a.join", "--collection", collection, *more))


def test_joining_with_what_does_not_fit_is_one_line(joined: Path, collection: Path) -> None:
    keys.keygen(joined / "other", "b")
    assert "is for a, whose key is not" in join(joined, collection, "--key", joined / "other" / "b.key")
    assert "cannot be read" in join(joined, collection, "--key", joined / "none.key")
    assert "cannot be reached" in join(joined, collection)
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "fedcar": "0.0.1"}))
    assert f"the server runs fedcar 0.0.1, this device {__version__}" in join(joined, collection)
    (joined / "a.join").write_text("{}")
    assert "not a file of fedcar enroll" in join(joined, collection)
    (joined / "a.join").unlink()
    assert "cannot be read" in join(joined, collection)


def test_the_servers_certificate_is_checked_by_the_device(joined: Path, collection: Path, front: str) -> None:
    told = json.loads((joined / "a.join").read_text())
    address = front.removeprefix("https://")
    (joined / "x").mkdir()
    keys.make_authority(joined / "x")
    other = (joined / "x" / "ca.pem").read_text()
    (joined / "a.join").write_text(json.dumps({**told, "address": address, "ca": other}))
    assert "not of the server that enrolled this device" in join(joined, collection)


def test_a_servers_certificate_that_ran_out_is_named(
    joined: Path, collection: Path, place: deploy.ServerFolder
) -> None:
    keys.make_certificate(place.folder, "stale", ["127.0.0.1"], days=-1)
    port = free_port()
    nobody = f"127.0.0.1:{free_port()}"
    stale = place.folder / "stale.pem", place.folder / "stale.key"
    server = deploy_front.start(nobody, place.ca.read_bytes(), "127.0.0.1", port, *stale)
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": f"127.0.0.1:{port}"}))
    assert "its certificate has run out" in join(joined, collection)
    result = fedcar("doctor", "--file", joined / "a.join", "--json")
    server.should_exit = True
    checks = {one["what"]: one for one in result.json["checks"]}
    assert result.code == 1 and not result.json["healthy"]
    assert not checks["certificate"]["fine"] and "run out" in checks["certificate"]["says"]
    assert checks["versions"]["fine"] and checks["join file"]["fine"] and checks["disk"]["says"]


# -------------------------------------------------------------------- serving and running with what does not fit


def test_serving_with_what_does_not_fit_is_one_line(
    place: deploy.ServerFolder, collection: Path, encoder: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    def serve(*more: object, folder: Path = place.folder) -> str:
        return one_line(fedcar("serve", "--data-dir", folder, "--host", "127.0.0.1", *more))

    used = HTTPServer(("127.0.0.1", 0), Upstream)
    assert "cannot be used on 127.0.0.1" in serve("--port", used.server_address[1])
    used.server_close()
    assert "needed when a server starts for the first time" in serve(folder=tmp_path / "new")
    assert "serves another encoder" in serve("--port", free_port(), "--encoder", tiny_model("bert"))
    loaded = Collection.read(collection)
    fewer = replace(loaded, documents=loaded.documents[:-1])
    fewer.write(tmp_path / "fewer")
    assert "serves another collection" in serve("--port", free_port(), "--collection", tmp_path / "fewer")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    line = serve("--port", free_port(), "--collection", collection, "--encoder", encoder, folder=tmp_path / "full")
    assert "is no server's folder" in line
    assert "go together" in serve("--port", free_port(), "--certificate", "x.pem")
    with place.locked("serve.lock"):
        assert "is being served already" in serve("--port", free_port())


def test_running_with_what_does_not_fit_is_one_line(place: deploy.ServerFolder) -> None:
    def run(*more: object) -> str:
        return one_line(fedcar("run", "--data-dir", place.folder, *more))

    assert "give --epsilon" in run()
    assert "not built into run yet" in run("--epsilon", "3")
    assert "no fedcar serve runs there" in run("--no-privacy")
    assert "--rounds 0" in run("--no-privacy", "--rounds", "0")
    assert "--over-selection" in run("--no-privacy", "--over-selection", "0.5")
    assert "--share adapter" in run("--no-privacy", "--share", "adapter")
    with place.locked("run.lock"):
        assert "a run is on" in run("--no-privacy")
    assert "no such run" in one_line(fedcar("resume", "run-1", "--data-dir", place.folder))
    assert "no server's folder" in one_line(fedcar("status", "--data-dir", place.folder / "none"))


def test_a_full_disk_on_the_server_is_one_line(place: deploy.ServerFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system says it, and as safetensors does."""
    from safetensors import SafetensorError

    monkeypatch.setattr(deploy.ServerFolder, "serving", lambda self: True)
    written = "I/O error: No space left on device (os error 28)"
    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError(written)):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(deploy_run, "start", full)
        result = fedcar("run", "--data-dir", place.folder, "--no-privacy")
        last = result.err.splitlines()[-1]
        assert result.code == 1 and "no space left on the disk; make room, then fedcar resume run-" in last


def test_status_and_doctor_of_a_server_that_does_not_run(place: deploy.ServerFolder) -> None:
    options = deploy_run.RunOptions("head", "full", {"rounds": 4})
    run = deploy_run.new_run(place, options)
    (run / "history.jsonl").write_text('{"round": 1, "selection": 0.5}\n{"round": 2, "sel')
    found = fedcar("status", "--data-dir", place.folder, "--json").json
    assert found["serving"] is False and found["devices"] == {}
    assert found["runs"] == [
        {"run": run.name, "method": "head", "rounds": 1, "of": 4, "selection": 0.5, "finished": False}
    ]
    assert (run / "history.jsonl").read_text().endswith('"sel'), "status changes nothing"
    os.chmod(place.secret, 0o644)
    result = fedcar("doctor", "--data-dir", place.folder, "--json")
    checks = {one["what"]: one for one in result.json["checks"]}
    assert result.code == 1
    assert [what for what, one in checks.items() if not one["fine"]] == ["secret", "devices"]
    assert "chmod 600" in checks["secret"]["says"] and "start it" in checks["devices"]["says"]
    assert {"versions", "certificates", "port", "collection", "disk", "memory"} <= set(checks)


def test_doctor_finds_a_certificate_near_its_end_and_a_changed_collection(
    place: deploy.ServerFolder, collection: Path, tmp_path: Path
) -> None:
    loaded = Collection.read(collection)
    fewer = replace(loaded, documents=loaded.documents[:-1])
    fewer.write(tmp_path / "fewer")
    content = json.loads(place.file.read_text())
    place.file.write_text(json.dumps({**content, "collection": str(tmp_path / "fewer")}))
    keys.make_certificate(place.folder, "front", ["127.0.0.1", "another.example"], days=12)
    result = fedcar("doctor", "--data-dir", place.folder)
    assert "WRONG certificates" in result.out and "restart of fedcar serve renews it" in result.out
    assert "WRONG collection" in result.out and "restore it" in result.out


# -------------------------------------------------------------------- payloads as Flower's records; processes


def test_a_message_travels_through_superlink_and_supernode(place: deploy.ServerFolder, tmp_path: Path) -> None:
    """The real ones, as processes: TLS, the device's key, the executor's secrets, a payload in parts and back."""
    import torch

    settings = place.settings()
    link_process = deploy.superlink(place, settings)
    keys.keygen(tmp_path, "a")
    secret, stopped, own = tmp_path / "secret", threading.Event(), free_port()
    secret.write_text("s" * 64)

    def answer(request: Payload) -> Payload:
        values = {"questions": 1, "loss": 0.5, "seconds": 0.0, "held_out": 0, "right": 0}
        return Payload("train", values, {"update/head.rows": 2 * request.tensors["state/head.rows"]})

    worker = threading.Thread(target=flower.work, args=(f"127.0.0.1:{own}", secret.read_bytes(), answer, stopped))
    node_process = None
    try:
        link_process.start()
        link = place.link()
        deploy.wait_for(link, link_process)
        node = link.register(keys.read_public(tmp_path / "a.pub")[1], "a")
        address = f"127.0.0.1:{settings.link_port}"
        command = flower.supernode_command(own, address, place.ca, tmp_path / "a.key", secret)
        node_process = Child(command, tmp_path / "node.log", flower.environment(tmp_path / "home"))
        node_process.start()
        worker.start()
        deadline = time.monotonic() + 120
        while not link.nodes()[node].online and time.monotonic() < deadline:
            time.sleep(0.1)
        session = link.session()
        rows = torch.arange(3.0 * 2**20).reshape(3, -1)  # 12 MB: three of Flower's arrays
        state = {"weights": torch.zeros(2), "state/head.rows": rows}
        payload = Payload("train", {"setup": "{}", "round": 1}, state)
        replies = Exchange(session, {"a": node}, 60.0, 1).run({"a": payload})
        assert replies.failed == {} and replies.payloads["a"].values["loss"] == 0.5
        assert torch.equal(replies.payloads["a"].tensors["update/head.rows"], 2 * rows)
        flower.knows(address, place.ca.read_bytes(), keys.read_private(tmp_path / "a.key"), node)
        keys.keygen(tmp_path, "stranger")
        with pytest.raises(FedcarError, match="does not know this device's key"):
            flower.knows(address, place.ca.read_bytes(), keys.read_private(tmp_path / "stranger.key"), node)
        session.close()
    finally:
        stopped.set()
        if node_process is not None:
            node_process.stop()
        link_process.stop()
        worker.join(20)


def test_a_payload_goes_through_flowers_records_unchanged() -> None:
    import torch

    tensors = {
        "weights": torch.randn(5).double(),
        "state/head.rows": torch.randn(3000, 500),  # 6 MB: two parts
        "state/empty": torch.zeros(0, 4),
        "state/steps": torch.tensor(7),
        "state/half": torch.randn(3).to(torch.bfloat16),
        "state/head.active": torch.tensor([True, False]),
    }
    payload = Payload("train", {"setup": "{}", "round": 3}, tensors)
    content = flower.records(payload)
    found = flower.payload_of(content, REQUESTS)
    assert found.kind == "train" and dict(found.values) == dict(payload.values)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor), name
    with pytest.raises(ValueError, match="unknown kind"):
        flower.payload_of(flower.records(Payload("question", {})), REPLIES)
    with pytest.raises(ValueError, match="fields"):
        flower.payload_of(flower.records(Payload("enrol", {"questions": 1, "why": "x"})), REPLIES)
    content["more"] = content["values"]
    with pytest.raises(ValueError, match="records"):
        flower.payload_of(content, REQUESTS)


def test_what_flower_is_started_with_keeps_it_quiet_and_fenced(tmp_path: Path) -> None:
    tls = {"ca": tmp_path, "certificate": tmp_path, "key": tmp_path}
    command = flower.superlink_command(1234, tmp_path / "db", tmp_path / "secret", tls)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    for option in ("--enable-supernode-auth", "--database", "--disable-runtime-dependency-installation"):
        assert option in command
    assert command[command.index("--isolation") + 1] == "process" and "--superexec-auth-secret-file" in command
    assert "--insecure" not in command
    quiet = flower.environment(tmp_path)
    assert quiet["FLWR_TELEMETRY_ENABLED"] == "0" and quiet["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert quiet["FLWR_HOME"] == str(tmp_path) and quiet["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent ended")
def test_a_child_ends_with_its_parent_even_by_kill_9(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from fedcar.federation.processes import Child
child = Child([sys.executable, "-c", "import time; time.sleep(100)"], Path(sys.argv[1]))
child.start()
print(child.process.pid, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_dies_is_started_again_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedcar.federation.processes.time.monotonic", lambda: now[0])
    child = Child([sys.executable, "-c", "print('out of luck')"], tmp_path / "log")
    child.start()
    started = []
    for _ in range(200):
        assert child.process is not None
        child.process.wait()
        if child.keep_alive():
            started.append(now[0] - 100)
        now[0] += 0.5
    waits = [after - before for before, after in zip([0.0, *started], started, strict=False)]
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 16], abs=1.1) and max(waits) <= 31
    assert child.last_line() == "out of luck"


def test_expiry_is_counted_in_days(place: deploy.ServerFolder) -> None:
    loaded = x509.load_pem_x509_certificate(place.ca.read_bytes())
    assert loaded.not_valid_after_utc - datetime.now(timezone.utc) > timedelta(days=3600)
    assert keys.days_left(place.ca) == pytest.approx(3650, abs=1)
