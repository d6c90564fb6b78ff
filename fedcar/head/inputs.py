"""What a head is given of a question: the hidden state of one encoder, or those of two side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedcar.head.feature_map import centred

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inputs_of(states: NDArray[np.void], centres: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """States of questions, records (n,) of `FrozenModel.state_type` -> hidden states (n, d) as they are.

    With the usual directions `centres` (d + d',) of two encoders both, each less its own and of unit length: what one
    of them says of a question counts as much as what the other does.
    """
    pooled: NDArray[np.float32] = states["pooled"]
    if centres is None:
        return pooled
    width = pooled.shape[1]
    sides = centred(pooled, centres[:width]), centred(states["beside"]["pooled"], centres[width:])
    return np.concatenate(sides, axis=1)
