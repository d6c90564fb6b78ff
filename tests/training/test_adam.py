"""The optimiser: AdamW's formula, whatever torch offers for it."""

from __future__ import annotations

import numpy as np
import torch

from fedcar.training.adam import Adam, Group

RATE, DECAY = 0.1, 0.5


def test_an_update_is_the_formula_and_a_parameter_without_gradient_stays() -> None:
    generator = np.random.default_rng(0)
    parameters = [torch.tensor(generator.normal(size=shape), requires_grad=True) for shape in ((3, 2), (), (4,))]
    optimiser = Adam([Group(parameters[:2], RATE), Group(parameters[2:], RATE, DECAY)])
    values = [parameter.detach().numpy().copy() for parameter in parameters]
    means, squares = ([np.zeros_like(value) for value in values] for _ in range(2))
    for step in range(1, 6):
        moving = [0, 1, 2] if step != 3 else [0, 2]
        optimiser.zero_grad()
        for one in moving:
            gradient = generator.normal(size=values[one].shape)
            parameters[one].grad = torch.tensor(gradient)
            means[one] = 0.9 * means[one] + 0.1 * gradient
            squares[one] = 0.999 * squares[one] + 0.001 * gradient**2
            direction = means[one] / (1 - 0.9**step) / (np.sqrt(squares[one] / (1 - 0.999**step)) + 1e-8)
            values[one] = values[one] * (1 - (RATE * DECAY if one == 2 else 0)) - RATE * direction
        optimiser.step()
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9)
