"""The adapter: one trainable matrix between a frozen model's token embeddings and its blocks (soft embeddings)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedcar.errors import FedcarError


class Adapter(nn.Module):
    """y_t = A x_t for every token embedding x_t (arXiv 2509.16508, section III).

    A is the identity at the start. It is stored as its difference to the identity, so that weight decay pulls A to
    the identity. Variants: `full` (A = I + D, D of shape (d, d)), `lowrank:R` (A = I + U V^T, both (d, R), U = 0 at the
    start, V seeded) and `diagonal` (A = I + diag(v)).
    """

    def __init__(self, variant: str, width: int, seed: int = 0) -> None:
        super().__init__()
        self.variant = variant
        self.width = width
        name, rank = parse_variant(variant)
        if rank > width:
            raise FedcarError(f'--adapter "{variant}": the rank must not exceed the embedding width {width}; give full')
        if name == "full":
            self.difference = nn.Parameter(torch.zeros(width, width))
        elif name == "diagonal":
            self.difference = nn.Parameter(torch.zeros(width))
        else:
            generator = torch.Generator().manual_seed(seed)
            self.left = nn.Parameter(torch.zeros(width, rank))
            self.right = nn.Parameter(torch.randn(width, rank, generator=generator) / rank**0.5)

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays, so that another process gets a copy and no shared memory."""
        arrays = {name: tensor.numpy() for name, tensor in self.state_dict().items()}
        return {"variant": self.variant, "width": self.width, "arrays": arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        Adapter.__init__(self, state["variant"], state["width"])
        tensors = {name: torch.from_numpy(array) for name, array in state["arrays"].items()}
        self.load_state_dict(tensors, assign=True)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        if self.variant == "full":
            return embeddings + embeddings @ self.difference.T
        if self.variant == "diagonal":
            return embeddings + embeddings * self.difference
        return embeddings + (embeddings @ self.right) @ self.left.T


def parse_variant(variant: str) -> tuple[str, int]:
    """`full`, `diagonal` or `lowrank:R` -> (name, rank); rank is 0 where it has no meaning."""
    if variant in ("full", "diagonal"):
        return variant, 0
    name, _, rank = variant.partition(":")
    if name == "lowrank" and rank.isdecimal() and int(rank) > 0:
        return name, int(rank)
    raise FedcarError(f'--adapter "{variant}": not known; give full, lowrank:R (R a whole number from 1) or diagonal')


class SoftEmbedding(nn.Module):
    """The model's own embedding module with the adapter behind it.

    A wrapper, so that token ids still reach the model: Gemma's embedding scale and the padding-aware positions of
    RoBERTa and MPNet, which `inputs_embeds` would lose, stay as they are.
    """

    def __init__(self, embedding: nn.Module, adapter: Adapter, precision: torch.dtype | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.adapter = adapter
        self.precision = precision  # of the blocks behind, where it is another

    def forward(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.adapter(self.embedding(token_ids))
        return embedded if self.precision is None else embedded.to(self.precision)


class BothEmbeddings(nn.Module):
    """The model's own embedding for the first half of a batch, with the adapter behind it for the second."""

    def __init__(self, embedding: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.embedding = embedding
        self.adapter = adapter

    def forward(self, token_ids: Tensor) -> Tensor:
        first, second = self.embedding(token_ids).tensor_split(2)
        return torch.cat([first, self.adapter(second)])
