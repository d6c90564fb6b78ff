"""`fedcar bench encode`: texts to vectors by the runtimes, beside SentenceTransformer.encode in the same process."""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.bench.jobs import machine, row, speedup
from fedcar.bench.one_contestant import fresh_questions
from fedcar.collection.collection import Collection
from fedcar.common.measure import CLOCKS
from fedcar.common.progress import Silent
from fedcar.common.vectors import unit
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.encoder.runtimes import choice
from fedcar.encoder.runtimes.names import EXACT
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from pathlib import Path

PEER = "sentence-transformers"
PARAGRAPH_WORDS = 150  # about 200 tokens
MATRIX = 2048


@dataclass(frozen=True)
class Encoding:
    """What is encoded and timed: so many questions and paragraphs, by these runtimes, in so many runs."""

    runtimes: Sequence[str] = ("auto",)
    encoder: str = DEFAULT_ENCODER
    questions: int = 256
    paragraphs: int = 64
    runs: int = 5
    clock: str = "wall"
    success: bool = False


def bench_encode(folder: str | Path, encoding: Encoding | None = None, report: Silent | None = None) -> dict[str, Any]:
    """Time fedcar's runtimes and SentenceTransformer.encode (its defaults) in turns; medians over the runs.

    The clock `cpu` counts CPU seconds, for one thread (OMP_NUM_THREADS=1) on a machine that does other work as well.

    Two kinds of text: the collection's questions, and paragraphs of 150 words (about 200 tokens) cut from its documents
    laid end to end. Beside each row of the contract's shape stand the mean cosine with float32 and the share of the
    FLOP/s that a large matrix product reaches in the same precision and run. With `success` also how many of the test
    questions find a right document first by the cosine of what each runtime makes of them, and in float32.

    Raises FedcarError where sentence-transformers is missing or the collection has no text.
    """
    report, encoding = report or Silent(), encoding or Encoding()
    encoder, questions, paragraphs, runs = encoding.encoder, encoding.questions, encoding.paragraphs, encoding.runs
    if runs < 1 or questions < 1 or paragraphs < 1:
        raise FedcarError("--runs, --questions and --paragraphs: must each be 1 or more")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise FedcarError("sentence-transformers is not installed, so there is nothing to compare with") from error
    collection = Collection.read(folder)
    texts = texts_of(collection, questions, paragraphs)
    ours = Encoder.load(encoder)
    fastest = choice.fastest(ours.model, texts["paragraph"]) if "auto" in encoding.runtimes else ""
    names = list(dict.fromkeys(fastest if name == "auto" else name for name in encoding.runtimes))
    peer = SentenceTransformer(str(ours.folder), device=str(ours.model.device))
    peer.max_seq_length = ours.model.max_tokens
    encoders = {name: Encoder(ours.model, runtime=name) for name in names}
    rows, details = [], []
    right: dict[str, float] = {}
    if encoding.success:
        report.say("success@1 by what each runtime makes of documents and test questions")
        compared = {EXACT: ours, **encoders}
        right = {name: success_of(candidate, collection) for name, candidate in compared.items()}
    for kind, chosen in texts.items():
        report.say(f"{kind}: {len(chosen)} texts, {runs} runs of {', '.join(names)} and {PEER}")
        exact = unit(ours.encode(chosen))
        jobs: dict[str, Callable[[], object]] = {PEER: partial(peer.encode, list(chosen))}
        jobs |= {name: partial(candidate.encode, chosen) for name, candidate in encoders.items()}
        seconds, ratios = in_turns(jobs, runs, CLOCKS[encoding.clock])
        work = flop(ours, chosen)
        for name, candidate in encoders.items():
            measured = row(
                f"{kind}, {name}", len(chosen) / seconds[name], len(chosen) / seconds[PEER], PEER, "score", runs
            )
            rows.append({**measured, "unit": "texts/s", "ratio": round(ratios[name], 4)})
            cosine = float(np.einsum("nd,nd->n", unit(candidate.encode(chosen)), exact).mean())
            reached, peak = work / seconds[name], peak_flops("bf16" in name, CLOCKS[encoding.clock])
            details.append(
                {
                    "what": f"{kind}, {name}",
                    "cosine": round(cosine, 6),
                    "gflop_s": round(reached / 1e9, 1),
                    "share_of_peak": round(reached / peak, 3),
                    **({"success@1": round(right[name], 4), "of_float32": round(right[EXACT], 4)} if right else {}),
                }
            )
    about = {
        **machine(),
        "clock": encoding.clock,
        "device": str(ours.model.device),
        "encoder": str(encoder),
        "encoded": details,
    }
    return {"machine": about, "rows": rows, "speedup": speedup(rows)}


def success_of(encoder: Encoder, collection: Collection) -> float:
    """Success@1 on the fresh test questions by cosine alone."""
    asked = fresh_questions(collection)
    documents = [document for document in collection.documents if document.full_text]
    if not len(asked):
        raise FedcarError(f"{collection.name}: no judged query in the split test, so there is no success to measure")
    rows = unit(encoder.encode([document.full_text for document in documents]))
    best = (unit(encoder.encode(asked.texts)) @ rows.T).argmax(axis=1)
    return float(
        np.mean([judged.get(documents[row].id, 0) > 0 for row, judged in zip(best, asked.relevant, strict=True)])
    )


def texts_of(collection: Collection, questions: int, paragraphs: int) -> dict[str, list[str]]:
    """Its first questions, and paragraphs of its documents' words; repeated where there are too few."""
    asked = [query.text for query in collection.queries.values() if query.text.strip()]
    words = [word for document in collection.documents for word in document.full_text.split()]
    if not asked or not words:
        raise FedcarError(f"{collection.name}: no question or no word in the documents, so nothing to encode")
    starts = [number * PARAGRAPH_WORDS for number in range(paragraphs)]
    laid = [words[(start + place) % len(words)] for start in starts for place in range(PARAGRAPH_WORDS)]
    return {
        "question": [asked[number % len(asked)] for number in range(questions)],
        "paragraph": [" ".join(laid[start : start + PARAGRAPH_WORDS]) for start in starts],
    }


def in_turns(
    jobs: dict[str, Callable[[], object]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each job, and the median over the runs of the first one's seconds over each other's.

    The jobs of a run follow one another, so that other work on the machine hits a ratio's two sides alike.
    """
    first = next(iter(jobs))
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()  # what is made at the first call is no part of it
    for _ in range(runs):
        for name, job in jobs.items():
            start = clock()
            job()
            seconds[name].append(clock() - start)
    ratios = {
        name: median(peer / mine for peer, mine in zip(seconds[first], times, strict=True))
        for name, times in seconds.items()
    }
    return {name: median(times) for name, times in seconds.items()}, ratios


def flop(encoder: Encoder, texts: Sequence[str]) -> float:
    """Multiplications and additions of one pass: 2 for each weight of the blocks and token, and the attention."""
    model = encoder.model
    weights = sum(parameter.numel() for parameter in model.transformer.parameters()) - model.embedding.weight.numel()
    blocks = int(model.model_config.num_hidden_layers)
    lengths = np.array([len(ids) for ids in encoder.tokenize(texts)], dtype=np.float64)
    return float((2 * weights * lengths + 4 * blocks * encoder.dimension * lengths**2).sum())


def peak_flops(bfloat16: bool, clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of a large matrix product in torch, the best of three."""
    import torch

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    matrix = torch.ones((MATRIX, MATRIX), dtype=dtype)
    best = np.inf
    for _ in range(4):
        start = clock()
        matrix @ matrix
        best = min(best, clock() - start)
    return 2 * MATRIX**3 / best
