"""Two frozen encoders beside each other: the first is the encoder of everything, the second is joined to questions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import MARK, parameter_count
from fedcar.encoder.reading import Progress, Reading, TokenStates, joined
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.adapter import Adapter

TIMED = 16  # questions


class Both(Encoder):
    """The first encoder, whose records of questions hold those of the second too, in the field "beside".

    Documents, tokens and hidden states are those of the first alone: the second is there for what is learned.
    """

    def __init__(self, first: Encoder, beside: Encoder) -> None:
        if first.adapter is not None or beside.adapter is not None or beside.beside is not None:
            raise FedcarError("two encoders beside each other are frozen ones; give them without an adapter")
        super().__init__(first.model)
        self.alone = first
        self.beside = beside

    @property
    def for_documents(self) -> Encoder:
        """The first as it reads documents."""
        return self.alone.for_documents

    @property
    def in_words(self) -> str:
        return f"{self.alone.in_words}, beside it {self._second.in_words}"

    def with_adapter(self, adapter: Adapter | None, *, halved: bool = False, recomputed: bool = False) -> Encoder:
        """Refused: the second would have to be read with one, too."""
        raise FedcarError(f"{self.name}: an adapter is for one encoder; name one, without {MARK!r}")

    def runtime_name(self, texts: Sequence[str]) -> str:
        """That of the first; the second's is chosen too."""
        self._second.runtime_name(texts)
        return self.alone.runtime_name(texts)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Hidden states (n, d) of the first."""
        return self.alone.encode(texts, progress)

    def read(self, texts: Sequence[str], tokens: bool = True) -> Reading:
        """As the first does, the second's states in the records: one more pass."""
        reading = self.alone.read(texts, tokens)
        return reading._replace(states=joined(reading.states, self._second.encode_states(texts)))

    def read_parts(
        self, parts: Iterable[Sequence[str]], progress: Progress | None = None
    ) -> Iterator[tuple[NDArray[np.void], Sequence[TokenStates]]]:
        """What `read` gives of each part."""
        for texts in parts:
            reading = self.read(texts)
            if progress is not None:
                progress(len(texts))
            yield reading.states, reading.tokens

    def _encoded(
        self, texts: Sequence[str], token_ids: Sequence[Sequence[int]], progress: Progress | None
    ) -> NDArray[np.void]:
        states = self.alone._encoded(texts, token_ids, progress)
        return joined(states, self._second.encode_states(texts))

    @property
    def _second(self) -> Encoder:
        assert self.beside is not None
        return self.beside


class Price(NamedTuple):
    """What a second encoder costs: milliseconds a question, one at a time, and megabytes of weights in memory."""

    milliseconds: float
    megabytes: float


def price_of(encoder: Encoder, texts: Sequence[str]) -> Price:
    """Measured on some of these texts on this machine; 0 milliseconds where there are none.

    By the clock or by CPU time, whichever is less: other work on the machine counts in the one, several threads in the
    other.
    """
    took = []
    for text in (texts[0], *texts)[: TIMED + 1] if texts else ():  # the first one once more: it may build something
        clock, used = time.perf_counter(), time.process_time()
        encoder.encode_states([text])
        took.append(1000 * min(time.perf_counter() - clock, time.process_time() - used))
    bytes_each = 2 if encoder.model.is_large else 4
    return Price(float(np.median(took[1:] or [0.0])), 1e-6 * bytes_each * parameter_count(encoder.folder))


def names_of(name: str | Path) -> tuple[str, ...]:
    """The encoders that a name joins by "+", one or two; what lies on the disk under the whole name is one."""
    if MARK not in str(name) or Path(name).exists():
        return (str(name),)
    names = tuple(str(name).split(MARK))
    if len(names) != 2 or not all(names):
        raise FedcarError(f"--encoder {str(name)!r}: {MARK!r} joins two encoders; give them as FIRST{MARK}SECOND")
    return names
