"""Federated against central: clients, partitions and settings of the round, on held-out questions.

python benchmarks/federation_quality.py COLLECTION [--clients 2,3,10] [--partition iid,dirichlet:0.3] [--method head]
    [--set weight=question,server_rate=2 ...] [--epochs 20] [--cache DIR]

Prints one line a run: success@1 on the test questions, beside central training with the same epochs in all, and on dev,
by which settings are chosen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.partition import partition
from fedcar.collection.splits import subset as held_out
from fedcar.common.measure import peak_memory_mb
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.federation.job.job import FederatedJob, fitted, learn, matched, selected, with_federated_mixture
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import central_training
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.job import Splits
from fedcar.training.job import prepare as prepare_job
from fedcar.training.selection import Candidate, success_and_mrr
from fedcar.training.settings import Settings


class Bench:
    """One collection, encoded once; every run starts from the untrained retriever."""

    def __init__(self, folder: Path, cache: Path | None, encoder: str, seed: int) -> None:
        warnings.simplefilter("ignore")
        self.collection = Collection.read(folder)
        self.features = FeatureCache(cache)
        self.seed = seed
        splits, test = self.questions()
        self.judged = splits.training
        self.untrained = Retriever.untrained(self.collection.documents, Encoder.load(encoder), self.features, seed=seed)
        self.job = prepare_job(self.collection, self.untrained, self.features, Silent(), splits)
        self.training = self.job.training
        self.test = prepare(self.untrained, test, self.features, Silent(), "")

    def questions(self) -> tuple[Splits, Judged]:
        """Those that train and choose, and those that test."""
        test, trained_on = self.collection.judged("test"), self.collection.trained_on("test")
        test = held_out(test, [query.id not in trained_on for query in test.queries])
        return Splits.in_one_place(self.collection, self.seed), test

    def success(self, retriever: Retriever) -> dict[str, float]:
        """Success@1 on the test questions."""
        return {"success@1": success_and_mrr(self.test.relevance, retriever.scores_of(self.test))[0]}

    def settings(self, method: str, adapter: str) -> Settings:
        return fitted(method, adapter, self.seed, self.untrained.encoder, self.untrained.evidence.deep)

    def central(self, method: str, adapter: str, rounds: RoundSettings) -> tuple[float, float]:
        """Success on test, seconds."""
        settings, _ = matched(self.settings(method, adapter), rounds, len(self.training), 1)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = central_training(RunFolder(Path(folder)), self.job, method, settings, self.success)
        return found["central"]["success@1"], time.perf_counter() - start

    def federated(
        self, method: str, adapter: str, clients: int | None, kind: str, rounds: RoundSettings
    ) -> tuple[float, Candidate, list[dict[str, Any]]]:
        """Success on test, what selection kept (with its score on dev), and the history."""
        parts = partition(self.judged, kind, clients, self.seed)
        settings, rounds = matched(self.settings(method, adapter), rounds, len(self.training), len(parts))
        shares = {name: self.training.take(rows) for name, rows in parts.items()}
        mixed, _ = with_federated_mixture(self.untrained, shares)
        with tempfile.TemporaryDirectory() as place:
            learned = learn(FederatedJob(self.job, method, settings, rounds, RunFolder(Path(place)), shares), mixed, {})
        kept = selected(self.job, mixed, learned, {})
        return self.success(kept.retriever)["success@1"], kept, learned.history


def parse_settings(text: str) -> dict[str, Any]:
    """`weight=row,server_rate=2` as fields of RoundSettings, each of its field's type."""
    types = {field.name: type(field.default) for field in fields(RoundSettings)}
    pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
    return {name: types[name](value) if types[name] is not bool else value == "True" for name, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--clients", default="2,3,10", help="natural stands for the natural clients")
    parser.add_argument("--partition", default="iid,dirichlet:0.3")
    parser.add_argument("--method", default="head")
    parser.add_argument("--adapter", default="full")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--epochs", type=int, default=0, help="in all: rounds x local epochs  [default: by method]")
    parser.add_argument("--set", action="append", dest="settings", help="settings of the round; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-central", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.collection, arguments.cache, arguments.encoder, arguments.seed)
    print(f"{bench.collection.name}: {len(bench.training)} training questions, {len(bench.test)} test questions")
    central = None
    if not arguments.no_central:
        rounds = RoundSettings(rounds=arguments.epochs, seed=arguments.seed)
        central, seconds = bench.central(arguments.method, arguments.adapter, rounds)
        print(f"central {arguments.method}: {central:.4f} ({seconds:.0f} s)", flush=True)
    for kind in arguments.partition.split(","):
        for count in arguments.clients.split(","):
            for text in arguments.settings or [""]:
                options = {"rounds": arguments.epochs, "seed": arguments.seed, **parse_settings(text)}
                start = time.perf_counter()
                reached, kept, records = bench.federated(
                    arguments.method,
                    arguments.adapter,
                    None if count == "natural" else int(count),
                    kind,
                    RoundSettings(**options),
                )
                seconds = time.perf_counter() - start
                refused = sum(len(record["refused"]) for record in records)
                difference = f"{reached - central:+.4f}" if central is not None else ""
                traffic = sum(record["bytes_down"] + record["bytes_up"] for record in records) / len(records) / 1e6
                print(
                    f"{kind:<14} K={count:<4} {text or 'defaults':<40} {reached:.4f} {difference} ({kept.name}, "
                    f"{kept.score.success:.4f} on dev), "
                    f"refused {refused}, {len(records)} rounds, {traffic:.2f} MB a round, {seconds:.0f} s",
                    flush=True,
                )
    print(f"peak memory {peak_memory_mb():.0f} MB")


if __name__ == "__main__":
    main()
