"""Whole deployments on this machine as real processes: the walk of docs/federate.md, kill -9, equal to in process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import REPOSITORY, environment, fedcar

pytest.importorskip("flwr")

from support.deployments import (  # noqa: E402
    DEVICES,
    check_equal,
    check_equal_retrievers,
    descendants,
    finished,
    kill,
    kill_server_and_serve_again,
    newest,
    rounds,
    run,
    running,
    start,
    until,
)

from fedcar.collection.collection import Collection  # noqa: E402
from fedcar.federation.deploy import keys  # noqa: E402
from fedcar.federation.deploy.processes import fedcar_command, free_port  # noqa: E402
from fedcar.federation.simulate.over_flower import Deployment  # noqa: E402

pytest_plugins = ("support.deployments",)
pytestmark = pytest.mark.slow


# -------------------------------------------------------------------- the same as in process


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_engine_flower_equals_engine_local(collections: Path, encoder: Path, tmp_path: Path, method: str) -> None:
    results = {}
    for engine in ("local", "flower"):
        words = ["federate", collections / "whole", "-o", tmp_path / engine, "--clients", 2, "--method", method]
        words += ["--engine", engine, "--encoder", encoder, "--cache", tmp_path / "cache"]
        words += [] if method == "ridge" else ["--rounds", 2]
        process = subprocess.run(
            fedcar_command(*words, "--no-central", "--no-privacy", "--json"), text=True, env=environment(),
            capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        results[engine] = json.loads(process.stdout)
    if method == "ridge":
        records = [{**results[engine]["rounds"][0], "client_seconds": 0, "clock_seconds": 0} for engine in results]
        assert records[0] == records[1]
    else:
        check_equal(tmp_path / "local.run", tmp_path / "flower.run")
    assert results["local"]["federated"] == results["flower"]["federated"]


# -------------------------------------------------------------------- the walk


def check_strangers(machines: dict[str, Path], collections: Path) -> None:
    """A key that nobody enrolled, a device joined twice, another collection: one line each, while all of them run."""
    stranger = machines["server"] / "stranger"
    assert fedcar("keygen", "--node", "stranger", "--out", stranger).code == 0
    told = json.loads((machines["hospital-a"] / "hospital-a.join").read_text())
    _, public = keys.read_public(stranger / "stranger.pub")
    changed = {**told, "node": "stranger", "key": keys.key_fingerprint(public)}
    (stranger / "stranger.join").write_text(json.dumps(changed))
    refused = fedcar("join", "--file", stranger / "stranger.join", "--collection", collections / "questions-a")
    assert refused.code == 1 and "does not know this device's key" in refused.err
    fewer = Collection.read(collections / "questions-a")
    replace(fewer, documents=fewer.documents[::-1]).write(stranger / "other")
    own = ("join", "--file", machines["hospital-a"] / "hospital-a.join", "--collection")
    refused = fedcar(*own, collections / "questions-a")
    assert refused.code == 1 and "is joined already by another process" in refused.err
    refused = fedcar(*own, stranger / "other", "--data-dir", stranger / "node")
    assert refused.code == 1 and "its documents differ from the server's" in refused.err


def carry(machines: dict[str, Path]) -> None:
    """What people carry from machine to machine: public keys to the server, join files to the devices."""
    for name in DEVICES:
        for folder, suffix in ((machines["server"], ".pub"), (machines[name], ".join")):
            for other in machines.values():
                if (file := other / f"{name}{suffix}").exists() and not (folder / file.name).exists():
                    (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:.* no dev split")  # of a device, which has none
def test_the_walk_of_the_guide(collections: Path, encoder: Path, tmp_path: Path) -> None:
    """Every command of docs/federate.md, as it stands there; only names of machines and files' places are ours."""
    text = (REPOSITORY / "docs" / "federate.md").read_text()
    commands = re.findall(r"^(server|hospital-a|hospital-b)\$ fedcar (.*)$", text, re.M)
    assert 9 <= len(commands) <= 11, "about ten commands"
    machines = {name: tmp_path / name for name in ("server", "hospital-a", "hospital-b")}
    for folder in machines.values():
        folder.mkdir()
    port, running, said = free_port(), [], {}
    own = {"central": collections / "central", "questions-a": collections / "questions-a"}
    own |= {"questions-b": collections / "questions-b", "server.example": "127.0.0.1", "9443": port}
    try:
        for machine, line in commands:
            words = [str(own.get(word, word)) for word in shlex.split(line.rstrip("& "))]
            words = [said.get(word, word) for word in words]
            if words[0] in ("serve", "join"):
                words += ["--encoder", str(encoder)]
            carry(machines)
            log = (machines[machine] / f"{words[0]}.log").open("w")
            process = subprocess.Popen(
                fedcar_command(*words), cwd=machines[machine], stdout=log, stderr=log, env=environment()
            )
            if line.endswith("&"):
                running.append(process)
                ready = "serving on" if words[0] == "serve" else "joining"
                until(lambda log=log, ready=ready: ready in Path(log.name).read_text())
                continue
            assert process.wait(200) == 0, Path(log.name).read_text()
            if words[0] == "run":
                said["RETRIEVER"] = str(newest(machines["server"] / "server") / "retriever")
        status = (machines["server"] / "status.log").read_text()
        assert "hospital-a: online" in status and "4 of 4 rounds" in status and "finished" in status
        assert (machines["server"] / "search.log").read_text().strip()
        private = [file for folder in machines.values() for file in folder.rglob("hospital-*.key")]
        assert sorted(private) == [machines[name] / f"{name}.key" for name in DEVICES], "no private key has left"
        doctor = fedcar("doctor", "--data-dir", machines["server"] / "server")
        assert doctor.code == 0 and "2 of 2 devices online" in doctor.out, doctor.out
        check_strangers(machines, collections)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
    time.sleep(1.0)
    assert not [one for process in running for one in descendants(process.pid)], "nothing is left running"


# -------------------------------------------------------------------- kill -9


@pytest.mark.ci
def test_killed_server_and_run_resume_to_the_uninterrupted_model(
    deployment: Deployment, collections: Path, encoder: Path
) -> None:
    place = deployment.place.folder
    whole = Path(run(place)["run"])
    assert rounds(whole) == 4
    for phase in ("enrolment", "rounds"):
        process = start(place, "run", "--no-privacy", "--rounds", 4, "--json")
        until(lambda whole=whole: newest(place) != whole and (newest(place) / "run.json").exists())
        folder = newest(place)
        second = start(place, "run", "--no-privacy")
        _, err = second.communicate(timeout=100)
        assert second.returncode == 1 and "a run is on" in err
        if phase == "rounds":
            until(lambda folder=folder: rounds(folder) >= 2)
        else:
            until(lambda folder=folder: (folder / "enrolment.safetensors").exists())
        kill(process)
        kill_server_and_serve_again(deployment, collections, encoder)
        result = finished(start(place, "resume", folder.name, "--json"))
        assert len(result["rounds"]) == 4 and rounds(folder) == 4
        check_equal(whole, folder)
        whole = folder
    background = start(place, "run", "--no-privacy", "--rounds", 4, "--detach")
    out, _ = background.communicate(timeout=100)
    assert background.returncode == 0 and "runs in the background" in out
    folder = newest(place)
    assert folder != whole
    until(lambda: rounds(folder) >= 2, 200)
    os.kill(running("resume", folder.name), signal.SIGKILL)
    until(lambda: not fedcar("status", "--data-dir", place, "--json").json["run_on"], 20)
    stopped = fedcar("status", "--data-dir", place).out.splitlines()[-1]
    assert stopped.startswith(folder.name) and stopped.endswith("stopped")
    assert fedcar("resume", folder.name, "--data-dir", place, "--detach").code == 0
    until(lambda: (folder / "retriever").exists(), 200)
    check_equal(whole, folder)
    found = fedcar("status", "--data-dir", place, "--json").json
    assert found["runs"][-1]["finished"] and found["runs"][-1]["rounds"] == 4


@pytest.mark.ci
def test_killed_devices_and_superlink_come_back_and_the_run_goes_on(deployment: Deployment) -> None:
    place = deployment.place.folder
    whole = Path(run(place, "--local-optimizer", "kept")["run"])
    options = ("--rounds", 4, "--json", "--deadline", 60, "--quorum", 1, "--local-optimizer", "kept")
    process = start(place, "run", "--no-privacy", *options)
    until(lambda: newest(place) != whole)
    folder = newest(place)
    until(lambda: rounds(folder) >= 1)
    device = deployment.devices["hospital-a"]
    assert device.process is not None and deployment.server is not None and deployment.server.process is not None
    for one in descendants(device.process.pid):  # the SuperNode; join starts it again
        os.kill(one, signal.SIGKILL)
    until(lambda: rounds(folder) >= 2, 200)
    for one in descendants(deployment.server.process.pid):  # the SuperLink; serve starts it again
        os.kill(one, signal.SIGKILL)
    result = finished(process)
    assert len(result["rounds"]) == 4 and all(len(record["clients"]) == 2 for record in result["rounds"])
    check_equal(whole, folder)
    kill(device.process)  # the whole device
    device.start()
    again = run(place, "--local-optimizer", "kept", "--quorum", "0.5", "--deadline", 30)
    assert len(again["rounds"]) == 4
    assert sys.platform != "linux" or "was started again" in (deployment.folder / "hospital-a.log").read_text()


def test_killed_inside_a_round_of_ridge_the_retriever_is_the_same(
    deployment: Deployment, collections: Path, encoder: Path
) -> None:
    """Server and run while devices make their sums, then the run and at last a device inside the second candidate."""
    place, options = deployment.place.folder, ("--no-privacy", "--method", "ridge", "--json")
    whole = Path(finished(start(place, "run", *options))["run"])
    assert (whole / "retriever" / "ridge.safetensors").exists(), "ridge is what was kept"

    def inside() -> None:
        assert process.stderr is not None
        assert any(line.startswith("ridge: ") for line in iter(process.stderr.readline, "")), "the first candidate"
        assert rounds(folder) == 0

    process = start(place, "run", *options)
    until(lambda: newest(place) != whole)
    folder = newest(place)
    until((folder / "mixture.json").exists)
    kill(process)
    kill_server_and_serve_again(deployment, collections, encoder)
    process = start(place, "resume", folder.name, "--json")
    inside()
    kill(process)
    process = start(place, "resume", folder.name, "--json")
    inside()
    device = deployment.devices["hospital-a"]
    assert device.process is not None
    kill(device.process)
    device.start()
    assert len(finished(process)["rounds"]) == rounds(folder) == 1
    check_equal_retrievers(whole, folder)
