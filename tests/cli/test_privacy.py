"""`fedcar privacy`: the plan, the statement in words, the attack on real sums, the audit that finds planted faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import fedcar

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import to_json
from fedcar.training.noised.attack import attack_collection
from fedcar.training.noised.plan import make_plan
from fedcar.training.target import Target


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("llama"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("cache"))


def planned(*options: Any) -> Any:
    return fedcar("privacy", "plan", "--documents", 77, *options, "--json")


def test_plan_says_which_method_which_noise_and_what_to_expect() -> None:
    many = planned("--questions", 9000, "--epsilon", 1).json
    assert many["train"] and 0.4 < many["expected_share_of_gain"] < 0.8 and 0.999 < many["epsilon"] <= 1
    few = planned("--questions", 300, "--epsilon", 1).json
    assert not few["train"] and "search costs no privacy" in few["advice"]
    shared = planned("--questions", 9000, "--clients", 10, "--epsilon", 1).json
    assert shared["strength"] == pytest.approx(many["strength"] / 10**0.5, rel=1e-3)
    assert shared["units"] == "9000 questions" and shared["clients"] == 10
    uneven = planned("--questions", 11, "--clients", 3, "--epsilon", 1, "--unit", "client", "--delta", 0.01).json
    assert uneven["units"] == "3 clients with 11 questions"
    unequal = planned("--questions", "4000,4000,5", "--epsilon", 3).json
    assert "client 3 has too few questions" in unequal["advice"]
    text = fedcar("privacy", "plan", "--documents", 77, "--questions", 9000, "--method", "adapter").out
    assert "each unit with probability 0.05" in text and "standard deviation" in text


def test_plan_shows_question_person_and_client_in_one_table() -> None:
    found = planned("--questions", 9000, "--clients", 3).json
    rows = {(row["unit"], row["questions_each"]): row for row in found["side_by_side"]}
    assert set(rows) == {("example", 1), ("person", 1), ("person", 10), ("person", 50), ("client", 3000)}
    assert rows["example", 1]["strength"] == rows["person", 1]["strength"] == pytest.approx(found["strength"], rel=1e-4)
    for each, worth in ((10, 10**0.5), (50, 7)):
        expected = rows["example", 1]["strength"] * worth / each
        assert (
            rows["person", each]["strength"] == pytest.approx(expected) and rows["person", each]["units"] == 9000 / each
        )
    assert {(row["questions_each"], row["epsilon"]) for row in found["persons"]} == {
        (each, epsilon) for each in (1, 5, 10, 50) for epsilon in (1, 3, 8)
    }
    asked = ("--questions", 9000, "--unit", "person")
    by_number, by_persons = (planned(*asked, *one).json for one in (("--person-questions", 5), ("--persons", 1800)))
    assert by_number == by_persons and by_number["units"] == "1800 persons with 9000 questions"
    assert {release["unit"] for release in by_number["releases"]} == {"person"}
    assert by_number["strength"] == pytest.approx(by_number["side_by_side"][1]["strength"], rel=1e-4)
    text = fedcar("privacy", "plan", "--documents", 77, *asked, "--person-questions", 5).out
    assert "each of 1800 persons with 5 questions" in text and "share of the gain at epsilon 1, 3, 8" in text


def statement_file(folder: Path, **changes: Any) -> Path:
    found = make_plan(Target(3.0, **changes), "head", 77)
    folder.mkdir(exist_ok=True)
    file = folder / "privacy.json"
    file.write_text(json.dumps(to_json(found.statement(found.releases, 1, {}))))
    return file


def test_statement_says_what_it_is_worth_for_a_person_and_point_by_point(tmp_path: Path) -> None:
    file = statement_file(tmp_path / "example", public_dev=True, public_because="the dev questions are ours")
    text = fedcar("privacy", "statement", file, "--person-questions", 20).out
    assert "- 1 question: epsilon 3" in text and "- 20 questions: " in text and "that is reworded: epsilon 6.7" in text
    assert "dev split: the dev questions are ours" in text
    content = fedcar("privacy", "statement", file, "--person-questions", 4, "--checklist", "--json").json
    assert [row["questions"] for row in content["persons"]] == [1, 2, 4] and content["unit"] == "example"
    assert content["persons"][0]["epsilon"] == pytest.approx(content["epsilon"])
    assert "the dev questions are ours" in content["checklist"]["public"]
    points = fedcar("privacy", "statement", file, "--checklist").out
    assert points.startswith("claim: Epsilon 3 at delta 1e-05.") and "\nrelation: add-or-remove-one" in points
    client = statement_file(tmp_path / "client", unit="client")
    refused = fedcar("privacy", "statement", client, "--person-questions", 5)
    assert refused.code == 1 and "protects each client whole" in refused.err


def test_a_reason_for_a_public_split_needs_the_split(collection: Collection, encoder: Encoder, tmp_path: Path) -> None:
    collection.write(tmp_path / "collection")
    options = ("train", tmp_path / "collection", "-o", tmp_path / "out", "--encoder", encoder.folder)
    for more in (("--public-because", "it is old"), ("--epsilon", 1, "--public-because", "it is old")):
        refused = fedcar(*options, *more)
        assert refused.code == 1 and "--public-because: " in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--questions", "many"), "give a number, or one for each client"),
        (("--questions", "9,9", "--clients", 3), "--questions lists 2"),
        (("--questions", 9, "--epsilon", 0), "must be above 0"),
        (("--questions", 9, "--delta", 0.2), "must be below 1/n"),
        (("--questions", 9, "--unit", "household"), "not known"),
        (("--questions", 9, "--persons", 3, "--person-questions", 3), "give one"),
        (("--questions", 9, "--persons", 10), "must be at most 9"),
        (("--questions", 9, "--person-questions", 10), "must be at most 9"),
        (
            ("--questions", 90, "--unit", "person", "--persons", 9, "--delta", 0.2),
            "must be below 1/n = 0.111 for n = 9",
        ),
    ],
)
def test_plan_refuses_in_one_line(options: tuple[Any, ...], message: str) -> None:
    result = planned(*options)
    assert result.code == 1 and message in result.err and result.err.count("\n") == 1


def test_statement_in_plain_words_and_refused_where_it_was_edited(
    collection: Collection, encoder: Encoder, tmp_path: Path
) -> None:
    collection.write(tmp_path / "collection")
    options = ("--encoder", encoder.folder, "--cache", tmp_path / "cache", "--method", "head", "--against-advice")
    assert fedcar("train", tmp_path / "collection", "-o", tmp_path / "out", "--epsilon", 2, *options).code == 0
    words = fedcar("privacy", "statement", tmp_path / "out")
    assert words.code == 0 and "Every single question is protected with epsilon 2" in words.out
    assert "What this does not cover:" in words.out
    file = tmp_path / "copy.json"
    content = json.loads((tmp_path / "out" / "privacy.json").read_text())
    file.write_text(json.dumps({**content, "epsilon": 0.5}))
    edited = fedcar("privacy", "statement", file)
    assert edited.code == 1 and "it was edited" in edited.err
    assert fedcar("train", tmp_path / "collection", "-o", tmp_path / "plain", *options[:-1]).code == 0
    nothing = fedcar("privacy", "statement", tmp_path / "plain")
    assert nothing.code == 1 and "nothing is promised" in nothing.err


def test_attack_reads_the_words_without_noise_and_not_with_it(
    collection: Collection, encoder: Encoder, cache: FeatureCache
) -> None:
    found = attack_collection(collection, Target(1.0), encoder=encoder, features=cache, questions=3)
    assert encoder.adapter is None
    words = found["words"]
    assert words["without_noise"]["auc"] > 0.9
    assert abs(words["with_noise"]["auc"] - 0.5) < 0.35 and words["with_noise"]["recall"] == 0
    sums = found["class_sums"]
    assert sums["without_noise"]["auc"] > 0.9 and sums["with_noise"]["recall"] == 0
    assert sums["one_row"]["true"] and "only the statement" in found["note"]
    assert set(found["membership"]) == {"head", "adapter"}
    for member in found["membership"].values():
        assert abs(member["auc"] - member["auc_allowed"]) < 0.35 and member["mu_at_least"] <= member["mu"] + 1
    assert found["membership"]["head"]["mu_allowed"] == pytest.approx(0.268, abs=0.002), "epsilon 1 at delta 1e-5"


def test_attack_prints_true_and_recovered_words(collection: Collection, encoder: Encoder, tmp_path: Path) -> None:
    collection.write(tmp_path / "collection")
    options = ("--encoder", encoder.folder, "--cache", tmp_path / "cache", "--questions", 3)
    result = fedcar("privacy", "attack", tmp_path / "collection", *options)
    assert result.code == 0, result.err
    assert "true: " in result.out and "recovered without noise: " in result.out and "AUC" in result.out
    assert "was a question there, head, 48 made-up ones: AUC" in result.out and "allowed" in result.out


# -------------------------------------------------------------------- the audit


def test_audit_on_the_command_line(collection: Collection, encoder: Encoder, tmp_path: Path) -> None:
    collection.write(tmp_path / "collection")
    options = ("--encoder", encoder.folder, "--cache", tmp_path / "cache", "--questions", 15, "--method", "ridge")
    result = fedcar("privacy", "audit", tmp_path / "collection", *options, "--json")
    assert result.code == 0, result.err
    assert result.json["flagged"] == [] and len(result.json["checks"]) >= 6
    assert set(result.json["checks"][0]) == {"name", "p_value", "flagged", "detail"}
    assert "proves no epsilon" in fedcar("privacy", "audit", tmp_path / "collection", *options).out


def test_the_command_fails_at_a_fault(
    collection: Collection, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check of the audit has planted faults of its own in tests/training/noised/test_audit.py."""
    monkeypatch.setattr(NoiseSource, "normal", lambda self, shape: np.random.default_rng(7).standard_normal(shape))
    collection.write(tmp_path / "collection")
    options = ("--encoder", encoder.folder, "--cache", tmp_path / "cache", "--questions", 15, "--method", "ridge")
    result = fedcar("privacy", "audit", tmp_path / "collection", *options)
    assert (
        result.code == 1 and "checks found a fault" in result.err and "FAULT class sums: noise is fresh" in result.out
    )
