"""Choosing where the server has no questions of its own: by what share of theirs devices count as right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedcar.common.progress import Silent
from fedcar.errors import FedcarError
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.retriever.retriever import Retriever
from fedcar.training.selection import ALLOWED, Candidate, Fitted, Score, Standard, baseline_weights


def check_held_out(network: RemoteNetwork, name: str) -> None:
    """FedcarError where nobody has a question to choose by."""
    if not any(client.enrol().held_out for client in network.clients.values()):
        raise FedcarError(
            f"{name}: no dev split here and none on any device, so there are no questions to choose by; put some into "
            "qrels/dev.tsv, here (they may then be public) or on the devices"
        )


def shares_before(network: RemoteNetwork, untrained: Retriever, mixed: Retriever) -> dict[bytes, float]:
    """The share of held-out questions that search gets right: by each baseline, and by the learned mixture."""
    among = [untrained.weights, *baseline_weights(), mixed.weights]
    return {weights.tobytes(): share for weights, share in zip(among, network.held_out_by(among), strict=True)}


def shown(shares: Mapping[bytes, float]) -> dict[str, float]:
    """MIPS and hybrid, to stand beside each round."""
    low, high, mips, _ = (shares[weights.tobytes()] for weights in baseline_weights())
    return {"mips": mips, "hybrid": max(low, high)}


def candidate_by(
    shares: Mapping[bytes, float], name: str, fitted: Fitted, standard: Standard, report: Silent
) -> Candidate:
    """As `train.candidate`: the best of the mixtures, document folds counting by their share.

    `shares` are those of the held-out questions that are right, by the bytes of the mixture's weights.
    """
    scored = []
    for weighting in fitted.weightings:
        success, unseen = shares[weighting.weights.tobytes()], weighting.unseen
        value = (1 - standard.share) * success + standard.share * unseen
        scored.append((weighting.weights, Score(unseen >= standard.least - ALLOWED, value, 0.0, success, unseen)))
    weights, score = max(scored, key=lambda pair: pair[1])
    report.say(f"{name}: {score.success:.3f} of the devices' held-out questions right")
    return Candidate(name, replace(fitted.retriever, weights=weights), score)


def select_by(
    shares: Mapping[bytes, float], untrained: Retriever, candidates: Sequence[Candidate], standard: Standard,
    report: Silent,
) -> Candidate:  # fmt: skip
    """As `train.select`: the best, baselines included; of equal ones the cheapest."""
    searches = standard.fitted(untrained, (untrained.weights, *baseline_weights()))
    before = candidate_by(shares, "none", searches, standard, Silent())
    best = max((before, *candidates), key=lambda candidate: candidate.score)
    report.say(
        f"kept: {best.name} ({best.score.success:.3f} of the devices' held-out questions right, before "
        f"{before.score.success:.3f})"
    )
    return best
