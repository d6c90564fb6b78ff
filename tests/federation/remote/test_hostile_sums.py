"""Sums for ridge and the mixture of which one of five is hostile: who is left out, and that the others stay exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.attacks import MIXTURE

from fedcar.federation.rounds.robust import Harm
from fedcar.federation.sums.harm import SumsJudge, left_out
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.federation.sums.ridge import possible, together
from fedcar.head.closed_form import Statistics
from fedcar.training.clients import InProcess
from fedcar.training.ridge import RidgeSums

DOCUMENTS, WIDTH = 8, 24


def questions(seed: int, count: int) -> tuple[Any, Any]:
    """Features of unit length around each document's direction, and targets."""
    directions = np.random.default_rng(7).normal(size=(DOCUMENTS, WIDTH))
    generator = np.random.default_rng(seed)
    about = generator.integers(DOCUMENTS, size=count)
    features = directions[about] + generator.normal(size=(count, WIDTH))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), np.eye(DOCUMENTS, dtype=np.float32)[about]


def sums(seed: int, count: int = 80) -> RidgeSums:
    features, targets = questions(seed, count)
    return RidgeSums(Statistics.of(features, targets), None)  # type: ignore[arg-type]


def spoilt(one: RidgeSums, **parts: Any) -> RidgeSums:
    return replace(one, statistics=replace(one.statistics, **parts))


FIVE = {f"c{number}": sums(number) for number in range(5)}
CHOOSING = questions(99, 400)
JUDGE = SumsJudge(CHOOSING[0], CHOOSING[1] > 0)
WRONG = {
    "rolled": lambda one: spoilt(one, cross=np.roll(one.statistics.cross, 1, axis=1)),
    "turned around": lambda one: spoilt(one, cross=-3 * one.statistics.cross),
}


def test_five_honest_ones_are_all_added_up() -> None:
    assert left_out(FIVE, JUDGE) == {} and left_out(FIVE, None) == {}


@pytest.mark.parametrize("wrong", WRONG)
def test_sums_that_surely_harm_are_left_out_by_name(wrong: str) -> None:
    one = {**FIVE, "c1": WRONG[wrong](FIVE["c1"])}
    assert list(left_out(one, JUDGE)) == ["c1"]
    two = {**one, "c3": WRONG[wrong](FIVE["c3"])}
    assert sorted(left_out(two, JUDGE)) == ["c1", "c3"]
    assert left_out({name: one[name] for name in ("c0", "c1", "c2")}, JUDGE) == {}  # of three nobody is judged out


def test_one_that_claims_far_more_questions_is_left_out() -> None:
    assert "the median is 80" in left_out({**FIVE, "c1": spoilt(FIVE["c1"], questions=10**6)}, None)["c1"]


def test_no_one_chooses_the_strength_alone() -> None:
    honest = [[10.0, 12.0, 14.0, 11.0]] * 4
    assert together([*honest, [10.0, 12.0, 14.0, 11.0]], 5) == [50.0, 60.0, 70.0, 55.0]
    assert int(np.argmax(together([*honest, [1e9, 0.0, 0.0, 0.0]], 5))) == 2
    assert int(np.argmax(together([*honest[:3], [1e9, 0.0, 0.0, 0.0]], 5))) == 2  # where one of five was left out
    assert together([[1.0, 5.0], [9.0, 2.0]], 2) == [10.0, 7.0]
    assert possible([(3, 4), (10**6, 4), (-1, 4)]) == [(3, 4)]


def terms(seed: int) -> MixtureTerms:
    """Three features over ten candidates, of which the first tells the right one, the second a little."""
    generator = np.random.default_rng(seed)
    relevance = np.eye(10, dtype=np.float32)[generator.integers(10, size=100)]
    features = generator.normal(size=(100, 10, 3)).astype(np.float32)
    features[..., 0] += 2 * relevance
    features[..., 1] += 0.5 * relevance
    return MixtureTerms.of(features, relevance)


class Hostile(InProcess[Any]):
    """The named client sends what the attack makes of its answer."""

    attack: Any = None

    def ask(self, request: Any, names: Any = None) -> Any:
        answers = super().ask(request, names)
        given = {name: self.attack(one) if name == "c1" and self.attack else one for name, one in answers.given.items()}
        return replace(answers, given=given)


@pytest.mark.parametrize("members", [5, 4])
@pytest.mark.parametrize("attack", MIXTURE)
def test_a_mixture_that_most_would_leave_is_learned_anew(attack: str, members: int) -> None:
    """Also where one of five has been left out before."""
    prior = np.zeros(3, dtype=np.float32)
    everyone = {f"c{number}": terms(number) for number in range(members)}
    honest, _ = federated_mixture(Hostile(everyone), prior)
    clients = Hostile(everyone)
    clients.attack = MIXTURE[attack]
    said: list[str] = []
    weights, _ = federated_mixture(clients, prior, say=said.append, many=True)
    right, lost = success(weights), success(honest)
    assert right >= lost - 0.02
    if said:
        assert said == [
            "c1: its sums for the mixture are at odds with most devices'; weights that suit most were learned instead"
        ]


def test_an_honest_mixture_is_that_of_all_questions() -> None:
    """Of five clients too: nobody is named."""
    said: list[str] = []
    federated_mixture(Hostile({f"c{n}": terms(n) for n in range(5)}), np.zeros(3, np.float32), say=said.append)
    assert said == []


def success(weights: Any) -> float:
    asked = terms(50)
    scores = asked.features.numpy() @ weights
    return float((scores.argmax(1) == asked.relevance.numpy().argmax(1)).mean())


def test_harm_is_sure_where_it_is_large_beside_its_error() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    assert Harm.of(0.05 + 0.1 * noise).surely(0.01) and not Harm.of(0.05 + 2 * noise).surely(0.01)
    assert not Harm.of(np.full(400, 0.001)).surely(0.01)
