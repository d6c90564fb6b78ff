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
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

from fedcar.bench.encode import Encoding, bench_encode, in_turns
from fedcar.bench.jobs import machine
from fedcar.bench.search import bench_search
from fedcar.bench.step import adapter_jobs, head_jobs, made_up, ridge_jobs
from fedcar.collection.collection import Collection
from fedcar.collection.demo import FOLDER as COLLECTION
from fedcar.common.measure import multiplies_bfloat16
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER, find
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever.retriever import Retriever

RATIOS = Path(__file__).with_name("ratios.json")
SLACK = 0.75
FEDCAR = (
    "import sys; sys.argv[1:] = ['search', sys.argv[1], 'why does it stop?']; from fedcar.cli.main import main; main()"
)
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
    found = bench_encode(COLLECTION, Encoding(["torch", "openvino"], questions=48, paragraphs=8, clock="cpu"))
    return {f"encode {row['what']}": row["ratio"] for row in found["rows"]}


def searching() -> dict[str, float]:
    """faiss.IndexFlatIP's time over ours, one question, 200,000 rows: where the index takes over."""
    found = bench_search(200_000, runs=15, clock="cpu")
    wanted = ("exact, float32, p50", "index, p50")
    return {f"search {row['what']}": row["ratio"] for row in found["rows"] if row["what"] in wanted}


def training() -> dict[str, float]:
    """What head and ridge consist of over head and ridge; a forward pass over a step of the adapter, the same batch."""
    made = made_up(Encoder.load(), 77, 2048)
    jobs = {"head, share of its products": head_jobs(*made), "ridge, share of its products": ridge_jobs(*made)}
    texts = [query.text for query in Collection.read(COLLECTION).queries.values()][:64]
    jobs["adapter, forward over step"] = adapter_jobs(DEFAULT_ENCODER, texts)
    if multiplies_bfloat16():
        jobs["adapter in bfloat16, forward over step"] = adapter_jobs(DEFAULT_ENCODER, texts, half=True)
    return {name: in_turns(one, 5, time.process_time)[1]["ours"] for name, one in jobs.items()}


def first_answer() -> dict[str, float]:
    """Start to one encoded question with sentence-transformers, over start to the bundle's first answer."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        documents = Collection.read(COLLECTION).documents
        retriever = Retriever.untrained(documents, Encoder.load(), FeatureCache(Path(folder) / "cache"))
        write_bundle(retriever, bundle, "int8")
        encoder = str(find(DEFAULT_ENCODER, offline=True)[0])
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
    for part in (encoding, searching, training, first_answer):
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
