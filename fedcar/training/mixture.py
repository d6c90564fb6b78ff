"""The mixture: how much each piece of evidence counts, learned as a conditional logit over candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize

from fedcar.head.losses import Relevant, candidate_slopes

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRENGTH, STRENGTH_OF_ONE_QUESTION = 1e-3, 30.0
LEAST_SPREAD = 1e-5
ITERATIONS = 100


def fit_mixture(
    features: NDArray[np.float32],
    relevance: NDArray[np.float32],
    prior: NDArray[np.float32],
    *,
    importance: NDArray[np.float32] | None = None,
    free: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Weights (F,) that maximise the likelihood of the relevant candidates, pulled to the prior.

    `features` (n, c, F), `relevance` (n, c); `importance` (n,) is how much each question counts, `free` (F,) which
    weights are learned, while the others stay at the prior. Conditional logit (McFadden 1974) with an L2 penalty on the
    distance to `prior` (F,), measured in standard deviations of a feature within a question, so that no feature's unit
    matters; the fewer the questions, the stronger the pull. Questions without a relevant candidate say nothing and are
    left out; without any the prior is returned.
    """
    speaking = (relevance > 0).any(1) & ~(relevance > 0).all(1)
    if not speaking.any():
        return prior
    inputs, relevant = torch.from_numpy(features[speaking]), Relevant.of(torch.from_numpy(relevance[speaking]))
    spread = (inputs - inputs.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    speaks = spread > LEAST_SPREAD  # a feature that is the same for all candidates says nothing: its weight stays
    learned = speaks if free is None else speaks & torch.from_numpy(free)
    spread = torch.where(speaks, spread, 1.0)
    start = torch.from_numpy(prior) * spread
    offset = (inputs / spread) @ torch.where(learned, 0.0, start)
    inputs, places = (inputs / spread)[..., learned], learned.nonzero().squeeze(1).numpy()
    start = start[learned]
    counts = np.ones(len(inputs), dtype=np.float32) if importance is None else importance[speaking]
    counts = counts / max(counts.sum(), np.float32(1e-9))
    strength = STRENGTH + STRENGTH_OF_ONE_QUESTION / len(inputs)

    def loss_and_gradient(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.tensor(values, dtype=torch.float32)
        slopes = offset + inputs @ weights
        loss = candidate_slopes(slopes, relevant, counts)
        away = weights - start
        gradient = slopes.flatten() @ inputs.flatten(0, 1) + 2 * strength * away
        return loss + strength * float(away.square().sum()), gradient.double().numpy()

    options = {"maxiter": ITERATIONS}
    minimum = minimize(loss_and_gradient, start.double().numpy(), jac=True, method="L-BFGS-B", options=options)
    weights = prior.copy()
    weights[places] = (minimum.x / spread[learned].double().numpy()).astype(np.float32)
    return weights
