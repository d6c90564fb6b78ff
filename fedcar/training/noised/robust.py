"""Noised sums of many clients, of which some may be hostile: what is made of them is post-processing and costs nothing.

For runs of five clients or more: of fewer, two that contradict each other cannot be told apart. It goes by how many
took part at first, so that one who is refused or gone does not leave the others unprotected.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median_low

import torch
from torch import Tensor

Answer = Mapping[str, Tensor]

LONGEST = 1.1  # times the median length; noise makes honest sums about equally long
CONTRADICTS = 4.0  # standard deviations of the noise
CONTRADICTION = "its class sums contradict those of all others together"
SPREAD_OF_A_MEDIAN = 1.26  # of normal numbers, by that of their mean


def flat(answer: Answer) -> Tensor:
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(answer.items())])


def contradicting(answers: Mapping[str, Answer], deviation: float) -> dict[str, str]:
    """Whose class sums point away from those of all others together, by more than the noise on its own can.

    Questions of one document lie around its direction whoever asks them, so honest sums point the same way or, where
    clients have no document in common, nowhere. The inner product with the others' sum is then that of noise alone.
    """
    refused: dict[str, str] = {}
    vectors = {name: flat(answer) for name, answer in cut(answers).items()}
    while len(refused) < (len(answers) - 1) // 2:
        whole = torch.stack(list(vectors.values())).sum(0)
        errors = {name: _errors(vector, whole - vector, deviation) for name, vector in vectors.items()}
        worst = min(errors, key=lambda name: errors[name])
        if errors[worst] > -CONTRADICTS:
            break
        refused[worst] = f"{CONTRADICTION} ({-errors[worst]:.0f} standard deviations)"
        del vectors[worst]
    return refused


def _errors(vector: Tensor, others: Tensor, deviation: float) -> float:
    """How far a sum points along the others', in standard deviations of its noise."""
    return float(vector @ others) / max(deviation * float(others.norm()), 1e-300)


def cut(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Sums no longer than 1.1 times the median; counts as they are."""
    if all(tensor.numel() <= 3 for answer in answers.values() for tensor in answer.values()):
        return dict(answers)
    lengths = {name: float(flat(answer).norm()) for name, answer in answers.items()}
    longest = LONGEST * median_low(lengths.values())
    return {
        name: answer
        if lengths[name] <= longest
        else {key: tensor * (longest / lengths[name]) for key, tensor in answer.items()}
        for name, answer in answers.items()
    }


def usual_counts(answers: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Held-out questions, right by search, right as trained (3,), of all clients together, by their weights.

    By medians: of the questions, of what search gets right, and of what training adds to that. Of an even number the
    lower one, so that half of them cannot say that training was better.
    """
    each = torch.stack([answer.double() for _, answer in sorted(answers.items())])
    weight = sum(weights.get(name, 1.0) for name in answers)
    questions, search, more = (each[:, 0], each[:, 1], each[:, 2] - each[:, 1])
    return weight * torch.stack([questions.median(), search.median(), search.median() + more.median()])
