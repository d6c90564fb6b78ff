"""What searching many rows by the index keeps in memory, in a process of its own that maps the rows from the disk.

python benchmarks/search_memory.py [--rows 1000000] [--questions 2000]        (Linux; needs the extra faiss)

Anonymous memory stays as long as the process lives; pages of the mapped file are read when a row is scored, and the
system takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from fedcar.bench.search import clustered, on_disk
from fedcar.common.tensors import mapped_tensors
from fedcar.head.rows import Rows
from fedcar.retriever.row_index import RowIndex

K = 10


def resident() -> dict[str, int]:
    """MB of this process: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return {name: int(said[f"Rss{name}"].split()[0]) // 1000 for name in ("Anon", "File")}


def search(folder: Path) -> None:
    """Answer all questions one by one; one JSON object on stdout."""
    questions = np.load(folder / "questions.npy")
    before = resident()
    index = RowIndex.read(folder)
    assert index is not None, "faiss is not installed"
    rows = Rows.from_arrays(mapped_tensors(folder / "rows.safetensors"), "rows")
    start = time.perf_counter()
    for question in questions:
        index.search(question[None], rows, K)
    spent = (time.perf_counter() - start) / len(questions)
    print(json.dumps({"before": before, "after": resident(), "ms a question": round(1e3 * spent, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.of:
        search(asked.of)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = clustered(asked.rows + asked.questions)
        np.save(folder / "questions.npy", vectors[asked.rows :])
        rows = on_disk(Rows(vectors[: asked.rows]), folder / "rows.safetensors")
        start = time.process_time()
        RowIndex.build(rows).write(folder)
        size = (folder / "rows.faiss").stat().st_size + (folder / "rows.numbers.npy").stat().st_size
        spent = time.process_time() - start
        print(f"{asked.rows:,} rows, {rows.values.nbytes / 1e6:.0f} MB; index built in {spent:.0f} s of CPU")
        print(f"index: {size / 1e6:.0f} MB, {size / rows.values.nbytes:.3f} of the rows")
        command = [sys.executable, __file__, "--of", name]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
