"""A collection's ledger: one for each folder, charged before a question is read, said in every statement."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.command import fedcar

from fedcar import train
from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.errors import BudgetError, LedgerError
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.statement import from_json, plain_words
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.sums import ClippedSums
from fedcar.training.noised.tally import Counting, Tally, found_of, home_of, opened, registered, tally_of
from fedcar.training.target import Target

OPTIONS: dict[str, Any] = {"epsilon": 1.0, "method": "head", "epochs": 2, "against_advice": True, "delta": 1e-3}
RUN = ("--epsilon", 1, "--delta", 1e-3, "--method", "head", "--against-advice")


@pytest.fixture
def place(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection's folder, with a user's folders that nobody else has used."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    collection.write(tmp_path / "questions")
    return tmp_path / "questions"


@pytest.fixture
def trained(place: Path, encoder: Path, cache: Path) -> Callable[..., Retriever]:
    loaded = Encoder.load(encoder)

    def once(folder: Path | None = None, **changes: Any) -> Retriever:
        return train(Collection.read(folder or place), encoder=loaded, cache=cache, **(OPTIONS | changes))

    return once


def spent(retriever: Retriever) -> tuple[float | None, float | None]:
    claim = from_json(json.dumps(retriever.training.privacy))
    return claim.spent_before, claim.spent_in_all


def test_ten_trainings_say_what_they_spend_together(trained: Callable[..., Retriever], place: Path) -> None:
    """At one epsilon each; the sum of their squared distances is what the accountant composes."""
    plan = make_plan(Target(1.0, 1e-3), "head", 6, steps=2)
    for number in range(10):
        before, in_all = spent(trained())
        assert before == pytest.approx(epsilon_of(plan.releases * number, 1e-3))
        assert in_all == pytest.approx(epsilon_of(plan.releases * (number + 1), 1e-3))
    assert in_all is not None and 3 < in_all < 10
    claim = from_json(json.dumps(trained().training.privacy))
    assert claim.epsilon <= 1 and "Spent over all runs: epsilon " in plain_words(claim).splitlines()[1]


def test_counted_before_a_question_is_read(
    trained: Callable[..., Retriever], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of sum stops the training: what stands in the ledger then covers it, and no answer is stored there."""
    for number, name in enumerate(("class_sums", "gradients"), 2):
        with monkeypatch.context() as patch:

            def stop(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(ClippedSums, name, stop)
            with pytest.raises(KeyboardInterrupt):
                trained()
        file = found_of(place)
        assert file is not None
        *_, run = {entry.values["run"]: None for entry in Ledger(file).open() if entry.kind == "charge"}
        kinds = [entry.values["release"]["name"] for entry in Ledger(file).open()[1:] if entry.values["run"] == run]
        assert kinds == ["count", "class sums", "head"][:number]
        assert not file.with_name(file.name + ".updates").exists()
    assert Ledger(file).releases()[-1].steps == 2


def test_a_run_without_room_is_refused_before_it_spends(
    trained: Callable[..., Retriever], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(budget=1.5)
    file = found_of(place)
    assert file is not None
    before = file.read_bytes()
    monkeypatch.setattr(ClippedSums, "__init__", None)  # no question is touched
    with pytest.raises(BudgetError, match="this run would bring epsilon to .* the budget is 1.5"):
        trained()
    with pytest.raises(LedgerError, match="its budget is epsilon 1.5, delta 0.001 and does not change"):
        trained(budget=9.0)
    assert file.read_bytes() == before


def test_a_budget_that_is_spent_already_is_not_set(trained: Callable[..., Retriever], place: Path) -> None:
    """A slip of the hand does not end a collection."""
    trained()
    with pytest.raises(BudgetError, match="the budget is 0.1"):
        trained(budget=0.1)
    assert spent(trained(budget=9.0))[1] < 9.0  # type: ignore[operator]


def test_one_ledger_for_a_folder_by_whatever_path(
    trained: Callable[..., Retriever], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)
    for folder in (place, tmp_path / "link", Path(), Path("..") / "questions"):
        trained(folder)
    assert len(list((tmp_path / "state" / "fedcar" / "ledgers").iterdir())) == 1
    file = found_of(tmp_path / "link")
    assert file is not None and len({entry.values["run"] for entry in Ledger(file).open()[1:]}) == 4
    assert sorted(path.name for path in place.iterdir()) == ["corpus.jsonl", "qrels", "queries.jsonl"]
    assert home_of(place).stat().st_mode & 0o077 == 0


def test_a_folder_that_was_moved_does_not_forget_without_a_word(place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = registered(Collection.read(place), None, said.append)
    opened(file, None, 1e-5)
    place.rename(tmp_path / "moved")
    assert said == []
    other = registered(Collection.read(tmp_path / "moved"), None, said.append)
    assert other != file and len(said) == 1
    assert f"{place} had the same documents and is gone" in said[0] and f"--ledger {file}" in said[0]
    assert registered(Collection.read(tmp_path / "moved"), None, said.append) == other and len(said) == 1


def test_the_ledger_that_is_named_first_stays_the_collections(place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    collection = Collection.read(place)
    named = registered(collection, tmp_path / "mine" / "ledger.jsonl", said.append)
    assert registered(collection, None, said.append) == named and said == []
    assert registered(collection, tmp_path / "other.jsonl", said.append) == tmp_path / "other.jsonl"
    assert len(said) == 1 and str(named) in said[0] and "does not count this" in said[0]


def test_units_are_counted_apart(place: Path) -> None:
    """Epsilons of questions and of clients do not add up, and neither stops the other."""
    collection = Collection.read(place)
    tallies = [
        tally_of(collection, make_plan(Target(1.0, 1e-3, unit), "ridge", 6), unit, Counting(), lambda line: None)
        for unit in ("example", "client")
    ]
    for tally in tallies:
        assert tally is not None
        tally.charge(1, tally.plan.sums)
        assert tally.spent().before == 0 < tally.spent().in_all
    assert [tally.ledger.path.name for tally in tallies if tally] == ["ledger.jsonl", "ledger-client.jsonl"]


def test_a_question_is_counted_once_whether_it_or_its_person_is_protected(
    collection: Collection, tmp_path: Path, trained: Callable[..., Retriever]
) -> None:
    """A person's epsilon holds for each of the person's questions: one ledger, and one budget."""
    queries = {name: replace(query, metadata={"user": name}) for name, query in collection.queries.items()}
    folder = tmp_path / "persons"
    replace(collection, queries=queries).write(folder)
    before, in_all = spent(trained(folder, budget=1.2))
    assert before == 0 and in_all is not None
    with pytest.raises(BudgetError):
        trained(folder, unit="person=user", budget=1.2)
    claim = from_json(json.dumps(trained(folder, unit="person=user", ledger=tmp_path / "other").training.privacy))
    assert claim.unit == "person" and claim.spent_in_all == pytest.approx(claim.epsilon, rel=1e-3)


def test_another_plan_of_the_same_run_is_counted_anew(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger.jsonl", None, 1e-5)
    small, large = (make_plan(Target(epsilon), "head", 6, steps=3) for epsilon in (0.01, 8.0))
    Tally(ledger, "run", small).charge(2, replace(small.step, steps=1))
    Tally(ledger, "run", large).charge(3, replace(large.step, steps=1))
    assert ledger.releases() == [small.step, large.step]


def test_what_was_lost_is_counted_again_and_what_is_sent_again_is_not(tmp_path: Path) -> None:
    plan = make_plan(Target(3.0, 1e-3), "head", 6, steps=4)
    tally = Tally(opened(tmp_path / "ledger.jsonl", None, 1e-3), "run", plan)
    for number, again in ((0, 0), (1, 0), (2, 0), (3, 0), (2, 0), (3, 1), (3, 1), (2, 2)):
        release = (plan.count, plan.sums)[number] if number < 2 else replace(plan.step, steps=1)  # type: ignore[type-var]
        assert release is not None
        tally.charge(number, release, again)
    steps = [release.steps for release in tally.ledger.releases() if release.name == "head"]
    assert steps == [4, 1, 1, 1], "all steps once, exchange 3 once more, exchange 2 twice more"


@pytest.mark.parametrize("how", ["no_ledger", "made in Python", "seeded"])
def test_nothing_is_counted_where_there_is_nothing_to_count_in(
    trained: Callable[..., Retriever], place: Path, encoder: Path, cache: Path, tmp_path: Path, how: str
) -> None:
    if how == "made in Python":
        made = replace(Collection.read(place), folder=None)
        retriever = train(made, encoder=Encoder.load(encoder), cache=cache, **OPTIONS)
    else:
        retriever = trained(**{"no_ledger": {"no_ledger": True}, "seeded": {"noise_seed": 3}}[how])
    assert spent(retriever) == (None, None) and not (tmp_path / "state").exists()


def test_noise_that_can_be_repeated_is_infinite_in_a_ledger_that_is_named(
    trained: Callable[..., Retriever], tmp_path: Path
) -> None:
    before, in_all = spent(trained(noise_seed=3, ledger=tmp_path / "mine"))
    assert before == 0 and in_all == math.inf
    assert spent(trained(ledger=tmp_path / "mine")) == (math.inf, math.inf)


def test_a_restored_ledger_is_refused_by_the_next_training(
    trained: Callable[..., Retriever], place: Path, tmp_path: Path
) -> None:
    trained()
    file = found_of(place)
    assert file is not None
    shutil.copytree(file.parent, tmp_path / "backup")
    trained()
    shutil.rmtree(file.parent)
    shutil.copytree(tmp_path / "backup", file.parent)
    with pytest.raises(LedgerError, match=r"witnesses.* knows an entry .* restored from a copy"):
        trained()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--no-ledger", "--budget", 3), "--no-ledger and --budget: one or the other"),
        (("--no-ledger", "--ledger", "x"), "--no-ledger and --ledger: one or the other"),
        (("--budget", 0), "--budget 0 --delta 0.001: epsilon is 0.0, must be above 0"),
        (("--budget", "nan"), "--budget nan --delta 0.001: epsilon is nan"),
        (("--budget", 0.5), "this run would bring epsilon to"),
        (("--ledger", "queries.jsonl"), "queries.jsonl:1: is not a ledger entry"),
        (("--ledger", "corpus.jsonl/x"), "Not a directory; nothing was trained"),
    ],
)
@pytest.mark.parametrize("command", ["train", "federate"])
def test_refused_in_one_line(
    place: Path, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: Any, says: str
) -> None:
    monkeypatch.chdir(place)
    more = ("--clients", 2) if command == "federate" else ()
    found = fedcar(command, place, "-o", tmp_path / "r", "--encoder", encoder, *RUN, *more, *words)
    assert found.code == (3 if "would bring" in says else 1) and says in found.err.splitlines()[-1], found.err
    assert "Traceback" not in found.err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", ["--no-ledger", "--budget", "--ledger"])
def test_a_ledger_without_epsilon_is_refused(place: Path, tmp_path: Path, option: str) -> None:
    words = (option,) if option == "--no-ledger" else (option, 3)
    for command in (("train",), ("federate", "--clients", 2)):
        found = fedcar(*command, place, "-o", tmp_path / "r", *words)
        assert found.code == 1 and f"{option}: is for training under --epsilon" in found.err.splitlines()[-1]


def test_a_user_without_a_folder_to_write_to_is_told_the_ways_out(
    place: Path, tmp_path: Path, encoder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("fedcar.common.files.has_home", lambda: False)
    words = ("train", place, "-o", tmp_path / "r", "--encoder", encoder, "--cache", cache, *RUN, "--epochs", 1)
    found = fedcar(*words)
    assert found.code == 1 and "XDG_STATE_HOME, or give --ledger, or --no-ledger" in found.err.splitlines()[-1]
    assert fedcar(*words, "--ledger", tmp_path / "mine").code == 0 and (tmp_path / "mine" / "ledger.jsonl").exists()
    assert fedcar(*words, "--no-ledger").code == 0


def test_a_simulated_federation_is_counted_in_the_collections_ledger(
    place: Path, tmp_path: Path, encoder: Path, cache: Path
) -> None:
    """Once, not once a client; together with what was trained in one place; and a run that is resumed not twice."""
    words = ("--encoder", encoder, "--cache", cache, *RUN, "--json")
    assert fedcar("train", place, "-o", tmp_path / "t", *words, "--epochs", 3).json["privacy"]["spent_before"] == 0
    run = ("federate", place, "-o", tmp_path / "f", "--clients", 3, "--rounds", 3, "--no-central", *words)
    claim = fedcar(*run).json["privacy"]
    plan = make_plan(Target(1.0, 1e-3), "head", 6, steps=3)
    assert claim["spent_before"] == pytest.approx(epsilon_of(plan.releases, 1e-3))
    assert claim["spent_in_all"] == pytest.approx(epsilon_of(plan.releases * 2, 1e-3))
    assert fedcar(*run, "--resume").json["privacy"] == claim
    told = fedcar("privacy", "ledger", place, "--json").json
    assert told["budget"] == "infinity" and [one["charges"] for one in told["runs"]] == [3, 3]
    assert fedcar("privacy", "statement", tmp_path / "f.run", "--json").json["spent_in_all"] == claim["spent_in_all"]


def test_a_ledger_is_shown_in_words_and_goes_on_by_another_clock(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine" / "ledger.jsonl"
    ahead = Ledger(file, clock=lambda: 4e9)
    ahead.create(Budget(3.0, 1e-5))
    plan = make_plan(Target(1.0), "ridge", 6)
    ahead.charge("run", 1, plan.sums)
    with pytest.raises(LedgerError, match=f"go on by it with fedcar privacy ledger {file} --set-clock"):
        Ledger(file).charge("run", 2, plan.sums)
    shown = fedcar("privacy", "ledger", tmp_path / "mine")
    assert "at most epsilon 3 over all runs at delta 1e-05" in shown.out and "--set-clock" in shown.out
    before = Ledger(file, clock=lambda: 4e9).spent()
    found = fedcar("privacy", "ledger", file, "--set-clock", "--json").json
    assert found["clock_went_back"] > 1e9 and found["ahead"] == 0 and found["spent"] == before
    assert Ledger(file).charge("run", 2, plan.sums).epsilon > before
    assert "the clock is right" in fedcar("privacy", "ledger", file, "--set-clock").out
    nothing = fedcar("privacy", "ledger", place)
    assert nothing.code == 1 and "no ledger; give its file, its folder, or a collection" in nothing.err
