"""What to expect of a budget before anything runs: from counts alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any

import numpy as np

from fedcar.errors import FedcarError
from fedcar.private_plan import DELTA, LEAST_STRENGTH, Target, make_plan

# Measured on dev of banking77, arxiv_meta, ag_news and sms_spam and parts of them, epsilon .5 to 3: strength, and the
# share of what un-noised training gains over the encoder alone that `head` kept; single runs lie within .15 of it.
STRENGTHS = (9.0, 16.0, 25.0, 40.0, 80.0, 160.0, 240.0, 500.0)
SHARES = (0.1, 0.35, 0.5, 0.6, 0.8, 0.87, 0.93, 0.97)


def advise(
    questions: Sequence[int],
    documents: int,
    *,
    epsilon: float = 1.0,
    delta: float = DELTA,
    unit: str = "example",
    method: str = "auto",
    steps: int | None = None,
) -> dict[str, Any]:
    """The plan for clients with so many questions each, and the share of un-noised training's gain to expect."""
    target = Target(epsilon, delta, unit)
    clients, total = len(questions), sum(questions)
    target.check(clients if unit == "client" else total)
    if documents < 1:
        raise FedcarError(f"--documents {documents}: must be 1 or more")
    found = make_plan(target, method, documents, steps=steps)
    usual = median_low(questions)
    weights = [min(1.0, one / usual) for one in questions] if unit == "example" else [1.0]
    units = float(clients) if unit == "client" else sum(w * n for w, n in zip(weights, questions, strict=True))
    strength = found.strength(units, float(np.sqrt(np.square(weights).sum())))
    share = float(np.interp(np.log(strength), np.log(STRENGTHS), SHARES)) if strength >= LEAST_STRENGTH else 0.0
    expected = f"train: about {100 * share:.0f} % (+-15) of what un-noised training gains over search is to be expected"
    few = [place for place, weight in enumerate(weights, 1) if weight < 0.1]
    if strength < LEAST_STRENGTH:
        expected = "do not train: search costs no privacy and is expected to be better"
    if few:
        expected += f"; client {', '.join(map(str, few))} has too few questions for this plan and hardly counts"
    return {
        **found.in_words(),
        "clients": clients,
        "units": f"{total} questions" if unit == "example" else f"{clients} clients with {total} questions",
        "strength": strength,
        "train": strength >= LEAST_STRENGTH,
        "expected_share_of_gain": share,
        "advice": f"{expected} (method {found.method}, strength {strength:.1f})",
    }
