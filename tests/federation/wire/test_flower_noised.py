"""Under epsilon as real processes: the same ledgers and statement as in process, kill -9, exit code 3."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load
from support.command import environment, fedcar, tree

pytest.importorskip("flwr")

from support.deployments import finished, kill, kill_server_and_serve_again, newest, rounds, start, until  # noqa: E402
from support.neighbours import difference, of_a_run  # noqa: E402

from fedcar.collection.collection import Collection  # noqa: E402
from fedcar.federation.deploy.processes import fedcar_command  # noqa: E402
from fedcar.federation.simulate.over_flower import Deployment  # noqa: E402
from fedcar.privacy.ledger import Ledger  # noqa: E402

pytest_plugins = ("support.deployments",)
pytestmark = pytest.mark.slow
OPTIONS = ("--epsilon", 8, "--against-advice", "--rounds", 4, "--json")


def ledgers(folder: Path) -> list[Ledger]:
    return [Ledger(file) for file in sorted(folder.rglob("ledger.jsonl"))]


def charged(folder: Path) -> list[list[int]]:
    return [[one.values["round"] for one in book.open() if one.kind == "charge"] for book in ledgers(folder)]


def check_charged(folder: Path, exchanges: list[int]) -> None:
    """Nothing is under-counted: every exchange that was answered is charged, and no budget is crossed."""
    found = charged(folder)
    assert len(found) == 2 and all(set(exchanges) <= set(one) for one in found), found
    assert all(book.spent() <= 8 for book in ledgers(folder))


@pytest.mark.parametrize("unit", ["example", "client"])
def test_engine_flower_equals_engine_local_under_epsilon(
    collections: Path, encoder: Path, tmp_path: Path, unit: str
) -> None:
    results: dict[str, Any] = {}
    for engine in ("local", "flower"):
        words = ["federate", collections / "whole", "-o", tmp_path / engine, "--clients", 2, "--unit", unit]
        words += ["--ledger", tmp_path / "counted"]
        words += ["--engine", engine, "--encoder", encoder, "--cache", tmp_path / "cache"]
        process = subprocess.run(
            fedcar_command(*words, *OPTIONS), text=True, env=environment(), capture_output=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        results[engine] = json.loads(process.stdout)
    claims = [results[engine]["privacy"] for engine in ("local", "flower")]
    spent = [(claim.pop("spent_before"), claim.pop("spent_in_all")) for claim in claims]
    assert claims[0] == claims[1]
    assert spent[0][0] == 0 and spent[0][1] == spent[1][0] < spent[1][1], "both are counted for one collection"
    assert len(results["local"]["rounds"]) == len(results["flower"]["rounds"]) == (6 if unit == "example" else 5)
    here, there = (ledgers(tmp_path / f"{engine}.run" / "clients") for engine in ("local", "flower"))
    assert [book.path.parent.name for book in here] == [book.path.parent.name for book in there]
    assert [book.releases() for book in here] == [book.releases() for book in there]


def test_over_flower_neighbours_leave_the_same_but_for_noise(collections: Path, encoder: Path, tmp_path: Path) -> None:
    """Real devices, of which one has no question; noise is the system's, so all is compared but the noised numbers."""
    whole = Collection.read(collections / "whole")
    few = dict([*whole.judgements["train"].items()][:3])
    left = []
    for place, judged in (("first", few), ("other", dict([*few.items()][:2]))):
        queries = {name: query for name, query in whole.queries.items() if name in judged}
        replace(whole, queries=queries, judgements={"train": judged}).write(tmp_path / place / "collection")
        words = ["federate", tmp_path / place / "collection", "-o", tmp_path / place / "out", "--clients", 4]
        words += ["--engine", "flower", "--encoder", encoder, "--cache", tmp_path / place / "cache", *OPTIONS]
        process = subprocess.run(
            fedcar_command(*words), text=True, env=environment(), capture_output=True, timeout=300, check=False
        )
        assert process.returncode == 0, process.stderr
        found = {**of_a_run(tmp_path / place / "out.run"), **tree(tmp_path / place / "out")}
        for name in [name for name in found if name.endswith(".safetensors")]:
            shapes = sorted((key, one.shape) for key, one in load(found.pop(name) or b"").items())
            found[f"{name}, shapes"] = repr(shapes).encode()
        left.append({**found, "out": process.stdout.replace(str(tmp_path / place), "PLACE").encode()})
        said = process.stderr.replace(str(tmp_path / place), "PLACE").splitlines()
        left[-1]["said"] = "\n".join(line for line in said if "hardly count" not in line).encode()  # by noised counts
    assert not difference(*left)
    assert sum(name.endswith("ledger.jsonl") for name in left[0]) == 4
    assert b'clock_seconds": null' in (left[0]["out"] or b"") and b"seconds" not in (left[0]["history.jsonl"] or b"")


@pytest.mark.ci
def test_run_under_epsilon_survives_kill_9_of_server_run_and_device(
    deployment: Deployment, collections: Path, encoder: Path
) -> None:
    place, devices = deployment.place.folder, deployment.folder / "devices"
    process = start(place, "run", "--quorum", 1, *OPTIONS)
    until(lambda: (place / "runs").exists() and any((place / "runs").iterdir()))
    folder = newest(place)
    until(lambda: rounds(folder) >= 2)
    kill(process)
    kill_server_and_serve_again(deployment, collections, encoder)
    process = start(place, "resume", folder.name, "--json")
    until(lambda: rounds(folder) >= 4)
    device = deployment.devices["hospital-a"]
    assert device.process is not None
    kill(device.process)
    device.start()
    out, err = process.communicate(timeout=300)
    result = json.loads(out)
    answered = [record["round"] for record in result["rounds"]]
    assert (process.returncode, len(answered)) in ((0, 6), (3, 5)), err  # 3: the device died between charge and answer
    check_charged(devices, answered)
    assert result["privacy"]["epsilon"] <= 8 and (folder / "retriever" / "retriever.json").exists()
    assert not (folder / "enrolment.safetensors").exists(), "nobody was asked how many questions there are"
    again = finished(start(place, "run", *OPTIONS))
    assert again["refused"] is None and len(charged(devices)) == 4, "one ledger a run"
    found = fedcar("status", "--data-dir", place, "--json").json
    assert found["runs"][-1]["finished"] and found["runs"][-1]["rounds"] == found["runs"][-1]["of"] == 6


def test_a_device_with_a_budget_refuses_what_would_cross_it(
    deployment: Deployment, collections: Path, encoder: Path
) -> None:
    """Exit code 3 on the server, one line in the device's log; un-noised runs find nobody."""
    place = deployment.place.folder
    device = deployment.devices["hospital-b"]
    device.stop()
    device.command += ["--epsilon", "9"]
    device.start()
    deployment.wait_for_devices()
    first = finished(start(place, "run", *OPTIONS))
    assert first["refused"] is None and first["privacy"]["epsilon"] <= 8
    second = start(place, "run", *OPTIONS)
    _, err = second.communicate(timeout=200)
    assert second.returncode == 3, err
    assert "hospital-b: exchange" in err.splitlines()[-1] and "would cross the privacy budget" in err.splitlines()[-1]
    assert (newest(place) / "retriever" / "retriever.json").exists()
    [own] = (book for book in ledgers(deployment.folder / "state") if book.budget().epsilon == 9)
    assert 0 < own.spent() <= 9
    third = start(place, "run", "--no-privacy", "--rounds", 1, "--quorum", 1)
    _, err = third.communicate(timeout=200)
    assert third.returncode == 1 and "hospital-b: gives out nothing un-noised" in err.splitlines()[-1]
