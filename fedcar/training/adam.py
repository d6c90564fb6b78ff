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
        """One update in one pass, without fresh memory; a parameter without gradient stays."""
        self.steps += 1
        means, squares = iter(self.means), iter(self.squares)
        for group in self.groups:
            state = [(parameter, parameter.grad, next(means), next(squares)) for parameter in group.parameters]
            moved = [entry for entry in state if entry[1] is not None]
            if moved:
                parameters, gradients, mean, square = zip(*moved, strict=True)
                steps = [torch.tensor(float(self.steps), device=parameters[0].device)] * len(parameters)
                torch._fused_adamw_(
                    parameters,
                    gradients,
                    mean,
                    square,
                    [],
                    steps,
                    lr=group.rate,
                    beta1=DECAY_OF_MEAN,
                    beta2=DECAY_OF_SQUARE,
                    weight_decay=group.weight_decay,
                    eps=SMALLEST,
                    amsgrad=False,
                    maximize=False,
                )

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
