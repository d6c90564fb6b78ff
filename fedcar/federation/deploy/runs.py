"""The runs of a server's folder: a new one, one at a time, and what there is to see of them and of devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedcar.common.files import replace_json
from fedcar.common.history import History
from fedcar.errors import FedcarError
from fedcar.federation.deploy.folder import NOT_SERVED, ServerFolder
from fedcar.federation.deploy.options import LOCK, OPTIONS, RETRIEVER, RunOptions


def new_run(place: ServerFolder, options: RunOptions) -> Path:
    """A folder for a new run, named by the time."""
    place.runs.mkdir(exist_ok=True)
    name = stem = time.strftime("run-%Y%m%d-%H%M%S")
    number = 1
    while (place.runs / name).exists():
        name, number = f"{stem}-{number}", number + 1
    run = place.runs / name
    run.mkdir()
    replace_json(run / OPTIONS, asdict(options))
    return run


@contextmanager
def one_run(place: ServerFolder, run: str = "") -> Iterator[None]:
    """Refuse a second run while one is on."""
    with place.locked(LOCK, run) as free:
        if not free:
            raise FedcarError(f"{place.folder}: a run is on; see fedcar status, and wait for it or stop it")
        yield


def check_serving(place: ServerFolder) -> None:
    """Refuse a run without a server."""
    if not place.serving():
        raise FedcarError(f"{place.folder}: {NOT_SERVED}")


def status(place: ServerFolder, node_states: Callable[[ServerFolder], Mapping[int, str]]) -> dict[str, Any]:
    """Whether the server runs, its devices, its runs; a server that runs is asked for `node_states`."""
    served = place.settings()
    serving = place.serving()
    states: Mapping[int, str] = {}
    if serving:
        with suppress(FedcarError):  # devices are "unknown" while the SuperLink starts
            states = node_states(place)
    on = place.held(LOCK)
    running = (place.folder / LOCK).read_text(encoding="utf-8") if on else ""
    devices = {name: states.get(int(node["node"]), "unknown") for name, node in sorted(place.nodes().items())}
    folders = [file.parent for file in sorted(place.runs.glob(f"run-*/{OPTIONS}"))]
    runs = [{**_run_status(run), "on": run.name == running} for run in folders]
    return {
        "server": f"{served.host}:{served.port}", "serving": serving, "run_on": on, "devices": devices, "runs": runs,
    }  # fmt: skip


def _run_status(run: Path) -> dict[str, Any]:
    """Reads only, so that it disturbs no run that is on."""
    options = RunOptions.read(run)
    records = History.of(run / "history.jsonl", mend=False).records
    last = records[-1] if records else {}
    return {
        "run": run.name, "method": options.method, "rounds": len(records),
        "of": options.exchanges or options.rounds["rounds"] or None,
        "selection": last.get("selection"), "finished": (run / RETRIEVER).exists(),
    }  # fmt: skip
