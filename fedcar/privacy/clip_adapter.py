"""Per-example clipping of the adapter y_t = A x_t: full, low-rank (A = I + U V^T) and diagonal.

All take x, the embeddings before the adapter, and g = dL/dy, the gradients at the soft embeddings, both (n, L, d), as
they come from one batch (clip.output_gradients). Where x was looked up in a frozen table it needs no gradient. Padding
needs no care as long as g is what autograd gave; a position of which g is 0 has no part.
"""

import torch
from torch import Tensor

from fedcar.privacy.clip import Groups, Part, masked, squared_norms, wide
from fedcar.privacy.errors import require


def full_adapter(gradients: Tensor, embeddings: Tensor, *, name: str = "adapter") -> Part:
    """G_i = sum_t g_t x_t^T, so ||G_i||^2 = sum_{t,s} (g_t . g_s)(x_t . x_s): two L x L Gram matrices an example.

    Where 2 L > d the d x d matrices G_i are made instead, a few at a time. The sum is one product over all positions.
    """
    gradients, embeddings = _pair(gradients, embeddings)
    width = gradients.shape[2]

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        weighted = masked(gradients, keep) * factors[:, None, None]
        return {name: weighted.reshape(-1, width).T @ masked(embeddings, keep).reshape(-1, width)}

    def together(factors: Tensor, keep: Tensor | None, groups: Groups) -> Tensor:
        weighted = masked(gradients, keep) * factors[:, None, None]
        return groups.squared_norms(weighted, masked(embeddings, keep))

    return Part(squared_norms(gradients, embeddings), weighted_sums, together)


def low_rank_adapter(
    gradients: Tensor, embeddings: Tensor, left: Tensor, right: Tensor, *, names: tuple[str, str] = ("left", "right")
) -> Part:
    """Return A = I + U V^T U (left) and V (right) (d, r): dU_i = sum_t g_t (V^T x_t)^T, dV_i = sum_t x_t (U^T g_t)^T.

    The (d, r) matrices of every example are kept: n * 2 * d * r numbers.
    """
    gradients, embeddings = _pair(gradients, embeddings)
    left, right = wide(left), wide(right)
    for given in (left, right):
        require(
            given.shape[0] == gradients.shape[2], f"U and V must have {gradients.shape[2]} rows, not {given.shape[0]}"
        )
    left_gradients = gradients.mT @ (embeddings @ right)
    right_gradients = embeddings.mT @ (gradients @ left)
    norms = left_gradients.square().sum((1, 2)) + right_gradients.square().sum((1, 2))

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        return {
            name: torch.einsum("n,nij->ij", factors, masked(values, keep))
            for name, values in zip(names, (left_gradients, right_gradients), strict=True)
        }

    def together(factors: Tensor, keep: Tensor | None, groups: Groups) -> Tensor:
        both = (masked(values, keep) * factors[:, None, None] for values in (left_gradients, right_gradients))
        return torch.stack([groups.squared_lengths(values) for values in both]).sum(0)

    return Part(norms, weighted_sums, together)


def diagonal_adapter(gradients: Tensor, embeddings: Tensor, *, name: str = "adapter") -> Part:
    """Return A = diag(a): da_i = sum_t g_t * x_t, a vector of d numbers an example."""
    gradients, embeddings = _pair(gradients, embeddings)
    per_example = (gradients * embeddings).sum(1)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        return {name: factors @ masked(per_example, keep)}

    def together(factors: Tensor, keep: Tensor | None, groups: Groups) -> Tensor:
        return groups.squared_lengths(masked(per_example, keep) * factors[:, None])

    return Part(per_example.square().sum(1), weighted_sums, together)


def _pair(gradients: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    require(
        gradients.dim() == 3 and gradients.shape == embeddings.shape,
        f"gradients {tuple(gradients.shape)} and embeddings {tuple(embeddings.shape)} must both be (n, length, d)",
    )
    return wide(gradients), wide(embeddings)
