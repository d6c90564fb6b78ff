"""Partition: a question's client follows from that question alone, every client has one; bad input is one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.collection.collection import Judged, Query
from fedcar.collection.partition import KINDS, main_document, partition, partition_by_question
from fedcar.errors import FedcarError, FedcarWarning


def judged(documents: list[int], clients: list[str | None] | None = None) -> Judged:
    names = clients or [None] * len(documents)
    queries = tuple(Query(f"q{row}", "text", names[row]) for row in range(len(documents)))
    return Judged(queries, tuple({f"d{document}": 1} for document in documents))


@given(
    documents=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    kind=st.sampled_from(["iid", "dirichlet:0.001", "dirichlet:0.3", "dirichlet:100", "client"]),
    clients=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_every_question_has_one_client_and_every_client_a_question(
    documents: list[int], kind: str, clients: int, seed: int
) -> None:
    clients = min(clients, len(documents))
    asked = judged(documents, [f"c{document % 3}" for document in documents])
    parts = partition(asked, kind, clients, seed)
    assert len(parts) == clients
    assert all(len(rows) for rows in parts.values())
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(documents)))
    again = partition(asked, kind, clients, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


Found = dict[str, set[str]]


def found(asked: Judged, kind: str, clients: int | None, seed: int, everyone: tuple[Query, ...]) -> Found:
    """Which questions each client has, by their ids."""
    parts = partition_by_question(asked, kind, clients, seed, everyone)
    return {name: {asked.queries[row].id for row in rows} for name, rows in parts.items()}


@pytest.mark.parametrize("kind", ["iid", "dirichlet:0.01", "dirichlet:0.3", "dirichlet:100", "client"])
@given(
    documents=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    clients=st.integers(1, 12),
    seed=st.integers(0, 1000),
    place=st.integers(0, 59),
    at_the_end=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_questions_client_follows_from_that_question_alone(
    kind: str, documents: list[int], clients: int, seed: int, place: int, at_the_end: bool
) -> None:
    """Neighbours, by a question taken out, put in or in another place, have equal parts but for it."""
    documents = [1, *documents]  # somebody has a name
    asked = judged(documents, [f"c{document % 3}" if document else None for document in documents])
    place %= len(documents)
    whole = found(asked, kind, clients, seed, asked.queries)
    queries, relevant = list(asked.queries), list(asked.relevant)
    query, answers = queries.pop(place), relevant.pop(place)
    without = found(Judged(tuple(queries), tuple(relevant)), kind, clients, seed, asked.queries)
    assert list(without) == list(whole) and len(whole) == clients
    assert {name: ids - {query.id} for name, ids in whole.items()} == without
    assert sum(query.id in ids for ids in whole.values()) == 1
    end = len(queries) if at_the_end else 0
    queries.insert(end, query)
    relevant.insert(end, answers)
    assert found(Judged(tuple(queries), tuple(relevant)), kind, clients, seed, ()) == whole


@pytest.mark.parametrize("kind", ["iid", "dirichlet:0.3", "client"])
def test_the_seed_says_who_has_which_question(kind: str) -> None:
    """As far as a seed has a say: natural clients that are fewer than asked for are split by it."""
    asked = judged([row % 6 for row in range(300)], [f"c{row % 3}" for row in range(300)])
    assert found(asked, kind, 6, 0, ()) == found(asked, kind, 6, 0, ()) != found(asked, kind, 6, 1, ())


def test_iid_shares_are_as_equal_as_coins_make_them() -> None:
    """Chi-square of 12 clients' sizes: 11 degrees of freedom, of which above 45 would be once in 200,000."""
    asked = judged([0] * 6000)
    sizes = np.array([len(rows) for rows in partition_by_question(asked, "iid", 12, 0).values()])
    assert sizes.sum() == 6000 and 1 < np.square(sizes - 500).sum() / 500 < 45


def test_a_client_may_be_left_without_a_question_where_nothing_may_depend_on_how_many_there_are() -> None:
    """Names of natural clients are public, also of those whose last training question went."""
    asked = judged([0], ["a"])
    everyone = tuple(Query(f"dev{number}", "text", name) for number, name in enumerate(["a", "b", "c", None]))
    sizes = {name: len(rows) for name, rows in partition_by_question(asked, "client", None, 0, everyone).items()}
    assert sizes == {"a": 1, "b": 0, "c": 0, "unnamed": 0}
    assert sorted(len(rows) for rows in partition_by_question(asked, "iid", 3, 0).values()) == [0, 0, 1]
    assert all(not len(rows) for rows in partition_by_question(judged([]), "dirichlet:1", 3, 0).values())
    for kind in KINDS[::2]:
        with pytest.raises(FedcarError, match=r"^--clients 0: must be 1 or more$"):
            partition_by_question(asked, kind, 0, 0, everyone)


def test_iid_is_about_equal_parts_and_dirichlet_gathers_documents() -> None:
    asked = judged([row % 10 for row in range(2000)])

    def skew(kind: str) -> float:
        """How far the clients' shares of a document are from equal, on average."""
        parts = partition(asked, kind, 4, 0)
        counts = np.array(
            [[sum(row % 10 == document for row in rows) for document in range(10)] for rows in parts.values()]
        )
        return float(np.abs(counts / counts.sum(0) - 0.25).mean())

    assert all(440 < len(rows) < 560 for rows in partition(asked, "iid", 4, 0).values())
    assert skew("iid") < 0.05 < skew("dirichlet:1") < skew("dirichlet:0.1")


def test_natural_clients_as_they_are_merged_and_split() -> None:
    """By their names alone: how many questions each has plays no part."""
    names = ["big"] * 60 + ["mid"] * 30 + ["low"] * 20 + ["one"]
    asked = judged([0] * len(names), list(names))
    sizes = lambda parts: {name: len(rows) for name, rows in parts.items()}  # noqa: E731
    assert sizes(partition(asked, "client", None, 0)) == {"big": 60, "low": 20, "mid": 30, "one": 1}
    assert sizes(partition(asked, "client", 2, 0)) == {"big+mid": 90, "low+one": 21}
    split = partition(asked, "client", 6, 0)
    assert list(split) == ["big/1", "big/2", "low/1", "low/2", "mid", "one"]
    assert len(split["big/1"]) + len(split["big/2"]) == 60 and 15 < len(split["big/1"]) < 45
    assert sizes(split)["mid"] == 30 and sizes(split)["one"] == 1


def test_questions_without_a_client_are_said() -> None:
    with pytest.warns(FedcarWarning, match="2 training questions name no client"):
        parts = partition(judged([0] * 4, ["a", None, "a", None]), "client", None, 0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"a": [0, 2], "unnamed": [1, 3]}


def test_the_document_a_question_counts_for() -> None:
    assert main_document({"a": 1, "b": 2, "c": 2}) == "b"


@pytest.mark.parametrize(
    ("kind", "clients", "message"),
    [
        ("iid", 5, "--clients 5: must be from 1 to 4"),
        ("iid", 0, "--clients 0: must be from 1 to 4"),
        ("iid", None, "needs the number of clients"),
        ("random", 2, '--partition "random": not known; give one of iid, dirichlet:ALPHA, client'),
        ("dirichlet", 2, "ALPHA must be a number above 0"),
        ("dirichlet:0", 2, "ALPHA must be a number above 0"),
        ("dirichlet:-1", 2, "ALPHA must be a number above 0"),
        ("dirichlet:nan", 2, "ALPHA must be a number above 0"),
        ("dirichlet:inf", 2, "ALPHA must be a number above 0"),
        ("client", 2, "no training question names its client"),
    ],
)
def test_refused(kind: str, clients: int | None, message: str) -> None:
    with pytest.raises(FedcarError, match=message) as error:
        partition(judged([0, 1, 2, 3]), kind, clients, 0)
    assert "\n" not in str(error.value)


def test_no_question_at_all() -> None:
    with pytest.raises(FedcarError, match="no training question"):
        partition(judged([]), "iid", 3, 0)
