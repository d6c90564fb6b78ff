"""The runtimes: near float32 each, kept apart on disk, and the fastest that agrees is the one that auto takes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import environment, fedcar
from support.retrievers import passes_of

from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.reading import ahead
from fedcar.encoder.runtimes import choice, names, openvino

TEXTS = ["the fan is broken", "who charges the battery over night?", "water", "Prime the pump. " * 4, ""]
LEAST = {"torch-bf16": 0.99, "openvino": 0.99999, "openvino-bf16": 0.99, "onnx": 0.99999, "onnx-int8": 0.9}


@pytest.fixture(autouse=True)
def own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "setting", names.Setting())


@pytest.fixture
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("llama"), "mean")


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)


@pytest.mark.parametrize(
    ("family", "runtimes"),
    [
        ("bert", tuple(name for name in LEAST if not name.startswith("openvino"))),
        pytest.param("bert", ("openvino", "openvino-bf16"), marks=[pytest.mark.slow, pytest.mark.ci]),
        pytest.param("llama", ("openvino",), marks=pytest.mark.slow),
    ],
)
def test_every_runtime_is_near_float32(family: str, runtimes: tuple[str, ...], tiny_model: Callable[..., Path]) -> None:
    encoder = Encoder.load(tiny_model(family), "mean")
    states, tokens = encoder.encode_states(TEXTS), encoder.token_states(TEXTS)
    for name in runtimes:
        least = LEAST[name]
        if not choice.is_installed(name):
            continue
        names.use(name)
        other = Encoder.load(tiny_model(family), "mean")
        found = other.encode_states(TEXTS)
        assert other.runtime_name(TEXTS) == name
        assert cosines(found["pooled"], states["pooled"]).min() > least, name
        assert cosines(found["layers"], states["layers"]).min() > least, name
        for ours, wanted in zip(other.token_states(TEXTS), tokens, strict=True):
            assert ours.ids.tolist() == wanted.ids.tolist()
            assert not len(wanted.ids) or cosines(ours.states, wanted.states).mean() > least, name


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_openvino_reads_a_decoder_from_torch(family: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Not by way of an ONNX file, which takes minutes to write for thirty blocks; the model's own settings stay."""
    if not choice.is_installed("openvino"):
        pytest.skip("openvino is not installed")
    model = Encoder.load(tiny_model(family), "mean").model

    def onnx() -> Path:
        raise AssertionError("an ONNX file was asked for")

    openvino.write(model, tmp_path / "openvino.xml", onnx)
    assert model.transformer.config.use_cache is True


def test_states_of_runtimes_are_kept_apart(encoder: Encoder, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "states")
    exact = cache.hidden_states(encoder, TEXTS)
    names.use("torch-bf16")
    other = cache.hidden_states(Encoder.load(tiny_model("llama"), "mean"), TEXTS)
    assert np.abs(exact - other).max() > 0 and len(list(cache.folder.iterdir())) == 2
    names.use("torch")
    np.testing.assert_array_equal(cache.hidden_states(Encoder.load(tiny_model("llama"), "mean"), TEXTS), exact)


def test_one_pass_gives_what_two_give(encoder: Encoder, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    passes = passes_of(encoder.runtime(TEXTS))
    [(states, tokens)] = encoder.read_parts([TEXTS])
    assert len(passes) == 1 and cosines(states["pooled"], encoder.encode_states(TEXTS)["pooled"]).min() > 0.99999
    for ours, wanted in zip(tokens, encoder.token_states(TEXTS), strict=True):
        np.testing.assert_array_equal(ours.states, wanted.states)
    cache = FeatureCache(tmp_path / "states")
    cache.keep(encoder, TEXTS[:2], states[:2])
    cache.keep(encoder, TEXTS[:1], states[1:2])  # what is there stays
    np.testing.assert_array_equal(cache.states(encoder, TEXTS[:2]), states[:2])
    last = Encoder.load(tiny_model("llama"), "last")
    [(states, tokens)] = last.read_parts([TEXTS])
    np.testing.assert_array_equal(states, last.encode_states(TEXTS))
    for ours, wanted in zip(tokens, last.token_states(TEXTS), strict=True):  # a decoder does not see the EOS behind
        np.testing.assert_allclose(ours.states, wanted.states[: len(ours.ids)], atol=2e-3)


def test_the_next_part_is_tokenised_while_the_model_runs_on_the_one_before(encoder: Encoder) -> None:
    """Neither order nor states change by it, another call of the tokenizer in between waits, an error comes out."""
    begun, runtime, tokenize = threading.Event(), encoder.runtime(TEXTS), encoder.tokenize
    run = runtime.run

    def model(*batch: Any) -> Any:
        assert begun.wait(10), "nobody reads the next part"
        return run(*batch)

    def counted(texts: Sequence[str]) -> list[list[int]]:
        calls.append(texts)
        if len(calls) > 1:
            begun.set()
        return tokenize(texts)

    calls: list[Sequence[str]] = []
    runtime.run, encoder.tokenize = model, counted  # type: ignore[method-assign]
    found = []
    for states in encoder.encode_parts([TEXTS[:2], TEXTS[2:]]):
        assert len(encoder.token_states(TEXTS)) == len(TEXTS)
        found.append(states)
    runtime.run, encoder.tokenize = run, tokenize  # type: ignore[method-assign]
    assert calls == [TEXTS[:2], TEXTS[2:]]
    np.testing.assert_array_equal(found[0], encoder.encode_states(TEXTS[:2]))
    np.testing.assert_array_equal(found[1], encoder.encode_states(TEXTS[2:]))
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda part: 1 // part, [1, 0]))
    assert list(ahead(str, [])) == []


def test_with_an_adapter_torch_encodes(encoder: Encoder) -> None:
    names.use("torch-bf16")
    assert encoder.runtime_name(TEXTS) == "torch-bf16" and encoder.runtime(TEXTS) is encoder.runtime(TEXTS)
    adapter = Adapter("full", encoder.embedding_width)
    adapter.difference.data.normal_(std=0.2)
    trained = encoder.with_adapter(adapter)
    assert trained.runtime_name(TEXTS) == "torch" and trained.runtime(TEXTS) is not encoder.runtime(TEXTS)
    adapted = trained.encode(TEXTS)
    assert trained.untrained is encoder and encoder.runtime_name(TEXTS) == "torch-bf16"
    assert np.abs(encoder.encode(TEXTS) - adapted).max() > 0.01
    encoder = trained.folded()  # the runtime of the unfolded encoder is not taken for it
    assert cosines(encoder.encode(TEXTS), adapted).min() > 0.99


def test_a_runtime_that_is_not_known_is_refused_with_one_line(toy_collection: Path, tmp_path: Path) -> None:
    result = fedcar("train", toy_collection, "-o", tmp_path / "out", "--runtime", "fast")
    assert result.code == 1 and result.err.startswith('error: --runtime "fast": not known; give auto or one of torch,')
    assert result.err.count("\n") == 1


def test_a_retriever_is_trained_and_evaluated_by_another_runtime(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    words = ("--cache", tmp_path / "states", "--runtime", "torch-bf16")
    result = fedcar(
        "train", toy_collection, "-o", tmp_path / "out", "--encoder", tiny_model("bert"), "--method", "head", *words
    )
    assert result.code == 0, result.err
    places = [file.parent for file in (tmp_path / "states").rglob("states.bin")]
    assert [folder.name.rsplit("-", 1)[-1] for folder in places] == ["bf16"] * 2, "of documents, and of questions"
    result = fedcar("evaluate", tmp_path / "out", toy_collection, "--json", *words)
    assert result.json["systems"]["retriever"]["all"]["queries"] > 0


def test_onnx_runtime_sends_nothing_to_its_maker(tmp_path: Path) -> None:
    """By itself it keeps a device id in the home, and tells of its use, as soon as it is imported."""
    if not choice.is_installed("onnx"):  # not by importing it here, which would leave that id in this test's cache
        pytest.skip("onnxruntime is not installed")
    code = "from fedcar.encoder.runtimes.onnx import library; library()"
    surroundings = environment(HOME=str(tmp_path), XDG_CACHE_HOME="")
    surroundings.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=surroundings, check=True)
    assert list(tmp_path.iterdir()) == []
