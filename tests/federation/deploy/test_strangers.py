"""A real run beside a thousand slow strangers, bodies that nobody signed, and rubbish: real processes, real TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from support import strangers  # noqa: E402
from support.deployments import descendants, finished, run, start  # noqa: E402

from fedcar.federation.simulate.over_flower import Deployment  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.ci]
pytest_plugins = ("support.deployments",)

MOST_MORE = 400  # MiB of server and SuperLink together, with what the run itself takes; 2.3 GB before


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


def test_a_thousand_slow_strangers_and_unsigned_bodies_stop_no_run(deployment: Deployment) -> None:
    """The run that a hundred of them stopped before ends, and server and SuperLink stay small."""
    run(deployment.place.folder)
    before = memory(deployment)
    attackers = [attack(deployment, "slow", 1000, 90), attack(deployment, "bodies", 200, 90)]
    try:
        found = finished(start(deployment.place.folder, "run", "--no-privacy", "--rounds", 4, "--json"))
        assert len(found["rounds"]) == 4
        seen: list[dict[str, Any]] = [json.loads(one.communicate(timeout=300)[0]) for one in attackers]
    finally:
        for one in attackers:
            one.kill()
    assert seen[0]["connections"] >= 1000 and sum(seen[1].values()) >= 200, seen
    assert memory(deployment) - before < MOST_MORE
    assert "Traceback" not in log(deployment) and '" 5' not in log(deployment)


def test_twenty_thousand_requests_of_rubbish_are_no_error_of_the_servers(deployment: Deployment) -> None:
    seen = json.loads(attack(deployment, "fuzz", 20_000, 0).communicate(timeout=550)[0])
    assert sum(seen.values()) == 20_000
    assert not [status for status in seen if status.startswith("5")], seen
    assert {"400", "401", "404", "405"} <= set(seen)
    assert "Traceback" not in log(deployment)
    run(deployment.place.folder)
