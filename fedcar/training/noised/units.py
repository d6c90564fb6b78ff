"""Before anything runs: the advice, and what it costs to protect a question, a person or a client."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any

import numpy as np

from fedcar.errors import FedcarError
from fedcar.training.noised.plan import (
    LEAST_STRENGTH,
    MOST_UNITS,
    MOST_WEIGHT,
    SHARES,
    STRENGTHS,
    calibrated,
    make_plan,
    one_release,
)
from fedcar.training.target import DELTA, Target, delta_warning

USUAL_PERSONS = (1, 10, 50)  # questions that a person asked
PERSONS_SHOWN, EPSILONS_SHOWN = (1, 5, 10, 50), (1.0, 3.0, 8.0)


def advise(
    questions: Sequence[int],
    documents: int,
    *,
    epsilon: float = 1.0,
    delta: float = DELTA,
    unit: str = "example",
    method: str = "auto",
    steps: int | None = None,
    persons_ask: float | None = None,
) -> dict[str, Any]:
    """The plan for clients with so many questions each, and the share of un-noised training's gain to expect.

    `persons_ask` is how many questions a person asked. What protecting a question, a person and a client costs stands
    beside it: `side_by_side`, and `persons` for 1 to 50 questions at epsilon 1, 3 and 8.
    """
    target = Target(epsilon, delta, unit)
    if not questions or min(questions) < 1 or sum(questions) > MOST_UNITS:
        raise FedcarError(f"--questions: give a number for each client, from 1 to {MOST_UNITS:g} in all")
    clients, total, each = len(questions), sum(questions), persons_ask or 1.0
    counts = {"example": total, "person": max(1, round(total / each)), "client": clients}
    target.check(counts.get(target.protects))
    plan = make_plan(target, method, documents, steps=steps)
    units, loudness = worth(questions, target.protects, each if target.protects == "person" else 1.0)
    strength = plan.strength(units, loudness)
    share = expected_share(strength)
    expected = f"train: about {100 * share:.0f} % (+-15) of what un-noised training gains over search is to be expected"
    usual = median_low(questions)
    few = [place for place, number in enumerate(questions, 1) if unit != "client" and number / usual < 0.1]
    if strength < LEAST_STRENGTH:
        expected = "do not train: search costs no privacy and is expected to be better"
    if few:
        expected += f"; client {', '.join(map(str, few))} has too few questions for this plan and hardly counts"
    said = {"example": f"{total} questions", "person": f"{counts['person']} persons with {total} questions"}
    return {
        **plan.in_words(),
        "clients": clients,
        "units": said.get(target.protects, f"{clients} clients with {total} questions"),
        "strength": strength,
        "train": strength >= LEAST_STRENGTH,
        "expected_share_of_gain": share,
        "delta_warning": delta_warning(delta, counts[target.protects]) or None,
        "advice": f"{expected} (method {plan.method}, strength {strength:.1f})",
        "side_by_side": side_by_side(questions, documents, epsilon, delta, [each] if persons_ask else USUAL_PERSONS),
        "persons": costs_of_persons(questions, documents, delta),
    }


def worth(questions: Sequence[int], unit: str, questions_each: float = 1.0) -> tuple[float, float]:
    """How many units of one question all clients together are worth, and how loud their noises together are.

    A person of k questions is worth the root of k (see `ClippedSums.counts`); a client one, and the noise is one.
    """
    if unit == "client":
        return float(len(questions)), 1.0
    usual = median_low(questions)
    weights = np.array([min(1.0, number / usual) for number in questions])
    each = min(questions_each**0.5, MOST_WEIGHT) / questions_each
    return each * float(weights @ np.array(questions)), float(np.sqrt(np.square(weights).sum()))


def expected_share(strength: float) -> float:
    """The share of un-noised training's gain that is to be expected; 0 where search is kept."""
    return float(np.interp(np.log(strength), np.log(STRENGTHS), SHARES)) if strength >= LEAST_STRENGTH else 0.0


def side_by_side(
    questions: Sequence[int], documents: int, epsilon: float, delta: float, questions_each: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for questions, for persons who asked so many each, and for clients."""
    total = calibrated(one_release(Target(epsilon, delta)), Target(epsilon, delta))
    rows = [
        ("example", 1.0),
        *(("person", each) for each in questions_each),
        ("client", sum(questions) / len(questions)),
    ]
    found = []
    for unit, each in rows:
        units, loudness = worth(questions, unit, each)
        strength = units / (documents * total * loudness)
        count = len(questions) if unit == "client" else max(1, round(sum(questions) / each))
        found.append(
            {
                "unit": unit,
                "questions_each": each,
                "units": count,
                "epsilon": epsilon,
                "strength": strength,
                "train": strength >= LEAST_STRENGTH,
                "expected_share_of_gain": expected_share(strength),
            }
        )
    return found


def costs_of_persons(
    questions: Sequence[int], documents: int, delta: float, questions_each: Sequence[float] = PERSONS_SHOWN
) -> list[dict[str, Any]]:
    """The same for persons of 1 to 50 questions at epsilon 1, 3 and 8."""
    return [
        row
        for epsilon in EPSILONS_SHOWN
        for row in side_by_side(questions, documents, epsilon, delta, questions_each)
        if row["unit"] == "person"
    ]
