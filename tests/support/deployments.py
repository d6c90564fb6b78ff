"""Whole deployments as real processes: what their slow tests share; fixtures by `pytest_plugins`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.command import environment, learnable, tree

from fedcar.collection.collection import Collection
from fedcar.collection.partition import partition
from fedcar.federation.deploy.processes import fedcar_command
from fedcar.federation.simulate.federate import share_of
from fedcar.federation.simulate.over_flower import Deployment

DEVICES = ("hospital-a", "hospital-b")


@pytest.fixture(scope="module")
def collections(toy_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whole, central (dev and test), questions-a and questions-b (train)."""
    folder = tmp_path_factory.mktemp("collections")
    whole = learnable(Collection.read(toy_collection))
    whole.write(folder / "whole")
    judgements = {split: judged for split, judged in whole.judgements.items() if split != "train"}
    replace(whole, judgements=judgements).write(folder / "central")
    training = whole.judged("train")
    for name, rows in zip("ab", partition(training, "iid", 2, 0).values(), strict=True):
        share_of(whole, training, rows).write(folder / f"questions-{name}")
    return folder


@pytest.fixture
def deployment(tmp_path: Path, collections: Path, encoder: Path) -> Iterator[Deployment]:
    """A server and two devices, online."""
    running = Deployment(tmp_path)
    try:
        running.serve(collections / "central", str(encoder))
        for name in DEVICES:
            running.join(name, collections / f"questions-{name[-1]}", str(encoder), tmp_path / "cache")
        running.wait_for_devices()
        yield running
    finally:
        running.stop()


def start(place: Path, *words: object) -> subprocess.Popen[str]:
    """`fedcar ...` as a process of its own."""
    command = fedcar_command(*words, "--data-dir", place)
    return subprocess.Popen(command, text=True, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def run(place: Path, *options: object) -> Any:
    return finished(start(place, "run", "--no-privacy", "--rounds", 4, "--json", *options))


def newest(place: Path) -> Path:
    return max((place / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def rounds(folder: Path) -> int:
    history = folder / "history.jsonl"
    return history.read_text().count("\n") if history.exists() else 0


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "state.safetensors")


def check_equal(one: Path, other: Path) -> None:
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def check_equal_retrievers(one: Path, other: Path) -> None:
    """Every file of two runs' retrievers, but those that say when and in which run they were trained."""
    ours, theirs = tree(one / "retriever"), tree(other / "retriever")
    assert ours.keys() == theirs.keys()
    told = {"retriever.json", "manifest.json", "manifest.sha256"}
    assert len(ours.keys() - told) >= 3 and {name for name in ours if ours[name] != theirs[name]} <= told


def kill(process: subprocess.Popen[Any]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def kill_server_and_serve_again(deployment: Deployment, collections: Path, encoder: Path) -> None:
    """kill -9 of fedcar serve, which takes its SuperLink along; then serve on the same folder, devices online again."""
    assert deployment.server is not None and deployment.server.process is not None
    left = descendants(deployment.server.process.pid)
    kill(deployment.server.process)
    until(lambda: not any(map(alive, left)), 10)
    (deployment.folder / "serve.log").unlink()
    port = json.loads(deployment.place.file.read_text())["port"]
    deployment.serve(collections / "central", str(encoder), port=port)
    deployment.wait_for_devices()


def descendants(process: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def running(*words: str) -> int:
    """The process whose command line has all these words."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").exists():
            line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if set(words) <= set(line) and alive(int(entry.name)):
                return int(entry.name)
    raise AssertionError(f"no process {words}")


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
