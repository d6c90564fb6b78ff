"""The round: what clients and server exchange, and the one function that reads top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fedcar.errors import FedcarError
from fedcar.federation.rounds.aggregate import check_updates
from fedcar.federation.rounds.client import Train
from fedcar.federation.rounds.record import RoundRecord
from fedcar.federation.rounds.robust import combined, share_right
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, Evaluate, ServerState, Update
from fedcar.training.clients import Clients

if TYPE_CHECKING:
    from fedcar.federation.rounds.robust import Judge


def federated_round(
    state: ServerState,
    enrolled: Mapping[str, Enrolled],
    settings: RoundSettings,
    clients: Clients,
    evaluate: Evaluate,
    judge: Judge | None = None,
) -> tuple[ServerState, RoundRecord]:
    """One round of federated averaging (McMahan et al. 2017): the state after it, and its record for the history.

    The clients of a cohort are asked to `Train` from the state; what does not come before the deadline has failed.
    A round with fewer updates than the quorum is repeated with another cohort, never averaged; after the last attempt
    it raises FedcarError and the state before the round still stands. Who surely harms the questions of the `judge` is
    refused, and a state that is surely worse is not kept (see `combined`).
    """
    number, failures, bytes_down, waited = state.round + 1, dict(state.failures), 0, 0.0
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    for attempt in range(1, settings.attempts + 1):
        cohort = choose_cohort(enrolled, failures, settings, number, attempt)
        answers = clients.ask(Train(state, settings, attempt), cohort)
        start = time.perf_counter()
        updates = list(answers.given.values())
        checked = check_updates(updates, state.tensors, enrolled, settings)
        bytes_down, waited = bytes_down + answers.bytes_down, waited + answers.seconds
        refused, failed = {**refused, **checked.refused}, {**failed, **answers.failed}
        failures = note_failures(failures, cohort, [update.client for update in checked.accepted], number)
        if len(checked.accepted) >= (least := quorum(len(cohort), settings)):
            break
    else:
        raise too_few(number, settings, refused, failed)
    after = combined(state, checked.accepted, enrolled, settings, judge, least)
    tensors, accepted = after.tensors, after.updates
    refused = {**refused, **after.blamed}
    aggregated = time.perf_counter()
    record = RoundRecord(
        round=number,
        attempts=attempt,
        selection=evaluate(number, tensors),
        gate=after.gate,
        loss=mean_metric(accepted, "loss"),
        held_out=held_out(accepted, enrolled),
        clients=[update.client for update in accepted],
        questions=sum(update.questions for update in accepted),
        refused=refused,
        failed=failed,
        bytes_down=bytes_down,
        bytes_up=sum(update.bytes for update in updates),
        client_seconds={update.client: round(update.seconds, 4) for update in updates},
        server_seconds=round(aggregated - start, 4),
        evaluation_seconds=round(time.perf_counter() - aggregated, 4),
        clock_seconds=round(waited + aggregated - start, 4),
    )
    after_round = replace(state, round=number, tensors=tensors, optimizer=after.optimizer, failures=failures)
    return after_round, record


def choose_cohort(
    enrolled: Mapping[str, Enrolled],
    failures: Mapping[str, tuple[int, int]],
    settings: RoundSettings,
    number: int,
    attempt: int,
) -> list[str]:
    """The clients asked, seeded by seed, round and attempt; failed ones wait their turn unless too few are left."""
    everyone = sorted(enrolled)
    size = max(1, round(settings.participation * len(everyone)))
    ready = [client for client in everyone if failures.get(client, (0, 0))[1] <= number]
    ready = ready if len(ready) >= quorum(size, settings) else everyone
    if len(ready) <= size:
        return ready
    generator = np.random.default_rng([settings.seed, number, attempt, 0x636F])
    return sorted(ready[place] for place in generator.choice(len(ready), size, replace=False))


def quorum(cohort: int, settings: RoundSettings) -> int:
    return max(1, math.ceil(settings.quorum * cohort))


def note_failures(
    failures: Mapping[str, tuple[int, int]], cohort: Sequence[str], accepted: Sequence[str], number: int
) -> dict[str, tuple[int, int]]:
    """A client that failed is asked again after 1, 2, 4, then every 8 rounds; an accepted update clears its record."""
    noted = {client: record for client, record in failures.items() if client not in accepted}
    for client in cohort:
        if client not in accepted:
            count = failures.get(client, (0, 0))[0] + 1
            noted[client] = (count, number + min(2 ** (count - 1), 8))
    return noted


def mean_metric(updates: Sequence[Update], name: str) -> float | None:
    """The mean of a metric over the clients that report it, weighted by their questions; None where no one does."""
    reported = [(update.metrics[name], update.questions) for update in updates if name in update.metrics]
    return sum(value * count for value, count in reported) / sum(count for _, count in reported) if reported else None


def held_out(updates: Sequence[Update], enrolled: Mapping[str, Enrolled]) -> dict[str, float] | None:
    """What the clients' own held-out questions say of the state before the round; None where there are none.

    A client has no more of them than it enrolled with. For the share that is right see `share_right`.
    """
    said = {update.client: (update.metrics.get("right", 0), update.metrics.get("held_out", 0)) for update in updates}
    counts = [count for client, count in said.items() if 0 <= count[0] <= count[1] <= enrolled[client].held_out]
    questions = sum(count for _, count in counts)
    return {"questions": questions, "right": questions * share_right(counts, len(enrolled))} if questions else None


def too_few(number: int, settings: RoundSettings, refused: Mapping[str, str], failed: Mapping[str, str]) -> FedcarError:
    reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted({**refused, **failed}.items())[:5])
    return FedcarError(
        f"round {number}: too few updates after {settings.attempts} attempts ({reasons}); the state is that of round "
        f"{number - 1}: bring clients back, or lower the quorum ({settings.quorum:g}), and go on with --resume"
    )
