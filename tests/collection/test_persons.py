"""Who asked a question, and that all questions of a person stay together."""

from __future__ import annotations

from typing import Any

import pytest

from fedcar.collection.collection import Judged, Query
from fedcar.collection.persons import partition_of_persons, persons_of
from fedcar.errors import FedcarError


def judged(*queries: Query) -> Judged:
    return Judged(queries, tuple({f"d{number % 3}": 1} for number in range(len(queries))))


def asked(users: list[Any], **more: Any) -> Judged:
    return judged(*(Query(f"q{n}", f"text {n}", metadata={"user": user}, **more) for n, user in enumerate(users)))


def test_a_person_is_a_word_or_a_number_in_a_field_of_the_metadata() -> None:
    assert persons_of(asked(["u7", 7, "7", " u7 ", "e\u0301"]), "user") == ["u7", "7", "7", "u7", "\u00e9"]
    assert persons_of(judged(Query("a", "b", "north")), "client") == ["north"]


@pytest.mark.parametrize("user", [None, "", "  ", True, 1.5, ["u7"]])
def test_a_question_without_a_person_is_refused_with_the_way_out(user: Any) -> None:
    with pytest.raises(FedcarError, match=r"person=user: some training questions name no person .* --unit example"):
        persons_of(asked(["u7", user]), "user")


@pytest.mark.parametrize("kind", ["iid", "dirichlet:0.3"])
def test_a_person_is_at_one_client(kind: str) -> None:
    users = [f"u{number % 40}" for number in range(400)]
    parts = partition_of_persons(asked(users), users, kind, 4, 0)
    assert sorted(row for rows in parts.values() for row in rows) == list(range(400))
    owners: dict[str, set[str]] = {}
    for name, rows in parts.items():
        for row in rows:
            owners.setdefault(users[row], set()).add(name)
    assert len(parts) == 4 and all(len(names) == 1 for names in owners.values())


def test_natural_clients_keep_the_questions_they_have() -> None:
    queries = [Query(f"q{n}", f"t{n}", ("north", "south")[n % 2], metadata={"user": "u"}) for n in range(6)]
    parts = partition_of_persons(judged(*queries), ["u"] * 6, "client", None, 0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"north": [0, 2, 4], "south": [1, 3, 5]}
