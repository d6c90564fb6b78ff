"""Benchmarks: fedcar and its peers in one run, on the same collection and encoder, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from fedcar.bench.contestants import BUDGET_SECONDS, PeerLeftOut, Task
from fedcar.bench.one_contestant import MODULES, Measurement, fresh_questions, limited
from fedcar.collection.collection import Collection
from fedcar.common.measure import processor
from fedcar.common.progress import Silent
from fedcar.encoder.manner import declared
from fedcar.encoder.model_files import DEFAULT_ENCODER, find
from fedcar.errors import FedcarError

MAIN_PEER = "sentence-transformers"
TRAIN_PEERS = (MAIN_PEER, "sklearn", "setfit", "bm25s", "hybrid")
INSTALL = {
    "sentence-transformers": "sentence-transformers[train]",
    "sklearn": "scikit-learn",
    "setfit": "setfit",
    "bm25s": "bm25s",
}
PACKAGES = ("torch", "transformers", "sentence-transformers", "scikit-learn", "setfit", "bm25s")
EPOCHS = (1, 3)
MEASURES = ("success@1", "mrr@10", "ndcg@10")


@dataclass(frozen=True)
class Comparison:
    """What is compared with fedcar, and how.

    `epochs` are those of sentence-transformers, each a training of its own; `limit` bounds the training questions of
    every system, for a smoke run; `budget` the seconds that SetFit may train. Figures are medians over the runs, whose
    seeds follow `seed`.
    """

    against: Sequence[str] = TRAIN_PEERS
    encoder: str = DEFAULT_ENCODER
    pooling: str | None = None
    runs: int = 1
    limit: int = 0
    epochs: Sequence[int] = EPOCHS
    seed: int = 0
    budget: int = BUDGET_SECONDS


def bench_train(
    folder: str | Path, comparison: Comparison | None = None, report: Silent | None = None
) -> dict[str, Any]:
    """Train fedcar and the peers on the collection and measure all of them on its test split; the contract's shape.

    A peer that is not installed, does not fit the collection or fails is left out: `report` says why, and so does
    machine["left_out"].

    Raises FedcarError for what cannot be compared, and where fedcar itself fails.
    """
    report, asked_for = report or Silent(), comparison or Comparison()
    against, runs, epochs = asked_for.against, asked_for.runs, asked_for.epochs
    check_arguments(against, runs, asked_for.limit, epochs)
    collection = limited(Collection.read(folder), asked_for.limit)
    asked = fresh_questions(collection)
    if not len(asked):
        raise FedcarError(f"{folder}: no judged query in the split test that is not in train, so nothing to compare by")
    model, _ = find(asked_for.encoder, offline=False)
    pooling, limits = (
        asked_for.pooling or declared(model)[0],
        {"limit": asked_for.limit, "budget": asked_for.budget},
    )
    task = Task("fedcar", str(Path(folder).resolve()), str(model), pooling, **limits)
    measured: dict[str, list[Measurement]] = {}
    left_out: dict[str, str] = {}
    device: str | None = None
    for run in range(runs):
        for job in jobs(replace(task, seed=asked_for.seed + run), against, epochs):
            name = job_name(job)
            if name in left_out:
                continue
            try:
                check_installed(job.peer)
                report.say(f"{name}: run {run + 1} of {runs}")
                outcomes, used = in_its_own_process(job)
                device = device or used
            except PeerLeftOut as reason:
                if job.peer == "fedcar":
                    raise FedcarError(f"fedcar cannot be measured: {reason}") from reason
                left_out[name] = str(reason)
                report.say(f"{name} is left out: {reason}")
                continue
            for outcome in outcomes:
                report.say(f"{outcome.name}: {outcome.seconds:.1f} s")
                measured.setdefault(outcome.name, []).append(outcome)
    complete = {name: middle(outcomes) for name, outcomes in measured.items() if len(outcomes) == runs}
    rows = compared(complete.pop("fedcar"), complete.values(), runs)
    return {
        "machine": {
            **machine(),
            "device": device,
            "collection": {
                "name": collection.name,
                "documents": len(collection.documents),
                "training_questions": len(collection.judged("train")),
                "test_questions": len(asked),
            },
            "encoder": asked_for.encoder,
            "left_out": left_out,
        },
        "rows": rows,
        "speedup": speedup(rows),
    }


def check_arguments(against: Sequence[str], runs: int, limit: int, epochs: Sequence[int]) -> None:
    """Refuse what cannot be run before anything runs."""
    if unknown := [peer for peer in against if peer not in TRAIN_PEERS]:
        raise FedcarError(f'--against "{unknown[0]}": not known; give some of {",".join(TRAIN_PEERS)}')
    if runs < 1:
        raise FedcarError(f"--runs {runs}: must be 1 or more")
    if limit < 0:
        raise FedcarError(f"--limit {limit}: must be 0 (no limit) or more")
    if not epochs or min(epochs) < 1:
        raise FedcarError(f"--epochs {','.join(map(str, epochs))}: must be 1 or more")


def jobs(task: Task, against: Sequence[str], epochs: Sequence[int]) -> list[Task]:
    """Fedcar first, then each peer once; sentence-transformers once for each number of epochs."""
    peers = [peer for peer in TRAIN_PEERS if peer in against]
    trainings = {peer: tuple(dict.fromkeys(epochs)) if peer == MAIN_PEER else (1,) for peer in peers}
    return [task, *(replace(task, peer=peer, epochs=number) for peer in peers for number in trainings[peer])]


def job_name(job: Task) -> str:
    if job.peer != MAIN_PEER:
        return job.peer
    return f"{job.peer}, {job.epochs} epoch{'s' if job.epochs > 1 else ''}"


def check_installed(peer: str) -> None:
    """Say what to install where a package of the peer is missing."""
    packages = dict.fromkeys(module.partition(".")[0] for module in MODULES[peer])
    if missing := [package for package in packages if find_spec(package) is None]:
        raise PeerLeftOut(f"{missing[0]} is not installed; pip install '{INSTALL[peer]}'")


def in_its_own_process(job: Task) -> tuple[list[Measurement], str | None]:
    """The job's outcomes and the device it found, from a fresh interpreter, so that its memory is its own.

    It works in an empty folder, which keeps what libraries write there out of the user's and the user's modules out of
    theirs.
    """
    with tempfile.TemporaryDirectory(prefix="fedcar-bench-") as folder:
        task, result, log = (Path(folder) / name for name in ("task.json", "result.json", "log.txt"))
        task.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "fedcar.bench.one_contestant", str(task), str(result)]
        with log.open("wb") as stream:
            ended = subprocess.run(command, cwd=folder, env=environment(folder), stdout=stream, stderr=stream)
        if not result.is_file():
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            killed = "was killed, perhaps for want of memory" if ended.returncode < 0 else "ended early"
            raise PeerLeftOut(f"{killed} (exit code {ended.returncode}): {last[:200]}")
        answer = json.loads(result.read_text(encoding="utf-8"))
    if "left_out" in answer:
        raise PeerLeftOut(answer["left_out"])
    return [Measurement(**outcome) for outcome in answer["outcomes"]], answer["device"]


def environment(folder: str) -> dict[str, str]:
    """The user's, without network, telemetry and caches outside the folder."""
    home = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **quiet, "HF_DATASETS_CACHE": folder, "XDG_CACHE_HOME": folder, "PYTHONPATH": paths}


def middle(outcomes: Sequence[Measurement]) -> Measurement:
    """Each figure's median."""
    first = outcomes[0]
    quality = {
        part: values and {name: median((each.quality[part] or values)[name] for each in outcomes) for name in values}
        for part, values in first.quality.items()
    }
    memory = [each.memory_mb for each in outcomes if each.memory_mb is not None]
    return Measurement(
        first.name, quality, median(each.seconds for each in outcomes), median(memory) if memory else None
    )


def compared(ours: Measurement, theirs: Iterable[Measurement], runs: int) -> list[dict[str, Any]]:
    """A row for each figure of each peer."""
    rows = []
    for peer in theirs:
        for part, values in ours.quality.items():
            others = peer.quality[part]
            for name in MEASURES if values and others else ():
                rows.append(row(f"{name} {part}", values[name], others[name], peer.name, "score", runs))  # type: ignore[index]
        rows.append(row("training", ours.seconds, peer.seconds, peer.name, "s", runs))
        if ours.memory_mb and peer.memory_mb:
            rows.append(row("peak memory", ours.memory_mb, peer.memory_mb, peer.name, "MB", runs))
    return rows


def row(what: str, ours: float, peer: float, peer_name: str, unit: str, runs: int) -> dict[str, Any]:
    """`ratio` is above 1 where fedcar is better; None where it would divide by zero."""
    better, worse = (ours, peer) if unit == "score" else (peer, ours)
    ratio = round(better / worse, 4) if worse else None
    return {
        "what": what,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "unit": unit,
        "ratio": ratio,
        "runs": runs,
    }


def speedup(rows: Iterable[dict[str, Any]]) -> float | None:
    """The smallest ratio over the rows of the main peer; None where it did not take part."""
    of_main_peer = [measured["ratio"] for measured in rows if measured["peer_name"].startswith(MAIN_PEER)]
    ratios = [ratio for ratio in of_main_peer if ratio is not None]
    return min(ratios, default=None)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, threads and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores,
        "memory_gb": memory_gb(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def installed(package: str) -> str | None:
    """The version of the package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
