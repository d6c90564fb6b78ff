"""Who asked each question, where persons are what privacy protects: a field of the questions' metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedcar.collection.collection import Judged, Query
from fedcar.collection.normal_forms import composed, is_blank
from fedcar.collection.partition import Partition, partition_by_question
from fedcar.errors import FedcarError, quoted


def persons_of(judged: Judged, column: str, unnamed: str | None = None) -> list[str]:
    """The person of each question: what stands in this field, a word or a whole number.

    Questions that name none are all of one person, `unnamed`; without that FedcarError. A device never refuses: that
    would tell a server of its questions.
    """
    persons = [_person(query, column) or unnamed for query in judged.queries]
    if None in persons:
        field = f'"metadata": {{{quoted(column)}: "..."}}'
        raise FedcarError(
            f"--unit person={column}: some training questions name no person ({field}); name one for each, or give "
            "--unit example"
        )
    return [str(person) for person in persons]


def _person(query: Query, column: str) -> str | None:
    value = query.client if column == "client" else query.metadata.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or is_blank(value):
        return None
    return composed(value).strip()


def partition_of_persons(
    judged: Judged, persons: Sequence[str], kind: str, clients: int | None, seed: int
) -> Partition:
    """As `partition_by_question`, for iid and dirichlet, with all questions of a person at one client.

    It follows from the person's name; for dirichlet from the document of the person's first question too.
    """
    first: dict[str, int] = {}
    for row, person in enumerate(persons):
        first.setdefault(person, row)
    heads = Judged(
        tuple(replace(judged.queries[row], id=person) for person, row in first.items()),
        tuple(judged.relevant[row] for row in first.values()),
    )
    names = list(first)
    parts = partition_by_question(heads, kind, clients, seed)
    owner = {names[place]: name for name, places in parts.items() for place in places.tolist()}
    shares: dict[str, list[int]] = {name: [] for name in parts}
    for row, person in enumerate(persons):
        shares[owner[person]].append(row)
    found: dict[str, NDArray[np.int64]] = {name: np.array(rows, dtype=np.int64) for name, rows in shares.items()}
    return found
