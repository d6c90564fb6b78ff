"""Persons as the unit: all questions of one move a sum by at most one clip, and leave nothing else behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import fedcar, tree
from support.federated import World
from support.neighbours import TINY, difference
from support.wire import over_wire

from fedcar import train
from fedcar.collection.collection import Collection, Query
from fedcar.collection.persons import persons_of
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.privacy.statement import from_json
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ROWS, SUMS, ClippedSums
from fedcar.training.noised.units import advise
from fedcar.training.target import Target

USERS = 5


@pytest.fixture
def asked(collection: Collection) -> Collection:
    """Every training question is one of five persons', the first of whom asked by far the most."""
    train_ids = list(collection.judgements["train"])
    users = {name: f"u{max(0, number - 12) % USERS}" for number, name in enumerate(train_ids)}
    queries = {
        name: replace(query, metadata={**query.metadata, "user": users[name]}) if name in users else query
        for name, query in collection.queries.items()
    }
    return replace(collection, queries=queries)


def without(collection: Collection, person: str) -> Collection:
    """The collection in which this person never asked anything."""
    gone = {name for name in collection.judgements["train"] if collection.queries[name].metadata["user"] == person}
    judgements = {name: scores for name, scores in collection.judgements["train"].items() if name not in gone}
    queries = {name: query for name, query in collection.queries.items() if name not in gone}
    return replace(collection, queries=queries, judgements={**collection.judgements, "train": judgements})


def with_one_more(collection: Collection) -> Collection:
    """A person more, with nine questions of which one is long."""
    new = {
        f"new{n}": Query(f"new{n}", "who fixes the tube " * (1 + 99 * (n == 3)), metadata={"user": "new"})
        for n in range(9)
    }
    judgements = {**collection.judgements["train"], **{name: {"hose": 1} for name in new}}
    return replace(
        collection, queries={**collection.queries, **new}, judgements={**collection.judgements, "train": judgements}
    )


def sums_of(collection: Collection, encoder: Path, folder: Path, variant: str | None) -> ClippedSums:
    judged = collection.judged("train")
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder), FeatureCache(folder))
    questions = prepare(untrained, judged, FeatureCache(folder), Silent(), "")
    adapter = None if variant is None else Adapter(variant, untrained.encoder.embedding_width)
    return ClippedSums(untrained, questions, adapter, persons_of(judged, "user"))


@pytest.mark.parametrize("variant", [None, "full", "lowrank:3", "diagonal"])
@pytest.mark.parametrize("small", [False, True], ids=["at once", "in parts"])
def test_one_person_moves_a_sum_by_at_most_its_sensitivity(
    asked: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None, small: bool
) -> None:
    """Also a person whose questions do not fit into memory together; and so does each question of a person."""
    if small:
        monkeypatch.setattr("fedcar.training.noised.sums.CELLS_AT_ONCE", 200)
        monkeypatch.setattr("fedcar.training.noised.sums.TOKENS_AT_ONCE", 40)
    sums = sums_of(asked, encoder, tmp_path, variant)
    state = {ROWS: torch.randn(6, sums.x.shape[1], generator=torch.Generator().manual_seed(1))}
    if sums.adapter is not None:
        state |= {name: torch.full_like(tensor, 0.3) for name, tensor in sums.adapter.named_parameters()}
    counts = sums.counts()
    assert sums.units == counts[0] == USERS and sums.person is not None
    everything, whole = sums.class_sums()[SUMS], sums.gradients(state, 0.05)
    steps = sums.gradients_and_below(state, 0.05)
    tolerance = 1e-9 if variant is None else 1e-4  # what comes out of the encoder depends a little on the batch
    people = [sums.rows_of(torch.tensor([person])) for person in range(USERS)]
    assert len(people[0]) > 10 and sorted(torch.cat(people).tolist()) == list(range(len(sums)))
    for left_out in [*people, torch.tensor([3])]:
        others = torch.tensor([row for row in range(len(sums)) if row not in left_out])
        assert (everything - sums.class_sums(others)[SUMS]).norm() <= 1 + 1e-9
        moved = sums.gradients(state, 0.05, others)
        distance = float(torch.cat([(whole[name] - moved[name]).flatten() for name in state]).norm())
        assert distance <= 0.05 * (1 + tolerance)
        if len(left_out) > 1:
            assert distance > 0.04, "a person's questions together reach the bound"
            moved = sums.gradients_and_below(state, 0.05, others)
            assert torch.cat([(steps[name] - moved[name]).flatten() for name in steps]).norm() <= 1 + tolerance
    fewer = sums_of(without(asked, "u0"), encoder, tmp_path, None).counts()
    assert counts[0] - fewer[0] == 1 and (counts - fewer).norm() <= 2**0.5


def test_a_person_of_one_question_counts_as_a_question(asked: Collection, encoder: Path, tmp_path: Path) -> None:
    sums = sums_of(asked, encoder, tmp_path, None)
    state = {ROWS: torch.randn(6, sums.x.shape[1], generator=torch.Generator().manual_seed(1))}
    alone = sums_of(asked, encoder, tmp_path, None)
    sums.person, alone.person = None, torch.arange(len(alone))
    for by_question, by_person in (
        (sums.class_sums(), alone.class_sums()),
        (sums.gradients_and_below(state, 0.05), alone.gradients_and_below(state, 0.05)),
    ):
        for name, tensor in by_question.items():
            torch.testing.assert_close(by_person[name], tensor, rtol=1e-7, atol=1e-9)


def test_coins_are_tossed_for_persons(world: World) -> None:
    """Whoever is drawn takes part with all questions."""
    persons = [f"u{number // 8}" for number in range(len(world.training))]
    sums = ClippedSums(world.retriever(), world.training, None, persons)
    seen: list[torch.Tensor] = []
    gradients = sums.gradients
    sums.gradients = lambda state, clip_norm, rows=None: seen.append(rows) or gradients(state, clip_norm, rows)  # type: ignore
    plan = make_plan(Target(8.0, unit="person=user", against_advice=True), "head", 6, sampling_rate=0.2, steps=40)
    assert plan.step is not None and plan.step.unit == "person" and plan.step.sampler == "poisson"
    PrivateTraining(world.retriever(), InTurn([NoisedClient("one", sums)]), plan).run()
    assert len(seen) == 40
    for rows in seen:
        taken = torch.unique(rows // 8)
        assert len(taken) * 8 == len(rows)
    share = np.mean([len(rows) / len(persons) for rows in seen])
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / sums.units / 40) ** 0.5)


@pytest.fixture(scope="module")
def world(tiny_model: Callable[..., Path]) -> World:
    return World(tiny_model("llama"), questions=2400)


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_no_person_changes_anything_un_noised(asked: Collection, encoder: Path, tmp_path: Path, method: str) -> None:
    """With noise that swallows every sum, collections that differ in a whole person leave the same bytes."""
    options: dict[str, Any] = {"method": method, "epsilon": TINY, "delta": 1e-9, "against_advice": True, "epochs": 2}
    model = Encoder.load(encoder)

    def trained(collection: Collection, name: str, **more: Any) -> dict[str, Any]:
        found = train(
            collection, encoder=model, noise_seed=0, cache=tmp_path / "cache", unit="person=user", **{**options, **more}
        )
        found.save(tmp_path / name)
        return tree(tmp_path / name)

    first = trained(asked, "first")
    others = {"the most": without(asked, "u0"), "one": without(asked, "u3"), "one more": with_one_more(asked)}
    for what, other in others.items():
        assert not difference(trained(other, what), first), what
    loud = {"epsilon": 90.0}
    assert difference(trained(others["one"], "loud other", **loud), trained(asked, "loud", **loud)), "it can fail"


def test_clients_with_persons_in_process_and_over_a_network(asked: Collection, encoder: Path, tmp_path: Path) -> None:
    target = Target(8.0, unit="person=user", noise_seed=3, against_advice=True)

    def run(where: str, over: Any = None, collection: Collection = asked) -> Any:
        return federate_under_epsilon(
            collection, target, run=tmp_path / where, clients=2, encoder=Encoder.load(encoder), over=over,
            cache=tmp_path / "cache", rounds=RoundSettings(rounds=3),
        )  # fmt: skip

    here = run("here")
    with over_wire(tmp_path / "devices", encoder, tmp_path / "cache") as over:
        there = run("there", over)
    assert torch.equal(here.retriever.head.rows, there.retriever.head.rows) and here.privacy == there.privacy
    assert here.privacy is not None and here.privacy["unit"] == "person"
    assert {release["unit"] for release in here.privacy["releases"]} == {"person"}


def test_the_statement_of_persons_goes_with_the_retriever(asked: Collection, encoder: Path, tmp_path: Path) -> None:
    asked.write(tmp_path / "collection")
    place = tmp_path / "out"
    options = ("--encoder", encoder, "--cache", tmp_path / "cache", "--method", "head", "--against-advice")
    options += ("--epsilon", 2, "--unit", "person=user")
    assert fedcar("train", tmp_path / "collection", "-o", place, *options).code == 0
    statement = from_json((place / "privacy.json").read_text())
    assert statement.unit == "person" and 1.99 < statement.epsilon <= 2
    text = fedcar("privacy", "statement", place).out
    assert "Every single person" in text and "questions of one person" in text


def test_a_person_who_is_not_named_is_refused_in_one_line(asked: Collection, encoder: Path, tmp_path: Path) -> None:
    first = next(iter(asked.judgements["train"]))
    nameless = replace(asked, queries={**asked.queries, first: replace(asked.queries[first], metadata={})})
    nameless.write(tmp_path / "collection")
    options = ("--encoder", encoder, "--cache", tmp_path, "--epsilon", 1)
    for unit, message in (
        ("person=user", "some training questions name no person"),
        ("person=", '--unit "person=": not known; give one of example, person=COLUMN, client'),
        ("person", '--unit "person": not known'),
        ("client", "--unit client: here are questions of one place"),
    ):
        result = fedcar("train", tmp_path / "collection", "-o", tmp_path / "out", *options, "--unit", unit)
        assert result.code == 1 and message in result.err.splitlines()[-1], unit
    with pytest.raises(FedcarError, match="--unit: is for training under --epsilon"):
        train(asked, encoder=encoder, cache=tmp_path, unit="person=user")


def test_how_many_questions_a_person_asked_changes_nothing_of_what_questions_are_promised() -> None:
    plain, asked = (advise([9000], 77, persons_ask=each) for each in (None, 10))
    assert plain["strength"] == asked["strength"] == asked["side_by_side"][0]["strength"]
    assert advise([9000], 77, unit="person=user", persons_ask=10)["strength"] == asked["side_by_side"][1]["strength"]
