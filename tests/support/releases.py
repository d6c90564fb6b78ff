"""Releases as the accountant, the ledger and the statement take them."""

from __future__ import annotations

from typing import Any

from fedcar.privacy.release import Release


def release(multiplier: float = 1.0, rate: float = 1.0, steps: int = 1, **changes: Any) -> Release:
    """Steps of noise on all questions, or with `rate` below 1 on a Poisson sample of them."""
    values: dict[str, Any] = {
        "name": "head",
        "noise_multiplier": multiplier,
        "sensitivity": 1.0,
        "sampler": "poisson" if rate < 1 else "full-batch",
        "unit": "example",
        "adjacency": "add-or-remove-one",
        "sampling_rate": rate,
        "steps": steps,
    }
    return Release(**(values | changes))
