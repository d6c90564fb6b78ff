"""Per-example clipping of the adapter y_t = A x_t: full, low-rank (A = I + U V^T) and diagonal.

All take x, the embeddings before the adapter, and g = dL/dy, the gradients at the soft embeddings, both (n, L, d), as
they come from one batch (clip.output_gradients). Where x was looked up in a frozen table it needs no gradient. Padding
needs no care as long as g is what autograd gave; a position of which g is 0 has no part.
"""

import torch
from torch import Tensor

from fedcar.privacy.clip import Part, masked, wide
from fedcar.privacy.errors import require

_CHUNK_ELEMENTS = 1 << 22  # of per-example matrices in memory at a time: 32 MB in float64


def full_adapter(gradients: Tensor, embeddings: Tensor, *, name: str = "adapter") -> Part:
    """G_i = sum_t g_t x_t^T, so ||G_i||^2 = sum_{t,s} (g_t . g_s)(x_t . x_s): two L x L Gram matrices an example.

    Where 2 L > d the d x d matrices G_i are made instead, a few at a time. The sum is one product over all positions.
    Positions that cancel leave a norm far below its parts: see `_gram_norms`.
    """
    gradients, embeddings = _pair(gradients, embeddings)
    n, length, width = gradients.shape
    if n == 0 or length == 0:
        norms = gradients.new_zeros(n)
    elif 2 * length > width:
        norms = _materialised_norms(gradients, embeddings)
    else:
        norms = _gram_norms(gradients, embeddings)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        weighted = masked(gradients, keep) * factors[:, None, None]
        return {name: weighted.reshape(-1, width).T @ masked(embeddings, keep).reshape(-1, width)}

    return Part(norms, weighted_sums)


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

    return Part(norms, weighted_sums)


def diagonal_adapter(gradients: Tensor, embeddings: Tensor, *, name: str = "adapter") -> Part:
    """Return A = diag(a): da_i = sum_t g_t * x_t, a vector of d numbers an example."""
    gradients, embeddings = _pair(gradients, embeddings)
    per_example = (gradients * embeddings).sum(1)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        return {name: factors @ masked(per_example, keep)}

    return Part(per_example.square().sum(1), weighted_sums)


def _pair(gradients: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    require(
        gradients.dim() == 3 and gradients.shape == embeddings.shape,
        f"gradients {tuple(gradients.shape)} and embeddings {tuple(embeddings.shape)} must both be (n, length, d)",
    )
    return wide(gradients), wide(embeddings)


def _gram_norms(gradients: Tensor, embeddings: Tensor) -> Tensor:
    of_gradients, of_embeddings = gradients @ gradients.mT, embeddings @ embeddings.mT
    norms = (of_gradients * of_embeddings).sum((1, 2))
    # Positions that cancel leave rounding errors, at most of the size of this bound (every inner product is a sum of
    # `width` terms, the norm one of length^2): added, so that the norm is never too small.
    lengths = (of_gradients.diagonal(dim1=1, dim2=2) * of_embeddings.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt()
    length, width = gradients.shape[1:]
    return norms + (2 * width + length**2 + 4) * torch.finfo(norms.dtype).eps * lengths.sum(1).square()


def _materialised_norms(gradients: Tensor, embeddings: Tensor) -> Tensor:
    width = gradients.shape[2]
    chunk = max(1, _CHUNK_ELEMENTS // (width * width))
    norms = [
        (gradients[start : start + chunk].mT @ embeddings[start : start + chunk]).square().sum((1, 2))
        for start in range(0, len(gradients), chunk)
    ]
    return torch.cat(norms)
