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


def test_a_persons_client_follows_from_the_person_alone() -> None:
    users = [f"u{number % 40}" for number in range(400)]
    everyone = asked(users)
    parts = partition_of_persons(everyone, users, "iid", 4, 0)
    rows = range(1, 400)  # without the first question of the first person
    fewer = Judged(tuple(everyone.queries[row] for row in rows), tuple(everyone.relevant[row] for row in rows))
    left = partition_of_persons(fewer, users[1:], "iid", 4, 0)
    names = {everyone.queries[row].id: name for name, of in parts.items() for row in of}
    assert {fewer.queries[row].id: name for name, of in left.items() for row in of} == {
        question: name for question, name in names.items() if question != "q0"
    }


def test_questions_that_name_nobody_are_one_persons_on_a_device() -> None:
    assert persons_of(asked(["u7", None, " "]), "user", unnamed="") == ["u7", "", ""]
