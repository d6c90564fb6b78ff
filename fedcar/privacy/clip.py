"""Exact per-example clipping in closed form: per-example norms and clipped sums, from one ordinary backward.

No per-example gradient of a matrix is stored (but for chunks in clip_adapter.py), no hook is set, nothing is run
backward a second time (Goodfellow, "Efficient Per-Example Gradient Computations", arXiv 1510.01799; Li et al., ICLR
2022, for the Gram form of sequences). A step:

1. forward to per-example losses, shape (n,): a loss whose examples do not share a softmax, a batch norm or negatives;
2. `output_gradients(losses, [...])`: the gradients of their SUM at the soft embeddings y and at the head's inputs and
   logits. As examples do not mix, row i of each belongs to example i alone. Ask for these and not for the parameters:
   then the backward costs a little less than a plain one;
3. one Part for each trained tensor group, of the functions below and in clip_adapter.py;
4. `clip(parts, clip_norm)`: one joint norm over all parts, min(1, clip_norm / norm) for each example, the clipped sums;
5. noise on the sums (noise.add_noise), then divide by the EXPECTED batch size (sampling rate * questions), never by the
   actual one; terms that do not depend on questions (pull of A to the identity, of r_d to 0, pseudo-queries made from
   documents) are added after the noise.

fedcar's own noised steps train the rows of a linear head and an adapter. Library: `cosine_head`, `coefficients`,
`cosine_query_gradients` and `pre_classifier` clip the other parts of the head that ships, `clip_update` a whole update,
for a training loop of your own:

    >>> slopes, cosines, directions, rows = torch.ones(3, 5), torch.zeros(3, 5), torch.eye(3, 8), torch.eye(5, 8)
    >>> clipped = clip([cosine_head(slopes, cosines, directions, rows, scale=20.0)], clip_norm=1.0)
    >>> clipped.sums["residuals"].shape, clipped.clipped
    (torch.Size([5, 8]), 3)
    >>> clip_update({"rows": torch.ones(2, 8)}, clip_norm=1.0).sums["rows"].norm() <= 1
    tensor(True)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcar.privacy.errors import require

SMALLEST_SQUARE = 1e-30  # where a part brings squares in float32: what is below 1e-22 has a square of 0 there
MATRIX_ELEMENTS = 1 << 22  # of matrices of examples or groups in memory at a time: 32 MB in float64
ROUNDING = 1e-9  # more than float64 is off for the square of a norm, which is a sum of up to a million squares


@dataclass(frozen=True)
class Part:
    """One group of trained tensors: each example's squared gradient norm, and the sums for given factors.

    squared_norms: shape (n,). weighted_sums(factors, keep): factors (n,) in float64, keep (n,) bool or None; for every
    tensor the sum over examples of factor * gradient, in which an example that is not kept has no part, whatever it
    holds. together(factors, keep, groups): the squared norms (g,) of the same sums over the examples of each group, as
    `Groups` has them; None for a part that cannot be clipped in groups.
    """

    squared_norms: Tensor
    weighted_sums: Callable[[Tensor, Tensor | None], dict[str, Tensor]]
    together: Callable[[Tensor, Tensor | None, "Groups"], Tensor] | None = None


class Groups:
    """Which examples belong together, as those of one person do: `of` (n,) is each one's group, from 0 on."""

    def __init__(self, of: Tensor) -> None:
        self.of, self.count = of, int(of.max()) + 1 if len(of) else 0
        order = torch.argsort(of, stable=True)
        sizes = torch.bincount(of, minlength=self.count)
        starts = sizes.cumsum(0) - sizes
        self.by_size: list[tuple[Tensor, Tensor]] = []  # groups of a size (m,), their examples (m, size)
        for size in torch.unique(sizes).tolist():
            groups = (sizes == size).nonzero().flatten()
            self.by_size.append((groups, order[starts[groups][:, None] + torch.arange(size)]))

    def squared_norms(self, left: Tensor, right: Tensor) -> Tensor:
        """Of each group sum_i left_i right_i^T, (g,): left (n, a) and right (n, b), or sequences (n, l, a)."""
        found = left.new_zeros(self.count)
        for groups, examples in self.by_size:
            lefts, rights = (values[examples].reshape(len(groups), -1, values.shape[-1]) for values in (left, right))
            found[groups] = squared_norms(lefts, rights)
        return found

    def squared_lengths(self, vectors: Tensor) -> Tensor:
        """Of the sum of each group's vectors (n, ...): (g,)."""
        sums = vectors.new_zeros(self.count, *vectors.shape[1:]).index_add_(0, self.of, vectors)
        return sums.reshape(self.count, -1).square().sum(1)


@dataclass(frozen=True)
class Clipped:
    """The clipped sums by tensor name (not divided by anything), and counts, which are private: never release them.

    With groups `norms`, `examples` and `clipped` are those of the groups; one counts as clipped where an example of it
    was, too.
    """

    sums: dict[str, Tensor]
    norms: Tensor
    examples: int
    clipped: int
    non_finite: int


def clip(parts: Sequence[Part], clip_norm: float, groups: Groups | None = None) -> Clipped:
    """Sum over examples of gradient * min(1, clip_norm / norm), the norm taken jointly over all parts.

    An example whose norm is NaN or infinite is left out of the sums and counted. No examples: sums of zeros.
    With groups each group's clipped gradients are then clipped once more, as one: a group moves the sum by at most
    clip_norm, and so does each of its examples, since a point and its neighbour come no further apart by being drawn
    into a ball.
    Norms, factors and sums are float64, whatever the gradients are. The norm is rounded upwards by `ROUNDING`, so that
    one example moves the exact sum by at most clip_norm. What is left is how float64 adds up: over n examples less than
    n^2 * 1e-16 clip norms, 1e-4 of one at a million, and by experience 1e-12.

    Formal guarantees: clipped_norm_at_most_C, a_group_moves_the_sum_by_at_most_C,
    one_example_moves_a_long_sum_by_at_most_C, non_finite_examples_are_zeroed_and_counted, sums_are_never_divided,
    equals_autograd_over_examples.
    """
    require(
        math.isfinite(clip_norm) and clip_norm > 0,
        f"clip_norm is {clip_norm}, must be finite and above 0: 0 would remove every question, infinity clips none",
    )
    require(len(parts) > 0, "nothing is trained: give at least one part")
    squared = torch.stack([part.squared_norms for part in parts]).sum(0)
    # Rounded upwards, so that a norm a little above clip_norm is not let through.
    # So is what floating point holds no square of: a norm of 0 would never be clipped, whatever clip_norm is.
    norms = squared.double().clamp(min=SMALLEST_SQUARE).sqrt() * (1 + ROUNDING)
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (clip_norm / norms).clamp(max=1.0), torch.zeros_like(norms))
    bad = int((~finite).sum())
    keep = finite if bad else None
    longer = finite & (norms > clip_norm)
    if groups is not None:
        together = [part.together(factors, keep, groups) for part in parts if part.together is not None]
        require(len(together) == len(parts), "a part cannot be clipped in groups")
        norms = torch.stack(together).sum(0).clamp(min=SMALLEST_SQUARE).sqrt() * (1 + ROUNDING)
        factors = factors * (clip_norm / norms).clamp(max=1.0)[groups.of]
        any_longer = torch.zeros(groups.count, dtype=torch.long).index_add_(0, groups.of, (longer | ~finite).long()) > 0
        longer = any_longer | (norms > clip_norm * (1 + 2 * ROUNDING))
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, total in part.weighted_sums(factors, keep).items():
            require(name not in sums, f'two parts have a tensor "{name}"; give every trained tensor its own name')
            sums[name] = total
    return Clipped(sums, norms, len(norms), int(longer.sum()), bad)


def clip_update(update: Mapping[str, Tensor], clip_norm: float) -> Clipped:
    """Clip a client's whole update as one thing: unit "client". A non-finite one becomes zeros.

    Formal guarantees: clipped_norm_at_most_C.
    """
    names = list(update)
    require(len(names) > 0, "the update is empty")
    flat = torch.cat([update[name].detach().double().reshape(-1) for name in names])[None]

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        total = factors @ masked(flat, keep)
        sums, start = {}, 0
        for name in names:
            sums[name] = total[start : start + update[name].numel()].reshape(update[name].shape)
            start += update[name].numel()
        return sums

    return clip([Part(flat.square().sum(1), weighted_sums)], clip_norm)


def output_gradients(losses: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of sum(losses) at each of the outputs: row i is that of example i alone. One backward.

    losses: shape (n,), not yet summed or averaged. outputs: first dimension n each, part of the graph.
    """
    require(
        losses.dim() == 1,
        f"losses has shape {tuple(losses.shape)}, must be (n,): one loss an example, without reduction",
    )
    for output in outputs:
        require(
            output.dim() >= 1 and output.shape[0] == losses.shape[0],
            f"an output has shape {tuple(output.shape)}, its first dimension must be the {losses.shape[0]} examples",
        )
    if losses.shape[0] == 0:
        return [torch.zeros_like(output) for output in outputs]
    return list(torch.autograd.grad(losses.sum(), list(outputs)))


def linear_head(logit_gradients: Tensor, hidden_states: Tensor, *, rows: str = "rows", bias: str | None = None) -> Part:
    """Logits V h (+ b): dV_i = p_i h_i^T, so ||dV_i||^2 = ||p_i||^2 ||h_i||^2, and ||p_i||^2 more with a bias.

    logit_gradients p: (n, documents), for a softmax loss probabilities - one-hot; hidden_states h: (n, d).
    """
    logit_gradients, hidden_states = wide(logit_gradients), wide(hidden_states)
    seen = hidden_states.square().sum(1) + (1.0 if bias else 0.0)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        weighted = masked(logit_gradients, keep) * factors[:, None]
        sums = {rows: weighted.T @ masked(hidden_states, keep)}
        return sums | {bias: weighted.sum(0)} if bias else sums

    def together(factors: Tensor, keep: Tensor | None, groups: Groups) -> Tensor:
        weighted = masked(logit_gradients, keep) * factors[:, None]
        norms = groups.squared_norms(weighted, masked(hidden_states, keep))
        return norms + groups.squared_lengths(weighted) if bias else norms

    return Part(logit_gradients.square().sum(1) * seen, weighted_sums, together)


def cosine_head(
    logit_gradients: Tensor,
    cosines: Tensor,
    directions: Tensor,
    rows: Tensor,
    scale: float,
    *,
    residuals: str = "residuals",
) -> Part:
    """Logits s cos(g, e_d + r_d), residual rows r_d trained: ||dr_i||^2 = s^2 sum_d p_d^2 (1 - cos_d^2) / ||row_d||^2.

    logit_gradients p and cosines: (n, documents); directions g / ||g||: (n, d); rows e_d + r_d: (documents, d), only
    those that are trained; scale s. Where the temperature or mixing weights are trained too, add `coefficients`.
    """
    logit_gradients, cosines, directions, rows = map(wide, (logit_gradients, cosines, directions, rows))
    lengths = rows.norm(dim=1)
    slopes = scale / lengths
    # p^2 (1 - cos^2) in place, as (n, documents) is the largest thing here; rounding may give a cosine above 1.
    squares = cosines.square().neg_().add_(1).clamp_(min=0.0).mul_(logit_gradients).mul_(logit_gradients)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        weighted = masked(logit_gradients, keep) * factors[:, None]
        pulled = weighted.T @ masked(directions, keep)
        along = (pulled * rows).sum(1) / lengths.square()
        return {residuals: slopes[:, None] * (pulled - along[:, None] * rows)}

    return Part(squares @ slopes.square(), weighted_sums)


def cosine_query_gradients(
    logit_gradients: Tensor, cosines: Tensor, queries: Tensor, rows: Tensor, scale: float
) -> Tensor:
    """dL_i/dg_i of the cosine head, (n, d): s / ||g|| * (sum_d p_d row_d / ||row_d|| - (sum_d p_d cos_d) g / ||g||).

    What goes on into the pre-classifier layer or the encoder, where no autograd graph over the head is wanted.
    """
    lengths = queries.norm(dim=1, keepdim=True)
    along = (logit_gradients * cosines).sum(1, keepdim=True)
    pulled = logit_gradients @ torch.nn.functional.normalize(rows, dim=1)
    gradients: Tensor = (pulled - along * queries / lengths) * (scale / lengths)
    return gradients


def coefficients(logit_gradients: Tensor, features: Mapping[str, Tensor]) -> Part:
    """Scalars that weigh the logits' terms, logits = sum_k w_k * feature_k: dw_k,i = sum_d p_d feature_k,d.

    features by name, (n, documents) each: the cosines for the temperature s, the lexical scores for w, the best
    passages for u. For a parameter log s give s * cosines.
    """
    logit_gradients = wide(logit_gradients)
    scalars = torch.stack([(logit_gradients * wide(feature)).sum(1) for feature in features.values()], dim=1)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        totals = factors @ masked(scalars, keep)
        return {name: totals[index] for index, name in enumerate(features)}

    return Part(scalars.square().sum(1), weighted_sums)


def pre_classifier(
    query_gradients: Tensor,
    hidden_states: Tensor,
    inner: Tensor,
    outer: Tensor,
    activation: Callable[[Tensor], Tensor],
    *,
    names: tuple[str, str] = ("inner", "outer"),
) -> Part:
    """g(h) = h + W2 phi(W1 h), both matrices trained: dW2_i = dg_i u_i^T, dW1_i = (phi'(a_i) * W2^T dg_i) h_i^T.

    query_gradients dg: (n, d); hidden_states h: (n, d); inner W1: (m, d); outer W2: (d, m); a = W1 h, u = phi(a).
    activation phi works on each element by itself.
    """
    query_gradients, hidden_states = wide(query_gradients), wide(hidden_states)
    with torch.enable_grad():
        before = (hidden_states @ wide(inner).T).detach().requires_grad_()
        after = activation(before)
        (inner_gradients,) = torch.autograd.grad(after, before, query_gradients @ wide(outer))
    after = after.detach()
    norms = query_gradients.square().sum(1) * after.square().sum(1)
    norms = norms + inner_gradients.square().sum(1) * hidden_states.square().sum(1)

    def weighted_sums(factors: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
        weigh = factors[:, None]
        return {
            names[0]: (masked(inner_gradients, keep) * weigh).T @ masked(hidden_states, keep),
            names[1]: (masked(query_gradients, keep) * weigh).T @ masked(after, keep),
        }

    return Part(norms, weighted_sums)


def next_clip_norm(
    clip_norm: float, noisy_fraction_below: float, target_quantile: float, learning_rate: float
) -> float:
    """C * exp(-rate * (b - quantile)): Andrew et al., "Differentially Private Learning with Adaptive Clipping", 2021.

    noisy_fraction_below b: the NOISED count of units with norm <= C over the expected batch size. The count is a
    release of its own (sensitivity 1, or 1/2 for count - n/2) and must be charged.
    """
    require(0 < target_quantile < 1, f"target_quantile is {target_quantile}, must be above 0 and below 1")
    fraction = min(1.0, max(0.0, noisy_fraction_below))
    return clip_norm * math.exp(-learning_rate * (fraction - target_quantile))


def squared_norms(left: Tensor, right: Tensor) -> Tensor:
    """||sum_t left_t right_t^T||^2 = sum_{t,s} (left_t . left_s)(right_t . right_s), (m,), never too small.

    left (m, length, a) and right (m, length, b). Where that is more work than the a x b matrices, these are made.
    """
    length, wide_left, wide_right = left.shape[1], left.shape[2], right.shape[2]
    if not left.numel():
        return left.new_zeros(len(left))
    if length == 1:
        return left.square().sum((1, 2)) * right.square().sum((1, 2))
    if length * (wide_left + wide_right) > wide_left * wide_right:
        chunk = max(1, MATRIX_ELEMENTS // (wide_left * wide_right))
        pairs = zip(torch.split(left, chunk), torch.split(right, chunk), strict=True)
        return torch.cat([(one.mT @ other).square().sum((1, 2)) for one, other in pairs])
    of_left, of_right = left @ left.mT, right @ right.mT
    norms = (of_left * of_right).sum((1, 2))
    # Positions that cancel leave rounding errors, at most of the size of this bound (every inner product is a sum of
    # so many terms, the norm one of length^2): added, so that the norm is never too small.
    lengths = (of_left.diagonal(dim1=1, dim2=2) * of_right.diagonal(dim1=1, dim2=2)).clamp(min=0.0).sqrt()
    terms = wide_left + wide_right + length**2 + 4
    return norms + terms * torch.finfo(norms.dtype).eps * lengths.sum(1).square()


def masked(values: Tensor, keep: Tensor | None) -> Tensor:
    """Return the values with the examples that are not kept set to 0 (NaN * 0 would be NaN)."""
    if keep is None:
        return values
    return torch.where(keep.reshape(-1, *[1] * (values.dim() - 1)), values, torch.zeros_like(values))


def wide(values: Tensor) -> Tensor:
    """In float64, without a graph: there the product of two float32 is exact, and a long sum loses nothing that counts.

    Summed in float32 a million examples were moved by one of them by 1.003 of the clip norm.
    """
    return values.detach().double()
