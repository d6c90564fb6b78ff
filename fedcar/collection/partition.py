"""The partition: which client asks which training question. A question's client follows from that question alone.

Formal guarantees:
    a_questions_client_follows_from_that_question_alone: collections that differ in one question have equal parts but
        for it, whatever the kind. So every client's sums see at most that one, and an epsilon that holds for each
        client holds for all (parallel composition).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedcar.collection.collection import Judged, Query
from fedcar.errors import FedcarError, FedcarWarning, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("iid", "dirichlet:ALPHA", "client")
UNNAMED = "unnamed"
PARTS = "by each question alone"  # how the parts of a run were made; one of before does not go on with other parts

Partition = dict[str, "NDArray[np.int64]"]


def partition(judged: Judged, kind: str, clients: int | None, seed: int) -> Partition:
    """The rows of `judged` by client name; every question has one client, every client at least one question.

    As `partition_by_question`, but that a client without any takes a question from the largest: un-noised training has
    no use for an empty client.
    """
    parse(kind)
    if not len(judged):
        raise FedcarError("no training question to share out over clients; give a collection with qrels/train.tsv")
    if clients is not None and not 1 <= clients <= len(judged):
        raise FedcarError(f"--clients {clients}: must be from 1 to {len(judged)}, the number of training questions")
    parts = partition_by_question(judged, kind, clients, seed)
    unnamed = sum(query.client is None for query in judged.queries)
    if kind == "client" and unnamed:
        message = f'{unnamed} training questions name no client; they are those of "{UNNAMED}"'
        warnings.warn(message, FedcarWarning, stacklevel=2)
    return _fill_empty(parts)


def partition_by_question(
    judged: Judged, kind: str, clients: int | None, seed: int, everyone: Iterable[Query] = ()
) -> Partition:
    """The rows of `judged` by client name, as differential privacy needs it; a client may be left without any.

    A question has a number in [0, 1), a hash of its id keyed by the seed. `iid`: that times the number of clients.
    `dirichlet:ALPHA`: its place in the shares of its document, which are drawn from a Dirichlet distribution (Hsu, Qi
    and Brown 2019) by the seed and the document's id; the smaller ALPHA, the more a document's questions gather at one
    client. `client`: the natural clients; where they are more than `clients`, the sorted names are dealt into so many
    groups, where they are fewer, the sorted names in turn are split until there are so many, and the question's number
    says in which piece it falls.

    Public are the kind, the number of clients and the seed, the documents' ids, and the names of the natural clients:
    those in `judged` and in `everyone`, other questions of the collection. With the whole collection's a name stays
    where its last training question goes. How many questions a client has plays no part.
    """
    alpha = parse(kind)
    if clients is None and kind != "client":
        raise FedcarError(f"--partition {kind}: needs the number of clients; give --clients K")
    if clients is not None and clients < 1:
        raise FedcarError(f"--clients {clients}: must be 1 or more")
    places = [_uniform(seed, query.id) for query in judged.queries]
    if kind == "client":
        return _natural(judged, clients, places, everyone)
    assert clients is not None
    if alpha is None:
        owners = [int(place * clients) for place in places]
    else:
        shares = _Shares(seed, clients, alpha)
        documents = map(main_document, judged.relevant)
        owners = [shares.owner(document, place) for document, place in zip(documents, places, strict=True)]
    width = len(str(clients))
    return _by_owner([f"client-{number:0{width}}" for number in range(1, clients + 1)], owners)


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


def _digest(seed: int, what: bytes, name: str, size: int) -> int:
    content = name.encode("utf-8", "surrogatepass")
    keyed = hashlib.blake2b(content, digest_size=size, key=str(seed).encode(), person=what)
    return int.from_bytes(keyed.digest(), "big")


def _uniform(seed: int, name: str) -> float:
    """A number in [0, 1), of all that float64 has with 53 bits."""
    return (_digest(seed, b"question", name, 8) >> 11) / 2**53


class _Shares:
    """For each document, from seed and id alone, the clients' shares of its questions, summed up: (clients,)."""

    def __init__(self, seed: int, clients: int, alpha: float) -> None:
        self.seed, self.clients, self.alpha = seed, clients, alpha
        self.summed: dict[str, NDArray[np.float64]] = {}

    def owner(self, document: str, place: float) -> int:
        if document not in self.summed:
            self.summed[document] = np.cumsum(self._drawn(document))
        summed = self.summed[document]
        return min(int(np.searchsorted(summed, place * summed[-1], side="right")), self.clients - 1)

    def _drawn(self, document: str) -> NDArray[np.float64]:
        generator = np.random.default_rng(_digest(self.seed, b"document", document, 16))
        shares: NDArray[np.float64] = generator.dirichlet(np.full(self.clients, self.alpha))
        if not np.isfinite(shares).all() or not shares.sum():  # an ALPHA so small that all is 0: all to one client
            shares = np.eye(self.clients)[generator.integers(self.clients)]
        return shares


def _natural(judged: Judged, clients: int | None, places: list[float], everyone: Iterable[Query]) -> Partition:
    asking = [query.client if query.client is not None else UNNAMED for query in judged.queries]
    names = sorted({*asking, *(query.client if query.client is not None else UNNAMED for query in everyone)})
    if names == [UNNAMED]:
        raise FedcarError(
            '--partition client: no training question names its client ("metadata": {"client": "..."}); '
            "give --partition iid or dirichlet:ALPHA"
        )
    pieces = _pieces(names, len(names) if clients is None else clients)
    owned = [pieces[name][int(place * len(pieces[name]))] for name, place in zip(asking, places, strict=True)]
    found = sorted({piece for of_a_name in pieces.values() for piece in of_a_name})
    number = {name: owner for owner, name in enumerate(found)}
    return _by_owner(found, [number[name] for name in owned])


def _pieces(names: list[str], clients: int) -> dict[str, list[str]]:
    """Each natural client's name -> the clients that share its questions: its group, itself, or what it is split in."""
    if len(names) > clients:
        groups = ["+".join(names[place::clients]) for place in range(clients)]
        return {name: [groups[place % clients]] for place, name in enumerate(names)}
    each, more = divmod(clients, len(names))
    sizes = [each + (place < more) for place in range(len(names))]
    return {
        name: [f"{name}/{piece}" for piece in range(1, size + 1)] if size > 1 else [name]
        for name, size in zip(names, sizes, strict=True)
    }


def _by_owner(names: list[str], owners: list[int]) -> Partition:
    """The rows of each owner, in order, by the owners' names; empty where it has none."""
    by_row = np.array(owners, dtype=np.int64)
    rows = np.argsort(by_row, kind="stable")
    starts = np.searchsorted(by_row[rows], np.arange(len(names) + 1))
    return {name: rows[starts[owner] : starts[owner + 1]] for owner, name in enumerate(names)}


def _fill_empty(parts: Partition) -> Partition:
    """Every empty part takes the last question of the largest, the first of the largest ones."""
    filled = dict(parts)
    for name, rows in parts.items():
        if not len(rows):
            largest = max(filled, key=lambda other: len(filled[other]))
            filled[name], filled[largest] = filled[largest][-1:], filled[largest][:-1]
    return filled
