"""A real run beside a thousand slow strangers, bodies that nobody signed, and rubbish: real processes, real TLS."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

import httpx  # noqa: E402
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest  # noqa: E402
from flwr.proto.node_pb2 import Node  # noqa: E402
from support import strangers  # noqa: E402
from support.deployments import DEVICES, descendants, finished, run, start  # noqa: E402
from support.served import signed  # noqa: E402

from fedcar.federation.deploy import keys  # noqa: E402
from fedcar.federation.simulate.over_flower import Deployment  # noqa: E402

pytestmark = pytest.mark.slow
pytest_plugins = ("support.deployments",)

MOST_MORE = 200  # MiB of server and SuperLink together beyond what they hold in a run of its own; 2.3 GB before


def attack(deployment: Deployment, kind: str, number: int, seconds: float) -> subprocess.Popen[str]:
    settings = deployment.place.settings()
    words = [strangers.__file__, kind, settings.host, settings.port, number, seconds]
    return subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True)


def memory(deployment: Deployment) -> float:
    """MiB that the server and its SuperLink ever held."""
    assert deployment.server is not None and deployment.server.process is not None
    server = deployment.server.process.pid
    most = 0.0
    for process in (server, *descendants(server)):
        status = Path(f"/proc/{process}/status").read_text()
        most += int(status.split("VmHWM:")[1].split()[0]) / 1024
    return most


def log(deployment: Deployment) -> str:
    return (deployment.folder / "serve.log").read_text() + (deployment.place.folder / "superlink.log").read_text()


@contextmanager
def heartbeats(deployment: Deployment) -> Iterator[Counter[str]]:
    """What an enrolled device is answered meanwhile, each time over a connection of its own."""
    name = DEVICES[0]
    key = keys.read_private(deployment.folder / "devices" / name / f"{name}.key")
    node = Node(node_id=int(deployment.place.nodes()[name]["node"]))
    asked = SendNodeHeartbeatRequest(node=node, heartbeat_interval=60).SerializeToString()
    settings = deployment.place.settings()
    address = f"https://{settings.host}:{settings.port}/v1/fleet/send-node-heartbeat"
    trusted = ssl.create_default_context(cafile=str(deployment.place.ca))
    seen: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            headers = {**signed(key), "content-type": "application/protobuf"}
            try:
                seen[
                    str(httpx.post(address, content=asked, headers=headers, verify=trusted, timeout=60).status_code)
                ] += 1
            except httpx.HTTPError as error:
                seen[type(error).__name__] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seen
    finally:
        over.set()
        asking.join()


@pytest.mark.ci
def test_a_thousand_slow_strangers_and_unsigned_bodies_stop_no_run(deployment: Deployment) -> None:
    """The run that a hundred of them stopped before ends, and server and SuperLink stay small."""
    run(deployment.place.folder)
    before = memory(deployment)
    attackers = [attack(deployment, "slow", 1000, 90), attack(deployment, "bodies", 200, 90)]
    try:
        with heartbeats(deployment) as answers:
            found = finished(start(deployment.place.folder, "run", "--no-privacy", "--rounds", 4, "--json"))
        assert len(found["rounds"]) == 4
        seen: list[dict[str, Any]] = [json.loads(one.communicate(timeout=300)[0]) for one in attackers]
    finally:
        for one in attackers:
            one.kill()
    assert seen[0]["connections"] >= 1000 and sum(seen[1].values()) >= 200, seen
    assert memory(deployment) - before < MOST_MORE
    assert answers["200"] > 10 and not [answer for answer in answers if answer.startswith("5")], answers
    assert "Traceback" not in log(deployment)


@pytest.mark.parametrize("number", [pytest.param(2_000, marks=pytest.mark.ci), 20_000])
def test_thousands_of_requests_of_rubbish_are_no_error_of_the_servers(deployment: Deployment, number: int) -> None:
    seen = json.loads(attack(deployment, "fuzz", number, 0).communicate(timeout=550)[0])
    assert sum(seen.values()) == number
    assert not [status for status in seen if status.startswith("5")], seen
    assert {"400", "401", "404", "405"} <= set(seen)
    assert "Traceback" not in log(deployment)
    run(deployment.place.folder)
