"""Plans at the edges: every target, rate, number of steps and of questions is planned, or refused in one line."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some
from support.command import fedcar

from fedcar.errors import FedcarError
from fedcar.privacy.accountant import fits
from fedcar.privacy.errors import PrivacyError
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.units import advise
from fedcar.training.target import (
    LEAST_DELTA,
    LEAST_EPSILON,
    LEAST_RATE,
    MOST_EPSILON,
    MOST_SAMPLED_DELTA,
    MOST_SAMPLED_STEPS,
    MOST_STEPS,
    Target,
    delta_warning,
)

EDGES = [0, -0.0, -1, 1, 1e-300, 1e300, 1e6, 1e-9, 10**9, 10**400, 10**5000, math.inf, -math.inf, math.nan, 0.999, True]
NUMBERS = some.one_of(
    some.sampled_from(EDGES), some.floats(), some.floats(1e-4, 200), some.floats(0, 1), some.integers()
)
METHODS = some.sampled_from(["auto", "ridge", "head", "adapter", "none"])
UNITS = some.sampled_from(["example", "client", "hospital"])


def planned(values: dict[str, Any]) -> bool:
    """Whether it could be planned; what is planned fits the budget, what is not is refused in one line."""
    try:
        plan = PrivateSettings.of(values).plan(6)
    except (FedcarError, PrivacyError) as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return False
    assert fits(plan.releases, plan.target.epsilon, plan.target.delta)
    return True


def values_of(epsilon: Any, delta: Any, method: str, unit: str, steps: Any, rate: Any) -> dict[str, Any]:
    settings = PrivateSettings(Target(1.0), method, steps, rate, "full", 0)
    return {**asdict(settings), "target": {"epsilon": epsilon, "delta": delta, "unit": unit}}


@settings(deadline=None, max_examples=150)
@given(NUMBERS, NUMBERS, METHODS, UNITS, some.one_of(some.none(), NUMBERS), some.one_of(some.none(), NUMBERS))
@example(1.0, 1e-5, "head", "example", 10**9, None)
@example(1.0, 1e-300, "head", "example", None, None)
@example(1.0, 0.999, "adapter", "example", None, None)
@example(1.0, 1e-5, "head", "client", None, 1e-300)
@example(10**400, 1e-5, "head", "example", None, None)
def test_every_target_is_planned_or_refused_in_one_line(
    epsilon: Any, delta: Any, method: str, unit: str, steps: Any, rate: Any
) -> None:
    planned(values_of(epsilon, delta, method, unit, steps, rate))


@pytest.mark.parametrize("epsilon", [LEAST_EPSILON, MOST_EPSILON])
@pytest.mark.parametrize("delta", [LEAST_DELTA, MOST_SAMPLED_DELTA])
@pytest.mark.parametrize("rate", [LEAST_RATE, 0.9999, 1.0])
def test_the_limits_are_limits_of_what_can_be_planned(epsilon: float, delta: float, rate: float) -> None:
    """On them a plan is made, and just beyond each of them it is refused."""
    most = MOST_STEPS if rate == 1 else MOST_SAMPLED_STEPS
    assert planned(values_of(epsilon, delta, "head", "client", most, rate))
    beyond = 0.99 * epsilon if epsilon < 1 else 1.01 * epsilon
    assert not planned(values_of(beyond, delta, "head", "client", most, rate))
    assert not planned(values_of(epsilon, delta, "head", "client", most + 1, rate))
    assert not planned(values_of(epsilon, 0.9 * LEAST_DELTA, "head", "client", most, rate))
    assert not planned(values_of(epsilon, delta, "head", "client", most, 0.9 * LEAST_RATE))


def test_a_rate_is_the_plans_own_where_questions_are_hidden() -> None:
    for method, own in (("head", 1.0), ("adapter", 0.05)):
        assert planned(values_of(1.0, 1e-5, method, "example", 3, own))
        assert not planned(values_of(1.0, 1e-5, method, "example", 3, 0.5))
        assert planned(values_of(1.0, 1e-5, method, "client", 3, 0.5)), "the server that draws clients is trusted"


def test_noise_for_tests_has_no_limits_but_those_of_arithmetic() -> None:
    assert make_plan(Target(1e-9, 1e-9, noise_seed=0), "adapter", 6, steps=2).epsilon == math.inf


@settings(deadline=None, max_examples=100)
@given(some.lists(some.one_of(some.integers(), some.sampled_from([1, 10**400, 10**13])), max_size=3), NUMBERS, NUMBERS)
@example([10**400], 6, 1.0)
@example([1, 1, 10**400], 6, 1.0)
@example([], 6, 1.0)
@example([900], 10**400, 1.0)
def test_advice_is_given_or_refused_in_one_line(questions: list[int], documents: Any, epsilon: Any) -> None:
    try:
        found = advise(questions, documents, epsilon=epsilon)
    except (FedcarError, PrivacyError) as error:
        assert "\n" not in str(error)
    else:
        assert found["epsilon"] <= epsilon and math.isfinite(found["strength"])


def test_a_delta_above_the_usual_is_warned_of_where_the_user_said_how_many_there_are() -> None:
    """n^-1.1; by `privacy plan`, for which the number is given. A training says nothing: it would tell of n."""
    words = ("privacy", "plan", "--questions", 9000, "--documents", 77, "--epsilon", 1)
    high = fedcar(*words, "--delta", 1e-4)
    assert high.code == 0 and high.err == f"warning: {delta_warning(1e-4, 9000)}\n"
    assert "usual is 4e-05" in high.err and fedcar(*words, "--delta", 4e-5).err == ""
    assert fedcar(*words, "--delta", 1e-4, "--json").json["delta_warning"] in high.err
    assert fedcar(*words, "--json").json["delta_warning"] is None
