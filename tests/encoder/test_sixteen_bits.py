"""Large models: their weights stay in 16 bits, and what they compute is float32 all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedcar.encoder import sixteen_bits
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model import FrozenModel
from fedcar.encoder.runtimes import choice, onnx_file
from fedcar.errors import FedcarError

TEXTS = ["a lost card", "how do I order another card", "my transfer has not come yet and I wait"]


@pytest.fixture
def halved(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[[str, torch.dtype], Path]:
    """halved("llama", torch.bfloat16) -> the tiny model with its weights in 16 bits."""

    def make(family: str, precision: torch.dtype = torch.bfloat16) -> Path:
        folder = tmp_path / f"{family}-{precision}".replace(".", "-")
        shutil.copytree(tiny_model(family), folder)
        file = folder / "model.safetensors"
        tensors = {name: tensor.to(precision) for name, tensor in load_file(file).items()}
        file.unlink()  # a copy of a file that nobody may write
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sixteen_bits, "LARGE_MODEL", 1)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "mpnet", "llama", "gemma"])
def test_a_large_model_gives_the_states_of_one_read_in_float32(
    halved: Callable[..., Path], family: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = halved(family, precision)
    wanted = Encoder.load(folder).encode_states(TEXTS)
    monkeypatch.setattr(sixteen_bits, "LARGE_MODEL", 1)
    model = FrozenModel.load(folder)
    assert model.transformer.get_input_embeddings().weight.dtype == precision or family == "gemma"
    matrices = [parameter for parameter in model.transformer.parameters() if parameter.dim() == 2]
    assert sum(matrix.dtype == precision for matrix in matrices) >= len(matrices) - 3  # tables of positions and kinds
    np.testing.assert_array_equal(Encoder(model).encode_states(TEXTS), wanted)


def test_a_large_model_in_float32_is_rounded_once_and_kept(
    tiny_model: Callable[..., Path], all_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llama")
    monkeypatch.setattr(sixteen_bits, "LARGE_MODEL", 10**9)
    exact = Encoder.load(folder).encode(TEXTS)
    monkeypatch.setattr(sixteen_bits, "LARGE_MODEL", 1)
    found = Encoder.load(folder).encode(TEXTS)
    cosines = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    assert cosines.min() > 0.999
    kept, precision = sixteen_bits.in_sixteen_bits(folder)
    assert precision == torch.bfloat16
    written = (kept / "model.safetensors").stat()
    np.testing.assert_array_equal(Encoder.load(folder).encode(TEXTS), found)
    assert sixteen_bits.in_sixteen_bits(folder) == (kept, precision)
    assert (kept / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns
    assert written.st_size < (folder / "model.safetensors").stat().st_size


def test_no_matrix_of_a_large_model_is_copied(halved: Callable[..., Path], all_large: None) -> None:
    model = FrozenModel.load(halved("llama"))
    where = {name: parameter.data_ptr() for name, parameter in model.transformer.named_parameters()}
    in_bfloat16 = choice.built(model, "torch-bf16")._transformer
    encoder = Encoder(model).with_adapter(Adapter("full", model.embedding_width), halved=True, recomputed=True)
    for blocks in (in_bfloat16, encoder._with_gradients):
        matrices = {name: each for name, each in blocks.named_parameters() if each.dim() == 2 and name in where}
        assert len(matrices) >= 14
        assert all(each.data_ptr() == where[name] for name, each in matrices.items())


@pytest.mark.parametrize("in_halves", [False, True])
def test_gradients_go_through_blocks_in_16_bits(
    halved: Callable[..., Path], in_halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, gradients = halved("llama"), []
    for large in (10**9, 1):
        monkeypatch.setattr(sixteen_bits, "LARGE_MODEL", large)
        model = FrozenModel.load(folder)
        adapter = Adapter("full", model.embedding_width)
        encoder = Encoder(model).with_adapter(adapter, halved=in_halves, recomputed=large == 1)
        encoder.hidden_states(encoder.tokenize(TEXTS)).square().sum().backward()
        gradients.append(adapter.difference.grad)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)
    assert float(gradients[0].abs().max()) > 0.01


def test_a_large_model_with_its_adapter_folded_in_gives_the_adapted_states(
    halved: Callable[..., Path], all_large: None
) -> None:
    model = FrozenModel.load(halved("llama"))
    adapter = Adapter("full", model.embedding_width)
    with torch.no_grad():
        adapter.difference.normal_(0, 0.05)
    encoder = Encoder(model).with_adapter(adapter)
    np.testing.assert_array_equal(encoder.folded().encode(TEXTS), encoder.encode(TEXTS))


def test_a_large_model_runs_in_no_runtime_that_holds_it_twice(halved: Callable[..., Path], all_large: None) -> None:
    assert set(choice.candidates(FrozenModel.load(halved("llama")))) == {"torch", "torch-bf16"}


def test_no_room_for_the_copy_in_16_bits_is_one_line(
    tiny_model: Callable[..., Path], all_large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fedcar").write_text("a file where the cache should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FedcarError, match="copy in 16 bits cannot be written .*; free space"):
        Encoder.load(tiny_model("llama")).encode(TEXTS)


def test_a_large_model_with_an_adapter_goes_into_one_file(
    halved: Callable[..., Path], all_large: None, tmp_path: Path
) -> None:
    model = FrozenModel.load(halved("llama"))
    adapter = Adapter("diagonal", model.embedding_width)
    with torch.no_grad():
        adapter.difference.normal_(0, 0.05)
    onnx_file.write(model, tmp_path / "both.onnx", adapter=adapter)
    assert (tmp_path / "both.onnx").is_file()
