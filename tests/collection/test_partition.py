"""Partition: every question has one client, every client a question; bad input is one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.collection.collection import Judged, Query
from fedcar.collection.partition import main_document, partition
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


def test_iid_is_equal_parts_and_dirichlet_gathers_documents() -> None:
    asked = judged([row % 10 for row in range(2000)])

    def skew(kind: str) -> float:
        """How far the clients' shares of a document are from equal, on average."""
        parts = partition(asked, kind, 4, 0)
        counts = np.array(
            [[sum(row % 10 == document for row in rows) for document in range(10)] for rows in parts.values()]
        )
        return float(np.abs(counts / counts.sum(0) - 0.25).mean())

    assert {len(rows) for rows in partition(asked, "iid", 4, 0).values()} == {500}
    assert skew("iid") < 0.05 < skew("dirichlet:1") < skew("dirichlet:0.1")


def test_natural_clients_as_they_are_merged_and_split() -> None:
    asked = judged([0] * 12, ["big"] * 6 + ["mid"] * 3 + ["low"] * 2 + ["one"])
    sizes = lambda parts: {name: len(rows) for name, rows in parts.items()}  # noqa: E731
    assert sizes(partition(asked, "client", None, 0)) == {"big": 6, "mid": 3, "low": 2, "one": 1}
    assert sizes(partition(asked, "client", 2, 0)) == {"big": 6, "low+mid+one": 6}
    assert sizes(partition(asked, "client", 5, 0)) == {"big/1": 3, "big/2": 3, "mid": 3, "low": 2, "one": 1}


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
