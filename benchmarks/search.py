"""Search over N rows of 384: exact in three kinds and with faiss, against faiss.IndexFlatIP.

python benchmarks/search.py [--rows 1000000] [--runs 50] [--cache FOLDER]

Vectors are made up: clusters of a hundred. With --cache (a hidden-state cache) recall is measured on real ones too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np

from fedcar.bench import machine
from fedcar.late_interaction import unit
from fedcar.metrics import top_k
from fedcar.row_index import RowIndex
from fedcar.rows import KINDS, Rows


def clustered(rows: int, dimension: int = 384, size: int = 100) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(1, rows // size), dimension), dtype=np.float32)
    result = np.empty((rows, dimension), dtype=np.float32)
    for start in range(0, rows, 1 << 16):
        part = slice(start, min(start + (1 << 16), rows))
        noise = generator.standard_normal((part.stop - start, dimension), dtype=np.float32)
        result[part] = unit(centres[generator.integers(len(centres), size=part.stop - start)] + 0.7 * noise)
    return result


def times(search: Callable[[np.ndarray], object], queries: np.ndarray, runs: int) -> dict[str, float]:
    """p50 and p99 in ms of one query alone, and of one in a batch of all."""
    search(queries[:1])
    single = []
    for run in range(runs):
        start = time.perf_counter()
        search(queries[run % len(queries)][None])
        single.append((time.perf_counter() - start) * 1e3)
    start = time.perf_counter()
    search(queries)
    batched = (time.perf_counter() - start) * 1e3 / len(queries)
    p99 = float(np.percentile(single, 99))
    return {"p50_ms": round(median(single), 3), "p99_ms": round(p99, 3), "batched_ms": round(batched, 3)}


def exact(rows: Rows) -> Callable[[np.ndarray], np.ndarray]:
    return lambda queries: top_k(rows.products(queries), 10)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, wanted, strict=True)]))


def measured(vectors: np.ndarray, queries: np.ndarray, runs: int) -> dict[str, object]:
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    wanted = flat.search(queries, 10)[1]
    full = vectors.nbytes
    result: dict[str, object] = {"rows": len(vectors)}
    peer = times(lambda asked: flat.search(asked, 10), queries, runs)
    result["IndexFlatIP"] = {**peer, "memory": 1.0, "recall@10": 1.0}
    for kind in KINDS:
        rows = Rows.of(vectors, kind)
        found = np.concatenate([exact(rows)(queries[start : start + 16]) for start in range(0, len(queries), 16)])
        size = sum(array.nbytes for array in rows.arrays("rows").values()) / full
        ours = times(exact(rows), queries, runs)
        result[f"exact {kind}"] = {**ours, "memory": round(size, 3), "recall@10": round(recall(found, wanted), 4)}
        if kind == "int8":
            start = time.perf_counter()
            index = RowIndex.build(rows)
            built = time.perf_counter() - start
            for probed in (16, 32, 64, 125, 250):
                index_share(probed)
                found = index.search(queries, vectors, 10)[1]
                ours = times(lambda asked, index=index: index.search(asked, vectors, 10), queries, runs)
                more = {"build_s": round(built, 1), "recall@10": round(recall(found, wanted), 4)}
                size_of_index = faiss.serialize_index(index._index).nbytes / full
                result[f"faiss {probed} probed"] = {**ours, "memory": round(size_of_index, 3), **more}
    return result


def index_share(probed: int) -> None:
    from fedcar import row_index

    row_index.LEAST_PROBED, row_index.PROBED_SHARE = probed, 1 << 30


def real_vectors(cache: Path) -> np.ndarray:
    found = []
    for file in cache.glob("*-384-*/states.bin"):
        dtype = np.dtype([("pooled", np.float32, (384,)), ("layers", np.float16, (6, 384))])
        count = file.stat().st_size // dtype.itemsize
        found.append(np.memmap(file, dtype, "r", shape=(count,))["pooled"])
    return np.unique(unit(np.concatenate(found)), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    vectors = clustered(asked.rows + 200)
    result: dict[str, object] = {"machine": machine()}
    result["made up"] = measured(vectors[:-200], vectors[-200:], asked.runs)
    if asked.cache:
        real = real_vectors(asked.cache)
        order = np.random.default_rng(0).permutation(len(real))
        result["real"] = measured(real[order[:-200]], real[order[-200:]], asked.runs)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
