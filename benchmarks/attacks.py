"""What one hostile device of five costs, and two, attack by attack (tests/support/attacks.py), in this process.

python benchmarks/attacks.py COLLECTION [--partition iid,dirichlet:0.3] [--hostile 1,2] [--attack NAME ...]
    [--set average=mean ...] [--questions 2000] [--cache DIR]

Prints success@1 on test questions of five honest devices, of the honest ones alone (whose questions are all there is
left of a hostile one's) and of each attack, with who was refused in how many rounds. Nothing is chosen by it.
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

from fedcar.collection.partition import partition
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.federation.job import job
from fedcar.federation.job.job import FederatedJob, learn, matched, selected, with_federated_mixture
from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.compress import decode
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.training.clients import Answers, InProcess, Request

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.attacks import MIXTURE, ROUNDS, attacked  # noqa: E402

DEVICES = 5


class Hostile(LocalNetwork):
    """Devices of which some send what an attack makes of all honest answers."""

    attack: str | None = None
    bad: Sequence[str] = ()

    def ask(self, request: Request[Any, Any], names: Sequence[str] | None = None) -> Answers[Any]:
        answers, state = super().ask(request, names), request.state.tensors  # type: ignore[attr-defined]
        if self.attack not in ROUNDS:
            return answers
        trained = {name: tensor for name, tensor in state.items() if name not in FIXED}
        plain = {
            name: replace(update, tensors=decode(update.tensors, trained, self.settings.compression))
            for name, update in answers.given.items()
        }
        honest = [update for name, update in plain.items() if name not in self.bad]
        number = request.number  # type: ignore[attr-defined]
        sent = {
            name: attacked(update, honest, state, self.attack, number)
            for name, update in plain.items()
            if name in self.bad
        }
        return replace(answers, given={**answers.given, **sent})


class HostileSums(InProcess[Any]):
    """The same where sums for the mixture are asked for."""

    def ask(self, request: Request[Any, Any], names: Sequence[str] | None = None) -> Answers[Any]:
        answers = super().ask(request, names)
        if Hostile.attack not in MIXTURE:
            return answers
        how = MIXTURE[Hostile.attack]
        given = {name: how(one) if name in Hostile.bad else one for name, one in answers.given.items()}
        return replace(answers, given=given)


def run(
    bench: Bench, parts: Mapping[str, Any], rounds: RoundSettings, attack: str | None, bad: Sequence[str]
) -> tuple[float, dict[str, int]]:
    """Success on test, and in how many rounds who was refused."""
    Hostile.attack, Hostile.bad = attack, bad
    rows = np.concatenate(list(parts.values()))
    settings, rounds = matched(bench.settings("head", "full"), rounds, len(rows), len(parts))
    shares = {name: bench.training.take(own) for name, own in parts.items()}
    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(job, "LocalNetwork", Hostile),
        patch.object(job, "InProcess", HostileSums),
    ):
        mixed, _ = with_federated_mixture(bench.untrained, shares)
        learned = learn(FederatedJob(bench.job, "head", settings, rounds, RunFolder(Path(place)), shares), mixed, {})
    kept = selected(bench.job, mixed, learned, {})
    refused = Counter(name for record in learned.records for name in record.refused)
    return bench.success(kept.retriever)["success@1"], dict(refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--partition", default="iid,dirichlet:0.3")
    parser.add_argument("--hostile", default="1,2")
    parser.add_argument("--attack", action="append", help="may be repeated  [default: all]")
    parser.add_argument("--set", dest="settings", default="", help="settings of the round")
    parser.add_argument("--questions", type=int, default=0, help="that train  [default: all]")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.collection, arguments.cache, arguments.encoder, arguments.seed)
    rounds = RoundSettings(seed=arguments.seed, **parse_settings(arguments.settings))
    print(f"{bench.collection.name}: search {bench.success(bench.untrained)['success@1']:.3f}")
    for kind in arguments.partition.split(","):
        parts = partition(bench.judged, kind, DEVICES, arguments.seed)
        if arguments.questions:
            share = arguments.questions / sum(map(len, parts.values()))
            parts = {name: rows[: max(1, round(share * len(rows)))] for name, rows in parts.items()}
        print(f"{kind}: five honest {run(bench, parts, rounds, None, ())[0]:.3f}", flush=True)
        for count in map(int, arguments.hostile.split(",")):
            bad = sorted(parts)[1::2][:count]
            alone = {name: rows for name, rows in parts.items() if name not in bad}
            print(f"  without {', '.join(bad)}: {run(bench, alone, rounds, None, ())[0]:.3f}", flush=True)
            for attack in arguments.attack or [*ROUNDS, *MIXTURE]:
                reached, refused = run(bench, parts, rounds, attack, bad)
                print(f"  {attack:<45} {reached:.3f}  refused {refused}", flush=True)


if __name__ == "__main__":
    main()
