"""What `fedcar federate` does with the federation, as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import fedcar, tree
from support.federated import final

from fedcar.collection.collection import Collection


@pytest.fixture(scope="module")
def options(encoder: Path, cache: Path) -> tuple[object, ...]:
    return ("--encoder", encoder, "--cache", cache)


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_federate_prints_one_json_object(
    collection_folder: Path, options: tuple[object, ...], tmp_path: Path, method: str
) -> None:
    before = tree(collection_folder.parent)
    ask = ("federate", collection_folder, "-o", tmp_path / "out", "--clients", 3, "--method", method)
    ask += () if method == "ridge" else ("--rounds", 2)
    result = fedcar(*ask, "--json", *options)
    assert result.code == 0, result.err
    assert list(result.json) == ["run", "rounds", "central", "federated", "bytes_per_round", "seconds", "privacy"]
    assert result.json["run"] == str(tmp_path / "out.run") and result.json["privacy"] is None
    assert [record["round"] for record in result.json["rounds"]] == ([1] if method == "ridge" else [1, 2])
    measures = {"queries", "success@1", "recall@10", "mrr@10", "ndcg@10"}
    assert set(result.json["central"]) == set(result.json["federated"]) == measures
    assert "un-noised" in result.err and ("round 2, selection" in result.err) == (method != "ridge")
    assert tree(collection_folder.parent) == before
    evaluation = fedcar("evaluate", tmp_path / "out", collection_folder, "--json", *options[2:])
    assert evaluation.json["systems"]["retriever"]["all"] == result.json["federated"]


def asked(collection: Path, out: Path) -> tuple[object, ...]:
    """Two clients, and nothing trained centrally beside them."""
    return ("federate", collection, "-o", out, "--clients", 2, "--no-central")


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_federate_resumed_and_refused(
    collection_folder: Path, options: tuple[object, ...], tmp_path: Path, method: str, tiny_model: Callable[..., Path]
) -> None:
    """Through the whole command: a run goes on where it stopped, and only with what it was started with."""
    ask = (*asked(collection_folder, tmp_path / "out"), "--method", method, "--rounds", 3)
    assert fedcar(*ask, *options).code == 0
    again = fedcar(*ask, *options)
    assert again.code == 1 and "holds a run; go on with --resume" in again.err
    assert fedcar(*ask, *options, "--resume").code == 0
    for other, message in (
        (("--encoder", tiny_model("bert"), *options[2:]), "another encoder"),
        ((*options, "--seed", 1), "seed 0, now 1"),
    ):
        refused = fedcar(*ask, *other, "--resume")
        assert refused.code == 1 and message in refused.err, refused.err
    elsewhere = tmp_path / "other"
    read = Collection.read(collection_folder)
    replace(read, documents=(*read.documents[1:], read.documents[0])).write(elsewhere)
    refused = fedcar("federate", elsewhere, *ask[2:], *options, "--resume")
    assert refused.code == 1 and "another collection" in refused.err, refused.err


def test_only_the_adapter_is_shared(collection_folder: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    """Rows stay with the clients: no update holds one, and the retriever's rows are untrained."""
    ask = (*asked(collection_folder, tmp_path / "out"), "--rounds", 2, *options)
    assert fedcar(*ask, "--method", "adapter", "--share", "adapter").code == 0
    assert {name for name in final(tmp_path / "out.run") if "adapter.difference" not in name} == {"optimizer.steps"}
    refused = fedcar(*ask, "--run", tmp_path / "new", "--method", "head", "--share", "adapter")
    assert refused.code == 1 and "the method head has no adapter" in refused.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--clients", 21), "--clients 21: must be from 1 to 20"),
        (("--clients", 0), "--clients 0"),
        ((), "needs the number of clients"),
        (("--clients", 2, "--partition", "random"), '--partition "random": not known'),
        (("--clients", 2, "--partition", "dirichlet:0"), "ALPHA must be a number above 0"),
        (("--clients", 2, "--rounds", 0), "--rounds 0: must be 1 or more"),
        (("--clients", 2, "--clock", "fast"), "--clock"),
        (("--clients", 2, "--server-rate", "1e30"), "--server-rate 1e+30: must be from"),
        (("--clients", 2, "--deadline", "inf"), "--deadline inf: must be from"),
        (("--clients", 2, "--engine", "flower", "--clock", "latency=1ms"), "--engine flower"),
        (("--partition", "client"), "no training question names its client"),
    ],
)
def test_federate_refuses_in_one_line(
    collection_folder: Path, options: tuple[object, ...], tmp_path: Path, more: tuple[object, ...], message: str
) -> None:
    result = fedcar("federate", collection_folder, "-o", tmp_path / "out", *options, *more)
    assert result.code == 1 and message in result.err and result.err.count("\n") <= 2, result.err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_clients_of_one_question_each(collection_folder: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    result = fedcar(
        "federate", collection_folder, "-o", tmp_path / "out", "--clients", 20, "--rounds", 2, "--json", *options
    )
    assert result.code == 0, result.err
    assert len(result.json["rounds"][0]["clients"]) == 20


def test_dry_run_makes_nothing(collection_folder: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    result = fedcar(
        "federate", collection_folder, "-o", tmp_path / "out", "--clients", 3, "--dry-run", "--json", *options
    )
    assert result.code == 0 and sum(result.json["training questions"].values()) == 20
    assert list(tmp_path.iterdir()) == []
    rounds, local = result.json["rounds"], result.json["local training"]
    assert rounds["rounds"] * rounds["local_epochs"] == local["epochs"] and rounds["batch_size"] == local["batch_size"]
    done = fedcar("federate", collection_folder, "-o", tmp_path / "out", "--clients", 3, "--json", *options)
    assert len(done.json["rounds"]) == rounds["rounds"]
