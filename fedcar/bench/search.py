"""`fedcar bench search`: rows in three kinds and the index over them, beside faiss.IndexFlatIP in the same process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.bench.jobs import machine, row
from fedcar.common.measure import CLOCKS
from fedcar.common.progress import Silent
from fedcar.common.tensors import mapped_tensors
from fedcar.common.vectors import unit
from fedcar.errors import FedcarError
from fedcar.head.rows import KINDS, Rows
from fedcar.retriever.row_index import RowIndex, library

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]

PEER = "IndexFlatIP"
DIMENSION = 384
CLUSTER = 100  # made-up rows around one centre
QUESTIONS = 200
K = 10


def bench_search(
    rows: int = 1_000_000,
    *,
    runs: int = 20,
    cache: Path | None = None,
    clock: str = "wall",
    report: Silent | None = None,
) -> dict[str, Any]:
    """Find the ten best of so many made-up rows, or of the hidden states in a cache; the contract's shape.

    p50 and p99 of single questions and the time of one in a batch; under machine["searched"] recall@10 against the
    exact answer and what must stay in memory as a share of float32 rows: of an index, its lists alone, as the rows that
    it scores with are mapped from a file. A ratio's two sides are timed in turns; for `clock` see `bench_encode`.
    """
    report = report or Silent()
    if rows < 1000 or runs < 1:
        raise FedcarError("--rows: must be 1000 or more, and --runs 1 or more")
    vectors = clustered(rows + QUESTIONS) if cache is None else stored(cache)
    if len(vectors) <= QUESTIONS:
        raise FedcarError(f"{cache}: {len(vectors)} hidden states of width {DIMENSION}; name a cache that holds more")
    vectors, questions = vectors[:-QUESTIONS], vectors[-QUESTIONS:]
    faiss = library()
    flat = faiss.IndexFlatIP(DIMENSION)
    flat.add(vectors)

    def exact(questions: NDArray[np.float32]) -> NDArray[np.int64]:
        places: NDArray[np.int64] = flat.search(questions, K)[1]
        return places

    searches: dict[str, tuple[Search, float]] = {}
    for kind in KINDS:
        stored_rows = Rows.of(vectors, kind)
        share = sum(array.nbytes for array in stored_rows.arrays("rows").values()) / vectors.nbytes
        searches[f"exact, {kind}"] = (lambda asked, of=stored_rows: of.nearest(asked, K)[1]), share  # type: ignore[misc]
    start = time.perf_counter()
    index = RowIndex.build(vectors)
    report.say(f"index built in {time.perf_counter() - start:.0f} s")
    share = index.size / vectors.nbytes
    with tempfile.TemporaryDirectory(prefix="fedcar-bench-") as folder:
        for name, kind in (("index", "float32"), ("index, int8 rows", "int8")):
            mapped = on_disk(Rows.of(vectors, kind), Path(folder) / f"{kind}.safetensors")
            searches[name] = (lambda asked, of=mapped: index.search(asked, of, K)[1]), share  # type: ignore[misc]
        measured, searched = compared(searches, exact, questions, runs, CLOCKS[clock], report)
    about = {**machine(), "clock": clock, "rows": len(vectors), "made_up": cache is None, "searched": searched}
    return {"machine": about, "rows": measured, "speedup": min(measure["ratio"] for measure in measured[:1])}


def compared(
    searches: Mapping[str, tuple[Search, float]],
    exact: Search,
    questions: NDArray[np.float32],
    runs: int,
    clock: Callable[[], float],
    report: Silent,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Times of each search beside the exact one, as the contract's rows; its recall and memory."""
    wanted, measured, searched = exact(questions), [], []
    peer_batched = batched(exact, questions, clock)
    for name, (search, memory) in searches.items():
        answers = search(questions)
        recall = np.mean([len({*ours} & {*best}) / K for ours, best in zip(answers, wanted, strict=True)])
        ours, peer, ratio = single(search, exact, questions, runs, clock)
        for quantile, place in (("p50", 50), ("p99", 99)):
            mine, theirs = (round(float(np.percentile(times, place)), 4) for times in (ours, peer))
            timed = row(f"{name}, {quantile}", mine, theirs, PEER, "ms", runs)
            measured.append({**timed, "ratio": round(ratio, 4)} if quantile == "p50" else timed)
        together = batched(search, questions, clock)
        measured.append(row(f"{name}, one of {QUESTIONS}", together, peer_batched, PEER, "ms", 1))
        searched.append({"what": name, "recall@10": round(float(recall), 4), "memory": round(memory, 3)})
        report.say(f"{name}: {measured[-3]['ours']} ms, recall {recall:.4f}")
    return measured, searched


def on_disk(rows: Rows, file: Path) -> Rows:
    """The same rows, mapped from this file."""
    from safetensors.numpy import save_file

    save_file(rows.arrays("rows"), file)
    return Rows.from_arrays(mapped_tensors(file), "rows")


def single(
    search: Search, peer: Search, questions: NDArray[np.float32], runs: int, clock: Callable[[], float]
) -> tuple[list[float], list[float], float]:
    """Milliseconds of single questions, ours and the peer's in turns, and the median of their ratios."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for milliseconds, ask in zip(times, (search, peer), strict=True):
            start = clock()
            ask(questions[run % len(questions)][None])
            if run:  # the first is to warm up
                milliseconds.append((clock() - start) * 1e3)
    return *times, median(theirs / ours for ours, theirs in zip(*times, strict=True))


def batched(search: Search, questions: NDArray[np.float32], clock: Callable[[], float]) -> float:
    """Milliseconds of one question among all of them."""
    start = clock()
    search(questions)
    return round((clock() - start) * 1e3 / len(questions), 4)


def clustered(rows: int, dimension: int = DIMENSION, seed: int = 0) -> NDArray[np.float32]:
    """Made-up unit vectors (rows, dimension) in clusters of a hundred."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, rows // CLUSTER), dimension), dtype=np.float32)
    result = np.empty((rows, dimension), dtype=np.float32)
    for start in range(0, rows, 1 << 16):
        part = slice(start, min(start + (1 << 16), rows))
        noise = generator.standard_normal((part.stop - start, dimension), dtype=np.float32)
        result[part] = unit(centres[generator.integers(len(centres), size=part.stop - start)] + 0.7 * noise)
    return result


def stored(cache: Path) -> NDArray[np.float32]:
    """The distinct hidden states of MiniLM's width in a cache folder, of unit length, in a seeded order."""
    record = np.dtype([("pooled", np.float32, (DIMENSION,)), ("layers", np.float16, (6, DIMENSION))])
    parts = [np.zeros((0, DIMENSION), np.float32)]
    for file in sorted(cache.glob(f"*-{DIMENSION}-*-6/states.bin")):
        parts.append(np.memmap(file, record, "r", shape=(file.stat().st_size // record.itemsize,))["pooled"])
    vectors = np.unique(np.concatenate(parts), axis=0)
    return unit(vectors[np.random.default_rng(0).permutation(len(vectors))])
