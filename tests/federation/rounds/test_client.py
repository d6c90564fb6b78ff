"""Clients in whole runs: bad ones, failing and slow ones, and what leaves each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.federated import DOCUMENTS, World, equal, local, shares, untrained
from torch import Tensor

from fedcar.federation.rounds.client import Client
from fedcar.federation.rounds.clock import VirtualClock
from fedcar.federation.rounds.settings import RoundSettings


def flipped(update: Any, state: Any) -> Any:
    """The honest step, backwards."""
    return replace(update, tensors=changed(update, state, lambda new, old: 2 * old - new))


def scaled(factor: float) -> Any:
    return lambda update, state: replace(
        update, tensors=changed(update, state, lambda new, old: old + factor * (new - old))
    )


def changed(update: Any, state: Any, how: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Every client has questions of every document here, so that all tensors travel whole."""
    return {name: how(tensor, state[name]) for name, tensor in update.tensors.items()}


ROBUST: dict[str, Any] = {"average": "trimmed", "rounds": 8, "local_epochs": 2}


@pytest.mark.parametrize("attack", ["sign-flip", "scaled by 1000", "scaled by 5", "label-flip", "1e30"])
def test_one_bad_client_cannot_change_the_model_of_a_whole_run(world: World, tmp_path: Path, attack: str) -> None:
    """With 2 of 10 clients bad, the trimmed mean is as good as the federation of the 8 honest ones alone."""
    parts, bad = shares(240, 10), 2
    honest, _, _ = world.run(tmp_path / "honest", parts[bad:], **ROBUST)
    names = [f"client-{number:02}" for number in range(1, bad + 1)]
    how = {"sign-flip": flipped, "scaled by 1000": scaled(1000), "scaled by 5": scaled(5), "1e30": scaled(1e30)}
    if attack == "label-flip":
        wrong = {f"q{row}" for rows in parts[:bad] for row in rows}
        spoiled = World(world.encoder.folder)
        relevant = tuple(
            {f"d{(row + 1) % DOCUMENTS}": 1} if f"q{row}" in wrong else world.training.relevant[row]
            for row in range(240)
        )
        spoiled.training = replace(world.training, relevant=relevant)
        selection, records, _ = spoiled.run(tmp_path / "bad", parts, **ROBUST)
    else:
        selection, records, _ = world.run(tmp_path / "bad", parts, **ROBUST, spoil=dict.fromkeys(names, how[attack]))
    assert selection.best.score.success >= honest.best.score.success - 0.02
    if attack in ("scaled by 1000", "1e30"):
        assert all(
            sorted(record["refused"]) == [name for name in names if name in record["refused"]] for record in records
        )
        assert sorted(records[0]["refused"]) == names


def test_a_client_that_raises_is_left_out_and_tried_again(world: World, tmp_path: Path) -> None:
    calls = []

    def out_of_memory(update: Any, state: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no room\nfor tensors")
        return update

    _, records, _ = world.run(tmp_path / "run", shares(240, 3), spoil={"client-02": out_of_memory})
    assert records[0]["failed"] == {"client-02": "MemoryError: no room"}
    assert [len(record["clients"]) for record in records] == [2, 3, 3, 3]


def test_stragglers_past_the_deadline_are_left_out(world: World, tmp_path: Path) -> None:
    clock = VirtualClock(question=0.01, speed=(1.0, 1.0, 0.1))
    _, records, _ = world.run(tmp_path / "run", shares(240, 3), clock=clock, deadline=2.0)
    assert records[0]["failed"] == {"client-03": "7.8 s, past the deadline of 2 s"}
    assert 2.0 <= records[0]["clock_seconds"] < 2.5
    assert 0.8 <= records[2]["clock_seconds"] < 1.3  # nobody waits for a client whose turn has not come


@pytest.mark.parametrize("compression", ["bfloat16", "int8"])
def test_compression_learns_the_same(world: World, tmp_path: Path, compression: str) -> None:
    plain, whole, _ = world.run(tmp_path / "plain", shares(240, 3))
    selection, records, _ = world.run(tmp_path / compression, shares(240, 3), compression=compression)
    assert selection.best.score.success >= plain.best.score.success - 0.02
    assert records[0]["bytes_up"] < whole[0]["bytes_up"]


def test_private_documents_stay_with_their_clients(world: World, tmp_path: Path) -> None:
    """A client is sent, trains and returns the rows of its own documents alone; the others' softmax never sees them."""
    parts = [np.arange(240)[np.arange(240) % DOCUMENTS % 3 == client] for client in range(3)]
    sent: list[tuple[Any, Any]] = []

    def look(update: Any, state: Any) -> Any:
        sent.append((update, state))
        return update

    names = [f"client-{number:02}" for number in (1, 2, 3)]
    selection, records, _ = world.run(
        tmp_path / "run", parts, private_documents=True, weight="row", spoil=dict.fromkeys(names, look)
    )
    for update, state in sent:
        own = [document for document in range(DOCUMENTS) if document % 3 == names.index(update.client)]
        assert update.tensors["head.rows|rows"].tolist() == own
        assert all(not state["head.rows"][document].any() for document in range(DOCUMENTS) if document not in own)
    assert selection.best.score.success > untrained(world)
    shared = world.run(tmp_path / "shared", parts)[1]
    assert records[-1]["bytes_down"] < shared[-1]["bytes_down"]


def test_the_same_round_asked_twice_gives_the_same_update(world: World) -> None:
    rounds = RoundSettings(rounds=3, compression="int8", local_optimizer="kept", questions=240)
    members, selection = world.clients(shares(240, 2), local(rounds))
    one = members["client-01"]
    state = {**selection.initial, "head.active": torch.ones(DOCUMENTS, dtype=torch.bool)}
    one.train(state, rounds, 1)
    first, again = one.train(state, rounds, 2), one.train(state, rounds, 2)
    assert equal(dict(first.tensors), dict(again.tensors))


def test_fed_prox_keeps_clients_near_the_server(world: World) -> None:
    lengths = []
    for proximal in (0.0, 1.0, 100.0):
        rounds = RoundSettings(rounds=3, proximal=proximal, local_optimizer="kept", questions=240)
        members, selection = world.clients(shares(240, 2), local(rounds))
        state = {**selection.initial, "head.active": torch.ones(DOCUMENTS, dtype=torch.bool)}
        lengths.append(float(members["client-01"].train(state, rounds, 1).tensors["head.rows"].norm()))
    assert lengths[0] > lengths[1] > lengths[2]


def test_release_is_the_only_way_out(world: World) -> None:
    """What privacy puts there is what leaves, and it is given what was trained and what was received."""
    rounds = RoundSettings(rounds=2, local_optimizer="kept", questions=240)
    given_to = []

    def nothing(trained: Any, received: Any) -> Any:
        given_to.append((trained, received))
        return dict(received)

    retriever = world.retriever()
    one = Client("a", retriever, world.training.take(np.arange(60)), local(rounds), release=nothing)
    state = {**one.initial, "head.active": torch.ones(DOCUMENTS, dtype=torch.bool)}
    update = one.train(state, rounds, 1)
    assert update.tensors["head.rows|rows"].numel() == 0 and torch.equal(
        update.tensors["head.log_scale"], state["head.log_scale"]
    )
    trained, received = given_to[0]
    assert trained.keys() == received.keys() and not torch.equal(trained["head.rows"], received["head.rows"])
