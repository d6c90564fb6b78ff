"""How many questions does training need? Success@1 and nDCG@10 against hybrid search, by the number of questions.

python benchmarks/learning_curve.py COLLECTION... [--kept FOLDER] [--seeds 20] [--questions 20 50 100 200 500]
                                    [--judge halves|test] [--graded] [--lines FILE] [--figure FILE]

Every point draws training questions and a fifth as many to choose by, trains with `--method auto`, and holds what is
kept against hybrid search, whose weight is chosen on the same dev questions as in `fedcar evaluate`. `halves` draws from
one half of the training questions and judges on the other, `test` draws from train and dev and judges on test. What
was read is put into the folder `--kept`, so that a further run begins at once.

Rows in closed form are solved through the questions, not the features, and the pseudo-queries' part once for all
points: the same rows, but for rounding (`--check` holds them against each other).
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

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
MOST_TRAINING, MOST_CHOOSING, MOST_JUDGED = 1600, 400, 700
DEV_SHARE = 5
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
        for split, most in (("train", MOST_TRAINING), ("dev", MOST_CHOOSING), ("test", MOST_JUDGED)):
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


def point(read: Read, number: int, seed: int, judge: str, everything: bool) -> dict[str, object] | None:
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
    line: dict[str, object] = {"collection": read.name, "questions": number, "seed": seed, "kept": kept.name}
    for name, differences in apart.items():
        line[name] = float(values[name].mean())
        line[f"{name} hybrid"] = float(one.hybrid[name].mean())
        line[f"{name} z"] = float(differences.mean() / max(differences.std() / len(differences) ** 0.5, 1e-9))
    line["documents"] = len(read.untrained.documents)
    line["seconds"] = round(time.process_time() - start, 2)
    if everything:
        line["others"] = {
            tried.name: {**measured(tried.retriever), **getattr(tried, "gain", None)._asdict()} for tried in candidates
        }
        line["others"]["untrained"] = measured(read.untrained)  # type: ignore[index]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+")
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--questions", type=int, nargs="+", default=[20, 50, 100, 200, 500])
    parser.add_argument("--judge", choices=["halves", "test"], default="halves")
    parser.add_argument("--graded", action="store_true", help="The two made collections instead.")
    parser.add_argument("--everything", action="store_true", help="Measure every candidate, not what is kept alone.")
    parser.add_argument("--lines", type=Path, help="Append a JSON line a point to this file.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name, collection in collections(asked.collections, asked.graded):
        read = Read.of(name, collection, asked.kept)
        solve_quickly()
        for number in asked.questions:
            for seed in range(asked.seeds):
                line = point(read, number, seed, asked.judge, asked.everything)
                if line is None:
                    break
                print(json.dumps(line), flush=True)
                if asked.lines:
                    with asked.lines.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
