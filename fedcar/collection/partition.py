"""The partition: which client asks which training question."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Judged
from fedcar.errors import FedcarError, FedcarWarning, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("iid", "dirichlet:ALPHA", "client")
UNNAMED = "unnamed"

Partition = dict[str, "NDArray[np.int64]"]


def partition(judged: Judged, kind: str, clients: int | None, seed: int) -> Partition:
    """The rows of `judged` by client name; every question has one client, every client at least one question.

    `iid`: a seeded shuffle in equal parts. `dirichlet:ALPHA`: the questions of each document are shared out in
    proportions drawn from a Dirichlet distribution (Hsu, Qi and Brown 2019); the smaller ALPHA, the more a document's
    questions gather at one client. `client`: the natural clients; where they are more than `clients` the smallest are
    put together (largest first, each to the client with the fewest questions so far), where they are fewer the largest
    is split in halves. A client that would be empty takes a question from the largest.
    """
    alpha = parse(kind)
    if clients is None and kind != "client":
        raise FedcarError(f"--partition {kind}: needs the number of clients; give --clients K")
    if not len(judged):
        raise FedcarError("no training question to share out over clients; give a collection with qrels/train.tsv")
    if clients is not None and not 1 <= clients <= len(judged):
        raise FedcarError(f"--clients {clients}: must be from 1 to {len(judged)}, the number of training questions")
    generator = np.random.default_rng([seed, 0x7061])
    if kind == "client":
        return _natural(judged, clients)
    assert clients is not None
    if alpha is None:
        parts = [np.sort(part) for part in np.array_split(generator.permutation(len(judged)), clients)]
    else:
        parts = _fill_empty(_dirichlet(judged, clients, alpha, generator))
    width = len(str(clients))
    return {f"client-{number:0{width}}": part for number, part in enumerate(parts, 1)}


def parse(kind: str) -> float | None:
    """The ALPHA of `dirichlet:ALPHA`, None for the other kinds; refuses what is none of them."""
    if kind in ("iid", "client"):
        return None
    name, _, text = kind.partition(":")
    if name != "dirichlet":
        raise FedcarError(f"--partition {quoted(kind)}: not known; give one of {', '.join(KINDS)}")
    try:
        alpha = float(text)
    except ValueError:
        alpha = float("nan")
    if not 0 < alpha < float("inf"):
        raise FedcarError(f"--partition {quoted(kind)}: ALPHA must be a number above 0; try dirichlet:0.3")
    return alpha


def main_document(relevant: Mapping[str, int]) -> str:
    """The document that a question counts for: the highest score, of equal ones the first."""
    return max(relevant, key=lambda document: relevant[document])


def _dirichlet(judged: Judged, clients: int, alpha: float, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    by_document: dict[str, list[int]] = {}
    for row, relevant in enumerate(judged.relevant):
        by_document.setdefault(main_document(relevant), []).append(row)
    parts: list[list[int]] = [[] for _ in range(clients)]
    for _, rows in sorted(by_document.items()):
        shares = generator.dirichlet(np.full(clients, alpha))
        if not np.isfinite(shares).all():  # an ALPHA so small that every share is 0: all to one client
            shares = np.eye(clients)[generator.integers(clients)]
        owners = generator.choice(clients, size=len(rows), p=shares / shares.sum())
        for row, owner in zip(rows, owners, strict=True):
            parts[owner].append(row)
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _fill_empty(parts: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Every empty part takes the last question of the largest."""
    for place, part in enumerate(parts):
        if not len(part):
            largest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[place], parts[largest] = parts[largest][-1:], parts[largest][:-1]
    return parts


def _natural(judged: Judged, clients: int | None) -> Partition:
    groups: dict[str, list[int]] = {}
    for row, query in enumerate(judged.queries):
        groups.setdefault(query.client if query.client is not None else UNNAMED, []).append(row)
    if set(groups) == {UNNAMED}:
        raise FedcarError(
            '--partition client: no training question names its client ("metadata": {"client": "..."}); '
            "give --partition iid or dirichlet:ALPHA"
        )
    if UNNAMED in groups:
        count = len(groups[UNNAMED])
        warnings.warn(
            f'{count} training questions name no client; they are those of "{UNNAMED}"', FedcarWarning, stacklevel=3
        )
    if clients is not None and len(groups) > clients:
        groups = _merged(groups, clients)
    while clients is not None and len(groups) < clients:
        _split_largest(groups)
    return {name: np.array(sorted(rows), dtype=np.int64) for name, rows in sorted(groups.items())}


def _merged(groups: dict[str, list[int]], clients: int) -> dict[str, list[int]]:
    bins: list[tuple[int, int, list[str]]] = [(0, number, []) for number in range(clients)]
    for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        size, number, names = heapq.heappop(bins)
        heapq.heappush(bins, (size + len(rows), number, [*names, name]))
    return {"+".join(sorted(names)): [row for name in names for row in groups[name]] for _, _, names in bins}


def _split_largest(groups: dict[str, list[int]]) -> None:
    largest = max(groups, key=lambda name: (len(groups[name]), name))
    rows = groups.pop(largest)
    groups[f"{largest}/1"], groups[f"{largest}/2"] = rows[::2], rows[1::2]
