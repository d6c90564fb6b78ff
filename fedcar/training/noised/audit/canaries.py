"""A thousand made-up units in one run of the product: their coins, and what the likelihood ratio tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcar.encoder.adapter import Adapter
from fedcar.privacy import coins, membership
from fedcar.privacy.audit import Check, certain
from fedcar.privacy.membership import Canaries, Membership
from fedcar.privacy.reference import deltas
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.audit.definition import names_of
from fedcar.training.noised.audit.trial import asked_again
from fedcar.training.noised.audit.watched import Exchange, Watched
from fedcar.training.noised.clients import Cohort, InTurn, NoisedClient, NoisedRequest
from fedcar.training.noised.plan import HELD_OUT, PrivatePlan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import BELOW, BELOW_SHARE, COUNT, SUMS, ClippedSums, Tensors

CANARIES = 1000
LEAST_COORDINATES = 4  # of a canary, so that none hangs on a single one
MEMBERS = 200  # of a cohort of canaries
PLAIN = 0.25  # of a canary: more than ten standard deviations of what noise is left


class Planted(ClippedSums):
    """Canaries in place of questions: each moves a sum by all that it may. `places` are those of its members."""

    def __init__(self, canaries: Canaries, shape: tuple[int, int], places: NDArray[np.int64]) -> None:
        self.canaries, self.shape, self.places = canaries, shape, places
        self.person = None

    def __len__(self) -> int:
        return len(self.places)

    def weights(self, rows: Tensor | None) -> NDArray[np.float64]:
        chosen = self.places if rows is None else self.places[rows.numpy()]
        return np.bincount(chosen, minlength=self.canaries.count).astype(np.float64)

    def class_sums(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        planted = self.canaries.among(self.shape[0] * self.shape[1]).planted(self.weights(rows))
        return {SUMS: torch.from_numpy(planted).float().reshape(self.shape)}

    def clipped(self, state: Tensors, clip_norm: float, rows: Tensor | None) -> tuple[dict[str, Tensor], float]:
        size = sum(tensor.numel() for tensor in state.values())
        weights = clip_norm * self.weights(rows)
        flat, sums, start = torch.from_numpy(self.canaries.among(size).planted(weights)).float(), {}, 0
        for name, tensor in state.items():
            sums[name] = flat[start : start + tensor.numel()].reshape(tensor.shape)
            start += tensor.numel()
        return sums, float(self.weights(rows).sum()) / 2


@dataclass(frozen=True)
class PlantedRun:
    """What left of a run over canaries, and of two quiet ones over the same requests."""

    canaries: Canaries
    included: NDArray[np.bool_]
    exchanges: list[Exchange]
    quiet: list[list[Exchange]]


def planted_run(untrained: Retriever, plan: PrivatePlan, module: Adapter | None, *, quiet_runs: int = 2) -> PlantedRun:
    """The whole plan over canaries, of which a fair coin each says whether it is there; no ledger of anybody."""
    shape = (len(untrained.documents), untrained.head.rows.shape[1])
    sizes = [shape[0] * shape[1]]
    if module is not None:
        sizes.append(sizes[0] + sum(tensor.numel() for tensor in module.parameters()))
    cohort = plan.target.unit == "client"
    count = max(1, min(MEMBERS if cohort else CANARIES, sizes[0] // LEAST_COORDINATES))
    canaries = Canaries(count, sizes[-1])
    included = membership.draw_inclusion(count)
    places = np.flatnonzero(included)

    def clients() -> InTurn:
        if cohort:
            members = [Planted(canaries, shape, places[[place]]) for place in range(len(places))]
            return InTurn([Cohort(members, NoisedClient("server", None))])
        return InTurn([NoisedClient("canaries", Planted(canaries, shape, places))])

    if not len(places):
        return PlantedRun(canaries, included, [], [])
    watched = Watched(clients())
    PrivateTraining(untrained, watched, plan, adapter=module).run()
    readable = [one for one in watched.exchanges if one.request.release.name not in (COUNT, HELD_OUT)]
    return PlantedRun(
        canaries, included, readable, [asked_again(clients(), readable, quiet=True) for _ in range(quiet_runs)]
    )


def amounts_of(canaries: Canaries, exchange: Exchange) -> NDArray[np.float64]:
    """How much of each canary is in the answer of the one client there is, by what one adds that took part."""
    [answer] = exchange.given.values()
    names = [name for name in names_of(exchange.request) if name != BELOW]
    flat = torch.cat([answer[name].reshape(-1) for name in names]).double().numpy()
    return canaries.among(len(flat)).read(flat) / length_of(exchange.request)


def length_of(request: NoisedRequest) -> float:
    if request.adaptive is not None:
        return float((1 - BELOW_SHARE) ** 0.5)
    return float(request.release.sensitivity or 1.0)


def attack_by_likelihood_ratio(found: PlantedRun) -> Membership:
    """Who is there, by everything that left but the count; and what the claim allows, by bounds of its own."""
    requests = [exchange.request for exchange in found.exchanges]
    lengths = [1.0] * len(requests)
    deviations = [request.release.standard_deviation / length_of(request) for request in requests]
    rates = [request.release.sampling_rate for request in requests]
    amounts = [amounts_of(found.canaries, exchange) for exchange in found.exchanges]
    ratios = membership.log_likelihood_ratios(amounts, lengths, deviations, rates)
    _, apart = deltas([request.release for request in requests], 0.0)
    area_allowed = membership.simulated_area(lengths, deviations, rates)
    return membership.attacked(ratios, found.included, (1 + apart) / 2, area_allowed)


def of_canaries(found: PlantedRun) -> Iterator[Check]:
    """The attack against the claim, and the coins as they are read where there is next to no noise."""
    if not found.exchanges:
        return
    yield membership.canaries_agree_with_the_claim(attack_by_likelihood_ratio(found))
    by_rate: dict[float, list[list[NDArray[np.float64]]]] = {}
    for number, run in enumerate(found.quiet):
        for exchange in run:
            runs = by_rate.setdefault(exchange.request.release.sampling_rate, [[] for _ in found.quiet])
            runs[number].append(amounts_of(found.canaries, exchange))
    for rate, runs in by_rate.items():
        read = [np.stack(amounts) for amounts in runs]
        said = "" if rate < 1 else "where everyone takes part: "
        for check in of_coins(read, found.included, rate):
            yield Check(f"{said}{check.name}", check.p_value, check.detail)


def of_coins(read: list[NDArray[np.float64]], included: NDArray[np.bool_], rate: float) -> Iterator[Check]:
    """`read` (steps, canaries) of each quiet run: 1 where one took part, 0 where it did not."""
    furthest = max(float(np.abs(amounts - np.clip(np.rint(amounts), 0, 1)).max()) for amounts in read)
    absent = max(float(np.abs(amounts[:, ~included]).max(initial=0.0)) for amounts in read)
    detail = f"up to {furthest:.2g} from once or not at all; up to {absent:.2g} of one that is not there"
    yield certain("each takes part once or not at all", max(furthest, absent) < PLAIN, detail)
    taken = [np.rint(amounts[:, included]) > 0 for amounts in read]
    yield coins.coins_are_as_stated(taken[0], rate)
    if rate < 1:
        yield coins.coins_are_independent(taken[0], rate)
        yield coins.coins_are_fresh(taken, rate)
