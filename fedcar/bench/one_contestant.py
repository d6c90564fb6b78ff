"""One contestant of a benchmark in its own process: `python -m fedcar.bench.one_contestant TASK.json RESULT.json`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fedcar.bench.contestants import PEERS, PeerLeftOut, Task
from fedcar.collection.collection import Collection, Judged
from fedcar.common.measure import peak_memory_mb
from fedcar.errors import FedcarError
from fedcar.evaluation import metrics

# imported before the clock starts; nothing heavier stands above, so that bm25s is measured without torch
MODULES = {
    "fedcar": ("fedcar.training.train",),
    "sentence-transformers": ("sentence_transformers", "datasets", "accelerate", "fedcar.retriever.prepare"),
    "sklearn": ("sklearn.linear_model", "fedcar.retriever.prepare"),
    "setfit": ("setfit", "datasets", "accelerate", "sklearn.linear_model", "fedcar.retriever.prepare"),
    "bm25s": ("bm25s",),
    "hybrid": ("fedcar.encoder.encoder",),
}


@dataclass(frozen=True)
class Measurement:
    """What one system reached: quality is {part: {measure: value} or None}; None where memory cannot be told."""

    name: str
    quality: Mapping[str, Mapping[str, float] | None]
    seconds: float
    memory_mb: float | None


def main(arguments: Sequence[str]) -> None:
    """Read the task, do it, write the outcomes or the reason why there are none."""
    warnings.simplefilter("ignore")  # the parent has read the same collection and said it
    end_with_parent()
    task_file, result_file = map(Path, arguments)
    try:
        outcomes = compete(Task(**json.loads(task_file.read_text(encoding="utf-8"))))
        result: dict[str, Any] = {"outcomes": [asdict(outcome) for outcome in outcomes], "device": device()}
    except (PeerLeftOut, FedcarError) as reason:
        result = {"left_out": str(reason)}
    except Exception as error:  # whatever a peer raises, the others go on
        traceback.print_exc()
        result = {"left_out": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    result_file.write_text(json.dumps(result), encoding="utf-8")


def compete(task: Task) -> list[Measurement]:
    """Train the peer on the collection and measure it on the test split.

    The seconds begin when all is imported, before the encoder is read, and end when the system can answer; so does the
    memory. A peer that gives several systems (with and without BM25) has one clock: each costs what came before it.
    """
    for module in MODULES[task.peer]:
        import_module(module)
    collection = limited(Collection.read(task.collection), task.limit)
    start = time.monotonic()
    made = [
        (ready, round(time.monotonic() - start, 3), own_peak_memory_mb())
        for ready in PEERS[task.peer](task, collection)
    ]
    asked = fresh_questions(collection)
    return [
        Measurement(ready.name, quality(ready.rank(asked.texts), asked, collection.seen_documents()), seconds, memory)
        for ready, seconds, memory in made
    ]


def limited(collection: Collection, limit: int) -> Collection:
    """With at most `limit` of the judged training queries, chosen once and for every system alike."""
    asked = [query.id for query in collection.judged("train").queries]
    if not limit or len(asked) <= limit:
        return collection
    chosen = set(np.random.default_rng(0).choice(asked, limit, replace=False).tolist())
    training = {query: scores for query, scores in collection.judgements["train"].items() if query in chosen}
    return replace(collection, judgements={**collection.judgements, "train": training})


def fresh_questions(collection: Collection) -> Judged:
    """The judged test queries whose text does not stand in train, as `fedcar evaluate` takes them."""
    judged, trained_on = collection.judged("test"), collection.trained_on("test")
    rows = [row for row, query in enumerate(judged.queries) if query.id not in trained_on]
    return Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows))


def quality(ranking: list[list[str]], asked: Judged, seen: frozenset[str]) -> dict[str, dict[str, float] | None]:
    """The measures over all test queries, over those on seen and over those on unseen documents."""
    values = metrics.per_query(ranking, asked.relevant)
    answers = [{document_id for document_id, score in judged.items() if score > 0} for judged in asked.relevant]
    on_seen = np.array([not seen.isdisjoint(documents) for documents in answers], dtype=bool)
    parts = {"all": np.ones(len(on_seen), dtype=bool), "seen": on_seen, "unseen": ~on_seen}
    return {name: metrics.mean(values, rows) for name, rows in parts.items()}


def own_peak_memory_mb() -> float | None:
    """The largest resident memory of this program so far, in MB.

    Linux starts the figure of getrusage at the parent's memory; VmHWM begins with the program.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(round(int(line.split()[1]) * 1.024e-3, 1) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return peak_memory_mb()


def end_with_parent(seconds: float = 1.0) -> None:
    """A killed benchmark must not leave an hour of training behind; without effect where parents are not told of."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def device() -> str | None:
    """What torch computes on; None where it was not needed."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main(sys.argv[1:])
