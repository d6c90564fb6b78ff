"""Public questions teach rows un-noised, and nothing of the private dev split is read for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import fedcar, tree
from support.federated import World

from fedcar import train
from fedcar.collection.collection import Collection, Query
from fedcar.collection.importing import PUBLIC_IDS, with_public_questions
from fedcar.collection.partition import UNNAMED
from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reference import reference_states
from fedcar.federation.simulate.noised import SharedOut
from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.noise import NoiseSource
from fedcar.retriever.calibration import NO_CONFIDENCE, NO_PROMISE, Calibration
from fedcar.retriever.retriever import Retriever
from fedcar.training import train as training
from fedcar.training.job import Splits, for_rows_and_for_choice
from fedcar.training.noised.clients import InTurn, NoisedClient
from fedcar.training.noised.plan import PrivatePlan, make_plan
from fedcar.training.noised.public import PULL, PublicQuestions, PublicTeacher
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.noised.whitening import usual_vectors, whitening
from fedcar.training.selection import Standard
from fedcar.training.target import Target


def public_of(world: World) -> PublicQuestions:
    return PublicQuestions(world.selection, torch.ones(len(world.selection)), world.training.take(np.arange(60)))


def judged(count: int) -> Any:
    names = [f"p{number}" for number in range(count)]
    queries = {name: Query(name, f"text {name}") for name in names}
    return Collection("c", (), queries, {"dev": {name: {"d": 1} for name in names}}).judged("dev")


@pytest.mark.parametrize(("count", "choose"), [(1, 1), (2, 1), (49, 25), (100, 50), (400, 80)])
def test_public_questions_train_or_choose_and_never_both(count: int, choose: int) -> None:
    rows, choice = for_rows_and_for_choice(judged(count))
    assert len(choice) == choose and len(rows) == count - choose
    assert {query.id for query in rows.queries}.isdisjoint(query.id for query in choice.queries)
    shuffled = judged(count)
    again = for_rows_and_for_choice(replace(shuffled, queries=shuffled.queries[::-1], relevant=shuffled.relevant[::-1]))
    assert {query.id for query in again[1].queries} == {query.id for query in choice.queries}, "by their ids alone"


def test_rows_have_the_least_loss_on_public_questions(encoder_folder: Path) -> None:
    world = World(encoder_folder)
    teacher = PublicTeacher(world.retriever(), public_of(world))
    start = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    rows = teacher.fitted(start).requires_grad_(True)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return teacher.of(at, slice(None)) + PULL / 2 * (at - start).square().sum()

    loss(rows).backward()
    assert rows.grad is not None and rows.grad.norm() < 1e-2 * len(world.selection) ** 0.5
    assert loss(rows) < 0.5 * loss(start)


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_where_public_questions_begin_no_class_sums_are_given_out(method: str) -> None:
    plain, public = (make_plan(Target(1.0, public_dev=True, public_rows=rows), method, 77) for rows in (False, True))
    assert [release.name for release in public.releases] == ["count", method]
    assert public.step.noise_multiplier < 0.95 * plain.step.noise_multiplier, "their share is the steps'"
    assert 0.99 < epsilon_of(public.releases, 1e-5) <= 1
    assert make_plan(Target(1.0, public_dev=True), "ridge", 77).sums is not None


def test_public_rows_are_kept_where_noise_would_swallow_the_steps(encoder_folder: Path) -> None:
    world = World(encoder_folder)
    untrained, device = world.retriever(), NoisedClient("one", ClippedSums(world.retriever(), world.training))
    plan = make_plan(Target(0.05, public_dev=True, public_rows=True), "head", 6)
    outcome = PrivateTraining(untrained, InTurn([device]), plan, public=public_of(world)).run()
    assert outcome.name == "public questions" and outcome.statement is not None
    assert [release.name for release in outcome.statement.releases] == ["count"]
    assert outcome.scores["public questions"] > outcome.scores["before"] + 0.2
    assert outcome.statement.selection["rows that noised steps begin with"] == "public dev set"


def test_steps_go_on_from_public_rows(encoder_folder: Path) -> None:
    world = World(encoder_folder, questions=3000)
    few = PublicQuestions(world.selection.take(np.arange(12)), torch.ones(12), world.training.take(np.arange(60)))
    plan = make_plan(Target(8.0, public_dev=True, public_rows=True), "head", 6)
    device = NoisedClient("one", ClippedSums(world.retriever(), world.training))
    outcome = PrivateTraining(world.retriever(), InTurn([device]), plan, public=few).run()
    assert outcome.name == "head"
    assert outcome.scores["head, step 30"] > outcome.scores["public questions"] + 0.02


def public_file(collection: Collection, folder: Path) -> Path:
    """Questions like those of training, in other words, as people have them."""
    file = folder / "public.csv"
    lines = [
        f"{how} {query.text},{name}\n" for query, name in some(collection, "train") for how in ("please", "do say")
    ]
    file.write_text("question,document\n" + "".join(lines))
    return file


def some(collection: Collection, split: str) -> list[tuple[Query, str]]:
    found = collection.judged(split)
    return [(query, next(iter(scores))) for query, scores in zip(found.queries, found.relevant, strict=True)]


def test_with_a_public_file_the_own_dev_split_is_not_read(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    file = public_file(collection, tmp_path)
    unanswerable = {"u": Query("u", "what is the meaning of it all", None, answerable=False, split="dev")}
    others = {
        "as it is": collection,
        "without dev": replace(collection, judgements={"train": collection.judgements["train"]}),
        "with unanswerable ones": replace(collection, queries={**collection.queries, **unanswerable}),
    }
    left = {}
    for what, one in others.items():
        found = train(
            one,
            encoder=encoder,
            cache=tmp_path / what,
            epsilon=50.0,
            delta=1e-9,
            public=file,
            noise_seed=0,
            against_advice=True,
            method="head",
        )
        found.save(tmp_path / f"{what} retriever")
        left[what] = tree(tmp_path / f"{what} retriever")
        assert found.training.selection["public questions"] > 0
    assert left["as it is"] == left["without dev"] == left["with unanswerable ones"]


def test_a_public_file_beside_a_public_dev_split(collection: Collection, tmp_path: Path) -> None:
    file = public_file(collection, tmp_path)
    alone, beside = (with_public_questions(collection, file, dev=dev) for dev in (False, True))
    asked, own = len(alone.judged("dev")), len(collection.judged("dev"))
    assert asked > 20 and len(beside.judged("dev")) == asked + own
    assert all(name.startswith(PUBLIC_IDS) for name in alone.judgements["dev"])
    assert set(alone.queries) == {*collection.queries, *alone.judgements["dev"]}, "the names of clients stay"
    assert alone.judged("test") == collection.judged("test")
    splits = Splits.under_epsilon(alone, True, alone.judged("train"))
    assert len(splits.public) + len(splits.selection) == asked


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("question,document\nwhy,nothing of the kind\n", 'document "nothing of the kind" is not there'),
        ("question\nwhy\n", "document id"),
        (None, "no such file"),
    ],
)
def test_a_public_file_is_refused_in_one_line(
    collection: Collection, encoder: Path, tmp_path: Path, content: str | None, says: str
) -> None:
    file = tmp_path / "public.csv"
    if content is not None:
        file.write_text(content)
    collection.write(tmp_path / "collection")
    result = fedcar(
        "train", tmp_path / "collection", "-o", tmp_path / "out", "--encoder", encoder, "--epsilon", 1, "--public", file
    )
    assert result.code == 1 and says in result.err and result.err.count("error:") == 1
    assert "Traceback" not in result.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "federate"])
def test_public_questions_on_the_command_line(
    collection: Collection, encoder: Path, tmp_path: Path, command: str
) -> None:
    file = public_file(collection, tmp_path)
    collection.write(tmp_path / "collection")
    more = ("--clients", 2, "--method", "head") if command == "federate" else ("--method", "head")
    options = ("--public", file, "--encoder", encoder, "--epsilon", 50, "--delta", 1e-6, "--against-advice", *more)
    planned = fedcar(command, tmp_path / "collection", "-o", tmp_path / "out", "--dry-run", "--json", *options)
    assert planned.code == 0 and "class sums" not in planned.out, planned.err
    result = fedcar(command, tmp_path / "collection", "-o", tmp_path / "out", "--json", *options)
    assert result.code == 0, result.err
    statement = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert statement["selection"]["rows that noised steps begin with"] == "public dev set"
    assert [release["name"] for release in statement["releases"]] == ["count", "head"]
    without = fedcar(command, tmp_path / "collection", "-o", tmp_path / "o", "--public", file, "--encoder", encoder)
    assert without.code == 1 or without.code == 2
    if command == "train":
        assert "--public: is for training under --epsilon" in without.err


def test_generated_questions_teach_before_noised_steps_and_cost_nothing(
    collection: Collection, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(document, f"tell me {query.text}") for query, document in some(collection, "train")]
    monkeypatch.setattr(training, "questions_by_model", lambda *_, **__: PseudoQueries.of(pairs, 0.5))
    options = {"encoder": encoder, "cache": tmp_path / "cache", "epsilon": 1.0, "against_advice": True, "noise_seed": 0}
    plain, taught = (
        train(collection, method="head", questions_from=server, questions_model="m" if server else None, **options)
        for server in (None, "http://127.0.0.1:9")
    )
    claims = [found.training.privacy for found in (plain, taught)]
    assert claims[0]["releases"] == claims[1]["releases"], "the budget is the same"
    assert claims[1]["selection"]["rows that noised steps begin with"] == "documents alone"


def test_generated_questions_help_where_noise_is_loud(encoder_folder: Path) -> None:
    world = World(encoder_folder, questions=3000)
    few = PublicQuestions(world.selection.take(np.arange(60)), torch.full((60,), 0.5))
    judge = world.selection.take(np.arange(60, 120))
    plan = make_plan(Target(0.01, against_advice=True), "head", 6)
    right = []
    for public in (None, few):
        device = NoisedClient("one", ClippedSums(world.retriever(), world.training), NoiseSource(3))
        outcome = PrivateTraining(world.retriever(), InTurn([device]), replace_noise(plan), public=public).run()
        right.append(Standard().score(judge, outcome.retriever.scores_of(judge)).success)
    assert right[1] > right[0] + 0.1


def replace_noise(plan: PrivatePlan) -> PrivatePlan:
    """The plan with noise that a test can repeat."""
    seeded = {name: replace(getattr(plan, name), noise="seeded-test") for name in ("count", "sums", "step")}
    return replace(plan, **seeded)


def test_whitening_knows_documents_and_reference_texts_alone(collection: Collection, encoder: Path) -> None:
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder), FeatureCache(None))
    found = whitening(untrained)
    states = reference_states(untrained.encoder, FeatureCache(None))
    reference = usual_vectors(torch.tensor(states["pooled"]), untrained.head.centre)
    assert torch.allclose(found, found.T, atol=1e-6)
    assert (reference @ found).norm(dim=1).mean() == pytest.approx(1.0, rel=1e-4)
    spread = torch.linalg.svdvals
    assert spread(reference @ found)[0] / spread(reference @ found)[-1] < spread(reference)[0] / spread(reference)[-1]
    other = Retriever.untrained(collection.documents[1:], Encoder.load(encoder), FeatureCache(None))
    assert not torch.allclose(whitening(other), found)


def test_without_public_questions_nothing_is_said_of_confidence(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    found = train(
        collection,
        encoder=encoder,
        cache=tmp_path / "cache",
        epsilon=50.0,
        delta=1e-9,
        method="head",
        against_advice=True,
    )
    assert found.calibration == Calibration()
    assert found.training.privacy["selection"]["confidence and answer threshold"] == "fixed in advance"
    answer = found.search("is it loud?")
    assert answer.answered is None and answer.reason == NO_CONFIDENCE
    assert {hit.confidence for hit in answer} == {None}
    promised = found.search("is it loud?", risk=0.05)
    assert promised.answered is False and promised.reason == NO_PROMISE
    found.save(tmp_path / "retriever")
    assert Retriever.load(tmp_path / "retriever").calibration == found.calibration


def test_a_public_file_moves_no_question_to_another_client(collection: Collection, tmp_path: Path) -> None:
    """Also where the last private question of a client is taken out: the names of all clients stay public."""
    named = {
        name: replace(query, client="b" if name == first_of(collection) else "a" if number % 2 else "c")
        for number, (name, query) in enumerate(collection.queries.items())
    }
    dev = next(iter(collection.judgements["dev"]))
    named[dev] = replace(named[dev], client="b")
    whole = replace(collection, queries=named)
    train = {name: one for name, one in whole.judgements["train"].items() if name != first_of(collection)}
    without = replace(whole, judgements={**whole.judgements, "train": train})
    found = []
    for one in (whole, without):
        public = with_public_questions(one, public_file(one, tmp_path))
        asked = public.judged("train")
        parts = SharedOut.of(public, asked, Target(1.0, public_file=True), "client", 4, 0).parts
        found.append({name: {asked.queries[row].id for row in rows} for name, rows in parts.items()})
    assert len(found[0]) == 4 and found[0].keys() == found[1].keys() and UNNAMED not in found[0]
    assert {name: ids - {first_of(collection)} for name, ids in found[0].items()} == found[1]


def first_of(collection: Collection) -> str:
    return next(iter(collection.judgements["train"]))


def test_a_statement_says_what_was_declared_public(collection: Collection, encoder: Path, tmp_path: Path) -> None:
    file, said = public_file(collection, tmp_path), []
    for options in ({"public": file}, {"public_dev": True}, {"public": file, "public_dev": True}):
        found = train(
            collection,
            encoder=encoder,
            cache=tmp_path / "cache",
            epsilon=1.0,
            against_advice=True,
            method="ridge",
            public_because="ours",
            **options,
        )
        said.append(found.training.privacy["public"])
    assert said == [
        {"questions of a file": "ours"},
        {"dev split": "ours"},
        {"dev split": "ours", "questions of a file": "ours"},
    ]


def test_few_or_one_sided_public_questions_leave_class_sums_and_confidence_alone(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "public.csv"
    file.write_text("question,document\n" + "".join(f"is number {n} loud,fan\n" for n in range(60)))
    found = train(
        collection,
        encoder=encoder,
        cache=tmp_path / "cache",
        epsilon=50.0,
        delta=1e-9,
        public=file,
        method="head",
        against_advice=True,
    )
    names = [release["name"] for release in found.training.privacy["releases"]]
    assert names == ["count", "class sums", "head"], "five documents have no public question"
    assert found.calibration == Calibration(), "thirty questions choose, and it takes fifty"
