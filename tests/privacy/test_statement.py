"""The statement says what the accountant says, or why there is no guarantee."""

import json
import math
from dataclasses import replace

import pytest
from support import releases

from fedcar.privacy.accountant import epsilon_of, gaussian_epsilon, noise_multiplier
from fedcar.privacy.checklist import checklist, person_table, person_words
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.statement import PAPER_RECIPE, from_json, join, plain_words, state, to_json


def release(multiplier=10.0, steps=25, **changes):
    return releases.release(multiplier, steps=steps, **({"sensitivity": 0.5} | changes))


def stated(releases=None, public=None, **changes):
    values = dict(
        method="head",
        clip_norm=0.5,
        released=["noised class sums", "noised gradients of the rows"],
        selection={"best step": "fixed in advance", "mixing weights": "documents alone"},
    )
    releases = releases or [release(20.0, 1, name="class sums", sensitivity=1.0), release()]
    return replace(state(releases, 1e-5, **(values | changes)), public=public or {})


def test_statement_epsilon_is_the_accountants():
    statement = stated()
    assert statement.holds and statement.epsilon == epsilon_of(statement.releases, 1e-5)


def test_it_survives_json():
    values = json.loads(json.dumps(to_json(stated()), allow_nan=False))
    assert from_json(json.dumps(values)) == stated()
    for name in (
        "epsilon",
        "delta",
        "unit",
        "adjacency",
        "clip_norm",
        "accountant",
        "released",
        "not_covered",
        "releases",
    ):
        assert name in values
    assert {"sampler", "sampling_rate", "steps", "noise_multiplier", "sensitivity"} <= set(values["releases"][0])


def test_infinity_survives_json():
    statement = stated([release(noise="seeded-test")])
    values = json.loads(json.dumps(to_json(statement), allow_nan=False))
    assert values["epsilon"] == "infinity" and values["guarantee"] is False
    assert from_json(json.dumps(values)) == statement


def test_an_edited_statement_is_refused():
    values = to_json(stated())
    with pytest.raises(PrivacyError, match="its own releases give .* it was edited"):
        from_json(json.dumps(values | {"epsilon": 0.1}))
    for broken in ("{", "[]", "{}", json.dumps(values | {"unit2": 1}), json.dumps(values | {"epsilon": "much"})):
        with pytest.raises(PrivacyError, match="^not a privacy statement$"):
            from_json(broken)


@pytest.mark.parametrize("noise", ["seeded-test", "none"])
def test_seeded_or_missing_noise_gives_infinite_epsilon(noise):
    statement = stated([release(), release(noise=noise)])
    assert math.isinf(statement.epsilon) and noise in statement.reason
    assert "No formal guarantee (epsilon = infinity)" in plain_words(statement)


def test_an_uncharged_private_choice_gives_infinite_epsilon():
    statement = stated(selection={"best step": "private dev set"})
    assert math.isinf(statement.epsilon) and "best step" in statement.reason


def test_the_papers_recipe_has_no_guarantee():
    statement = stated(no_guarantee=PAPER_RECIPE)
    assert math.isinf(statement.epsilon) and "no formal guarantee" in plain_words(statement).lower()
    assert "warms up without noise" in plain_words(statement)


def test_plain_words_say_what_matters():
    text = plain_words(stated([release(2.0, 100, sampler="poisson", sampling_rate=0.1)]))
    for needed in (
        "Every single question",
        "fifty-fifty",
        "with probability 0.1",
        "One question is not one person",
        "documents alone",
        "noised class sums",
        "epsilon",
        "delta 1e-05",
        "clip norm 0.5",
        "on every coordinate",
    ):
        assert needed in text, needed
    assert "clients" in plain_words(stated([release(unit="client")]))


def person_plan(epsilon):
    return [release(noise_multiplier(release(steps=1), epsilon, 1e-5), steps=1)]


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_a_person_of_k_questions_has_the_epsilon_of_k_times_the_distance(epsilon):
    """Not k times the epsilon, as it was once said: 10 questions at epsilon 1 are 14.4, at 3 they are 55.7."""
    plan = person_plan(epsilon)
    table = dict(person_table(stated(plan), 50))
    assert list(table) == [1, 2, 5, 10, 20, 50] and list(dict(person_table(stated(plan), 7))) == [1, 2, 5, 7]
    distance = 1 / plan[0].noise_multiplier
    for count, found in table.items():
        assert found == pytest.approx(gaussian_epsilon(count * distance, 1e-5), rel=1e-9)
    assert table[10] > 10 * epsilon and table[10] == pytest.approx({1.0: 14.4, 3.0: 55.7}[epsilon], rel=0.01)
    words = "\n".join(person_words(stated(plan), 50))
    assert f"10 questions: epsilon {table[10]:.3g}" in words
    assert f"A question that is reworded: epsilon {table[2]:.3g}." in words
    assert ("50 questions: no promise (epsilon above 100)" in words) == (table[50] >= 100)
    assert person_table(stated([release(unit="person")])) == [] == person_table(stated([release(noise="none")]))


def test_the_checklist_has_a_word_on_every_point():
    points = (
        "unit", "relation", "composition", "bounding", "floating point", "timing", "exposure", "trust", "public",
    )  # fmt: skip
    for unit, relation in (
        ("example", "one question more"),
        ("person", "one person more"),
        ("client", "one client has something to say in one and nothing in the other"),
    ):
        adjacency = "zero-out-one" if unit == "client" else "add-or-remove-one"
        found = checklist(stated([release(unit=unit, adjacency=adjacency)], clients=3, public={"dev split": ""}))
        assert set(points) < set(found) and relation in found["relation"]
        assert "dev split: no reason was given." in found["public"]
        assert ("trusted with each client's clipped mean" in found["trust"]) == (unit == "client")
        for text in found.values():
            assert text.endswith(".") and "  " not in text
    why = stated(public={"dev split": "from the public manual"})
    assert "dev split: from the public manual" in checklist(why)["public"] and "public manual" in plain_words(why)
    assert from_json(json.dumps(to_json(why))) == why
    assert (
        "with probability 0.1"
        in checklist(stated([release(2.0, 100, sampler="poisson", sampling_rate=0.1)]))["exposure"]
    )


def of_format_1(**changes):
    values = to_json(stated())
    del values["public"]
    return json.dumps(values | {"format": 1, "not_covered": ["k times less"]} | changes)


def test_a_statement_of_format_1_over_one_place_holds_with_todays_sentences():
    assert from_json(of_format_1()) == stated()
    public = from_json(of_format_1(selection={"the step that is kept": "public dev set"}))
    assert public.public == {"dev split": ""} and public.holds


def test_a_statement_of_format_1_over_questions_of_clients_is_void():
    statement = from_json(of_format_1(clients=3))
    assert math.isinf(statement.epsilon) and "train again" in plain_words(statement)
    assert to_json(statement)["guarantee"] is False and not statement.holds
    releases = [release(unit="client").to_json()]
    epsilon = epsilon_of([release(unit="client")], 1e-5)
    assert from_json(of_format_1(clients=3, unit="client", releases=releases, epsilon=epsilon)).holds
    with pytest.raises(PrivacyError, match="format must be 2, or 1"):
        from_json(of_format_1(format=3))


def test_disjoint_clients_are_joined_by_the_weakest():
    strong, weak = stated([release(20.0)]), stated([release(8.0)])
    joined = join([strong, weak, strong])
    assert joined.epsilon == weak.epsilon and joined.clients == 3
    assert "of each of the 3 clients" in plain_words(joined)
    with pytest.raises(PrivacyError, match="method is adapter and head"):
        join([strong, stated(method="adapter")])
    with pytest.raises(PrivacyError, match='unit "client" are not joined'):
        join([stated([release(unit="client")])])
    with pytest.raises(PrivacyError):
        join([])


def test_nothing_released_costs_nothing():
    statement = state([], 1e-5, method="none", clip_norm=None, released=[])
    assert statement.epsilon == 0 and "- nothing" in plain_words(statement)
