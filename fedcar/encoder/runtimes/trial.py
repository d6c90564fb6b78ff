"""What the process does in which runtimes are tried: build each, run it, compare it with torch, time those that agree.

It tells `watching` of every step before it takes it, so that a crash is known by the step that it came in.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.measure import OtherWork
from fedcar.common.vectors import unit
from fedcar.encoder.model import FrozenModel
from fedcar.encoder.reading import Runtime, batches_by_length, padded
from fedcar.encoder.runtimes.building import built
from fedcar.errors import FedcarError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKENS_PER_BATCH = 1024
SECONDS = 1.0  # for all candidates together, after each is built and has run once
ORDER, EVENTS = "order.json", "events.jsonl"

Batches = Sequence[tuple["NDArray[np.int64]", "NDArray[np.int64]"]]
Say = Callable[..., None]


def main(place: str) -> None:
    """Do what the order in the folder says, and write a line there for each event."""
    import torch

    folder = Path(place)
    order = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    _expect_the_worst(order["seconds"])
    torch.set_num_threads(order["threads"])
    with (folder / EVENTS).open("a", encoding="utf-8") as stream:

        def say(**event: Any) -> None:  # noqa: ANN401 - whatever JSON takes
            stream.write(json.dumps(event) + "\n")
            stream.flush()

        model = FrozenModel.load(order["encoder"], order["pooling"], offline=True)
        _try(model, order["runtimes"], _batches(model, order["token_ids"]), order["agreement"], say)


def _expect_the_worst(seconds: float) -> None:
    """End by itself after so long, leave no core file, and where memory is short be what the system ends first."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if hasattr(signal, "alarm"):
        signal.alarm(max(1, int(seconds)))
    os.environ["HF_HUB_OFFLINE"] = "1"


def _batches(model: FrozenModel, token_ids: Sequence[Sequence[int]]) -> Batches:
    return [
        padded([token_ids[row] for row in rows], model.padding_id)
        for rows in batches_by_length([len(ids) for ids in token_ids], TOKENS_PER_BATCH)
    ]


def _try(model: FrozenModel, names: Sequence[str], batches: Batches, agreement: float | None, say: Say) -> None:
    """The first name is the reference. Timed are those that agree; none without an `agreement`."""
    runtimes: dict[str, Runtime] = {}
    wanted: NDArray[np.float32] | None = None
    for name in names:
        say(step=name)
        try:
            runtime = built(model, name)
            start = time.perf_counter()
            found = unit(np.concatenate([runtime.run(*batch).pooled for batch in batches]))
            seconds = time.perf_counter() - start
        except Exception as error:  # the libraries raise many kinds; each means that this one cannot run the model
            say(of=name, **_fault(name, error))
            if wanted is None:
                return  # nothing to compare with
            continue
        wanted = found if wanted is None else wanted
        cosine = float(np.einsum("nd,nd->n", found, wanted).mean())
        say(of=name, cosine=cosine if np.isfinite(cosine) else 0.0, seconds=seconds)
        if agreement is not None and cosine >= agreement:
            runtimes[name] = runtime
    if agreement is not None:
        others = OtherWork()
        seconds_of = in_turns(runtimes, batches, before=lambda name: say(step=name))
        say(seconds=seconds_of, others=others.share())


def _fault(name: str, error: Exception) -> dict[str, Any]:
    if isinstance(error, MemoryError):
        return {"memory": True}
    if isinstance(error, FedcarError):
        return {"error": str(error)}
    return {"error": f"--runtime {name}: it fails ({first_line(error)}); take --runtime torch"}


def in_turns(
    runtimes: dict[str, Runtime],
    batches: Batches,
    seconds: float = SECONDS,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, float]]:
    """Each one's least time for all batches, on the wall and of the CPU.

    They take turns, so that other work on the machine hits all alike.
    """
    times = {name: {"wall": np.inf, "cpu": np.inf} for name in runtimes}
    end = time.perf_counter() + seconds
    while True:
        for name, runtime in runtimes.items():
            before(name)
            wall, cpu = time.perf_counter(), time.process_time()
            for batch in batches:
                runtime.run(*batch)
            found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            times[name] = {clock: min(value, times[name][clock]) for clock, value in found.items()}
        if time.perf_counter() > end:
            return times
