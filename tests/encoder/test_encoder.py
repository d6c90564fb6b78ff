"""Encoder: the same hidden state alone and in a batch, for six families; what is cut, what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import FAMILIES, POSITIONS, VOCABULARY

from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.manner import POOLINGS
from fedcar.encoder.model import MAX_TOKENS
from fedcar.encoder.reading import batches_by_length
from fedcar.errors import FedcarError, FedcarWarning

RAGGED = ["fan", "my pump is broken and makes trouble again", "", "who looks after the display", "fan"]
LONG = " fan" * 300


@pytest.fixture
def copy(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """copy("bert") -> a folder of the model that the test may damage."""

    def make(family: str = "bert", name: str = "copy") -> Path:
        return Path(shutil.copytree(tiny_model(family), tmp_path / name))

    return make


def one_line(error: pytest.ExceptionInfo[FedcarError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# -------------------------------------------------------------------- alone, in a batch, padded


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.filterwarnings("ignore:--pooling cls")
def test_a_text_alone_equals_the_text_in_a_ragged_batch(model_folder: Path, pooling: str) -> None:
    encoder = Encoder.load(model_folder, pooling)
    together = encoder.encode(RAGGED)
    assert together.shape == (5, 32) and together.dtype == np.float32
    assert len({len(ids) for ids in encoder.tokenize(RAGGED)}) > 2
    alone = np.concatenate([encoder.encode([text]) for text in RAGGED])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together[0], together[4], atol=1e-6)
    first_of_a_decoder = pooling == "cls" and encoder.model.config["model_type"] in ("llama", "gemma")
    assert (np.abs(together[0] - together[1]).max() > 0.01) != first_of_a_decoder


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.filterwarnings("ignore:--pooling cls")
def test_the_padding_side_of_the_tokenizer_does_not_matter(
    tiny_model: Callable[..., Path], family: str, pooling: str
) -> None:
    right = Encoder.load(tiny_model(family), pooling)
    left = Encoder.load(tiny_model(family, padding_side="left"), pooling)
    assert left.tokenizer.padding_side == "left"
    np.testing.assert_array_equal(left.encode(RAGGED), right.encode(RAGGED))


def test_hidden_states_are_those_of_the_model_itself(model_folder: Path) -> None:
    from transformers import AutoModel

    encoder = Encoder.load(model_folder, "mean")
    ids = encoder.tokenize(["who looks after the pump"])
    model = AutoModel.from_pretrained(model_folder).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids)).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder.encode(["who looks after the pump"])[0], expected.numpy(), atol=1e-6)


def test_an_encoder_can_be_copied(encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder)
    expected = encoder.encode(["a fan"])
    np.testing.assert_array_equal(deepcopy(encoder).encode(["a fan"]), expected)


def test_no_text_and_a_text_that_is_no_unicode(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    assert encoder.encode([]).shape == (0, 32)
    assert np.isfinite(encoder.encode(["", " ", "\ud800 lone surrogate", "\0"])).all()


def test_a_tokenizer_without_any_special_token_and_an_empty_text(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    encoder = Encoder.load(folder, "mean")
    assert [len(ids) for ids in encoder.tokenize(["", " fan"])] == [1, 1]
    assert Encoder.load(folder, "last").tokenize([""]) == [[2]]


@pytest.mark.parametrize("padding", [-1, VOCABULARY, None])
def test_a_padding_token_outside_the_table_is_not_used(copy: Callable[..., Path], padding: int | None) -> None:
    folder = copy("llama")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": padding}))
    if padding is None:
        encoder = Encoder.load(folder, "mean")
        assert encoder.tokenizer.pad_token_id is None
        assert encoder.model.padding_id == encoder.tokenizer.eos_token_id
    else:
        encoder = Encoder.load(folder, "mean")
        assert encoder.model.padding_id == 2


def test_a_batch_ends_before_it_is_mostly_padding() -> None:
    lengths = [*range(3, 40), 3, 3, 3, 200]
    batches = list(batches_by_length(lengths, 400, padding=20))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    filled = [sum(lengths[batch[0]] - lengths[row] for row in batch) for batch in batches]
    assert max(filled) <= 20 and batches[0] == [40], "a long one is alone, not beside what it would fill up"
    for batch, padding, following in zip(batches, filled, batches[1:], strict=False):  # one more would be too much
        assert padding + lengths[batch[0]] - lengths[following[0]] > 20 or lengths[batch[0]] * (len(batch) + 1) > 400


def test_batches_hold_every_row_once_within_the_token_budget() -> None:
    lengths = [3, 50, 7, 7, 1, 50, 200]
    batches = list(batches_by_length(lengths, tokens=100))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 100 for batch in batches)


# -------------------------------------------------------------------- the end of the text


@pytest.mark.parametrize("family", ["llama", "gemma", "roberta", "mpnet"])
def test_the_end_token_stands_there_exactly_once(tiny_model: Callable[..., Path], family: str) -> None:
    encoder = Encoder.load(tiny_model(family), "last")
    end = encoder.tokenizer.eos_token_id
    with pytest.warns(FedcarWarning):
        ids = encoder.tokenize([*RAGGED, LONG, " fan" * (encoder.model.max_tokens - 2)])
    assert all(row[-1] == end and row.count(end) == 1 for row in ids)
    assert all(row[0] == encoder.tokenizer.bos_token_id for row in ids)
    assert len(ids[-2]) == encoder.model.max_tokens
    others = Encoder.load(tiny_model(family), "mean").tokenize(RAGGED)
    assert [row.count(end) for row in others] == [int(family in ("roberta", "mpnet"))] * len(RAGGED)


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_a_text_of_just_the_limit_is_not_cut(tiny_model: Callable[..., Path], family: str) -> None:
    encoder = Encoder.load(tiny_model(family), "last")
    words = " fan" * (encoder.model.max_tokens - 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = encoder.tokenize([words])
    assert len(ids[0]) == encoder.model.max_tokens
    assert encoder.model.texts_cut == 0


# -------------------------------------------------------------------- long texts


def test_long_texts_are_cut_counted_and_said_once(encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder)
    with pytest.warns(FedcarWarning, match="2 of 3 texts are longer than 40 tokens") as caught:
        encoder.encode(["fan", LONG, LONG])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([LONG])
    assert encoder.model.texts_cut == 3


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.filterwarnings("ignore::fedcar.errors.FedcarWarning")
def test_every_model_takes_a_text_of_the_maximum_length(model_folder: Path, pooling: str) -> None:
    encoder = Encoder.load(model_folder, pooling)
    family = encoder.model.config["model_type"]
    assert encoder.model.max_tokens == (POSITIONS - 2 if family in ("roberta", "mpnet") else POSITIONS)
    assert [len(ids) for ids in encoder.tokenize([LONG])] == [encoder.model.max_tokens]
    together = encoder.encode([LONG, "fan"])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[1], encoder.encode(["fan"])[0], atol=1e-5)


def test_no_more_than_256_tokens_are_kept(tiny_model: Callable[..., Path]) -> None:
    assert Encoder.load(tiny_model("bert", max_position_embeddings=600)).model.max_tokens == MAX_TOKENS


def test_the_limit_of_a_model_that_names_it_otherwise(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    settings = {
        "model_type": "gpt2",
        "n_positions": 24,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    encoder = Encoder.load(folder)
    assert (encoder.model.max_tokens, encoder.dimension, encoder.pooling) == (24, 32, "mean")


# -------------------------------------------------------------------- the adapter's place


@pytest.mark.parametrize("variant", ["full", "lowrank:3", "diagonal"])
def test_the_adapter_at_identity_changes_nothing(model_folder: Path, variant: str) -> None:
    encoder = Encoder.load(model_folder, "mean")
    before = encoder.encode(RAGGED)
    encoder = encoder.with_adapter(Adapter(variant, encoder.embedding_width))
    np.testing.assert_array_equal(encoder.encode(RAGGED), before)


def test_electra_has_an_embedding_width_of_its_own(tiny_model: Callable[..., Path]) -> None:
    encoder = Encoder.load(tiny_model("electra"))
    assert (encoder.dimension, encoder.embedding_width) == (32, 16)
    before = encoder.encode(RAGGED)
    assert before.shape == (5, 32)
    encoder = encoder.with_adapter(Adapter("full", 16))
    np.testing.assert_array_equal(encoder.encode(RAGGED), before)
    with pytest.raises(FedcarError, match="width 32, the embedding table of .* 16") as error:
        encoder.with_adapter(Adapter("full", 32))
    one_line(error)


def test_another_encoder_leaves_the_first_as_it_was(encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder)
    before, adapter = encoder.encode(RAGGED), Adapter("full", encoder.embedding_width)
    adapter.difference.data.normal_()
    trained = encoder.with_adapter(adapter)
    assert trained.adapter is adapter and encoder.adapter is None
    assert trained.untrained is encoder is trained.with_adapter(None)
    assert np.abs(trained.encode(RAGGED) - before).max() > 0.01
    np.testing.assert_array_equal(encoder.encode(RAGGED), before)
    shared = {tensor.data_ptr() for tensor in encoder.model.transformer.parameters()}
    own = {tensor.data_ptr() for tensor in trained.transformer.parameters()} - shared
    assert own == {adapter.difference.data_ptr()}, "the frozen weights are held once"


def test_weights_read_while_encoding_can_be_trained_through(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    encoder.encode(["fan"])  # reads the weights in inference mode
    assert not any(
        tensor.is_inference()
        for tensor in [*encoder.model.transformer.parameters(), *encoder.model.transformer.buffers()]
    )
    gradients(encoder, Adapter("full", encoder.embedding_width))


# -------------------------------------------------------------------- gradient checkpointing and dropout


def gradients(encoder: Encoder, adapter: Adapter) -> list[torch.Tensor]:
    if encoder.adapter is not adapter:
        encoder = encoder.with_adapter(adapter)
    adapter.zero_grad()
    encoder.hidden_states(encoder.tokenize(RAGGED)).square().sum().backward()
    found = [parameter.grad for parameter in adapter.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


@pytest.mark.parametrize("family", [*(family for family in FAMILIES if family != "mpnet"), "electra"])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_model: Callable[..., Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(tiny_model(family))
    adapter = Adapter("full", encoder.embedding_width)
    plain, states = gradients(encoder, adapter), encoder.encode(RAGGED)
    recomputed = encoder.with_adapter(adapter, recomputed=True)
    calls = count_calls_of_the_first_block(recomputed, monkeypatch)
    again = gradients(recomputed, adapter)
    assert len(calls) == 2  # forward, and once more while going back: it does checkpoint
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(RAGGED), states)


def count_calls_of_the_first_block(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    from transformers.modeling_layers import GradientCheckpointingLayer

    block = next(
        module for module in encoder._with_gradients.modules() if isinstance(module, GradientCheckpointingLayer)
    )
    inside = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
    forward = inside.forward

    def counted(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(inputs)

    monkeypatch.setattr(inside, "forward", counted)
    return calls


def test_a_model_without_gradient_checkpointing_says_so(tiny_model: Callable[..., Path]) -> None:
    encoder = Encoder.load(tiny_model("mpnet"))
    encoder = encoder.with_adapter(Adapter("full", encoder.embedding_width), recomputed=True)
    with pytest.raises(FedcarError, match="no gradient checkpointing; train without it") as error:
        encoder.hidden_states(encoder.tokenize(RAGGED))
    one_line(error)


def test_training_mode_does_not_switch_dropout_on(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    before = encoder.encode(RAGGED)
    encoder.model.transformer.train()
    np.testing.assert_array_equal(encoder.encode(RAGGED), before)


# -------------------------------------------------------------------- fingerprints


def test_the_fingerprint_is_the_content_and_not_the_folder(copy: Callable[..., Path]) -> None:
    one, other = copy(name="one"), copy(name="other")
    assert Encoder.load(one).fingerprint == Encoder.load(other).fingerprint
    assert Encoder.load(one).model.weight_hash == Encoder.load(other).model.weight_hash


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_the_fingerprint_changes_with_one_byte(copy: Callable[..., Path], file: str) -> None:
    one, other = copy(name="one"), copy(name="other")
    content = bytearray((other / file).read_bytes())
    content[-1] ^= 1
    (other / file).write_bytes(content)
    if file != "config.json":  # it is read at once
        assert Encoder.load(one).fingerprint != Encoder.load(other).fingerprint
    else:
        (other / file).write_text((one / file).read_text().replace("0.3", "0.2"))
        assert Encoder.load(one).fingerprint != Encoder.load(other).fingerprint


def test_a_file_changed_after_it_was_hashed_is_hashed_again(copy: Callable[..., Path]) -> None:
    folder = copy()
    before = Encoder.load(folder).fingerprint
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert Encoder.load(folder).fingerprint != before


def test_the_state_fingerprint_follows_the_adapter(encoder_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(encoder_folder)
    assert encoder.state_fingerprint == encoder.fingerprint
    adapter = Adapter("full", encoder.embedding_width)
    encoder = encoder.with_adapter(adapter)
    seen = {encoder.fingerprint, encoder.state_fingerprint}
    with torch.no_grad():
        adapter.difference[0, 1] = 0.5
    seen.add(encoder.state_fingerprint)
    assert len(seen) == 3
    trained = encoder.encode(["fan"])
    assert encoder.untrained.state_fingerprint == encoder.fingerprint
    untrained = FeatureCache(tmp_path).hidden_states(encoder.untrained, ["fan"])
    encoder = encoder.folded()
    assert encoder.state_fingerprint in seen and encoder.state_fingerprint != encoder.fingerprint
    cached = FeatureCache(tmp_path).hidden_states(encoder, ["fan"])  # not those of the untrained encoder
    np.testing.assert_allclose(cached, trained, atol=1e-6)
    assert np.abs(cached - untrained).max() > 1e-3


# -------------------------------------------------------------------- refused with one line


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for file in folder.glob(name):
            file.unlink()

    return damage


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def disguised_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "model.safetensors")


def weights_of_another_model(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"something.else": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def settings_with(**values: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **values}))

    return damage


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (remove("config.json"), "no config.json"),
    "config not JSON": (write("config.json", b'{"model_type": '), "config.json: not valid JSON"),
    "config not UTF-8": (write("config.json", b"\xff\xfe"), "config.json: not valid JSON"),
    "config no object": (write("config.json", b"[1]"), "config.json: not a JSON object"),
    "config without a type": (write("config.json", b'{"hidden_size": 32}'), "cannot be read"),
    "config of an unknown type": (settings_with(model_type="no-such-model"), "cannot be read"),
    "config with a word for a number": (settings_with(hidden_size="wide"), "cannot be read"),
    "code in the folder": (
        settings_with(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"}),
        "cannot be read",
    ),
    "an encoder-decoder": (settings_with(is_encoder_decoder=True), "has a decoder behind it"),
    "no weights": (remove("*.safetensors"), "no \\*.safetensors file"),
    "a pickle": (pickle_instead, "pytorch_model.bin: a pickle"),
    "a pickle named safetensors": (disguised_pickle, "the encoder cannot be read|not a safetensors file"),
    "truncated weights": (truncate, "the encoder cannot be read|not a safetensors file"),
    "no bytes of weights": (write("model.safetensors", b""), "the encoder cannot be read|not a safetensors file"),
    "weights of another model": (weights_of_another_model, "weights are missing, .* the first"),
    "no tokenizer": (remove("tokenizer*"), "no tokenizer"),
    "broken tokenizer": (write("tokenizer.json", b"{"), "the tokenizer cannot be read"),
    "tokens without a row": (settings_with(vocab_size=20), "the encoder cannot be read|do not belong together"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused_with_one_line(copy: Callable[..., Path], case: str) -> None:
    folder = copy()
    damage, message = REFUSED[case]
    damage(folder)
    with pytest.raises(FedcarError, match=message) as error:
        Encoder.load(folder).encode(["my pump is broken"])
    assert str(folder) in one_line(error)


@pytest.mark.parametrize(
    "name", ["./no-such-folder", "/no/such/folder", "a/b/c", "", "someone/no-such-model", "no such model"]
)
def test_an_encoder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(FedcarError, match="--encoder") as error:
        Encoder.load(name)
    assert repr(name) in one_line(error)


def test_the_first_token_of_a_decoder_is_warned_of(tiny_model: Callable[..., Path]) -> None:
    with pytest.warns(FedcarWarning, match="--pooling cls: .* give last or mean"):
        Encoder.load(tiny_model("llama"), "cls")


def test_an_unknown_pooling_is_refused(encoder_folder: Path) -> None:
    with pytest.raises(FedcarError, match='--pooling "median": not known; give one of mean, last, cls'):
        Encoder.load(encoder_folder, "median")


def test_the_pooling_the_model_was_trained_with_is_the_default(
    copy: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    defaults = {family: Encoder.load(tiny_model(family)).pooling for family in FAMILIES}
    assert defaults == dict.fromkeys(FAMILIES, "mean")
    folder = copy()
    (folder / "1_Pooling").mkdir()
    for declared, pooling in (
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
    ):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared))
        assert Encoder.load(folder).pooling == pooling
        assert Encoder.load(folder, "last").pooling == "last"
