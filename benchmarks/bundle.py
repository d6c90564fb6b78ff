"""The edge bundle against its retriever: the same answers? how large, how fast to the first one, how much memory?

python benchmarks/bundle.py RETRIEVER [--collection COLLECTION] [--runs 5] [--fp32 FOLDER] [--int8 FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np

from fedcar.bench.jobs import machine
from fedcar.bench.one_contestant import fresh_questions
from fedcar.collection.collection import Collection
from fedcar.common.vectors import top_k
from fedcar.export.bundle import load_bundle
from fedcar.export.stock import export
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.searcher import Searcher

TIE = 1e-5
FIRST_ANSWER = """
import json, sys, time
started = time.time() - {before}
sys.argv = ["fedcar", "search", {folder!r}, {question!r}, "--json"]
from fedcar.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
heavy = [name for name in ("torch", "transformers", "scipy", "bm25s") if name in sys.modules]
print(json.dumps({{"peak_mb": int(peak) * 1.024e-3, "seconds": time.time() - {before}, "imported": heavy}}))
"""


def scores_of(searcher: Searcher, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ten best rows of each question and their scores."""
    reading = searcher.encoder.read(texts, searcher.evidence.deep)
    candidates, evidence = searcher.evidence_for(texts, reading.states, reading.tokens)
    scores = searcher.scores(texts, reading.states, candidates, evidence, reading.adapted)
    best = top_k(scores, 10)
    return np.take_along_axis(candidates, best, axis=1), np.take_along_axis(scores, best, axis=1)


def same_hits(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of questions whose ten hits are the same, up to ties of TIE in the score."""
    same = (found[0] == wanted[0]) | (np.abs(found[1] - wanted[1]) <= TIE)
    return float(same.all(axis=1).mean())


def success(rows: np.ndarray, searcher: Searcher, relevant: list[dict[str, int]], depth: int) -> float:
    ids = np.array([document.id for document in searcher.documents], dtype=object)
    hits = [any(judged.get(one, 0) > 0 for one in ids[row[:depth]]) for row, judged in zip(rows, relevant, strict=True)]
    return float(np.mean(hits))


def first_answer(folder: Path, question: str) -> dict[str, object]:
    """Start to first answer in a fresh process, and its largest memory."""
    code = FIRST_ANSWER.format(before=time.time(), folder=str(folder), question=question)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("retriever", type=Path)
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="Keep the bundles in this folder, and take those that are there.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    retriever = Retriever.load(asked.retriever)
    result: dict[str, object] = {"machine": machine(), "documents": len(retriever.documents)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        for precision in ("fp32", "int8"):
            bundle = folder / f"{asked.retriever.name}-{precision}"
            if not bundle.exists():
                export(retriever, bundle, "bundle", precision)
            sizes = {file.name: file.stat().st_size for file in bundle.iterdir()}
            per_document = ("documents.jsonl", "evidence.safetensors", "rows.safetensors")
            without = sum(size for name, size in sizes.items() if name not in per_document)
            runs = [first_answer(bundle, "how does it work and why?") for _ in range(asked.runs)]
            row: dict[str, object] = {
                "mb": round(sum(sizes.values()) / 1e6, 1),
                "mb_without_documents": round(without / 1e6, 1),
                "first_answer_s": round(median(run["seconds"] for run in runs), 3),
                "peak_mb": round(median(run["peak_mb"] for run in runs), 1),
                "imported": runs[0]["imported"],
            }
            if asked.collection:
                judged = fresh_questions(Collection.read(asked.collection))
                texts, relevant = list(judged.texts)[: asked.limit], list(judged.relevant)[: asked.limit]
                wanted, found = scores_of(retriever, texts), scores_of(load_bundle(bundle), texts)
                row |= {
                    "questions": len(texts),
                    "same_hits": round(same_hits(found, wanted), 4),
                    "largest_difference": float(np.abs(np.sort(found[1]) - np.sort(wanted[1])).max()),
                    "same_first": round(float((found[0][:, 0] == wanted[0][:, 0]).mean()), 4),
                    "success@1": [round(success(one[0], retriever, relevant, 1), 4) for one in (wanted, found)],
                    "success@10": [round(success(one[0], retriever, relevant, 10), 4) for one in (wanted, found)],
                }
            result[precision] = row
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
