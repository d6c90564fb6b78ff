"""Pooling: every kind equals a plain loop over the tokens that the mask keeps."""

import pytest
import torch

from fedcar.encoder.manner import POOLINGS
from fedcar.encoder.pooling import Pooling, pool


@pytest.mark.parametrize(
    ("pooling", "side"),  # what weighs by place counts places from the left, where fedcar never pads
    [
        (pooling, side)
        for pooling in POOLINGS
        for side in ("left", "right")
        if (pooling, side) != ("weightedmean", "left")
    ],
)
def test_pool_equals_a_plain_loop(pooling: str, side: str) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 5, 3, 4]
    states = torch.randn(4, 5, 3, generator=generator)
    mask = torch.zeros(4, 5, dtype=torch.long)
    expected = []
    for row, length in enumerate(lengths):
        kept = range(length) if side == "right" else range(5 - length, 5)
        mask[row, list(kept)] = 1
        own = [states[row, place] for place in kept]
        total = sum(own, torch.zeros(3))
        by_place = sum((place * state for place, state in enumerate(own, 1)), torch.zeros(3))
        expected.append(
            {
                "mean": total / length,
                "last": own[-1],
                "cls": own[0],
                "max": torch.stack(own).max(dim=0).values,
                "mean_sqrt_len_tokens": total / length**0.5,
                "weightedmean": by_place / sum(range(1, length + 1)),
            }[pooling]
        )
    torch.testing.assert_close(pool(states, mask, pooling), torch.stack(expected))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_token_that_is_read_and_not_pooled_has_no_say(pooling: str) -> None:
    states = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    changed = states.clone()
    changed[0, 0] += 100
    mask = torch.tensor([[2, 1, 1, 0]])
    module = Pooling(pooling, leaves_out=True)
    torch.testing.assert_close(module(states, mask), module(changed, mask))
    assert module.read(mask).tolist() == [[1, 1, 1, 0]]
