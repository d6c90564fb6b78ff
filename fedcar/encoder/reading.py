"""What an encoder makes of texts, whatever runs it: batches of token ids go in, plain arrays come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKENS_PER_BATCH = 4096
LARGEST = np.float32(np.finfo(np.float16).max)
PADDING_PER_BATCH = 128  # tokens; a further batch costs less than to work on more that mean nothing

Progress = Callable[[int], None]

Part = TypeVar("Part")
Made = TypeVar("Made")


class States(NamedTuple):
    """One batch: tokens (n, t, d), pooled (n, d) and the mean states of the kept layers (n, k, d), float32."""

    tokens: NDArray[np.float32]
    pooled: NDArray[np.float32]
    layers: NDArray[np.float32]


class TokenStates(NamedTuple):
    """A text's t tokens, special ones left out: ids (t,), where each begins and ends (t, 2), states (t, d)."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    states: NDArray[np.float16]


class Tokens(NamedTuple):
    """A text's t tokens: ids, where each begins and ends in the text, and whether it is a special one."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    special: Sequence[int]


class Reading(NamedTuple):
    """What one pass of n texts gives.

    Records (n,) of `state_type` untrained; pooled states with the adapter (n, d), equal to the records' where there is
    none; the untrained states of the tokens, where they were asked for.
    """

    states: NDArray[np.void]
    adapted: NDArray[np.float32]
    tokens: Sequence[TokenStates]


class Runtime(Protocol):
    """Runs the frozen model on one batch, padded on the right."""

    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """Token ids and mask (n, t) -> states; those of padding mean nothing."""
        ...


def state_type(layers: int, dimension: int, width: int | None = None) -> np.dtype[np.void]:
    """What is kept of a text: h in float32 and the mean states of the kept layers (k, width) in float16.

    `width` is `dimension` but where something that follows the pooling changes it.
    """
    return np.dtype([("pooled", np.float32, (dimension,)), ("layers", np.float16, (layers, width or dimension))])


def joined(states: NDArray[np.void], beside: NDArray[np.void]) -> NDArray[np.void]:
    """Records (n,) of one encoder that hold those of a second in the field "beside"."""
    names = states.dtype.names or ()
    result = np.empty(len(states), [*((name, states.dtype[name]) for name in names), ("beside", beside.dtype)])
    for name in names:
        result[name] = states[name]
    result["beside"] = beside
    return result


def encoded(
    runtime: Runtime,
    token_ids: Sequence[Sequence[int]],
    result: NDArray[np.void],
    padding_id: int,
    progress: Progress | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    *,
    left_out: int = 0,
) -> NDArray[np.void]:
    """Token ids of n texts -> `result`, records (n,) of `state_type`, filled in the order given.

    `left_out` as for `padded`.
    """
    for rows in batches_by_length([len(ids) for ids in token_ids], tokens_per_batch, PADDING_PER_BATCH):
        states = _finite(runtime.run(*padded([token_ids[row] for row in rows], padding_id, left_out)))
        result["pooled"][rows] = states.pooled
        result["layers"][rows] = _in_float16(states.layers)
        if progress is not None:
            progress(len(rows))
    return result


def read(
    runtime: Runtime,
    texts: Sequence[Tokens],
    state_type: np.dtype[np.void],
    padding_id: int,
    progress: Progress | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    *,
    tokens: bool = True,
    left_out: int = 0,
) -> Reading:
    """Tokens of n texts -> all that is asked of their states, each text through the model once.

    A runtime that gives twice as many rows as it was asked for gives them untrained and then adapted. `left_out` as for
    `padded`.
    """
    records, of_tokens = np.empty(len(texts), dtype=state_type), dict[int, TokenStates]()
    adapted = np.empty_like(records["pooled"])
    for rows in batches_by_length([len(text.ids) for text in texts], tokens_per_batch, PADDING_PER_BATCH):
        states = _finite(runtime.run(*padded([texts[row].ids or [padding_id] for row in rows], padding_id, left_out)))
        records["pooled"][rows] = states.pooled[: len(rows)]
        records["layers"][rows] = _in_float16(states.layers[: len(rows)])
        adapted[rows] = states.pooled[-len(rows) :]
        for place, row in enumerate(rows if tokens else ()):
            of_tokens[row] = _token_states(texts[row], states.tokens[place])
        if progress is not None:
            progress(len(rows))
    return Reading(records, adapted, [of_tokens[row] for row in range(len(of_tokens))])


def behind_prompt(text: Tokens, length: int) -> Tokens:
    """The tokens of a text with a prompt of so many characters before it, by their places in the text alone.

    Those of the prompt count as special; one that reaches from it into the text begins with the text.
    """
    if not length:
        return text
    within = [not special and last > length for (_, last), special in zip(text.offsets, text.special, strict=True)]
    offsets = [
        (max(0, first - length), last - length) if inside else (0, 0)
        for (first, last), inside in zip(text.offsets, within, strict=True)
    ]
    return Tokens(text.ids, offsets, [int(not inside) for inside in within])


def all_unknown(token_ids: Iterable[Sequence[int]], unknown: int) -> NDArray[np.bool_]:
    """Which texts have no token but `unknown` (n,), special ones left out: emoji, another script."""
    return np.array([set(ids) <= {unknown} for ids in token_ids], dtype=bool)


def _finite(states: States) -> States:
    """Refuse states that are no numbers: weights that are damaged, or too large for the runtime's precision."""
    if not np.isfinite(states.pooled).all():
        raise FedcarError(
            "the encoder gives hidden states that are not finite: its weights are damaged, or too large for this "
            "precision; take another encoder, or --runtime torch"
        )
    return states


def _in_float16(layers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest entries, of which only the direction counts, as far as float16 goes."""
    return np.clip(layers, -LARGEST, LARGEST)


def _token_states(text: Tokens, states: NDArray[np.float32]) -> TokenStates:
    """A text's last hidden states, without those of special tokens and of what fills it up."""
    words = np.flatnonzero(np.asarray(text.special, dtype=np.int64) == 0)
    chosen = states[words]
    lengths = np.sqrt(np.einsum("td,td->t", chosen, chosen))[:, None]
    return TokenStates(
        np.asarray(text.ids, dtype=np.int64)[words],
        np.asarray(text.offsets, dtype=np.int64).reshape(-1, 2)[words],
        (chosen / np.maximum(lengths, np.float32(1e-12))).astype(np.float16),
    )


def ahead(make: Callable[[Part], Made], parts: Iterable[Part]) -> Iterator[Made]:
    """What `make` makes of each part, in order; the next one is made in a thread while the caller uses the last.

    So texts are tokenised while the model runs on those before them.
    """
    with ThreadPoolExecutor(1, "tokenising") as thread:
        following = None
        for part in parts:
            made, following = following, thread.submit(make, part)
            if made is not None:
                yield made.result()
        if following is not None:
            yield following.result()


def padded(
    token_ids: Sequence[Sequence[int]], padding_id: int, left_out: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token id lists as one batch, filled up on the right, and its mask (n, t).

    The first `left_out` tokens have a 2 there: they are read and not pooled, but for a text's last one.
    """
    lengths = np.array([len(ids) for ids in token_ids])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    mask[np.arange(mask.shape[1]) < np.minimum(left_out, lengths - 1)[:, None]] = 2
    batch = np.full(mask.shape, padding_id, dtype=np.int64)
    for row, ids in enumerate(token_ids):
        batch[row, : len(ids)] = ids
    return batch, mask


def batches_by_length(
    lengths: Sequence[int], tokens: int = TOKENS_PER_BATCH, padding: int | None = None
) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, each of at most `tokens` tokens with its padding.

    With `padding` a batch also ends before it would hold more than so many tokens of padding.
    """
    batch: list[int] = []
    filled = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        longest = lengths[batch[0]] if batch else lengths[row]
        full = longest * (len(batch) + 1) > tokens
        if batch and (full or (padding is not None and filled + longest - lengths[row] > padding)):
            yield batch
            batch, filled, longest = [], 0, lengths[row]
        batch.append(row)
        filled += longest - lengths[row]
    if batch:
        yield batch
