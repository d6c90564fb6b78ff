"""The audit of fedcar's own training under epsilon: its sums, its noise, its ledger and a whole run with canaries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcar.collection.collection import Collection
from fedcar.collection.splits import subset
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.privacy import audit
from fedcar.privacy.audit import Check
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import PrivatePlan, make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ROWS, SUMS, ClippedSums, Tensors
from fedcar.training.target import Target

NEIGHBOURS = 24  # examples that are left out one by one
EMPTY_DRAWS = 30
CANARIES = 1000
GUESSES = 200


def audit_collection(
    collection: Collection,
    target: Target,
    *,
    method: str = "head",
    encoder: Encoder,
    features: FeatureCache,
    questions: int = 200,
    seed: int = 0,
    report: Silent | None = None,
) -> list[Check]:
    """Every check on the code that trains, with some real training questions; each flags a correct run at p < 1e-6.

    An audit finds faults and proves no epsilon. The canaries' run spends noise on copies of the plan, no ledger of
    anybody.
    """
    report = report or Silent()
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    train = collection.judged("train")
    order = set(np.random.default_rng(seed).permutation(len(train))[:questions].tolist())
    some = prepare(untrained, subset(train, [row in order for row in range(len(train))]), features, report, "questions")
    plan = make_plan(replace(target, against_advice=True), method, len(collection.documents))
    adapter = Adapter("full", encoder.embedding_width, seed) if plan.method == "adapter" else None
    clipped_sums = ClippedSums(untrained, some, adapter)
    checks = [
        *replayed(untrained, clipped_sums, plan, adapter),
        *of_the_noise(clipped_sums, plan),
        *of_a_run(untrained, clipped_sums, plan),
    ]
    return [*checks, with_canaries(clipped_sums, plan)]


def replayed(
    untrained: Retriever, clipped_sums: ClippedSums, plan: PrivatePlan, adapter: Adapter | None
) -> list[Check]:
    """Class sums and gradients without noise: neighbours, halves, and the empty batch."""
    server = PrivateTraining(untrained, InTurn([NoisedClient("audited", clipped_sums)]), plan, adapter=adapter)
    state = {ROWS: server.first_rows(clipped_sums.class_sums()[SUMS])} | server.first_adapter()
    sums: list[tuple[str, Callable[[Tensor], dict[str, Tensor]], float]] = [
        ("class sums", clipped_sums.class_sums, 1.0)
    ]
    if plan.step is not None:
        sums.append((plan.method, lambda rows: clipped_sums.gradients(state, plan.clip_norm, rows), plan.clip_norm))
    count, checks = min(NEIGHBOURS, len(clipped_sums)), []
    for name, clipped, bound in sums:

        def flat(rows: Sequence[int], clipped: Callable[[Tensor], dict[str, Tensor]] = clipped) -> NDArray[np.float32]:
            tensors = clipped(torch.tensor(list(rows), dtype=torch.long))
            whole: NDArray[np.float32] = torch.cat([tensors[key].flatten() for key in sorted(tensors)]).numpy()
            return whole

        for check in (audit.clipping_holds_on_neighbours(flat, count, bound), audit.sums_add_up(flat, count)):
            checks.append(replace(check, name=f"{name}: {check.name}"))
    return checks


def of_the_noise(clipped_sums: ClippedSums, plan: PrivatePlan) -> list[Check]:
    """What two devices give out on empty batches: as large as stated, and never the same twice."""
    release = plan.step or plan.sums
    release = replace(release, steps=1)
    empty = {ROWS: torch.zeros(clipped_sums.documents, clipped_sums.x.shape[1])}
    devices = [NoisedClient("one", clipped_sums), NoisedClient("other", clipped_sums)]
    draws = np.stack(
        [
            devices[number % 2].release(number, release, lambda: empty)[ROWS].flatten().double().numpy()
            for number in range(EMPTY_DRAWS)
        ]
    )
    return [audit.noise_is_as_large_as_stated(draws, release.standard_deviation), audit.noise_is_fresh(draws)]


def of_a_run(untrained: Retriever, clipped_sums: ClippedSums, plan: PrivatePlan) -> list[Check]:
    """A whole training with a ledger of its own: every draw of noise was charged, and the budget holds."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")
        ledger.create(Budget(plan.target.epsilon, plan.target.delta))
        device = NoisedClient("audited", clipped_sums, ledger=ledger, run="audit")
        PrivateTraining(untrained, InTurn([device]), plan, adapter=clipped_sums.adapter).run()
        charged, spent = len(ledger.releases()), ledger.spent()
    check = Check(
        "the budget holds", float(spent <= plan.target.epsilon), f"{spent:.4g} of epsilon {plan.target.epsilon:g} spent"
    )
    return [audit.steps_charged_equal_steps_noised(charged, device.source.draws), check]


def with_canaries(clipped_sums: ClippedSums, plan: PrivatePlan) -> Check:
    """All releases of the plan with planted directions in half of the sums, drawn by coins: can they be told?"""
    release = plan.step or plan.sums
    steps, single = release.steps, replace(release, steps=1, sampler="full-batch", sampling_rate=1.0)
    shape = (clipped_sums.documents, clipped_sums.x.shape[1])
    canaries = audit.canary_gradients(CANARIES, shape[0] * shape[1], float(release.sensitivity or 1.0))
    included = audit.draw_inclusion(CANARIES)
    planted: Tensors = {ROWS: torch.from_numpy(canaries[included].sum(0).reshape(shape))}
    device = NoisedClient("audited", clipped_sums)
    total = np.zeros(shape)
    for number in range(steps):
        total += device.release(number, single, lambda: planted)[ROWS].double().numpy()
    scores = audit.canary_scores(total, canaries)
    return audit.canaries_agree_with_the_claim(scores, included, [replace(single, steps=steps)], GUESSES)
