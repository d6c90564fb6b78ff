"""The round's steps on numbers that can be seen: checks, weights, aggregation, cohorts, quorum, failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.federated import enrolled, update
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.federation.rounds.aggregate import (
    aggregate,
    check_updates,
    local_steps,
    question_weights,
    row_weights,
    step_weights,
    trimmed_step,
)
from fedcar.federation.rounds.round import choose_cohort, federated_round, note_failures
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import ServerState
from fedcar.training.clients import Answers, InProcess

STATE = {"head.rows": torch.zeros(3, 2), "head.log_scale": torch.tensor(1.0), "head.active": torch.tensor([True] * 3)}
BY_QUESTION = RoundSettings(weight="question", average="mean")


def honest(client: str, questions: int = 10, value: float = 1.0) -> Any:
    return update(client, questions, **{"head.rows": torch.full((3, 2), value), "head.log_scale": torch.tensor(1.5)})


# -------------------------------------------------------------------- checks

NAN, INFINITE = float("nan"), float("inf")
BAD: dict[str, tuple[Any, str]] = {
    "NaN": (lambda one: rows(one, torch.full((3, 2), NAN)), "not finite"),
    "one NaN": (lambda one: rows(one, torch.tensor([[1.0, 1], [1, 1], [1, NAN]])), "not finite"),
    "infinite": (lambda one: rows(one, torch.full((3, 2), -INFINITE)), "not finite"),
    "1e30": (lambda one: rows(one, torch.full((3, 2), 1e30)), "above 10 times the median"),
    "scaled": (lambda one: rows(one, torch.full((3, 2), 100.0)), "above 10 times the median"),
    "shape": (lambda one: rows(one, torch.ones(2, 3)), "not float32 (3, 2)"),
    "more rows": (lambda one: rows(one, torch.ones(4, 2)), "not float32 (3, 2)"),
    "dtype": (lambda one: rows(one, torch.ones(3, 2, dtype=torch.float64)), "is float64"),
    "integers": (lambda one: rows(one, torch.ones(3, 2, dtype=torch.int32)), "is int32"),
    "missing": (lambda one: replace(one, tensors={"head.log_scale": torch.tensor(1.0)}), "no tensor 'head.rows'"),
    "extra": (lambda one: replace(one, tensors={**one.tensors, "head.extra": torch.ones(1)}), "unknown tensor"),
    "fixed": (lambda one: replace(one, tensors={**one.tensors, "head.active": torch.ones(3)}), "unknown tensor"),
    "nothing": (lambda one: replace(one, tensors={}), "no tensor"),
    "absurd n": (lambda one: replace(one, questions=10**12), "but enrolled with 10"),
    "n of 0": (lambda one: replace(one, questions=0), "but enrolled with 10"),
    "negative n": (lambda one: replace(one, questions=-5), "but enrolled with 10"),
    "n no number": (lambda one: replace(one, questions="many"), "but enrolled with 10"),
    "n true": (lambda one: replace(one, questions=True), "but enrolled with 10"),
    "stranger": (lambda one: replace(one, client="mallory"), "not enrolled"),
    "metric": (lambda one: replace(one, metrics={"loss": NAN}), "a metric is not finite"),
}


def rows(one: Any, tensor: Tensor) -> Any:
    return replace(one, tensors={**one.tensors, "head.rows": tensor})


@pytest.mark.parametrize("spoil", BAD)
@pytest.mark.parametrize("bad", [1, 2])
def test_one_bad_client_cannot_change_the_model(spoil: str, bad: int) -> None:
    """Bad updates are refused by name and reason; the state after the round is that of the honest ones, bit by bit."""
    how, reason = BAD[spoil]
    names = [f"c{number}" for number in range(10)]
    known = enrolled(**dict.fromkeys(names, 10))
    updates = [how(honest(name)) if place < bad else honest(name) for place, name in enumerate(names)]
    checked = check_updates(updates, STATE, known, RoundSettings())
    assert [one.client for one in checked.accepted] == names[bad:]
    assert len(checked.refused) == (1 if spoil == "stranger" else bad)
    assert all(reason in said and "\n" not in said for said in checked.refused.values())
    after, _ = aggregate(STATE, {}, checked.accepted, known, RoundSettings())
    without, _ = aggregate(STATE, {}, [honest(name) for name in names[bad:]], known, RoundSettings())
    assert all(torch.equal(after[name], without[name]) for name in STATE)


MOMENTS = {
    "optimizer.head.rows.mean": torch.zeros(3, 2),
    "optimizer.head.rows.square": torch.zeros(3, 2),
    "optimizer.steps": torch.tensor(0),
}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"optimizer.head.rows.square": torch.full((3, 2), -0.1)}, "is below 0"),
        ({"optimizer.head.rows.mean": torch.full((3, 2), 1e9)}, "length of the moments"),
        ({"optimizer.head.rows.square": torch.full((3, 2), 1e12)}, "length of the moments"),
        ({"optimizer.steps": torch.tensor(10**9)}, "number of steps"),
        ({"optimizer.steps": torch.tensor(-1)}, "is below 0"),
        ({"optimizer.steps": torch.tensor(1.0)}, "is float32"),
    ],
)
def test_moments_of_a_bad_client_are_refused(spoil: dict[str, Tensor], reason: str) -> None:
    state = {**STATE, **MOMENTS}
    sent = {name: torch.ones_like(tensor) for name, tensor in MOMENTS.items()}
    names = [f"c{number}" for number in range(5)]
    updates = [replace(honest(name), tensors={**honest(name).tensors, **sent}) for name in names]
    updates[0] = replace(updates[0], tensors={**updates[0].tensors, **spoil})
    known = enrolled(**dict.fromkeys(names, 10))
    checked = check_updates(updates, state, known, RoundSettings())
    assert list(checked.refused) == ["c0"] and reason in checked.refused["c0"]
    after, _ = aggregate(state, {}, checked.accepted, known, RoundSettings(server_rate=0.5))
    assert int(after["optimizer.steps"]) == 1 and after["optimizer.steps"].dtype == torch.int64
    assert torch.equal(after["optimizer.head.rows.square"], torch.ones(3, 2))


def test_a_claim_far_above_the_cohort_is_refused_and_one_above_is_capped() -> None:
    known = enrolled(a=10, b=10, c=10, d=100_000, e=1000)
    checked = check_updates([honest(name, one.questions) for name, one in known.items()], STATE, known, BY_QUESTION)
    assert list(checked.refused) == ["d"]
    weights = question_weights(checked.accepted, BY_QUESTION)
    torch.testing.assert_close(weights, torch.tensor([10, 10, 10, 100], dtype=torch.float64) / 130)


def test_a_client_with_two_updates_counts_for_none() -> None:
    checked = check_updates(
        [honest("a"), honest("b"), honest("a", value=2.0)], STATE, enrolled(a=10, b=10), BY_QUESTION
    )
    assert [one.client for one in checked.accepted] == ["b"]
    assert checked.refused == {"a": "a second update in one round"}


# -------------------------------------------------------------------- one step out of many


def test_weighted_by_questions_by_hand() -> None:
    known = enrolled(a=30, b=10)
    after, _ = aggregate(STATE, {}, [honest("a", 30, 1.0), honest("b", 10, 5.0)], known, BY_QUESTION)
    torch.testing.assert_close(after["head.rows"], torch.full((3, 2), 2.0))
    assert torch.equal(after["head.active"], STATE["head.active"])


def test_weighted_by_row_by_hand() -> None:
    """Row 0 is asked about at `a` three times as often, row 1 at `b` alone, row 2 nowhere: there n_i / n counts."""
    known = {
        "a": replace(enrolled(a=30)["a"], row_questions=torch.tensor([30, 0, 0])),
        "b": replace(enrolled(b=20)["b"], row_questions=torch.tensor([10, 10, 0])),
    }
    updates = [honest("a", 30, 1.0), honest("b", 20, 5.0)]
    weights = row_weights(updates, known, question_weights(updates, RoundSettings()))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.0, 0.6], [0.25, 1.0, 0.4]], dtype=torch.float64))
    after, _ = aggregate(STATE, {}, updates, known, RoundSettings(weight="row"))
    torch.testing.assert_close(after["head.rows"][:, 0], torch.tensor([2.0, 5.0, 2.6]))


def test_few_steps_count_as_much_a_question_as_many() -> None:
    """90 and 10 questions in batches of 10: 9 steps and 1; a step of the small client counts as one of the large."""
    settings = RoundSettings(batch_size=10)
    updates = [honest("a", 90, 9.0), honest("b", 10, 1.0)]
    weights = step_weights(question_weights(updates, settings), local_steps(updates, settings))
    torch.testing.assert_close(weights, torch.tensor([0.82, 0.82], dtype=torch.float64))
    equal = [honest("a", 20), honest("b", 20)]
    torch.testing.assert_close(
        step_weights(question_weights(equal, settings), local_steps(equal, settings)), torch.full((2,), 0.5).double()
    )


def test_a_claim_on_a_row_is_capped_by_the_questions() -> None:
    known = {**enrolled(a=10), "b": replace(enrolled(b=10)["b"], row_questions=torch.tensor([10**9, 0, -5]))}
    updates = [honest("a"), honest("b")]
    weights = row_weights(updates, known, question_weights(updates, RoundSettings()))
    torch.testing.assert_close(weights, torch.full((2, 3), 0.5, dtype=torch.float64))


def test_trimmed_mean_against_sorting() -> None:
    values = [-50.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 900.0]
    updates = [honest(f"c{place}", 10, value) for place, value in enumerate(values)]
    assert float(trimmed_step(STATE, updates, 0.2)["head.rows"][0, 0]) == np.mean(values[2:8])
    assert float(trimmed_step(STATE, updates[:2], 0.2)["head.rows"][0, 0]) == np.mean(values[:2])


def test_fed_adam_against_the_paper() -> None:
    """Reddi et al. 2021, algorithm 2, in numpy over three rounds."""
    settings = RoundSettings(weight="question", server_optimizer="adam", server_rate=0.1)
    state, optimizer = STATE, {}
    x, m, v = 0.0, 0.0, 0.0
    for value in (1.0, 0.5, -0.25):
        one = honest("a", 10, float(state["head.rows"][0, 0]) + value)
        state, optimizer = aggregate(state, optimizer, [one], enrolled(a=10), settings)
        m, v = 0.9 * m + 0.1 * value, 0.99 * v + 0.01 * value**2
        x += 0.1 * m / (np.sqrt(v) + 1e-3)
        assert float(state["head.rows"][1, 1]) == pytest.approx(x, abs=1e-5)


def test_one_client_alone_is_its_update_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {**STATE, "head.rows": torch.randn(3, 2, generator=generator)}
    one = rows(honest("a"), torch.randn(3, 2, generator=generator))
    for weight in ("question", "row"):
        after, _ = aggregate(state, {}, [one], enrolled(a=10), RoundSettings(weight=weight))
        assert torch.equal(after["head.rows"], one.tensors["head.rows"])


# -------------------------------------------------------------------- cohorts, quorum, failures

TEN = enrolled(**{f"c{number}": 10 for number in range(10)})


def test_cohorts_are_seeded_and_of_the_asked_size() -> None:
    settings = RoundSettings(participation=0.3)
    cohorts = [choose_cohort(TEN, {}, settings, number, 1) for number in range(1, 41)]
    assert cohorts == [choose_cohort(TEN, {}, settings, number, 1) for number in range(1, 41)]
    assert {len(cohort) for cohort in cohorts} == {3}
    assert {client for cohort in cohorts for client in cohort} == set(TEN)
    assert choose_cohort(TEN, {}, RoundSettings(), 1, 1) == sorted(TEN)
    assert len(choose_cohort(TEN, {}, RoundSettings(participation=0.001), 1, 1)) == 1


def test_a_failed_client_is_tried_again_later() -> None:
    failures: dict[str, tuple[int, int]] = {}
    asked = []
    for number in range(1, 17):
        cohort = choose_cohort(TEN, failures, RoundSettings(), number, 1)
        asked += [number] if "c3" in cohort else []
        failures = note_failures(failures, cohort, [client for client in cohort if client != "c3"], number)
    assert asked == [1, 2, 4, 8, 16]
    assert note_failures(failures, sorted(TEN), sorted(TEN), 17) == {}


def network(answering: dict[int, list[str]]) -> Any:
    """Who answers at which attempt; the rest fails."""

    class Some(InProcess[Any]):
        def ask(self, request: Any, names: Any = None) -> Answers[Any]:
            here = [client for client in names if client in answering.get(request.attempt, [])]
            failed = {client: "no answer" for client in names if client not in here}
            return Answers({client: honest(client) for client in here}, failed, 1.0, 7)

    return Some(TEN)


def test_a_round_with_too_few_updates_is_repeated_not_averaged() -> None:
    exchange = network({1: ["c0", "c1"], 2: [f"c{number}" for number in range(5)]})
    settings = RoundSettings(quorum=0.5)
    state, record = federated_round(ServerState(0, STATE), TEN, settings, exchange, lambda number, tensors: None)
    assert record.attempts == 2 and record.clients == ["c0", "c1", "c2", "c3", "c4"]
    assert record.failed["c9"] == "no answer" and record.bytes_down == 14 and record.clock_seconds >= 2.0
    assert state.round == 1 and state.failures["c9"][0] >= 1


def test_after_the_last_attempt_one_line_and_nothing_changed() -> None:
    before = ServerState(3, STATE)
    with pytest.raises(
        FedcarError, match="round 4: too few updates after 3 attempts .*the state is that of round 3"
    ) as error:
        federated_round(before, TEN, RoundSettings(), network({}), lambda number, tensors: None)
    assert "\n" not in str(error.value)
    assert before == ServerState(3, STATE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": -1}, "--rounds -1: must be 1 or more"),
        ({"local_epochs": 0}, "--local-epochs 0: must be 1 or more"),
        ({"participation": 0.0}, "--participation 0.0: must be from"),
        ({"participation": 1.5}, "--participation 1.5: must be from"),
        ({"quorum": 0.0}, "--quorum"),
        ({"trim": 0.5}, "--trim 0.5"),
        ({"deadline": 0.0}, "--deadline 0.0: must be above 0"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"server_rate": float("nan")}, "--server-rate nan"),
        ({"weight_cap": 0.5}, "--weight-cap 0.5: must be 1 or more"),
        ({"proximal": -1.0}, "--proximal -1.0: must be 0 or more"),
        ({"weight": "sum"}, '--weight "sum": not known; give one of step, question, row'),
        ({"share": "head"}, '--share "head"'),
        ({"compression": "gzip"}, '--compression "gzip"'),
        ({"local_optimizer": "new"}, '--local-optimizer "new"'),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FedcarError, match=message) as error:
        RoundSettings(**options).check()
    assert "\n" not in str(error.value)
