"""The gradients of a batch where nothing but the rows of a linear head learns: two products and few passes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedcar.head.losses import Relevant, candidate_slopes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcar.head.head import Head


class RowStep:
    """Loss and gradients of the questions of a batch over all documents, by their offset (n, N) and relevance (n, N).

    What a batch needs is held from step to step: fresh memory comes from the system page by page, and for a matrix of
    100,000 numbers takes as long as a product with it.
    """

    def __init__(self, head: Head, offset: Tensor, relevance: Tensor, batch_size: int) -> None:
        self.head = head
        self.offset = offset
        self.relevant = Relevant.of(relevance)
        self.scores = torch.empty(min(batch_size, len(offset)), offset.shape[1])
        self.gradient = torch.empty_like(head.rows)

    @torch.no_grad()
    def gradients(self, rows: NDArray[np.int64], hidden_states: Tensor, strength: float) -> float:
        """Put the gradients of rows and temperature in place; return the mean loss of the questions `rows` (b,).

        The loss is `candidate_losses` of offset + s x . r_d (see `Head`); the gradients are also those of the penalty
        `strength` s^2 |r|^2. Their hidden states (b, d) become s x, x = (h - |h| centre) / (|h| |h / |h| - centre|).
        All of it knows s and r as s r alone: the gradient at log s is the inner product of r and its own gradient.
        """
        head, inputs, stay = self.head, hidden_states, ~self.head.active[:, None]
        scale, some_stay = math.exp(head.log_scale), bool(stay.any())
        lengths = torch.linalg.vector_norm(inputs, dim=1).clamp_(min=1e-12)
        inputs.addr_(lengths, head.centre, alpha=-1)
        inputs.mul_((scale / torch.linalg.vector_norm(inputs, dim=1).clamp_(min=1e-24))[:, None])
        scores = torch.index_select(self.offset, 0, torch.from_numpy(rows), out=self.scores[: len(rows)])
        scores.addmm_(inputs, (head.rows.masked_fill(stay, 0.0) if some_stay else head.rows).T)
        loss = candidate_slopes(scores, self.relevant.take(rows), 1 / len(rows))
        gradient = torch.mm(scores.T, inputs, out=self.gradient)
        if some_stay:
            gradient.masked_fill_(stay, 0.0)
        gradient.add_(head.rows, alpha=2 * strength * scale**2)
        head.rows.grad, head.log_scale.grad = gradient, torch.vdot(gradient.flatten(), head.rows.flatten())
        return loss
