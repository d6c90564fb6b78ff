"""How the steps grow with documents and with training questions: a log-log table and figure with fitted exponents.

python benchmarks/growth.py COLLECTION... [--documents 31623] [--labels 1000000 --narrow ENCODER] [--rows 1000000]
                                          [--questions 1000000] [--texts 100000] [--figures FOLDER]
(0 leaves a part out)

CPU seconds of one thread, so that other work on the machine counts little. Documents are real and repeated; their
states are made up, since only sizes count here. Labels are five words of them each, and their states as narrow as a
small encoder's. Questions are those of the last collection, made distinct by a number. The small encoder itself, and
no made-up one, encodes the texts (the same questions) and is trained with an adapter.
Exponents are fitted to the upper half of the sizes, where constants have worn off.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from xml.sax.saxutils import escape

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from made_up import documents_of, made_up_encoder

from fedcar import evaluate, train
from fedcar.bench.jobs import machine
from fedcar.bench.search import clustered
from fedcar.collection.collection import Collection, Document, Query
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.head.closed_form import Statistics
from fedcar.head.feature_map import FeatureMap
from fedcar.head.naive_bayes import gram_counts
from fedcar.head.rows import Rows
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.row_index import RowIndex, is_installed
from fedcar.training.ridge import FEATURES_AT_ONCE

MOST_TRAINED = 31_623  # questions that a head is trained on
MOST_ADAPTED = 10_000  # questions that an adapter is trained on
EVALUATED = 100  # questions
Points = dict[str, dict[int, float]]
NEW = Document("new", "A new one", "It came later than all others. It is found at once.")
COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#6a1b9a", "#8d6e00", "#00838f", "#ad1457", "#455a64", "#5d4037", "#283593")


def sizes(first: int, last: int) -> list[int]:
    """Two a decade."""
    steps = int(round(2 * np.log10(last / first)))
    return [round(first * 10 ** (step / 2)) for step in range(steps + 1)]


def seconds(job: Callable[[], object], least: float = 0.05) -> float:
    """CPU seconds of one call, the mean of as many as take a twentieth of a second."""
    calls, start = 0, time.process_time()
    while True:
        job()
        calls += 1
        if (spent := time.process_time() - start) > least:
            return spent / calls


def labels_of(collections: Sequence[str], number: int) -> list[Document]:
    """Five words each, drawn from the collections' documents."""
    words = [word for document in documents_of(collections, 1000) for word in document.text.split()]
    drawn = np.random.default_rng(0).integers(len(words), size=(number, 5))
    return [Document(f"d{row}", " ".join(words[place] for place in places), "") for row, places in enumerate(drawn)]


def documents(encoder: Encoder, made: Callable[[int], list[Document]], most: int) -> Iterator[tuple[str, int, float]]:
    """Building, saving, loading, searching and editing a whole retriever."""
    for number in sizes(100, most):
        with tempfile.TemporaryDirectory() as folder:
            chosen, place = made(number), Path(folder) / "retriever"
            start = time.process_time()
            retriever = Retriever.untrained(chosen, encoder, FeatureCache(Path(folder) / "cache"))
            yield "build", number, time.process_time() - start
            yield "save", number, seconds(lambda retriever=retriever, place=place: retriever.save(place))
            yield "load", number, seconds(lambda place=place: Retriever.load(place))
            retriever.row_index = RowIndex.read(place)
            retriever.search("warm up")
            yield (
                f"evaluate {EVALUATED}",
                number,
                seconds(
                    lambda retriever=retriever: evaluate(retriever, asked_of(retriever), cache=Path(folder) / "cache")
                ),
            )
            yield "search", number, seconds(lambda retriever=retriever: retriever.search("how does it work and why?"))
            yield "add one", number, seconds(lambda retriever=retriever: retriever.add([NEW]))
            yield "remove one", number, seconds(lambda retriever=retriever: retriever.remove(["d5"]))
            size = sum(file.stat().st_size for file in place.iterdir())
            yield "MB on disk", number, size / 1e6


def asked_of(retriever: Retriever) -> Collection:
    """Its documents with the first sentence of some of them as test questions."""
    chosen = list(islice(cycle(retriever.documents), EVALUATED))
    asked = {f"q{row}": Query(f"q{row}", f"{one.full_text.split('. ')[0]}?") for row, one in enumerate(chosen)}
    judged = {f"q{row}": {one.id: 1} for row, one in enumerate(chosen)}
    return Collection("growth", tuple(retriever.documents), asked, {"test": judged})


def rows(most: int) -> Iterator[tuple[str, int, float]]:
    """The ten nearest of many rows, by all products and by the index."""
    vectors = clustered(most + 50)
    vectors, asked = vectors[:-50], vectors[-50:]
    for number in sizes(1000, most):
        stored = Rows(vectors[:number])
        yield "all rows", number, seconds(lambda stored=stored: stored.nearest(asked[:1], 10))
        if not is_installed():
            continue
        start = time.process_time()
        index = RowIndex.build(stored)
        yield "build index", number, time.process_time() - start
        every = cycle(asked)
        yield (
            "index",
            number,
            seconds(lambda stored=stored, index=index, every=every: index.search(next(every)[None], stored, 10)),
        )


def questions(collection: str, most: int, narrow: str) -> Iterator[tuple[str, int, float]]:
    """What ridge sums up, two epochs of a head from states that cost nothing, one of an adapter, over more and more.

    Solving for ridge's rows costs the same however many questions there are.
    """
    few = made_up_encoder()
    feature_map = FeatureMap.of_reference(few.encode_states([f"question {row}" for row in range(64)]))
    found = Collection.read(collection)
    for number in sizes(1000, most):
        kept = enlarged(found, number)
        texts = kept.judged("train").texts
        yield "count words", number, seconds(lambda texts=texts: gram_counts(texts))
        sums = 0.0
        for part in (texts[first : first + FEATURES_AT_ONCE] for first in range(0, number, FEATURES_AT_ONCE)):
            states, targets = few.encode_states(part), np.zeros((len(part), len(found.documents)), dtype=np.float32)
            start = time.process_time()
            Statistics.of(feature_map(states), targets)
            sums += time.process_time() - start
        yield "sums of ridge", number, sums
        if number <= MOST_TRAINED:
            yield "head, two epochs", number, trained(kept, made_up_encoder(), "head", 2)
        if number <= MOST_ADAPTED:
            yield "adapter, one epoch", number, trained(kept, Encoder.load(narrow), "adapter", 1)


def enlarged(collection: Collection, number: int) -> Collection:
    """With so many training questions: its own, made distinct by a number."""
    judged = collection.judged("train")
    real = islice(cycle(enumerate(judged.relevant)), number)
    asked, answers = {}, {}
    for row, (place, relevant) in enumerate(real):
        asked[f"q{row}"] = Query(f"q{row}", f"{judged.texts[place]} {row // len(judged)}")
        answers[f"q{row}"] = relevant
    return replace(
        collection, queries={**collection.queries, **asked}, judgements={**collection.judgements, "train": answers}
    )


def trained(collection: Collection, encoder: Encoder, method: str, epochs: int) -> float:
    """CPU seconds of training with all states in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        train(collection, encoder=encoder, cache=Path(folder), method="ridge")  # fills the cache
        start = time.process_time()
        train(collection, encoder=encoder, cache=Path(folder), method=method, epochs=epochs)
        return time.process_time() - start


def texts(collection: str, most: int, narrow: str) -> Iterator[tuple[str, int, float]]:
    """Encoding new texts, and finding their states in the cache."""
    found = Collection.read(collection)
    for number in sizes(100, most):
        asked, encoder = enlarged(found, number).judged("train").texts, Encoder.load(narrow)
        encoder.encode(asked[:64])  # the model is read
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            FeatureCache(Path(folder)).states(encoder, asked)
            yield "encode", number, time.process_time() - start
            found_again = partial(FeatureCache(Path(folder)).hidden_states, encoder, asked)
            yield "from the cache", number, seconds(found_again)


def exponent(points: dict[int, float]) -> float:
    """The slope of log time over log size, by least squares over the upper half of the sizes."""
    upper = sorted(points)[len(points) // 2 :] if len(points) > 3 else sorted(points)
    return float(np.polyfit(np.log(upper), np.log([max(points[size], 1e-9) for size in upper]), 1)[0])


def table(points: Points, unit: str) -> str:
    """Markdown: a row a step, a column a size, the exponent last."""
    columns = sorted({size for one in points.values() for size in one})
    lines = [f"| {unit} | " + " | ".join(f"{size:,}" for size in columns) + " | exponent |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, one in points.items():
        cells = " | ".join(f"{one[size]:.3g}" if size in one else "" for size in columns)
        lines.append(f"| {name} | {cells} | {exponent(one):.2f} |")
    return "\n".join(lines)


def figure(points: Points, across: str) -> str:
    """A log-log plot as SVG, a line a step, with its exponent."""
    width, height, left, bottom, right = 760, 420, 60, 40, 190
    flat = [(size, max(value, 1e-6)) for one in points.values() for size, value in one.items()]
    low, high = (np.log10([f(values) for values in zip(*flat, strict=True)]) for f in (min, max))
    low, high = np.floor(low), np.ceil(high)

    def place(size: float, value: float) -> tuple[float, float]:
        x, y = (np.log10([size, max(value, 1e-6)]) - low) / np.maximum(high - low, 1)
        return left + x * (width - left - right), (height - bottom) - y * (height - bottom - 20)

    style = 'font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>']
    parts.append(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
    for power in range(int(low[0]), int(high[0]) + 1):
        x, y = place(10.0**power, 10.0 ** low[1])
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">10^{power}</text>')
        parts.append(f'<line x1="{x:.0f}" y1="20" x2="{x:.0f}" y2="{y:.0f}" stroke="#dddddd"/>')
    for power in range(int(low[1]), int(high[1]) + 1):
        x, y = place(10.0 ** low[0], 10.0**power)
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">10^{power}</text>')
        parts.append(f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{width - right}" y2="{y:.0f}" stroke="#dddddd"/>')
    ends = []
    for colour, (name, one) in zip(cycle(COLOURS), points.items()):
        line = [place(size, value) for size, value in sorted(one.items())]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
            + " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
            + '"/>'
        )
        ends.append((line[-1][1], colour, f"{name}: n^{exponent(one):.2f}"))
    below = 0.0
    for y, colour, label in sorted(ends):
        below = max(y + 4, below + 15)
        parts.append(f'<text x="{width - right + 8}" y="{below:.0f}" fill="{colour}">{escape(label)}</text>')
    middle, said = (width - right + left) / 2, f"{escape(across)}; CPU seconds"
    parts.append(f'<text x="{middle:.0f}" y="{height - 4}" text-anchor="middle">{said}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="+")
    parser.add_argument("--documents", type=int, default=31_623)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--narrow", default=DEFAULT_ENCODER, help="The encoder whose width the labels' states have.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--figures", type=Path, help="Write growth-*.svg into this folder.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    parts: dict[str, Points] = {}
    whole, labels = (partial(one, asked.collections) for one in (documents_of, labels_of))
    for across, steps in (
        ("documents", documents(made_up_encoder(), whole, asked.documents) if asked.documents else ()),
        ("labels", documents(made_up_encoder(asked.narrow), labels, asked.labels) if asked.labels else ()),
        ("rows", rows(asked.rows) if asked.rows else ()),
        (
            "training questions",
            questions(asked.collections[-1], asked.questions, asked.narrow) if asked.questions else (),
        ),
        ("texts", texts(asked.collections[-1], asked.texts, asked.narrow) if asked.texts else ()),
    ):
        points: Points = {}
        for name, size, value in steps:
            points.setdefault(name, {})[size] = value
            print(f"{across} {size}: {name} {value:.4g}", flush=True)
        if points:
            parts[across] = points
    print(json.dumps(machine()))
    for across, points in parts.items():
        print("\n" + table(points, f"{across}, CPU s"))
        if asked.figures:
            drawn = {name: one for name, one in points.items() if name != "MB on disk"}
            file = asked.figures / f"growth-{across.replace(' ', '-')}.svg"
            file.write_text(figure(drawn, across), encoding="utf-8")


if __name__ == "__main__":
    main()
