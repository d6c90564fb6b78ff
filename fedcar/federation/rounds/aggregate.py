"""The server's side: every update is checked before it can touch the model, then they become one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedcar.federation.rounds.compress import MOMENTS, decode
from fedcar.federation.rounds.settings import RoundSettings

if TYPE_CHECKING:
    from fedcar.federation.rounds.update import Enrolled, Update
from fedcar.training.clients import MANY, MOST_COUNTED

Tensors = Mapping[str, Tensor]

FIXED = ("head.active",)  # travels with the state, is never trained
ROW_TENSORS = tuple(f"{prefix}head.rows{end}" for prefix, end in (("", ""), (MOMENTS, ".mean"), (MOMENTS, ".square")))
SECOND, STEPS = ".square", f"{MOMENTS}steps"  # how the names of second moments end; the count of steps
ABSURD_QUESTIONS = 1000  # times the cohort's median: refused; below, capped
LONGEST = 1.5  # times the usual length, among so many: cut to 1.0 honest rounds lose up to .013, to 1.5 nothing
FIRST_MOMENT, SECOND_MOMENT, ADAPTIVITY = 0.9, 0.99, 1e-3  # FedAdam's betas and tau


@dataclass(frozen=True)
class Checked:
    """The updates that passed, with their tensors as values (decoded from the wire); the others with the reason."""

    accepted: tuple[Update, ...]
    refused: Mapping[str, str]


def check_updates(
    updates: Sequence[Update], state: Tensors, enrolled: Mapping[str, Enrolled], settings: RoundSettings
) -> Checked:
    """Refuse what could harm the model: each update on its own first, then against the cohort.

    On its own: from an enrolled client, once; names, shapes and dtypes as sent; finite; n_i a whole number from 1, the
    one it enrolled with. Against the cohort: n_i within 1000 times the lower median, the length of the difference to
    the state within `norm_factor` times the lower median (a minority of clients cannot move it up).

    Formal guarantees:
        one_bad_client_cannot_change_the_model: an update refused here has no effect on the state after the round.
    """
    passed: dict[str, Update] = {}
    refused: dict[str, str] = {}
    for update in updates:
        try:
            if update.client in passed:
                raise ValueError("a second update in one round")
            passed[update.client] = checked_alone(update, state, enrolled, settings)
        except ValueError as error:
            refused[update.client] = str(error)
    if not passed:
        return Checked((), refused)
    usual_questions = median_low([update.questions for update in passed.values()])
    for client, update in passed.items():
        if update.questions > ABSURD_QUESTIONS * usual_questions:
            refused[client] = f"{update.questions} questions; the cohort's median is {usual_questions}"
    for what, (times, part) in PARTS.items():
        lengths = {client: length(update, state, part) for client, update in passed.items()}
        usual = median_low([value for value in lengths.values() if value > 0] or [0.0])
        limit = times * settings.norm_factor
        for client, value in lengths.items():
            if value > limit * usual:
                refused[client] = f"{what} {value:.3g}, above {limit:g} times the median {usual:.3g}"
    accepted = tuple(update for client, update in sorted(passed.items()) if client not in refused)
    return Checked(accepted, refused)


def checked_alone(update: Update, state: Tensors, enrolled: Mapping[str, Enrolled], settings: RoundSettings) -> Update:
    """The update with its tensors as values; raises ValueError, with the reason, where it cannot be used."""
    known = enrolled.get(update.client)
    if known is None:
        raise ValueError("not enrolled")
    if type(update.questions) is not int or update.questions != known.questions:
        raise ValueError(f"{str(update.questions)[:20]} questions, but enrolled with {known.questions}")
    trained = {name: tensor for name, tensor in state.items() if name not in FIXED}
    tensors = decode(update.tensors, trained, settings.compression)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name!r} is not finite")
        if name.endswith(SECOND) or name == STEPS:
            if settings.compression == "none" and (tensor < 0).any():
                raise ValueError(f"{name!r} is below 0")
            tensors[name] = tensor.clamp(min=0)  # what compression may have rounded below
    if not all(math.isfinite(value) for value in (*update.metrics.values(), update.seconds)):
        raise ValueError("a metric is not finite")
    return replace(update, tensors=tensors)


def length(update: Update, state: Tensors, part: Callable[[str], bool]) -> float:
    """The Euclidean length of the difference to the state over a part's tensors together, in float64.

    A second moment counts by its root: it is of the size of a gradient, squared.
    """
    differences = [torch.zeros(1, dtype=torch.float64)]
    for name, tensor in update.tensors.items():
        if part(name):
            difference = (tensor.double() - state[name].double()).flatten()
            differences.append(difference.abs().sqrt() if name.endswith(SECOND) else difference)
    return float(torch.cat(differences).norm())


PARTS: dict[str, tuple[float, Callable[[str], bool]]] = {  # times `norm_factor`; honest moments differ up to 40-fold
    "length": (1.0, lambda name: not name.startswith(MOMENTS)),
    "length of the moments": (10.0, lambda name: name.startswith(MOMENTS) and name != STEPS),
    "number of steps": (10.0, lambda name: name == STEPS),
}


# -------------------------------------------------------------------- one step out of many updates


def aggregate(
    state: Tensors,
    optimizer: Tensors,
    updates: Sequence[Update],
    enrolled: Mapping[str, Enrolled],
    settings: RoundSettings,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state after the round and the server optimiser's state; sums in float64, in the order of client names."""
    if settings.average == "trimmed":
        steps = trimmed_step(state, updates, settings.trim)
    else:
        steps = weighted_step(state, updates, enrolled, settings, is_clipped(settings, len(enrolled)))
    after, moments = server_step(state, steps, optimizer, settings)
    return {**after, **{name: state[name] for name in FIXED if name in state}}, moments


def is_clipped(settings: RoundSettings, clients: int) -> bool:
    """Whether no update counts for more than a usual one: where that was asked for, or five or more take part."""
    return settings.average == "clipped" or (settings.average == "auto" and clients >= MANY)


def counted(questions: Sequence[float], most: float) -> list[float]:
    """Each n_i as it counts: at most so many times the lower median."""
    limit = most * median_low(questions)
    return [min(count, limit) for count in questions]


def question_weights(updates: Sequence[Update], settings: RoundSettings, most: float | None = None) -> Tensor:
    """n_i / n (clients,), float64, each n_i counted at most `weight_cap` (or `most`) times the lower median."""
    weights = torch.tensor(_counts(updates, settings, most), dtype=torch.float64)
    return weights / weights.sum()


def local_steps(updates: Sequence[Update], settings: RoundSettings, most: float | None = None) -> Tensor:
    """How many local steps an epoch of each client has (clients,), float64.

    They follow from n_i, as that counts, and the batch size, so that no client can claim them.
    """
    counts = _counts(updates, settings, most)
    return torch.tensor([math.ceil(count / settings.batch_size) for count in counts], dtype=torch.float64)


def _counts(updates: Sequence[Update], settings: RoundSettings, most: float | None) -> list[float]:
    cap = settings.weight_cap if most is None else min(most, settings.weight_cap)
    return counted([update.questions for update in updates], cap)


def step_weights(weights: Tensor, steps: Tensor) -> Tensor:
    """n_i / n times the mean number of local steps over client i's own (clients,): FedNova (Wang et al. 2020)."""
    return weights * (weights @ steps) / steps


def row_weights(updates: Sequence[Update], enrolled: Mapping[str, Enrolled], weights: Tensor) -> Tensor:
    """n_id / n_d (clients, documents) over the clients with questions of document d; n_i / n where no client has any.

    A client's counts are scaled as its n_i was capped, so that no row obeys one client's claim.
    """
    counts = torch.stack([enrolled[update.client].row_questions.double() for update in updates])
    questions = torch.tensor([float(update.questions) for update in updates], dtype=torch.float64)
    counts = counts.clamp(min=0).minimum(questions[:, None]) * (weights / questions)[:, None]
    total = counts.sum(0)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), weights[:, None])


def clips(updates: Sequence[Update], state: Tensors, steps: Tensor) -> dict[str, Tensor]:
    """By what each update's differences are multiplied (clients,), for each of `PARTS`, so that none is too long.

    The usual length is the lower median of the lengths over the root of the local steps: steps that agree on nothing
    make a walk whose length grows by the root, and who has more questions may go further. A minority cannot move the
    median, and one of five that goes the other way takes back at most half as much again as one honest one brings. On
    non-iid shares this costs nothing, where a median or trimmed mean of the coordinates and multi-Krum cost .01 to .18
    (docs/log.md).
    """
    factors = {}
    for what, (_, part) in PARTS.items():
        lengths = torch.tensor([length(update, state, part) for update in updates], dtype=torch.float64)
        a_step = lengths / steps.sqrt()
        usual = median_low([value for value in a_step.tolist() if value > 0] or [0.0])
        factors[what] = (LONGEST * usual / a_step.clamp(min=1e-300)).clamp(max=1.0)
    return factors


def weighted_step(
    state: Tensors,
    updates: Sequence[Update],
    enrolled: Mapping[str, Enrolled],
    settings: RoundSettings,
    clipped: bool = False,
) -> dict[str, Tensor]:
    """The weighted mean of the differences to the state, by name, in float64; `clipped` to the usual length."""
    most = MOST_COUNTED if clipped else None
    weights, local = question_weights(updates, settings, most), local_steps(updates, settings, most)
    by_row = row_weights(updates, enrolled, weights) if settings.weight == "row" else None
    by_step = step_weights(weights, local) if settings.weight == "step" else weights
    factors = clips(updates, state, local) if clipped else None
    steps = {}
    for name in updates[0].tensors:
        step = torch.zeros_like(state[name], dtype=torch.float64)
        factor = None if factors is None else next(factors[what] for what, (_, part) in PARTS.items() if part(name))
        for place, update in enumerate(updates):
            difference = update.tensors[name].double() - state[name].double()
            if factor is not None:
                difference = difference * factor[place]
            if by_row is not None and name in ROW_TENSORS:
                share = by_row[place][:, None]
            else:
                share = (weights if name.startswith(MOMENTS) else by_step)[place]
            step += share * difference
        steps[name] = step
    return steps


def trimmed_step(state: Tensors, updates: Sequence[Update], trim: float) -> dict[str, Tensor]:
    """Each coordinate's mean without the `trim` share of its lowest and highest values (Yin et al. 2018)."""
    cut = min(math.ceil(trim * len(updates)), (len(updates) - 1) // 2)
    steps = {}
    for name in updates[0].tensors:
        differences = torch.stack([update.tensors[name].double() - state[name].double() for update in updates])
        steps[name] = differences.sort(0).values[cut : len(updates) - cut].mean(0)
    return steps


def server_step(
    state: Tensors, steps: Tensors, optimizer: Tensors, settings: RoundSettings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The averaged step times the server's rate, or one step of FedAdam (Reddi et al. 2021, algorithm 2)."""
    after: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, step in steps.items():
        if name.startswith(MOMENTS):
            moved = state[name].double() + step
            after[name] = (moved.round() if name == STEPS else moved).to(state[name].dtype)
            continue
        if settings.server_optimizer == "adam":
            first = optimizer.get(f"first.{name}", torch.zeros_like(step)) * FIRST_MOMENT + (1 - FIRST_MOMENT) * step
            second = (
                optimizer.get(f"second.{name}", torch.zeros_like(step)) * SECOND_MOMENT
                + (1 - SECOND_MOMENT) * step.square()
            )
            moments[f"first.{name}"], moments[f"second.{name}"] = first, second
            step = first / (second.sqrt() + ADAPTIVITY)
        after[name] = (state[name].double() + settings.server_rate * step).to(state[name].dtype)
    return after, moments
