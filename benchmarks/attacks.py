"""What one hostile device of five costs, and two, attack by attack (tests/support/attacks.py), in this process.

python benchmarks/attacks.py COLLECTION ... [--partition iid,dirichlet:0.3] [--hostile 1,2] [--attack NAME ...]
    [--method head] [--set average=mean ...] [--questions 2000] [--no-dev] [--kept-back] [--cache DIR]

Prints success@1 of five honest devices, of the honest ones alone (whose questions are all there is left of a hostile
one's) and of each attack, with who was refused in how many rounds. The server judges by dev questions, the figures are
of test questions. With --no-dev the devices have the dev questions, and hostile ones count falsely on theirs. With
--kept-back training questions alone are used: some train, some judge, some test. The rule was chosen so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from federation_quality import Bench, parse_settings

from fedcar.collection.collection import Judged
from fedcar.collection.partition import partition
from fedcar.collection.splits import subset
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.federation.job import job
from fedcar.federation.job.job import FederatedJob, learn, matched, selected, with_federated_mixture
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.sums.forms import check_client
from fedcar.federation.sums.ridge import QuestionSums
from fedcar.training.clients import Answers, InProcess, Request
from fedcar.training.job import Splits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.attacks import MIXTURE, RIDGE, ROUNDS, Hostile  # noqa: E402

DEVICES = 5
JUDGING, TESTING = 1000, 2000  # questions, at most, where some are drawn


class Drawn(Bench):
    """So many training questions, drawn by the seed; `kept_back`: also those that judge and test are of them."""

    def __init__(self, size: int, kept_back: bool, *bench: Any) -> None:  # noqa: ANN401 - those of Bench
        self.size, self.kept_back = size, kept_back
        super().__init__(*bench)

    def questions(self) -> tuple[Splits, Judged]:
        splits, test = super().questions()
        assert splits.training is not None
        training, selection = splits.training, splits.selection
        order = np.random.default_rng([self.seed, 29]).permutation(len(training))
        size = self.size or len(order)
        if self.kept_back:
            rest = order[min(size, len(order) // 2) :]
            selection, test = (taken(training, part) for part in np.split(rest, [len(rest) // 3]))
            order = order[: len(order) // 2]
        some = [(training, order[:size]), (selection, np.arange(len(selection))[:JUDGING])]
        training, selection = (taken(judged, rows) for judged, rows in some)
        return replace(splits, training=training, selection=selection), taken(test, np.arange(len(test))[:TESTING])


def taken(judged: Judged, rows: np.ndarray[Any, Any]) -> Judged:
    return subset(judged, np.isin(np.arange(len(judged)), rows).tolist())


class HostileSums(InProcess[Any]):
    """The same where sums for the mixture or for ridge are asked for; those for ridge pass what a server checks."""

    def ask(self, request: Request[Any, Any], names: Sequence[str] | None = None) -> Answers[Any]:
        answers, attack = super().ask(request, names), Hostile.attack
        given = dict(answers.given)
        for name in set(Hostile.bad) & set(given):
            if isinstance(request, QuestionSums) and attack in RIDGE:
                sums = RIDGE[attack](given[name].sums)
                check_client(sums, sums.statistics.questions, torch.from_numpy(sums.statistics.counts))
                given[name] = given[name]._replace(sums=sums)
            elif attack in MIXTURE:
                given[name] = MIXTURE[attack](given[name])
        return replace(answers, given=given)


def run(
    bench: Bench,
    parts: Mapping[str, Any],
    rounds: RoundSettings,
    attack: str | None,
    bad: Sequence[str],
    method: str = "head",
    no_dev: bool = False,
) -> tuple[float, dict[str, int]]:
    """Success on test, and in how many rounds who was refused."""
    Hostile.attack, Hostile.bad, work, held = attack, bad, bench.job, {}
    if no_dev:
        chosen = np.array_split(np.arange(len(work.selection)), len(parts))
        held = {name: work.selection.take(rows) for name, rows in zip(sorted(parts), chosen, strict=True)}
        work = replace(work, selection=work.selection.take(np.arange(0)))
    Hostile.held = held
    settings, rounds = matched(bench.settings(method, "full"), rounds, sum(map(len, parts.values())), len(parts))
    shares = {name: bench.training.take(own) for name, own in parts.items()}
    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(job, "LocalNetwork", Hostile),
        patch.object(job, "InProcess", HostileSums),
    ):
        mixed, _ = with_federated_mixture(bench.untrained, shares)
        learned = learn(FederatedJob(work, method, settings, rounds, RunFolder(Path(place)), shares), mixed, {})
    kept = learned.candidates[-1] if no_dev else selected(work, mixed, learned, {})
    refused = Counter(name for record in learned.records for name in record.refused)
    gated = sum(record.gate is not None for record in learned.records)
    return bench.success(kept.retriever)["success@1"], dict(refused) | ({"gate": gated} if gated else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="+")
    parser.add_argument("--partition", default="iid,dirichlet:0.3")
    parser.add_argument("--hostile", default="1,2")
    parser.add_argument("--attack", action="append", help="may be repeated  [default: all of the method]")
    parser.add_argument("--method", default="head")
    parser.add_argument("--set", dest="settings", default="", help="settings of the round")
    parser.add_argument("--questions", type=int, default=0, help="that train  [default: all]")
    parser.add_argument("--no-dev", action="store_true", help="devices have the dev questions")
    parser.add_argument("--kept-back", action="store_true", help="training questions train, judge and test")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = RoundSettings(seed=arguments.seed, **parse_settings(arguments.settings))
    how = {"method": arguments.method, "no_dev": arguments.no_dev}
    attacks = arguments.attack or [*(RIDGE if arguments.method == "ridge" else ROUNDS), *MIXTURE]
    for folder in arguments.collections:
        size, kept_back = arguments.questions, arguments.kept_back
        bench = Drawn(size, kept_back, folder, arguments.cache, arguments.encoder, arguments.seed)
        print(f"{bench.collection.name}: search {bench.success(bench.untrained)['success@1']:.3f}", flush=True)
        for kind in arguments.partition.split(","):
            parts = partition(bench.judged, kind, DEVICES, arguments.seed)
            reached, refused = run(bench, parts, rounds, None, (), **how)
            print(f"{kind}: five honest {reached:.3f}  refused {refused}", flush=True)
            for count in map(int, arguments.hostile.split(",")):
                bad = sorted(parts)[1::2][:count]
                alone = {name: rows for name, rows in parts.items() if name not in bad}
                print(f"  without {', '.join(bad)}: {run(bench, alone, rounds, None, (), **how)[0]:.3f}", flush=True)
                for attack in attacks:
                    reached, refused = run(bench, parts, rounds, attack, bad, **how)
                    print(f"  {attack:<45} {reached:.3f}  refused {refused}", flush=True)


if __name__ == "__main__":
    main()
