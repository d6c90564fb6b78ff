"""Who asked each question, where persons are what privacy protects: a field of the questions' metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcar.collection.collection import Judged, Query
from fedcar.collection.normal_forms import composed, is_blank
from fedcar.collection.partition import Partition, partition_by_question
from fedcar.errors import FedcarError, quoted


def persons_of(judged: Judged, column: str) -> list[str]:
    """The person of each question: what stands in this field, a word or a whole number.

    FedcarError where a question has none: a person who is missing there would be promised nothing.
    """
    persons = [_person(query, column) for query in judged.queries]
    if missing := sum(person is None for person in persons):
        field = f'"metadata": {{{quoted(column)}: "..."}}'
        raise FedcarError(
            f"--unit person={column}: {missing} of {len(persons)} training questions name no person ({field}); "
            "name one for each, or give --unit example"
        )
    return [person for person in persons if person is not None]


def _person(query: Query, column: str) -> str | None:
    value = query.client if column == "client" else query.metadata.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or is_blank(value):
        return None
    return composed(value).strip()


def partition_of_persons(
    judged: Judged, persons: Sequence[str], kind: str, clients: int | None, seed: int, everyone: Iterable[Query] = ()
) -> Partition:
    """As `partition_by_question`, with all questions of a person at the client of the person's first one.

    Natural clients (`client`) have the questions they have: who asked at two of them is a person at each.
    """
    natural = kind == "client"
    keys = [(query.client if natural else "", person) for query, person in zip(judged.queries, persons, strict=True)]
    first: dict[tuple[str | None, str], int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    rows = list(first.values())
    heads = Judged(tuple(judged.queries[row] for row in rows), tuple(judged.relevant[row] for row in rows))
    parts = partition_by_question(heads, kind, clients, seed, everyone)
    owner = {keys[rows[place]]: name for name, places in parts.items() for place in places.tolist()}
    shares: dict[str, list[int]] = {name: [] for name in parts}
    for row, key in enumerate(keys):
        shares[owner[key]].append(row)
    found: dict[str, NDArray[np.int64]] = {name: np.array(rows, dtype=np.int64) for name, rows in shares.items()}
    return found
