"""How many questions does training need? Success@1 and nDCG@10 against hybrid search, by the number of questions.

python benchmarks/learning_curve.py COLLECTION... [--kept FOLDER] [--seeds 20] [--questions 20 50 100 200 500]
                                    [--judge halves|test] [--graded] [--lines FILE] [--figure FILE] [--table FILE]

Every point draws training questions and a fifth as many to choose by, trains with `--method auto`, and holds what is
kept against hybrid search, whose weight is chosen on the same dev questions as in `fedcar evaluate`. `halves` draws
from one half of the training questions and judges on the other, `test` draws from train and dev and judges on test.
What was read is put into the folder `--kept`, so that a further run begins at once.

Rows in closed form are solved through the questions, not the features, and the pseudo-queries' part once for all
points: the same rows, but for rounding. `--table` is what `fedcar train --dry-run` reads. Without a collection the
points in `--lines` are told of again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from graded import abstracts, with_neighbours

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.pseudo_queries import PseudoQueries, pseudo_queries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.evaluation.baselines import HYBRID_WEIGHTS, rankings
from fedcar.evaluation.metrics import per_query
from fedcar.head.closed_form import LeftOut, Ridge
from fedcar.retriever.evidence import SHORT, median_words
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training import ridge
from fedcar.training.checkpoint import Course
from fedcar.training.job import Job
from fedcar.training.selection import FoldView, select
from fedcar.training.settings import TrainingSettings, suited
from fedcar.training.train import trained_candidates

MEASURES = ("success@1", "ndcg@10")
MOST_TRAINING, MOST_JUDGED = 2400, 1000
DEV_SHARE = 5
SIGNIFICANT, WORST = -1.96, -0.02
COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#6a1b9a", "#8d6e00", "#00838f", "#ad1457", "#455a64", "#5d4037", "#283593")
STYLE = 'font-family="sans-serif" font-size="12"'
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Read:
    """A collection with everything that is read once: the questions of its splits, and what hybrid makes of each."""

    name: str
    collection: Collection
    untrained: Retriever
    features: FeatureCache
    pseudo: PseudoQueries
    questions: dict[str, Questions]
    hybrid: dict[str, list[Values]]

    @classmethod
    def of(cls, name: str, collection: Collection, kept: Path | None) -> Read:
        encoder, features = Encoder.load(DEFAULT_ENCODER), FeatureCache()
        encoder.runtime_name(list(collection.judged("train").texts))
        place = kept / name if kept else None
        if place is not None and (place / "retriever").is_dir():
            untrained = Retriever.load(place / "retriever")
        else:
            untrained = Retriever.untrained(collection.documents, encoder, features)
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
                untrained.save(place / "retriever")
        questions, hybrid = {}, {}
        for split, most in (("train", MOST_TRAINING), ("dev", MOST_TRAINING), ("test", MOST_JUDGED)):
            questions[split] = made_ready(untrained, some(collection, split, most), features, place, split)
            asked = questions[split]
            ranked = rankings(untrained, asked.texts, asked.hidden_states, HYBRID_WEIGHTS)
            hybrid[split] = [per_query(one, asked.relevant) for one in ranked]
        return cls(name, collection, untrained, features, pseudo_queries(untrained.documents), questions, hybrid)


def some(collection: Collection, split: str, most: int) -> Judged:
    """At most so many of a split's judged questions, drawn once for all; none whose text stands in train."""
    judged, trained_on = collection.judged(split), collection.trained_on(split) if split != "train" else set()
    rows = [row for row, query in enumerate(judged.queries) if query.id not in trained_on]
    rows = sorted(np.random.default_rng(0).permutation(rows)[:most].tolist())
    return Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows))


def made_ready(
    untrained: Retriever, judged: Judged, features: FeatureCache, place: Path | None, split: str
) -> Questions:
    """The questions with states and evidence, from the folder where they are there."""
    file = place / f"{split}.npz" if place is not None else None
    if file is not None and file.is_file():
        arrays = np.load(file)
        states, candidates, evidence = (arrays[name] for name in ARRAYS)
        ids = [document.id for document in untrained.documents]
        relevance = np.zeros(candidates.shape, dtype=np.float32)
        for row, scores in enumerate(judged.relevant):
            relevance[row] = [scores.get(ids[column], 0) for column in candidates[row]]
        return Questions(tuple(judged.texts), states, candidates, evidence, relevance, judged.relevant)
    questions = prepare(untrained, judged, features, Silent(), split)
    if file is not None:
        np.savez(file, **{name: getattr(questions, name) for name in ARRAYS})
    return questions


ARRAYS = ("states", "candidates", "evidence")


# ---------------------------------------------------------------- rows in closed form, quickly


class Solved:
    """What all draws of a collection share: for each strength the inverse of the pseudo-queries' part."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], ridge.PseudoSums] = {}
        self.inverse = lru_cache(maxsize=None)(self._inverse)

    def of(self, pseudo: PseudoQueries, rows: dict[str, int], *parts: object) -> ridge.PseudoSums:
        key = len(pseudo.document_ids), hash(tuple(rows))
        if key not in self.sums:
            self.sums[key] = ORIGINAL(pseudo, rows, *parts)
        return self.sums[key] if len(pseudo.document_ids) else ORIGINAL(pseudo, rows, *parts)

    def _inverse(self, key: tuple[int, int], strength: float) -> tuple[np.ndarray, np.ndarray]:
        statistics = self.sums[key].statistics
        matrix = torch.from_numpy(statistics.gram).clone()
        matrix.diagonal().add_(strength)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix)).numpy()
        return inverse, inverse @ statistics.cross

    def solutions(self, taught: ridge.Taught) -> Iterator[tuple[ridge.Taught, float]]:
        return ((taught, strength) for strength in ridge.STRENGTHS)

    def best(
        self, solutions: Iterator[tuple[ridge.Taught, float]], sample: ridge.RidgeQuestions
    ) -> tuple[Ridge, LeftOut]:
        tried = (self.solved(taught, strength, sample) for taught, strength in solutions)
        best = next(tried)
        for candidate in tried:
            if ridge.right_of(candidate[1]) < ridge.right_of(best[1]):
                break
            if ridge.right_of(candidate[1]) > ridge.right_of(best[1]):
                best = candidate
        return best

    def solved(self, taught: ridge.Taught, strength: float, sample: ridge.RidgeQuestions) -> tuple[Ridge, LeftOut]:
        """By the Woodbury identity; all training questions are in the sample."""
        features, targets = sample.features, sample.targets.toarray()
        key = next((one for one, sums in self.sums.items() if sums is taught.pseudo), None)
        if key is None:
            across, base = features.T / np.float32(strength), np.float32(0.0)
        else:
            inverse, base = self.inverse(key, strength)
            across = inverse @ features.T
        inside = np.eye(len(features), dtype=np.float32) + features @ across
        told = targets - (features @ base if key is not None else 0.0)
        weights = base + across @ np.linalg.solve(inside, told)
        hat = np.eye(len(features)) - np.linalg.inv(inside.astype(np.float64))
        values, vectors = np.linalg.eigh((hat + hat.T) / 2)
        projected = (vectors * np.sqrt(values.clip(0))).astype(np.float32)
        solution = Ridge(weights.astype(np.float32), np.empty((0, 0), dtype=np.float32))
        return solution, LeftOut(projected, solution.predict(features), targets)


ORIGINAL = ridge.PseudoSums.of


def solve_quickly() -> None:
    """Have `fit_ridge` solve as `Solved` does, for this process."""
    solved = Solved()
    ridge.PseudoSums.of = solved.of  # type: ignore[method-assign,assignment]
    ridge.Taught.solutions = lambda self: solved.solutions(self)  # type: ignore[method-assign,assignment,return-value]
    ridge.best_solution = solved.best  # type: ignore[assignment]


# ---------------------------------------------------------------- one point


@dataclass(frozen=True)
class Drawn:
    """A job of so many questions, and the questions that judge it."""

    job: Job
    judge: str
    rows: np.ndarray
    hybrid: Values


def drawn(read: Read, number: int, seed: int, judge: str) -> Drawn | None:
    """None where the collection has not so many questions."""
    generator, chosen = np.random.default_rng([seed, number]), -(-number // DEV_SHARE)
    order = generator.permutation(len(read.questions["train"]))
    if judge == "test":
        pool, dev, others, splits = order, generator.permutation(len(read.questions["dev"]))[:chosen], None, "dev"
        rows = np.arange(len(read.questions["test"]))
    else:
        half = np.random.default_rng(0).permutation(len(order))  # the same half for all seeds
        pool, others = generator.permutation(half[: len(half) // 2]), half[len(half) // 2 :][:MOST_JUDGED]
        dev, splits, rows = pool[number : number + chosen], "train", np.sort(others)
    if len(pool) < number or len(dev) < chosen * 0.9:
        return None
    training, selection = read.questions["train"].take(pool[:number]), read.questions[splits].take(dev)
    on_dev = [values["success@1"][dev].mean() for values in read.hybrid[splits]]
    split = "test" if judge == "test" else "train"
    hybrid = read.hybrid[split][int(np.argmax(on_dev))]
    hybrid = {name: hybrid[name][rows] for name in MEASURES}
    nothing = read.questions["dev"].take(np.arange(0))
    job = Job(read.collection, read.untrained, read.features, Silent(), training, selection, nothing)
    return Drawn(job, split, rows, hybrid)


def point(read: Read, number: int, seed: int, judge: str, everything: bool) -> dict[str, Any] | None:
    """What one draw comes to: what was kept, its measures on the judging questions and hybrid's."""
    start, one = time.process_time(), drawn(read, number, seed, judge)
    if one is None:
        return None
    job = one.job
    steps = suited(TrainingSettings(seed=seed).steps(), read.untrained)
    view = FoldView.of(read.untrained, job.training, seed)
    candidates = trained_candidates(job, "auto", steps, read.pseudo, view, Course())
    kept = select(read.untrained, job.selection, candidates, view.standard, Silent())
    asked = read.questions[one.judge].take(one.rows)

    def measured(retriever: Retriever) -> dict[str, float]:
        values = per_query(retriever.ranked(asked, retriever.scores_of(asked)), asked.relevant)
        return {name: float((values[name] - one.hybrid[name]).mean()) for name in MEASURES}

    values = per_query(kept.retriever.ranked(asked, kept.retriever.scores_of(asked)), asked.relevant)
    apart = {name: values[name] - one.hybrid[name] for name in MEASURES}
    line: dict[str, Any] = {"collection": read.name, "questions": number, "seed": seed, "kept": kept.name}
    for name, differences in apart.items():
        line[name] = float(values[name].mean())
        line[f"{name} hybrid"] = float(one.hybrid[name].mean())
        line[f"{name} z"] = float(differences.mean() / max(differences.std() / len(differences) ** 0.5, 1e-9))
    line["documents"] = len(read.untrained.documents)
    line["labels"] = median_words(read.untrained.documents) <= SHORT
    line["seconds"] = round(time.process_time() - start, 2)
    if everything:
        line["others"] = {tried.name: {**measured(tried.retriever), **tried.gain._asdict()} for tried in candidates}
        line["others"]["untrained"] = measured(read.untrained)
    return line


def collections(folders: Sequence[str], graded: bool) -> Iterator[tuple[str, Collection]]:
    """The named ones; with `graded` also those made out of squad_part and arxiv_meta where these are named."""
    for folder in folders:
        name = Path(folder).name
        collection = Collection.read(folder)
        if not graded:
            yield name, collection
        elif name == "squad_part":
            yield f"{name}_graded", with_neighbours(collection)
        elif name == "arxiv_meta":
            yield f"{name}_graded", abstracts(collection)


# ---------------------------------------------------------------- what the points say together


def summary(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each collection and number of questions the gains over hybrid: mean, least, draws significantly below."""
    points = []
    for name, number in sorted({(line["collection"], line["questions"]) for line in lines}):
        seeds = [line for line in lines if (line["collection"], line["questions"]) == (name, number)]
        point: dict[str, Any] = {"collection": name, "questions": number, "draws": len(seeds)}
        point |= {key: seeds[0][key] for key in ("documents", "labels")}
        point["kept search"] = sum(line["kept"] == "none" for line in seeds)
        for measure in MEASURES:
            gains = [line[measure] - line[f"{measure} hybrid"] for line in seeds]
            point[measure] = {
                "mean": float(np.mean(gains)),
                "least": float(min(gains)),
                "below": sum(line[f"{measure} z"] < SIGNIFICANT for line in seeds),
            }
        points.append(point)
    return points


def table(points: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a collection, a column a number of questions; gains in success@1 / nDCG@10, the least seed."""
    numbers = sorted({point["questions"] for point in points})
    rows = ["| collection (documents) | " + " | ".join(map(str, numbers)) + " |", "|---" * (len(numbers) + 1) + "|"]
    for name in sorted({point["collection"] for point in points}):
        cells = {}
        for point in points:
            if point["collection"] == name:
                both = [point[measure] for measure in MEASURES]
                means, least = (" / ".join(f"{one[what]:+.3f}" for one in both) for what in ("mean", "least"))
                cells[point["questions"]] = f"{means} ({least})"
                documents = point["documents"]
        rows.append(f"| {name} ({documents:,}) | " + " | ".join(cells.get(number, "") for number in numbers) + " |")
    return "\n".join(rows)


def packaged(points: Sequence[dict[str, Any]]) -> str:
    """What a dry run reads, a line a point."""
    told = [
        {
            **{key: point[key] for key in ("collection", "labels", "documents", "questions", "draws")},
            "success": round(point["success@1"]["mean"], 3),
            "ndcg": round(point["ndcg@10"]["mean"], 3),
        }
        for point in points
    ]
    return "[\n" + ",\n".join(json.dumps(one) for one in told) + "\n]\n"


def figure(points: Sequence[dict[str, Any]]) -> str:
    """Two panels as SVG, a measure each: the mean gain over hybrid by the number of questions, a line a collection."""
    names, numbers = sorted({point["collection"] for point in points}), sorted({point["questions"] for point in points})
    width, height, left, top, panel, gap, right = 900, 380, 50, 30, 300, 60, 170
    gains = [point[measure]["mean"] for point in points for measure in MEASURES]
    low, high = min(0.0, *gains), max(0.05, *gains)
    first, last = np.log(min(numbers)), np.log(max(numbers))

    def place(number: float, value: float, start: float) -> tuple[float, float]:
        across = (np.log(number) - first) / max(last - first, 1e-9)
        return start + across * panel, top + (high - value) / (high - low) * (height - top - 60)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {STYLE}>']
    parts.append(f'<rect width="{width}" height="{height}" fill="#ffffff"/>')
    for column, measure in enumerate(MEASURES):
        start = left + column * (panel + gap)
        parts.append(f'<text x="{start}" y="18">gain over hybrid search, {measure}</text>')
        for value in np.arange(np.ceil(low * 10), 10 * high + 1e-9) / 10:
            _, y = place(numbers[0], value, start)
            parts.append(f'<line x1="{start}" y1="{y:.1f}" x2="{start + panel}" y2="{y:.1f}" stroke="#dddddd"/>')
            parts.append(f'<text x="{start - 6}" y="{y + 4:.1f}" text-anchor="end">{value + 0.0:.1f}</text>')
        for number in numbers:
            x, _ = place(number, low, start)
            parts.append(f'<text x="{x:.1f}" y="{height - 40}" text-anchor="middle">{number}</text>')
        parts.append(f'<text x="{start + panel / 2}" y="{height - 18}" text-anchor="middle">training questions</text>')
        for colour, name in zip(cycle(COLOURS), names):
            line = [(one["questions"], one[measure]["mean"]) for one in points if one["collection"] == name]
            drawn = " ".join("{:.1f},{:.1f}".format(*place(*one, start)) for one in sorted(line))
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{drawn}"/>')
    for row, (colour, name) in enumerate(zip(cycle(COLOURS), names)):
        parts.append(f'<text x="{width - right + 10}" y="{top + 16 + 18 * row}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def measured_points(read: Read, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All points of one collection, as far as it has so many questions."""
    solve_quickly()
    for number in asked.questions:
        for seed in range(asked.seeds):
            line = point(read, number, seed, asked.judge, asked.everything)
            if line is None:
                break
            yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*")
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--questions", type=int, nargs="+", default=[20, 50, 100, 200, 500])
    parser.add_argument("--judge", choices=["halves", "test"], default="halves")
    parser.add_argument("--graded", action="store_true", help="The two made collections instead.")
    parser.add_argument("--everything", action="store_true", help="Measure every candidate, not what is kept alone.")
    parser.add_argument("--lines", type=Path, help="Append a JSON line a point to this file, and tell of all in it.")
    parser.add_argument("--figure", type=Path, help="Write the curve as SVG.")
    parser.add_argument("--table", type=Path, help="Write what a dry run reads.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    for name, collection in collections(asked.collections, asked.graded):
        for line in measured_points(Read.of(name, collection, asked.kept), asked):
            print(json.dumps(line), flush=True)
            lines.append(line)
            if asked.lines:
                with asked.lines.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
    if asked.lines:
        lines = [json.loads(line) for line in asked.lines.read_text(encoding="utf-8").splitlines()]
    points = summary(lines)
    print(table(points))
    for one in points:
        if any(one[measure]["below"] or one[measure]["least"] < WORST for measure in MEASURES):
            print("below:", json.dumps(one))
    if asked.figure:
        asked.figure.write_text(figure(points), encoding="utf-8")
    if asked.table:
        asked.table.write_text(packaged(points), encoding="utf-8")


if __name__ == "__main__":
    main()
