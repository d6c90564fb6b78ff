"""Adam with decoupled weight decay, small and plain: its state is named tensors, and using it imports nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DECAY_OF_MEAN, DECAY_OF_SQUARE = 0.9, 0.999
SMALLEST = 1e-8


@dataclass
class Group:
    """Parameters that share a learning rate and a weight decay."""

    parameters: Sequence[Tensor]
    rate: float
    weight_decay: float = 0.0


class Adam:
    """AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019, algorithm 2), equal to torch.optim.AdamW.

    torch's own optimisers import its compiler at the first step, which takes longer than training a head.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self.steps = 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.groups for parameter in group.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update; a parameter without gradient stays."""
        self.steps += 1
        state = iter(zip(self.means, self.squares, strict=True))
        first, second = 1 - DECAY_OF_MEAN**self.steps, 1 - DECAY_OF_SQUARE**self.steps
        for group in self.groups:
            for parameter in group.parameters:
                mean, square = next(state)
                if parameter.grad is None:
                    continue
                if group.weight_decay:
                    parameter.mul_(1 - group.rate * group.weight_decay)
                mean.lerp_(parameter.grad, 1 - DECAY_OF_MEAN)
                square.mul_(DECAY_OF_SQUARE).addcmul_(parameter.grad, parameter.grad, value=1 - DECAY_OF_SQUARE)
                parameter.addcdiv_(mean, (square / second).sqrt_().add_(SMALLEST), value=-group.rate / first)

    def reset(self) -> None:
        """Forget all steps."""
        self.steps = 0
        for tensor in (*self.means, *self.squares):
            tensor.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the state, off any GPU: `steps`, and `mean.N` and `square.N` of the Nth parameter."""
        state = {f"mean.{number}": tensor.cpu().clone() for number, tensor in enumerate(self.means)}
        state |= {f"square.{number}": tensor.cpu().clone() for number, tensor in enumerate(self.squares)}
        return {"steps": torch.tensor(self.steps), **state}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        self.steps = int(tensors["steps"])
        for number, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            mean.copy_(tensors[f"mean.{number}"])
            square.copy_(tensors[f"square.{number}"])
