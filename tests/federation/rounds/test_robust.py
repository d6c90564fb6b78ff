"""One of five, and two: what is kept, what is left out, and who is named; each attack of the suite."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support import federated
from support.attacks import ROUNDS, Hostile
from support.federated import World, enrolled, shares, update

from fedcar.federation.rounds.aggregate import aggregate, counted, is_clipped, local_steps
from fedcar.federation.rounds.robust import combined, share_right
from fedcar.federation.rounds.round import held_out
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState
from fedcar.retriever.questions import Questions
from fedcar.training.selection import Standard

STATE = {"head.rows": torch.zeros(3, 2)}
NAMES = [f"c{number}" for number in range(5)]
KNOWN = enrolled(**dict.fromkeys(NAMES, 10))


def rows(client: str, value: float, questions: int = 10) -> Any:
    return update(client, questions, **{"head.rows": torch.full((3, 2), value)})


def run(
    world: World, folder: Path, attack: str | None, bad: Sequence[str], held: Mapping[str, Questions] | None = None
) -> tuple[float, list[dict[str, Any]]]:
    """Success on the selection questions of what is kept, and the records; `held` are devices' own held-out ones."""
    hostile = type("Hostile", (Hostile,), {"attack": attack, "bad": bad, "held": held or {}})
    asked = copy.copy(world)
    if held:
        asked.selection = world.selection.take(np.arange(0))
    with patch.object(federated, "LocalNetwork", hostile):
        selection, records, _ = asked.run(folder, shares(240, 5), rounds=16)
    kept = selection.finish().scores_of(world.selection)
    return Standard().score(world.selection, kept).success, records


QUICK = ("minus 9.5 times the honest step", "another document's rows of the usual length")
SUITE = [pytest.param(attack, marks=[] if attack in QUICK else [pytest.mark.slow, pytest.mark.ci]) for attack in ROUNDS]


@pytest.fixture(scope="module")
def four_honest(world: World, tmp_path_factory: pytest.TempPathFactory) -> float:
    """What is reached without the hostile one, whose questions are lost."""
    parts = [part for number, part in enumerate(shares(240, 5)) if number != 1]
    return world.run(tmp_path_factory.mktemp("four") / "run", parts, rounds=16)[0].best.score.success


@pytest.mark.parametrize("attack", SUITE)
def test_one_of_five_cannot_take_the_model_away(world: World, four_honest: float, tmp_path: Path, attack: str) -> None:
    """It costs at most .02 of what four honest ones reach, and honest ones stay."""
    reached, records = run(world, tmp_path / "attacked", attack, ["client-02"])
    assert reached >= four_honest - 0.02
    blamed = {client for record in records for client in record["refused"]}
    assert blamed <= {"client-02"}


@pytest.mark.parametrize("attack", SUITE)
def test_two_of_five_never_fall_below_search(world: World, tmp_path: Path, attack: str) -> None:
    reached, records = run(world, tmp_path / "run", attack, ["client-02", "client-04"])
    assert reached >= federated.untrained(world)
    assert {client for record in records for client in record["refused"]} <= {"client-02", "client-04"}


@pytest.mark.parametrize("bad", [["client-02"], ["client-02", "client-04"]], ids=["one", "two"])
def test_false_counts_do_not_choose_where_devices_alone_have_questions(
    world: World, four_honest: float, tmp_path: Path, bad: Sequence[str]
) -> None:
    """Hostile ones say that the first state was best, and send another document's rows. Nobody judges those here."""
    held = {f"client-{n:02}": world.selection.take(np.arange(24 * (n - 1), 24 * n)) for n in range(1, 6)}
    reached, _ = run(world, tmp_path / "run", "another document's rows of the usual length", bad, held)
    assert reached >= (four_honest - 0.03 if len(bad) == 1 else federated.untrained(world))


def test_five_honest_ones_are_all_kept(world: World, tmp_path: Path) -> None:
    _, records = run(world, tmp_path / "run", None, [])
    assert all(record["refused"] == {} and "gate" not in record and len(record["clients"]) == 5 for record in records)


def test_the_one_to_blame_is_named_in_the_history(world: World, tmp_path: Path) -> None:
    _, records = run(world, tmp_path / "run", "minus 9.5 times the honest step", ["client-02"])
    reasons = [record["refused"].get("client-02", "") for record in records]
    assert any("surely better off without it" in reason or "times the median" in reason for reason in reasons)


def chances(values: Mapping[float, float]) -> Any:
    """A judge who knows what chance the right answer has where row 0 begins with a number, on 200 questions."""
    noise = np.random.default_rng(0).normal(scale=0.001, size=200)

    def judge(tensors: Mapping[str, torch.Tensor]) -> Any:
        place = float(tensors["head.rows"][0, 0])
        nearest = min(values, key=lambda known: abs(known - place))
        return values[nearest] + noise * place

    return judge


def test_a_state_that_is_surely_worse_is_not_kept() -> None:
    """Whoever made it: with two devices nobody can be blamed, and the state before stands."""
    known, state = enrolled(a=10, b=10), ServerState(0, STATE)
    after = combined(state, [rows("a", 1.0), rows("b", 1.0)], known, RoundSettings(), chances({0.0: 0.8, 1.0: 0.3}))
    assert after.gate is not None and "0.300 is the chance of the right answer after it, 0.800 before" in after.gate
    assert torch.equal(after.tensors["head.rows"], STATE["head.rows"]) and not after.blamed
    few = combined(
        state,
        [rows("a", 1.0), rows("b", 1.0)],
        known,
        RoundSettings(),
        lambda tensors: chances({0.0: 0.8, 1.0: 0.3})(tensors)[:19],
    )
    assert few.gate is None, "nineteen questions are too few to be sure"
    better = combined(state, [rows("a", 1.0), rows("b", 1.0)], known, RoundSettings(), chances({0.0: 0.3, 1.0: 0.8}))
    assert better.gate is None and float(better.tensors["head.rows"][0, 0]) == 1.0


def test_small_steady_pushes_add_up_to_a_name() -> None:
    """Each round's harm is below what is sure; together they are, and a device that does no harm is forgotten."""
    generator, state, blamed = np.random.default_rng(0), ServerState(0, STATE), list[str]()
    known = enrolled(**dict.fromkeys(NAMES, 10))

    def judge(tensors: Mapping[str, torch.Tensor]) -> Any:  # c0 pushes down: without it the mean is higher
        return 0.5 + 0.02 * float(tensors["head.rows"].mean()) + generator.normal(scale=1e-3, size=400)

    for number in range(8):
        updates = [rows("c0", 0.2), *(rows(name, 1.0) for name in NAMES[1:])]
        after = combined(state, updates, known, RoundSettings(weight="question"), judge)
        blamed += list(after.blamed)
        assert number > 0 or not after.blamed
        state = replace(state, round=number + 1, optimizer=after.optimizer)
    assert blamed and set(blamed) == {"c0"}
    assert {name for name in state.optimizer if float(state.optimizer[name].mean()) > 0} == {"harm.c0"}


def test_no_update_counts_for_much_more_than_a_usual_one() -> None:
    """A length is cut to 1.5 times the median at an equal number of steps; of fewer than five it is the mean."""
    settings = RoundSettings(weight="question")
    sent = [rows("c0", -9.0), *(rows(name, 1.0) for name in NAMES[1:])]
    after, _ = aggregate(STATE, {}, sent, KNOWN, settings)
    torch.testing.assert_close(after["head.rows"], torch.full((3, 2), (4 - 1.5) / 5))
    few, _ = aggregate(STATE, {}, sent[:2], enrolled(c0=10, c1=10), settings)
    torch.testing.assert_close(few["head.rows"], torch.full((3, 2), -4.0))
    assert is_clipped(RoundSettings(average="clipped"), 2) and not is_clipped(RoundSettings(average="mean"), 9)


@pytest.mark.parametrize("weight", ["step", "question"])
def test_a_million_questions_count_three_times_the_median(weight: str) -> None:
    """In the weight, and in the steps by which the others' weights are made (they were blown up 700 times)."""
    settings = RoundSettings(weight=weight, batch_size=10)
    sent = [rows("c0", 0.0, 1_000_000), *(rows(name, 1.0) for name in NAMES[1:])]
    known = {**KNOWN, "c0": Enrolled("c0", 1_000_000, torch.zeros(3))}
    after, _ = aggregate(STATE, {}, sent, known, settings)
    assert 0.5 <= float(after["head.rows"][0, 0]) <= 1.2
    assert counted([10, 10, 10**6], 3) == [10, 10, 30]
    assert local_steps(sent, settings, 3.0).tolist() == [3, 1, 1, 1, 1]


def test_a_minority_that_lies_about_its_counts_moves_the_share_within_the_others() -> None:
    honest = [(6, 10), (7, 10), (8, 10)]
    assert share_right([*honest, (0, 10), (0, 10)], 5) == 0.6
    assert share_right([*honest, (10**9, 10**9), (10**9, 10**9)], 5) == 0.8
    assert share_right([*honest, (10**9, 10**9)], 5) == 0.7, "also where one of five says nothing"
    assert share_right([(1, 2), (6, 6)], 2) == 7 / 8, "of all questions together in a federation of fewer than five"
    assert share_right([], 5) == share_right([], 2) == 0


def test_nobody_counts_on_more_questions_than_it_enrolled_with() -> None:
    known = {name: Enrolled(name, 10, torch.zeros(3), 4) for name in ("a", "b")}
    said = {"a": {"held_out": 4.0, "right": 3.0}, "b": {"held_out": 1e9, "right": 1e9}}
    updates = [replace(update(name), metrics=metrics) for name, metrics in said.items()]
    assert held_out(updates, known) == {"questions": 4.0, "right": 3.0}
