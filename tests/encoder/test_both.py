"""Two encoders beside each other: the first is as if it were alone, the second's states stand in its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedcar.encoder.adapter import Adapter
from fedcar.encoder.both import Both, names_of, price_of
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.training.settings import loaded

TEXTS = ["the fan is broken", "who charges the battery over night?", "of"]


@pytest.fixture
def first(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("bert"))


@pytest.fixture
def second(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("llama"))


def test_records_hold_the_states_of_both(first: Encoder, second: Encoder, tmp_path: Path) -> None:
    both, cache = Both(first, second), FeatureCache(tmp_path)
    ((read, tokens),) = both.read_parts([TEXTS])
    (encoded,) = both.encode_parts([TEXTS])
    expected, beside = first.encode_states(TEXTS), second.encode_states(TEXTS)
    ways = (both.encode_states(TEXTS), both.read(TEXTS).states, read, encoded, cache.states(both, TEXTS))
    for states in ways:
        for name in expected.dtype.names or ():
            np.testing.assert_allclose(states[name], expected[name], atol=1e-3)
            np.testing.assert_allclose(states["beside"][name], beside[name], atol=1e-3)
    of_first = first.token_states(TEXTS)
    assert [one.ids.tolist() for one in tokens] == [one.ids.tolist() for one in of_first]
    np.testing.assert_array_equal(both.encode(TEXTS), first.encode(TEXTS))
    np.testing.assert_array_equal(both.read(TEXTS).adapted, first.read(TEXTS).adapted)


def test_each_encoder_keeps_its_own_place_in_the_cache(first: Encoder, second: Encoder, tmp_path: Path) -> None:
    both, cache = Both(first, second), FeatureCache(tmp_path)
    for encoder in (first, second):
        cache.keep(encoder, TEXTS, encoder.encode_states(TEXTS))
    of_both = cache.states(both, TEXTS)
    assert len(list(tmp_path.glob("*-mean-*"))) + len(list(tmp_path.glob("*-last-*"))) == 2
    for encoder, states in ((first, of_both), (second, of_both["beside"])):
        alone = cache.states(encoder, TEXTS)
        for name in alone.dtype.names or ():
            np.testing.assert_array_equal(states[name], alone[name])
    np.testing.assert_array_equal(cache.hidden_states(both, TEXTS), of_both["pooled"])


def test_documents_are_read_by_the_first_alone(
    first: Encoder, second: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the second encoder was asked")

    monkeypatch.setattr(second, "encode_states", refuse)
    both = Both(first, second)
    assert both.for_documents.beside is None
    assert both.for_documents.encode_states(TEXTS).dtype == first.model.state_type


def test_two_encoders_take_no_adapter_and_no_third(first: Encoder, second: Encoder) -> None:
    both, adapter = Both(first, second), Adapter("full", first.embedding_width)
    with pytest.raises(FedcarError, match=r"an adapter is for one encoder; name one, without '\+'"):
        both.with_adapter(adapter)
    for pair in ((first.with_adapter(adapter), second), (first, both)):
        with pytest.raises(FedcarError, match="are frozen ones"):
            Both(*pair)


def test_whoever_reads_one_encoder_refuses_two_in_one_line(first: Encoder, second: Encoder) -> None:
    for ask in (lambda: loaded(Both(first, second), None), lambda: Encoder.load("minilm+smollm2")):
        with pytest.raises(FedcarError, match="two encoders beside each other are for `fedcar train` without") as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_plus_joins_two_names_unless_it_stands_in_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_of("one") == ("one",)
    assert names_of("one+two") == ("one", "two")
    Path("one+two").mkdir()
    assert names_of("one+two") == ("one+two",)
    for name in ("+two", "one+", "one+three+two"):
        with pytest.raises(FedcarError, match="joins two encoders; give them as FIRST"):
            names_of(name)


def test_the_price_counts_every_weight_in_four_bytes(second: Encoder) -> None:
    weights = sum(parameter.numel() for parameter in second.model.transformer.parameters())
    price = price_of(second, TEXTS)
    assert price.megabytes == pytest.approx(4e-6 * weights, rel=0.01)
    assert price.milliseconds > 0
    assert price_of(second, []).milliseconds == 0
