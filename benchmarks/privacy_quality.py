"""Accuracy under epsilon on test: `python benchmarks/privacy_quality.py COLLECTION [--cache DIR]`, a row a budget.

Central and over 10 clients each with its own noise, three noise draws each (noise from the operating system, so that
the figures move a little from run to run). Every setting is the default; test is used for the report alone. Questions
whose text stands in train are left out, as `fedcar evaluate` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from fedcar.collection.collection import Collection
from fedcar.collection.partition import partition_by_question
from fedcar.collection.splits import subset
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.selection import Standard, baseline_weights, best_weights
from fedcar.training.target import Target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("--cache")
    parser.add_argument("--epsilon", default="0.5,1,3,8")
    parser.add_argument("--methods", default="ridge,head")
    parser.add_argument("--clients", default="1,10")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    chosen = parser.parse_args()
    collection = Collection.read(chosen.collection)
    features = FeatureCache(Path(chosen.cache) if chosen.cache else None)
    untrained = Retriever.untrained(collection.documents, Encoder.load(DEFAULT_ENCODER), features)
    train = collection.judged("train")
    training = prepare(untrained, train, features, Silent(), "training questions")
    judged, known = collection.judged(chosen.split), collection.trained_on(chosen.split)
    asked = subset(judged, [query.id not in known for query in judged.queries])
    test = prepare(untrained, asked, features, Silent(), "test questions")
    standard = Standard()
    low, high, mips, _ = baseline_weights()
    hybrid = best_weights(standard.fitted(untrained, (low, high)), test)[1].success
    alone = best_weights(standard.fitted(untrained, (mips,)), test)[1].success
    free = {"mips": alone, "hybrid (weight chosen on test)": hybrid}
    free["search"] = standard.score(test, untrained.scores_of(test)).success
    print(json.dumps({"collection": collection.name, "n": len(train), "documents": len(untrained.documents), **free}))
    for clients in map(int, chosen.clients.split(",")):
        parts = partition_by_question(train, "iid", clients, 0)
        shares = {name: ClippedSums(untrained, training.take(rows)) for name, rows in parts.items()}
        for method in chosen.methods.split(","):
            for epsilon in map(float, chosen.epsilon.split(",")):
                plan = make_plan(Target(epsilon), method, len(untrained.documents))
                found, start = [], time.perf_counter()
                for _ in range(chosen.draws):
                    devices = [NoisedClient(name, share) for name, share in shares.items()]
                    outcome = PrivateTraining(untrained, InTurn(devices), plan).run()
                    found.append(standard.score(test, outcome.retriever.scores_of(test)).success)
                row = {"clients": clients, "method": method, "epsilon": epsilon, "mean": statistics.mean(found)}
                row |= {"spread": max(found) - min(found), "kept": outcome.name}
                row["seconds"] = round((time.perf_counter() - start) / chosen.draws, 2)
                print(json.dumps(row), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
