"""The regression guard behind `make bench`: ratios of a short set against the committed ones, never absolute times.

python benchmarks/guard.py [--write]

Every figure is a ratio of the CPU seconds of two things that this process (or two fresh ones) did in turns, in one
thread, so that other work on the machine counts little: above 1 where fedcar is better; a share is at most about 1.
One that is more than a quarter below what stands in ratios.json fails; --write puts the new ones there. The committed
ratios belong to the machine that is named in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedcar import Encoder
from fedcar.adam import Adam, Group
from fedcar.adapter import Adapter
from fedcar.bench import machine
from fedcar.bench_encode import bench_encode, in_turns
from fedcar.bench_search import bench_search
from fedcar.bundle import write_bundle
from fedcar.closed_form import Statistics, solve
from fedcar.collection import Collection
from fedcar.demo import COLLECTION
from fedcar.features import FeatureCache
from fedcar.model_files import find
from fedcar.retriever import Retriever

RATIOS = Path(__file__).with_name("ratios.json")
SLACK = 0.75
FEDCAR = "import sys; sys.argv[1:] = ['search', sys.argv[1], 'why does it stop?']; from fedcar.cli import main; main()"
PEER = (
    "import sys; from sentence_transformers import SentenceTransformer as S; "
    "S(sys.argv[1], device='cpu').encode(['why does it stop?'])"
)


def seconds_of(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def encoding() -> dict[str, float]:
    """Texts per CPU second over those of SentenceTransformer.encode."""
    found = bench_encode(COLLECTION, runtimes=["torch", "openvino"], questions=48, paragraphs=8, clock="cpu")
    return {f"encode {row['what']}": row["ratio"] for row in found["rows"]}


def searching() -> dict[str, float]:
    """faiss.IndexFlatIP's time over ours, one question, 200,000 rows: where the index takes over."""
    found = bench_search(200_000, runs=15, clock="cpu")
    wanted = ("exact, float32, p50", "index, p50")
    return {f"search {row['what']}": row["ratio"] for row in found["rows"] if row["what"] in wanted}


def closed_form() -> dict[str, float]:
    """The matrix products and the factorisation that ridge consists of, over ridge itself."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((3000, 2500)).astype(np.float32)
    targets = np.eye(77, dtype=np.float32)[generator.integers(77, size=3000)]

    def products() -> None:
        gram = torch.from_numpy(features.T @ features + np.eye(2500, dtype=np.float32))
        factor = torch.linalg.cholesky(gram)
        torch.cholesky_solve(torch.from_numpy(features.T @ targets), factor)

    jobs = {"products": products, "ridge": lambda: solve(Statistics.of(features, targets))}
    return {"ridge, share of its products": in_turns(jobs, 5, time.process_time)[1]["ridge"]}


def adapter_step() -> dict[str, float]:
    """A forward pass over a training step of the adapter: the same batch, float32."""
    encoder = Encoder.load()
    adapter = Adapter("full", encoder.embedding_width)
    encoder.insert(adapter)
    optimiser = Adam([Group(list(adapter.parameters()), 1e-3)])
    texts = [query.text for query in Collection.read(COLLECTION).queries.values()][:64]
    token_ids = encoder.tokenize(texts)

    def forward() -> None:
        with torch.inference_mode():
            encoder.hidden_states(token_ids)

    def step() -> None:
        for parameter in adapter.parameters():
            parameter.grad = None
        encoder.hidden_states(token_ids).square().mean().backward()
        optimiser.step()

    jobs: dict[str, Callable[[], object]] = {"forward": forward, "step": step}
    return {"adapter, forward over step": in_turns(jobs, 5, time.process_time)[1]["step"]}


def first_answer() -> dict[str, float]:
    """Start to one encoded question with sentence-transformers, over start to the bundle's first answer."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        documents = Collection.read(COLLECTION).documents
        retriever = Retriever.untrained(documents, Encoder.load(), FeatureCache(Path(folder) / "cache"))
        write_bundle(retriever, bundle, "int8")
        encoder = str(find("all-MiniLM-L6-v2", offline=True)[0])
        pairs = [
            (seconds_of([sys.executable, "-c", PEER, encoder]), seconds_of([sys.executable, "-c", FEDCAR, str(bundle)]))
            for _ in range(5)
        ]
    return {"bundle, first answer": median(theirs / ours for theirs, ours in pairs)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="Commit to these ratios.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, float] = {}
    for part in (encoding, searching, closed_form, adapter_step, first_answer):
        start = time.perf_counter()
        found |= part()
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    ratios = {name: round(float(value), 3) for name, value in found.items()}
    if asked.write:
        RATIOS.write_text(json.dumps({"machine": machine(), "ratios": ratios}, indent=2) + "\n", encoding="utf-8")
        return 0
    committed = json.loads(RATIOS.read_text(encoding="utf-8"))["ratios"]
    failed = compared(ratios, committed)
    for name, value in ratios.items():
        mark = "FAILED" if name in failed else "" if name in committed else "new"
        print(f"{name:<40} {value:8.3f}  committed {committed.get(name, float('nan')):8.3f}  {mark}")
    return 1 if failed else 0


def compared(found: dict[str, float], committed: dict[str, float]) -> list[str]:
    """The figures that are gone, or more than a quarter below the committed ones."""
    return [name for name, value in committed.items() if not found.get(name, 0.0) >= SLACK * value]


if __name__ == "__main__":
    sys.exit(main())
