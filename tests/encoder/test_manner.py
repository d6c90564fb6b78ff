"""Prompts, pooling and what follows it: the vectors of a folder are those of SentenceTransformer."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedcar.common.vectors import unit
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.manner import FLAGS, Manner
from fedcar.encoder.model import LOADING, TOKENIZING, FrozenModel
from fedcar.encoder.reading import Tokens, behind_prompt
from fedcar.errors import FedcarError, FedcarWarning

TEXTS = ["who looks after the pump", "fan", "my pump is broken and makes trouble again", "the display", "fan 3.5"]
QUERY, DOCUMENT = "query: ", "the passage to read: "


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FedcarWarning)
        yield


@pytest.fixture
def made(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """made("bert", pooling={...}, behind=[...], prompts={...}) -> a folder as sentence-transformers writes them."""

    def make(family: str, *, behind: Any = (), pooling: Any = "mean", prompts: Any = None, **settings: Any) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer

        transformer = Transformer(str(tiny_model(family)))
        transformer.max_seq_length = settings.pop("limit", 40)
        if transformer.tokenizer.pad_token is None:
            transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
        modules = [transformer, Pooling(32, pooling, **settings), *behind]
        SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(tmp_path / "folder"))
        return tmp_path / "folder"

    return make


def by_sentence_transformers(folder: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return tuple(unit(encode(texts, convert_to_numpy=True)) for encode in (model.encode_query, model.encode_document))


def check_same(folder: Path, texts: list[str] = TEXTS) -> Encoder:
    encoder = Encoder.load(folder)
    questions, documents = by_sentence_transformers(folder, texts)
    np.testing.assert_allclose(unit(encoder.encode(texts)), questions, atol=1e-5)
    np.testing.assert_allclose(unit(encoder.for_documents.encode(texts)), documents, atol=1e-5)
    return encoder


KINDS = [
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
    ("mean", "max"),
    ("lasttoken", "cls"),
]


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_those_of_sentence_transformers(
    kind: Any, family: str, include: bool, made: Callable[..., Path]
) -> None:
    folder = made(family, pooling=kind, include_prompt=include, prompts={"query": QUERY, "document": DOCUMENT})
    encoder = check_same(folder, TEXTS[0::2] if family == "llama" and not include else TEXTS)
    if (kind, family) == ("cls", "llama"):  # the first token of a decoder is BOS, and knows of nothing behind it
        return
    assert np.abs(encoder.encode(TEXTS) - encoder.for_documents.encode(TEXTS)).max() > 1e-3


@pytest.mark.parametrize("prompts", [{"query": QUERY}, {"document": DOCUMENT}, {"passage": DOCUMENT}, {"other": "x"}])
def test_the_prompts_that_sentence_transformers_takes_are_taken(prompts: Any, made: Callable[..., Path]) -> None:
    check_same(made("bert", prompts=prompts))


def test_what_follows_the_pooling_is_read(made: Callable[..., Path]) -> None:
    from sentence_transformers.models import Dense, LayerNorm, Normalize

    torch.manual_seed(0)
    behind = [
        Normalize(),
        Dense(32, 48),
        LayerNorm(48),
        Dense(48, 16, bias=False, activation_function=None),
        Normalize(),
    ]
    encoder = check_same(made("bert", behind=behind, prompts={"query": QUERY, "document": ""}))
    assert (encoder.dimension, encoder.width) == (16, 32)
    assert encoder.encode_states(TEXTS)["layers"].shape[2] == 32
    assert len(encoder.model.manner.modules) == 4  # the last one changes no cosine


def test_a_lower_limit_and_lower_case_are_read(made: Callable[..., Path]) -> None:
    folder = made("llama", limit=6)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(
        json.dumps(settings | {"do_lower_case": True, "max_seq_length": 6})
    )
    encoder = Encoder.load(folder)
    assert encoder.model.max_tokens == 6 and max(map(len, encoder.tokenize(TEXTS))) == 6
    assert encoder.tokenize(["WHO Looks"]) == encoder.tokenize(["who looks"])


def test_an_old_folder_with_a_flag_for_each_pooling_is_read(made: Callable[..., Path]) -> None:
    folder = made("bert", pooling=("cls", "weightedmean"))
    file = folder / "1_Pooling" / "config.json"
    old = {flag: kind in ("cls", "weightedmean") for flag, kind in FLAGS.items()}
    file.write_text(json.dumps({"word_embedding_dimension": 32, **old}))
    assert check_same(folder).pooling == "cls+weightedmean"


def test_a_module_that_is_not_known_is_one_line(made: Callable[..., Path]) -> None:
    folder = made("bert")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_CNN", "type": "sentence_transformers.models.CNN"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FedcarError, match='its module "2_CNN" is a CNN, not known here'):
        Encoder.load(folder)


def test_a_pickle_behind_the_pooling_is_refused(made: Callable[..., Path]) -> None:
    from sentence_transformers.models import Dense

    folder = made("bert", behind=[Dense(32, 8)])
    weights = folder / "2_Dense" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(FedcarError, match="a pickle can run code"):
        Encoder.load(folder).encode(TEXTS)


def test_given_prompts_stand_before_those_of_the_folder(made: Callable[..., Path], tiny_model: Any) -> None:
    folder = made("bert", prompts={"query": QUERY, "document": DOCUMENT})
    given = Encoder.load(folder, query_prompt="fan ", document_prompt="")
    plain = Encoder.load(tiny_model("bert"))
    np.testing.assert_allclose(given.encode(TEXTS), plain.encode([f"fan {text}" for text in TEXTS]), atol=1e-6)
    np.testing.assert_allclose(given.for_documents.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)


def test_another_pooling_leaves_out_what_the_folder_puts_behind_its_own(made: Callable[..., Path]) -> None:
    from sentence_transformers.models import Dense

    folder = made("bert", behind=[Dense(32, 8)], prompts={"query": QUERY})
    encoder = Encoder.load(folder, "cls")
    assert encoder.dimension == 32 and encoder.prompt == QUERY
    assert Encoder.load(folder, "mean").dimension == 8


def test_the_manner_is_part_of_what_tells_encoders_apart(made: Callable[..., Path], tiny_model: Any) -> None:
    from sentence_transformers.models import Dense

    plain = Encoder.load(tiny_model("bert"))
    assert plain.state_fingerprint == plain.fingerprint and plain.model.manner == Manner()
    folder = made("bert", behind=[Dense(32, 32)], prompts={"query": QUERY})
    own, other = Encoder.load(folder), Encoder.load(folder, query_prompt="other: ")
    assert len({own.state_fingerprint, other.state_fingerprint, own.fingerprint}) == 3
    weights = folder / "2_Dense" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert Encoder.load(folder).state_fingerprint != own.state_fingerprint


def test_offsets_count_characters_of_the_text_without_its_prompt(made: Callable[..., Path]) -> None:
    encoder = Encoder.load(made("bert", prompts={"query": QUERY, "document": DOCUMENT}))
    for role in (encoder, encoder.for_documents):
        for text, tokens in zip(TEXTS, role.token_states(TEXTS), strict=True):
            found = [text[first:last] for first, last in tokens.offsets]
            assert found == encoder.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text) or "".join(
                found
            ) == text.replace(" ", "")


def test_a_token_that_reaches_from_the_prompt_into_the_text_begins_with_the_text() -> None:
    text = Tokens([5, 6, 7, 8], [(0, 0), (0, 6), (6, 9), (9, 12)], [1, 0, 0, 0])
    assert behind_prompt(text, 7) == Tokens([5, 6, 7, 8], [(0, 0), (0, 0), (0, 2), (2, 5)], [1, 1, 0, 0])
    assert behind_prompt(text, 0) is text


def test_the_cache_keeps_questions_and_documents_apart(made: Callable[..., Path], tmp_path: Path) -> None:
    from fedcar.encoder.cache import FeatureCache

    encoder, cache = Encoder.load(made("bert", prompts={"query": QUERY})), FeatureCache(tmp_path / "cache")
    for role in (encoder, encoder.for_documents, encoder):
        np.testing.assert_array_equal(cache.hidden_states(role, TEXTS[:1]), role.encode(TEXTS[:1]))


def test_a_text_that_melts_into_its_prompt_still_has_a_vector(made: Callable[..., Path]) -> None:
    """Sentence-transformers leaves out all of its tokens, and gives zeros, or no numbers at all."""
    folder = made("llama", pooling="max", include_prompt=False, prompts={"query": QUERY})
    encoder = Encoder.load(folder)
    assert encoder.left_out == len(encoder.tokenize(["fan"])[0])
    assert 0 < np.abs(encoder.encode(["fan"])).max() < 100


def test_without_prompts_documents_are_read_by_the_encoder_itself(tiny_model: Any) -> None:
    encoder = Encoder.load(tiny_model("bert"))
    assert encoder.for_documents is encoder


def test_a_copy_of_the_folder_elsewhere_is_the_same_encoder(made: Callable[..., Path], tmp_path: Path) -> None:
    from sentence_transformers.models import Dense

    folder = made("bert", behind=[Dense(32, 8)], prompts={"query": QUERY})
    again = Path(shutil.copytree(folder, tmp_path / "again"))
    assert Encoder.load(again).state_fingerprint == Encoder.load(folder).state_fingerprint


def test_a_prompt_that_leaves_no_room_is_one_line(encoder_folder: Path) -> None:
    with pytest.raises(
        FedcarError, match="--document-prompt .*: the prompt is 60 tokens long, and the encoder takes 40"
    ):
        Encoder.load(encoder_folder, document_prompt="fan " * 60)


def test_a_module_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match='no module "2_Dense"'):
        Manner(modules=("2_Dense",)).fingerprint(tmp_path)


def test_the_tokenizer_is_read_before_it_is_locked(encoder_folder: Path) -> None:
    """Who holds the lock of reading may wait for that of tokenising, so nobody may wait the other way round."""
    model = pickle.loads(pickle.dumps(FrozenModel.load(encoder_folder)))
    with LOADING:
        thread = threading.Thread(target=model.tokenize, args=(["a lost card"],), daemon=True)
        thread.start()
        thread.join(0.5)
        assert TOKENIZING.acquire(timeout=30), "held by who waits for the other"
        TOKENIZING.release()
    thread.join(30)
    assert not thread.is_alive()
