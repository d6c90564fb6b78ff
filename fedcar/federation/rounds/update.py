"""What a round passes on: updates, who is enrolled, the server's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Update:
    """What a client sends: `tensors` in the form of the wire (see `compress`), and plain numbers.

    `questions` is n_i, `seconds` the local training's, `bytes` the length of the tensors on the wire.
    """

    client: str
    tensors: Tensors
    questions: int
    metrics: Mapping[str, float]
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Enrolled:
    """What the server knows of a client from the start: n_i, and n_id (documents,), its questions of each document.

    `held_out` is how many questions it has to count on where the server has none to choose by.
    """

    client: str
    questions: int
    row_questions: Tensor
    held_out: int = 0


@dataclass(frozen=True)
class ServerState:
    """Everything the server carries from round to round; with the clients' kept state, all that a checkpoint holds.

    `tensors` is what is trained, by name, `optimizer` the server optimiser's state; `failures` tells for each client
    that did not answer how often in a row, and the round from which it is asked again.
    """

    round: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    failures: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Evaluate = Callable[[int, Tensors], float | None]  # round, state's tensors -> success on the selection questions
