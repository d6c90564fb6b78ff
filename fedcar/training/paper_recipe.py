"""The noise of arXiv 2509.16508, for comparison: it has no formal guarantee, and says so wherever it appears."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import PAPER_RECIPE, Statement, state

NOISE_SCALE, EMA_DECAY, TARGET_QUANTILE, WARM_UP_EPOCHS = 0.1, 0.9, 0.9, 6
NORMS_KEPT = 100


class PaperRecipe:
    """Clips a batch's mean gradient at a moving threshold and adds noise of .1 times it, after six epochs without.

    The threshold follows the .9 quantile of the un-noised norms (exponential moving average, decay .9). Epsilon is
    infinite: the warm-up is un-noised, the threshold reads un-noised norms, and one question can move the clipped mean
    of a batch by twice the threshold, against which the noise is .05. It starts anew where a training is resumed.
    """

    def __init__(self) -> None:
        self.norms: deque[float] = deque(maxlen=NORMS_KEPT)
        self.threshold: float | None = None
        self.source = NoiseSource()

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], epoch: int) -> None:
        """Change the gradients of one step in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = float(torch.stack([gradient.double().square().sum().cpu() for gradient in gradients]).sum().sqrt())
        self.norms.append(norm)
        quantile = float(np.quantile(self.norms, TARGET_QUANTILE))
        before = quantile if self.threshold is None else self.threshold
        self.threshold = EMA_DECAY * before + (1 - EMA_DECAY) * quantile
        if epoch <= WARM_UP_EPOCHS:
            return
        for gradient in gradients:
            gradient.mul_(min(1.0, self.threshold / max(norm, 1e-12)))
            noise = torch.from_numpy(self.source.normal(tuple(gradient.shape))).to(gradient)
            gradient.add_(noise, alpha=NOISE_SCALE * self.threshold)


def no_guarantee(method: str, delta: float) -> Statement:
    """The statement of a training by this recipe: epsilon infinity, with the reason."""
    released = ["what was trained, after un-noised and noised steps"]
    return state([], delta, method=method, clip_norm=None, released=released, no_guarantee=PAPER_RECIPE)
