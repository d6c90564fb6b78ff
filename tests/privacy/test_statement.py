"""The statement says what the accountant says, or why there is no guarantee."""

import json
import math

import pytest
from support import releases

from fedcar.privacy.accountant import epsilon_of
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.statement import PAPER_RECIPE, from_json, join, plain_words, state, to_json


def release(multiplier=10.0, steps=25, **changes):
    return releases.release(multiplier, steps=steps, **({"sensitivity": 0.5} | changes))


def stated(releases=None, **changes):
    values = dict(
        method="head",
        clip_norm=0.5,
        released=["noised class sums", "noised gradients of the rows"],
        selection={"best step": "fixed in advance", "mixing weights": "documents alone"},
    )
    return state(
        releases or [release(20.0, 1, name="class sums", sensitivity=1.0), release()], 1e-5, **(values | changes)
    )


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


def test_disjoint_clients_are_joined_by_the_weakest():
    strong, weak = stated([release(20.0)]), stated([release(8.0)])
    joined = join([strong, weak, strong])
    assert joined.epsilon == weak.epsilon and joined.clients == 3
    assert "of each of the 3 clients" in plain_words(joined)
    with pytest.raises(PrivacyError, match="method is adapter and head"):
        join([strong, stated(method="adapter")])
    with pytest.raises(PrivacyError, match='unit "example"'):
        join([stated([release(unit="client")])])
    with pytest.raises(PrivacyError):
        join([])


def test_nothing_released_costs_nothing():
    statement = state([], 1e-5, method="none", clip_norm=None, released=[])
    assert statement.epsilon == 0 and "- nothing" in plain_words(statement)
