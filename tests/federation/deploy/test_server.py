"""The refusals of the real federation: one line each, on the side that can act; whole ones are in test_flower."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import fedcar

pytest.importorskip("flwr")

from support.served import Upstream, one_line  # noqa: E402

from fedcar.collection.collection import Collection  # noqa: E402
from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation.deploy import front as deploy_front
from fedcar.federation.deploy import keys  # noqa: E402
from fedcar.federation.deploy import run as deploy_run
from fedcar.federation.deploy.enroll import enroll  # noqa: E402
from fedcar.federation.deploy.folder import ServerFolder  # noqa: E402
from fedcar.federation.deploy.link import register  # noqa: E402
from fedcar.federation.deploy.options import RunOptions  # noqa: E402
from fedcar.federation.deploy.processes import free_port, locked  # noqa: E402
from fedcar.federation.deploy.runs import new_run, one_run  # noqa: E402
from fedcar.privacy.ledger import Budget, Ledger  # noqa: E402
from fedcar.version import __version__  # noqa: E402

pytest_plugins = ("support.served",)


# -------------------------------------------------------------------- joining with what does not fit


@pytest.fixture
def joined(place: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's folder with key and join file; the SuperLink's part of enrolling is played."""

    class Played:
        def nodes(self) -> dict[int, object]:
            return {}

        def register(self, key: bytes, name: str) -> int:
            return 17

    monkeypatch.setattr("fedcar.federation.deploy.link.link_of", lambda place: Played())
    monkeypatch.setattr(ServerFolder, "serving", lambda self: True)
    keys.keygen(tmp_path, "a")
    enroll(place, tmp_path / "a.pub", None, None, register)
    return tmp_path


def test_a_join_file_holds_no_secret(joined: Path, place: ServerFolder) -> None:
    content = (joined / "a.join").read_text()
    assert "PRIVATE" not in content and place.secret.read_text() not in content
    assert json.loads(content).keys() == {
        "format", "fedcar", "node", "id", "key", "address", "ca", "documents", "encoder", "pooling",
        "encoder_fingerprint", "query_prompt", "document_prompt",
    }  # fmt: skip


def test_enrolling_again_writes_the_same_and_another_key_is_refused(joined: Path, place: ServerFolder) -> None:
    before = (joined / "a.join").read_bytes()
    assert fedcar("enroll", joined / "a.pub", "--data-dir", place.folder).code == 0
    assert (joined / "a.join").read_bytes() == before
    keys.keygen(joined / "other", "a")
    line = one_line(fedcar("enroll", joined / "other" / "a.pub", "--data-dir", place.folder))
    assert "another key is enrolled" in line
    (joined / "b.pub").write_bytes((joined / "a.pub").read_bytes().replace(b" a\n", b" b\n"))
    assert "enrolled as a" in one_line(fedcar("enroll", joined / "b.pub", "--data-dir", place.folder))


def test_enrolling_waits_for_a_superlink_that_is_starting(
    place: ServerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.keygen(tmp_path, "a")
    tries: list[int] = []

    class Starting:
        def nodes(self) -> dict[int, object]:
            tries.append(1)
            if len(tries) < 3:
                raise ConnectionRefusedError
            return {}

        def register(self, key: bytes, name: str) -> int:
            return 17

    monkeypatch.setattr("fedcar.federation.deploy.link.link_of", lambda place: Starting())
    assert 'start it, and wait until it says "serving on"' in one_line(
        fedcar("enroll", tmp_path / "a.pub", "--data-dir", place.folder)
    )
    serving = [False, True]
    monkeypatch.setattr(ServerFolder, "serving", lambda self: serving.pop())
    line = one_line(fedcar("enroll", tmp_path / "a.pub", "--data-dir", place.folder))
    assert "its SuperLink does not answer" in line and "superlink.log" in line
    monkeypatch.setattr(ServerFolder, "serving", lambda self: True)
    assert fedcar("enroll", tmp_path / "a.pub", "--data-dir", place.folder).code == 0 and len(tries) == 3


def test_two_devices_enrolled_at_once_are_both_kept(
    joined: Path, place: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads who is known, registers and writes; without a lock who writes last forgets the other."""
    for name in "bc":
        keys.keygen(joined, name)
    meanwhile: list[str] = []

    class Meanwhile:
        def nodes(self) -> dict[int, object]:
            return {}

        def register(self, key: bytes, name: str) -> int:
            if name == "b":
                meanwhile.append(one_line(fedcar("enroll", joined / "c.pub", "--data-dir", place.folder)))
            return ord(name)

    monkeypatch.setattr("fedcar.federation.deploy.link.link_of", lambda place: Meanwhile())
    enroll(place, joined / "b.pub", None, None, register)
    assert "another fedcar enroll is on" in meanwhile[0]
    enroll(place, joined / "c.pub", None, None, register)
    assert sorted(place.nodes()) == ["a", "b", "c"]


def join(folder: Path, collection: Path, *more: object) -> str:
    return one_line(fedcar("join", "--file", folder / "a.join", "--collection", collection, *more))


def test_joining_with_what_does_not_fit_is_one_line(joined: Path, collection_folder: Path) -> None:
    keys.keygen(joined / "other", "b")
    assert "is for a, whose key is not" in join(joined, collection_folder, "--key", joined / "other" / "b.key")
    assert "cannot be read" in join(joined, collection_folder, "--key", joined / "none.key")
    assert "cannot be reached" in join(joined, collection_folder)
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "fedcar": "0.0.1"}))
    assert f"the server runs fedcar 0.0.1, this device {__version__}" in join(joined, collection_folder)
    (joined / "a.join").write_text("{}")
    assert "not a file of fedcar enroll" in join(joined, collection_folder)
    (joined / "a.join").unlink()
    assert "cannot be read" in join(joined, collection_folder)


def test_a_key_that_nobody_enrolled_is_named(joined: Path, collection_folder: Path, front: str) -> None:
    """Also where the SuperLink is being restarted; doctor says the same."""
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": front.removeprefix("https://")}))
    for status, says in ((401, "does not know this device's key"), (503, "the server is starting")):
        Upstream.status = status
        assert says in join(joined, collection_folder)
        result = fedcar("doctor", "--file", joined / "a.join", "--json")
        checks = {one["what"]: one for one in result.json["checks"]}
        assert result.code == 1 and says in checks["enrolment"]["says"] and checks["certificate"]["fine"]


@pytest.mark.parametrize(
    ("off", "says"), [(6.0, "s ahead of"), (45.0, "s ahead of"), (-310.0, "s behind"), (-45.0, "")]
)
def test_doctor_knows_how_far_off_a_clock_may_be(
    joined: Path, front: str, monkeypatch: pytest.MonkeyPatch, off: float, says: str
) -> None:
    """5 s ahead and 300 s behind are Flower's limits, which are not the same on both sides."""
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": front.removeprefix("https://")}))
    monkeypatch.setattr("fedcar.federation.deploy.doctor.time", SimpleNamespace(time=lambda: time.time() + off))
    checks = {one["what"]: one for one in fedcar("doctor", "--file", joined / "a.join", "--json").json["checks"]}
    assert checks["clock"]["fine"] is not bool(says) and says in checks["clock"]["says"]
    if says:
        assert "at most 5 s ahead and 300 s behind are taken; set both by NTP" in checks["clock"]["says"]


def test_a_device_is_joined_once(joined: Path, collection_folder: Path, front: str) -> None:
    """Two of them would sign each other off for ever."""
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": front.removeprefix("https://")}))
    (joined / "a.node").mkdir()
    with locked(joined / "a.node" / "join.lock"):
        assert "a is joined already by another process" in join(joined, collection_folder)
    assert not Upstream.asked, "the first one was not signed off"


def test_another_encoder_or_collection_at_join_is_named(
    joined: Path, collection_folder: Path, front: str, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the fingerprints in the join file, before anything is started; doctor says the same."""
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": front.removeprefix("https://")}))
    monkeypatch.setattr("fedcar.federation.wire.flower.knows", lambda *_, **__: None)
    other = tiny_model("bert")
    assert "another encoder than the server's" in join(joined, collection_folder, "--encoder", other)
    loaded = Collection.read(collection_folder)
    replace(loaded, documents=loaded.documents[::-1]).write(joined / "turned")
    assert "its documents differ from the server's" in join(joined, joined / "turned")
    assert not (joined / "a.node" / "flower").exists(), "no SuperNode was started"
    words = ("doctor", "--file", joined / "a.join", "--json", "--collection", joined / "turned", "--encoder", other)
    checks = {one["what"]: one for one in fedcar(*words).json["checks"]}
    assert "copy the server's corpus.jsonl" in checks["collection"]["says"] and not checks["collection"]["fine"]
    assert "another encoder than the server's" in checks["encoder"]["says"] and not checks["encoder"]["fine"]


def test_a_budget_at_join_that_makes_no_sense_or_changed_is_one_line(
    joined: Path, collection_folder: Path, front: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": front.removeprefix("https://")}))
    monkeypatch.setattr("fedcar.federation.wire.flower.knows", lambda *_, **__: None)
    assert "epsilon is 0.0, must be above 0" in join(joined, collection_folder, "--epsilon", "0")
    Ledger(joined / "kept" / "ledger.jsonl").create(Budget(3.0, 1e-5))
    line = join(joined, collection_folder, "--epsilon", "9", "--ledger", joined / "kept")
    assert "its budget is epsilon 3, delta 1e-05 and does not change" in line


def test_the_servers_certificate_is_checked_by_the_device(joined: Path, collection_folder: Path, front: str) -> None:
    told = json.loads((joined / "a.join").read_text())
    address = front.removeprefix("https://")
    (joined / "x").mkdir()
    keys.make_authority(joined / "x")
    other = (joined / "x" / "ca.pem").read_text()
    (joined / "a.join").write_text(json.dumps({**told, "address": address, "ca": other}))
    assert "not of the server that enrolled this device" in join(joined, collection_folder)


def test_a_servers_certificate_that_ran_out_is_named(
    joined: Path, collection_folder: Path, place: ServerFolder
) -> None:
    keys.make_certificate(place.folder, "stale", ["127.0.0.1"], days=-1)
    port = free_port()
    nobody = f"127.0.0.1:{free_port()}"
    stale = place.folder / "stale.pem", place.folder / "stale.key"
    server = deploy_front.start(nobody, place, "127.0.0.1", port, *stale)
    told = json.loads((joined / "a.join").read_text())
    (joined / "a.join").write_text(json.dumps({**told, "address": f"127.0.0.1:{port}"}))
    assert "its certificate has run out" in join(joined, collection_folder)
    result = fedcar("doctor", "--file", joined / "a.join", "--json")
    server.should_exit = True
    checks = {one["what"]: one for one in result.json["checks"]}
    assert result.code == 1 and not result.json["healthy"]
    assert not checks["certificate"]["fine"] and "run out" in checks["certificate"]["says"]
    assert checks["versions"]["fine"] and checks["join file"]["fine"] and checks["disk"]["says"]


# -------------------------------------------------------------------- serving and running with what does not fit


def test_serving_with_what_does_not_fit_is_one_line(
    place: ServerFolder, collection_folder: Path, encoder: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    def serve(*more: object, folder: Path = place.folder) -> str:
        return one_line(fedcar("serve", "--data-dir", folder, "--host", "127.0.0.1", *more))

    used = HTTPServer(("127.0.0.1", 0), Upstream)
    assert "cannot be used on 127.0.0.1" in serve("--port", used.server_address[1])
    used.server_close()
    assert "needed when a server starts for the first time" in serve(folder=tmp_path / "new")
    assert "serves another encoder" in serve("--port", free_port(), "--encoder", tiny_model("bert"))
    loaded = Collection.read(collection_folder)
    fewer = replace(loaded, documents=loaded.documents[:-1])
    fewer.write(tmp_path / "fewer")
    assert "serves another collection" in serve("--port", free_port(), "--collection", tmp_path / "fewer")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    line = serve(
        "--port", free_port(), "--collection", collection_folder, "--encoder", encoder, folder=tmp_path / "full"
    )
    assert "is no server's folder" in line
    assert "go together" in serve("--port", free_port(), "--certificate", "x.pem")
    own = [f"--certificate{end}" for end in ("", "-key", "-authority")]
    keys.make_certificate(place.folder, "front", ["127.0.0.1"])
    files = place.folder / "front.pem", place.folder / "link.key", place.ca
    line = serve("--port", free_port(), *(word for pair in zip(own, files, strict=True) for word in pair))
    assert "is not the key of" in line
    before = place.file.read_bytes()
    with place.locked("serve.lock"):
        assert "is being served already" in serve("--port", free_port())
    assert place.file.read_bytes() == before, "the one that runs is still found at its port"


def test_running_with_what_does_not_fit_is_one_line(place: ServerFolder) -> None:
    def run(*more: object) -> str:
        return one_line(fedcar("run", "--data-dir", place.folder, *more))

    assert "give --epsilon" in run()
    assert "one or the other" in run("--epsilon", "3", "--no-privacy")
    assert "epsilon is 0.0, must be above 0" in run("--epsilon", "0")
    assert '--unit "person": not known' in run("--epsilon", "3", "--unit", "person")
    assert "--public-dev: is for training under --epsilon" in run("--no-privacy", "--public-dev")
    assert "every client takes part in every round" in run("--epsilon", "3", "--participation", "0.5")
    assert "--over-selection: with --epsilon" in run("--epsilon", "3", "--over-selection", "2")
    assert "each device keeps its own" in run("--epsilon", "3", "--ledgers", place.folder)
    assert "no fedcar serve runs there" in run("--epsilon", "3")
    assert "no fedcar serve runs there" in run("--no-privacy")
    assert "--rounds 0" in run("--no-privacy", "--rounds", "0")
    assert "--over-selection" in run("--no-privacy", "--over-selection", "0.5")
    assert "--share adapter" in run("--no-privacy", "--share", "adapter")
    with place.locked("run.lock"):
        assert "a run is on" in run("--no-privacy")
    assert "no such run" in one_line(fedcar("resume", "run-1", "--data-dir", place.folder))
    assert "no server's folder" in one_line(fedcar("status", "--data-dir", place.folder / "none"))


def test_a_full_disk_on_the_server_is_one_line(place: ServerFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system says it, and as safetensors does."""
    from safetensors import SafetensorError

    monkeypatch.setattr(ServerFolder, "serving", lambda self: True)
    written = "I/O error: No space left on device (os error 28)"
    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError(written)):

        def full(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(deploy_run, "start", full)
        result = fedcar("run", "--data-dir", place.folder, "--no-privacy")
        last = result.err.splitlines()[-1]
        assert result.code == 1 and "no space left on the disk; make room, then fedcar resume run-" in last


def test_a_disk_that_is_full_for_the_superlink_is_named_too(
    place: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only stops to answer then, and the run finds no devices."""
    monkeypatch.setattr(ServerFolder, "serving", lambda self: True)

    def nobody(*_: Any, **__: Any) -> None:
        raise FedcarError("too few devices: bring devices back, or lower the quorum (0.5), and go on with --resume")

    monkeypatch.setattr(deploy_run, "start", nobody)
    usage = deploy_run.shutil.disk_usage(place.folder)
    for free, says in (
        (1 << 30, "bring devices back and go on with fedcar resume run-"),
        (0, "no space left on the disk; make room, then fedcar resume run-"),
    ):
        monkeypatch.setattr(deploy_run.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        result = fedcar("run", "--data-dir", place.folder, "--no-privacy")
        assert result.code == 1 and says in result.err.splitlines()[-1]


def test_status_and_doctor_of_a_server_that_does_not_run(place: ServerFolder) -> None:
    options = RunOptions("head", "full", {"rounds": 4})
    run = new_run(place, options)
    (run / "history.jsonl").write_text('{"round": 1, "selection": 0.5}\n{"round": 2, "sel')
    later = new_run(place, options)
    (later / "run.json").unlink()  # what a crash leaves that comes before it
    found = fedcar("status", "--data-dir", place.folder, "--json").json
    assert found["serving"] is False and found["devices"] == {}
    assert found["runs"] == [
        {"run": run.name, "method": "head", "rounds": 1, "of": 4, "selection": 0.5, "finished": False, "on": False}
    ]
    assert (run / "history.jsonl").read_text().endswith('"sel'), "status changes nothing"
    new_run(place, options)
    with one_run(place, run.name):  # the former one was resumed
        lines = fedcar("status", "--data-dir", place.folder).out.splitlines()
    assert [line.rsplit(", ", 1)[1] for line in lines[1:]] == ["on", "stopped"]
    os.chmod(place.secret, 0o644)
    result = fedcar("doctor", "--data-dir", place.folder, "--json")
    checks = {one["what"]: one for one in result.json["checks"]}
    assert result.code == 1
    assert [what for what, one in checks.items() if not one["fine"]] == ["secret", "devices"]
    assert "chmod 600" in checks["secret"]["says"] and "start it" in checks["devices"]["says"]
    assert {"versions", "certificates", "port", "collection", "disk", "memory"} <= set(checks)


def test_doctor_finds_a_certificate_near_its_end_and_a_changed_collection(
    place: ServerFolder, collection_folder: Path, tmp_path: Path
) -> None:
    loaded = Collection.read(collection_folder)
    fewer = replace(loaded, documents=loaded.documents[:-1])
    fewer.write(tmp_path / "fewer")
    content = json.loads(place.file.read_text())
    place.file.write_text(json.dumps({**content, "collection": str(tmp_path / "fewer")}))
    keys.make_certificate(place.folder, "front", ["127.0.0.1", "another.example"], days=12)
    result = fedcar("doctor", "--data-dir", place.folder)
    assert "WRONG certificates" in result.out and "restart of fedcar serve renews it" in result.out
    assert "WRONG collection" in result.out and "restore it" in result.out
