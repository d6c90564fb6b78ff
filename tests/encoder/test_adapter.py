"""Adapter: the identity at the start, its size, folding, and that nothing but the adapter learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fedcar.encoder.adapter import Adapter, SoftEmbedding, parse_variant
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.training.gradient import of_like_length

VARIANTS = ("full", "lowrank:4", "diagonal")
TEXTS = ["my pump is broken", "", "who looks after the display again", "fan"]


def trained(variant: str, width: int, strength: float = 0.1) -> Adapter:
    """An adapter as training might leave it."""
    adapter = Adapter(variant, width)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    return adapter


def matrix(adapter: Adapter) -> torch.Tensor:
    """A itself, written as the docstring of Adapter does."""
    identity = torch.eye(adapter.width)
    if adapter.variant == "full":
        return identity + adapter.difference
    if adapter.variant == "diagonal":
        return identity + torch.diag(adapter.difference)
    return identity + adapter.left @ adapter.right.T


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adapter_starts_as_the_identity(variant: str) -> None:
    embeddings = torch.randn(3, 5, 16)
    assert torch.equal(Adapter(variant, 16)(embeddings), embeddings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_token_embedding_is_multiplied_by_the_matrix(variant: str) -> None:
    adapter = trained(variant, 16)
    embeddings = torch.randn(3, 5, 16)
    expected = torch.stack([torch.stack([matrix(adapter) @ token for token in text]) for text in embeddings])
    torch.testing.assert_close(adapter(embeddings), expected)
    assert not torch.allclose(expected, embeddings)


@pytest.mark.parametrize(
    ("variant", "shapes"),
    [
        ("full", {"difference": (16, 16)}),
        ("diagonal", {"difference": (16,)}),
        ("lowrank:1", {"left": (16, 1), "right": (16, 1)}),
        ("lowrank:4", {"left": (16, 4), "right": (16, 4)}),
        ("lowrank:16", {"left": (16, 16), "right": (16, 16)}),
    ],
)
def test_shapes_and_numbers_of_parameters(variant: str, shapes: dict[str, tuple[int, ...]]) -> None:
    adapter = Adapter(variant, 16)
    assert {name: tuple(parameter.shape) for name, parameter in adapter.named_parameters()} == shapes
    assert sum(parameter.numel() for parameter in adapter.parameters()) == sum(
        int(np.prod(shape)) for shape in shapes.values()
    )


def test_the_seed_decides_the_low_rank_directions() -> None:
    same, other = Adapter("lowrank:2", 8, seed=3), Adapter("lowrank:2", 8, seed=4)
    assert torch.equal(Adapter("lowrank:2", 8, seed=3).right, same.right)
    assert not torch.equal(same.right, other.right)


@pytest.mark.parametrize(
    "variant",
    ["", "Full", "full:2", "diagonal:1", "lowrank", "lowrank:", "lowrank:0", "lowrank:-1", "lowrank:1.5", "lowrank:x"],
)
def test_an_unknown_variant_is_refused(variant: str) -> None:
    with pytest.raises(FedcarError, match="--adapter .* not known; give full, lowrank:R .* or diagonal") as error:
        parse_variant(variant)
    assert "\n" not in str(error.value)


def test_a_rank_above_the_width_is_refused() -> None:
    assert parse_variant("lowrank:17") == ("lowrank", 17)
    with pytest.raises(FedcarError, match='--adapter "lowrank:17": the rank must not exceed the embedding width 16'):
        Adapter("lowrank:17", 16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folded_equals_adapter(
    model_folder: Path, variant: str, record_property: Callable[[str, object], None]
) -> None:
    encoder = Encoder.load(model_folder, "mean")
    before = encoder.encode(TEXTS)
    encoder = encoder.with_adapter(trained(variant, encoder.embedding_width))
    adapted = encoder.encode(TEXTS)
    encoder = encoder.folded()
    folded = encoder.encode(TEXTS)
    assert encoder.adapter is None and not isinstance(encoder.model.transformer.get_input_embeddings(), SoftEmbedding)
    difference = float(np.abs(folded - adapted).max())
    record_property("difference", difference)
    assert np.abs(adapted - before).max() > 0.01
    assert difference <= 1e-6 * max(1.0, float(np.abs(adapted).max()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folded_encoder_is_a_stock_model(model_folder: Path, tmp_path: Path, variant: str) -> None:
    from transformers import AutoModel

    encoder = Encoder.load(model_folder, "mean")
    encoder = encoder.with_adapter(trained(variant, encoder.embedding_width))
    ids = encoder.tokenize(TEXTS[:1])
    adapted = encoder.hidden_states(ids)
    encoder = encoder.folded()
    encoder.model.transformer.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            stock(input_ids=torch.tensor(ids)).last_hidden_state.mean(1), adapted, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_adapter_only(model_folder: Path, variant: str) -> None:
    encoder = Encoder.load(model_folder, "mean")
    encoder = encoder.with_adapter(trained(variant, encoder.embedding_width))
    encoder.hidden_states(encoder.tokenize(TEXTS)).square().sum().backward()
    assert encoder.adapter is not None
    own = {id(parameter) for parameter in encoder.adapter.parameters()}
    for name, parameter in encoder.transformer.named_parameters():
        if id(parameter) in own:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


def test_the_gradient_at_the_start_is_that_of_the_matrix(encoder_folder: Path) -> None:
    """Against finite differences, in the direction of the gradient itself."""
    encoder = Encoder.load(encoder_folder, "mean")
    adapter = Adapter("full", encoder.embedding_width)
    encoder.model.transformer.double()
    encoder = encoder.with_adapter(adapter.double())
    ids = encoder.tokenize(TEXTS)
    encoder.hidden_states(ids).square().sum().backward()
    gradient = adapter.difference.grad
    assert gradient is not None
    step = 1e-5 * gradient / gradient.norm()
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            adapter.difference.copy_(sign * step)
            values.append(float(encoder.hidden_states(ids).square().sum()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_halved_blocks_give_nearly_the_same_gradient(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder, "mean")
    adapter = trained("full", encoder.embedding_width)
    encoder = encoder.with_adapter(adapter)
    ids = encoder.tokenize(TEXTS)
    gradients = []
    for halved in (False, True):
        encoder = encoder.with_adapter(adapter, halved=halved)
        adapter.zero_grad()
        encoder.hidden_states(ids).square().sum().backward()
        assert adapter.difference.grad is not None and adapter.difference.grad.dtype == torch.float32
        gradients.append(adapter.difference.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99 and not torch.equal(*gradients)
    another = trained("full", encoder.embedding_width)  # as each client of a federation has one, and all one model
    encoder = encoder.with_adapter(another, halved=True)
    assert torch.equal(encoder.hidden_states(ids), encoder.hidden_states(ids))
    encoder.hidden_states(ids).square().sum().backward()
    assert torch.cosine_similarity(another.difference.grad.flatten(), gradients[1], dim=0) > 0.99
    assert torch.equal(adapter.difference.grad.flatten(), gradients[1])  # and the one before got none


def test_texts_of_like_length_share_a_pass() -> None:
    texts = [[0] * length for length in (30, 1, 12, 2, 34, 5, 13, 6)]
    assert of_like_length(texts) == [[1, 3, 5], [7, 2, 6], [0, 4]]
    assert of_like_length(texts[:1]) == [[0]]


def test_no_adapter_leaves_a_trace_in_the_frozen_model(model_folder: Path) -> None:
    encoder = Encoder.load(model_folder)
    before, module = encoder.encode(TEXTS), encoder.model.transformer.get_input_embeddings()
    for variant in VARIANTS:  # each replaces the one before
        encoder = encoder.with_adapter(trained(variant, encoder.embedding_width))
        assert encoder.model.embedding is module
    assert np.abs(encoder.encode(TEXTS) - before).max() > 0.01
    encoder = encoder.with_adapter(None)
    assert encoder.adapter is None and encoder.model.transformer.get_input_embeddings() is module
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    encoder = encoder.folded()  # nothing to fold
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
