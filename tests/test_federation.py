"""The guarantees of the federation, by their names, and what the command line does with it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import fedcar, python, tree
from federated import DOCUMENTS, World, local, shares
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fedcar import closed_form
from fedcar.closed_form import Statistics
from fedcar.collection import Collection
from fedcar.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.features import FeatureCache
from fedcar.federation import additive
from fedcar.federation.additive import statistics_of, sums_of
from fedcar.federation.client import Client
from fedcar.federation.clock import VirtualClock
from fedcar.federation.mixture import Evidence, federated_mixture
from fedcar.federation.ridge_round import LocalRidge, federated_ridge
from fedcar.federation.settings import RoundSettings
from fedcar.fit import Trainer
from fedcar.mixture import fit_mixture
from fedcar.partition import partition
from fedcar.progress import Silent
from fedcar.pseudo_queries import PseudoQueries
from fedcar.questions import prepare
from fedcar.retriever import Retriever
from fedcar.ridge import fit_ridge


@pytest.fixture(scope="module")
def world(encoder_folder: Path) -> World:
    return World(encoder_folder)


def final(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "state.safetensors")


def untrained(world: World) -> float:
    """Success of MIPS on the selection questions."""
    return float((world.selection.evidence[..., 0].argmax(1) == world.selection.relevance.argmax(1)).mean())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# -------------------------------------------------------------------- federated and central


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 4, "local_epochs": 1},
        {"rounds": 4, "local_epochs": 1, "weight": "row", "local_optimizer": "kept"},
        {"rounds": 2, "local_epochs": 3, "weight": "question", "local_optimizer": "kept"},
        {"rounds": 1, "local_epochs": 4, "local_optimizer": "reset"},
    ],
)
def test_one_client_equals_central(world: World, tmp_path: Path, options: dict[str, Any]) -> None:
    """One client with all questions ends, bit by bit, where central training ends."""
    world.run(tmp_path / "run", [np.arange(240)], **options)
    retriever = world.retriever()
    central = Trainer(retriever, world.training, local(RoundSettings(**options)))
    for epoch in range(1, options["rounds"] * options["local_epochs"] + 1):
        list(central.epoch(epoch, lambda done: None))
    federated = final(tmp_path / "run")
    for name, tensor in central.trained_tensors().items():
        assert torch.equal(tensor, federated[name]), name


def test_several_clients_come_close_to_central(world: World, tmp_path: Path) -> None:
    central, _, _ = world.run(tmp_path / "central", [np.arange(240)], rounds=6)
    for weight in ("step", "row", "question"):
        judge, records, _ = world.run(tmp_path / weight, shares(240, 4), rounds=6, weight=weight)
        assert judge.best.score.success >= central.best.score.success - 0.05
        assert records[-1]["loss"] < records[0]["loss"]
        assert judge.best.score.success > untrained(world) + 0.3


def test_rows_of_one_client_arrive_whole_with_weight_row(world: World, tmp_path: Path) -> None:
    """Each client has its own documents: n_i / n shrinks every row, weight by row does not."""
    parts = [np.arange(240)[np.arange(240) % DOCUMENTS % 3 == client] for client in range(3)]
    lengths = {}
    for weight in ("row", "question"):
        world.run(tmp_path / weight, parts, rounds=3, weight=weight, local_optimizer="kept")
        lengths[weight] = float(final(tmp_path / weight)["head.rows"].norm())
    assert lengths["question"] < 0.7 * lengths["row"]


def ridge_statistics(hidden_states: np.ndarray, about: np.ndarray) -> dict[str, Tensor]:
    """The closed form's own sums, as named tensors."""
    return sums_of(Statistics.of(np.ascontiguousarray(hidden_states), np.eye(DOCUMENTS, dtype=np.float32)[about]))


def solve(sums: dict[str, Tensor]) -> Tensor:
    return torch.from_numpy(closed_form.solve(statistics_of(sums)).weights)


@given(clients=st.integers(1, 12), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_ridge_federated_equals_central(world: World, clients: int, seed: int) -> None:
    hidden_states, about = world.training.hidden_states, np.arange(240) % DOCUMENTS
    owner = np.random.default_rng(seed).integers(0, clients, 240)
    parts = {
        f"c{client}": ridge_statistics(hidden_states[owner == client], about[owner == client])
        for client in range(clients)
    }
    federated, central = solve(additive.total(parts)), solve(ridge_statistics(hidden_states, about))
    torch.testing.assert_close(federated, central, atol=1e-5, rtol=1e-5)


def test_ridge_federated_equals_central_in_the_whole_retriever(
    collection: Collection, options: tuple[object, ...]
) -> None:
    """Rows and words over three clients are those of `fit_ridge` with everything in one place."""
    cache = FeatureCache(options[3])
    untrained = Retriever.untrained(collection.documents, Encoder.load(options[1]), cache)
    judged = collection.judged("train")
    training = prepare(untrained, judged, cache, Silent(), "")
    shares = {name: training.take(rows) for name, rows in partition(judged, "dirichlet:0.5", 3, 0).items()}
    central = fit_ridge(untrained, training, cache, 0).retriever
    federated = federated_ridge(
        untrained, LocalRidge(untrained, shares, cache, 0), cache, 0, PseudoQueries()
    ).fitted.retriever
    scores = [one.ridge.scores(training.texts, training.states) for one in (central, federated)]
    np.testing.assert_allclose(scores[0][..., 0], scores[1][..., 0], atol=1e-3)  # kept in float16
    np.testing.assert_allclose(scores[0][..., 1], scores[1][..., 1], atol=1e-5)
    np.testing.assert_array_equal(central.ridge.documents, federated.ridge.documents)


def test_removing_a_client_equals_never_having_it(world: World, tmp_path: Path) -> None:
    """By the kept statistics bit by bit; by subtraction from the sum, and joining late by addition, up to rounding."""
    about = np.arange(240) % DOCUMENTS
    parts = {
        f"c{number}": ridge_statistics(world.training.hidden_states[rows], about[rows])
        for number, rows in enumerate(shares(240, 4))
    }
    questions = dict.fromkeys(parts, 60)
    additive.write_statistics(tmp_path / "statistics", parts, questions, {"collection": "a"})
    kept, counts = additive.read_statistics(tmp_path / "statistics", {"collection": "a"})
    assert counts == questions
    never = additive.total({name: part for name, part in parts.items() if name != "c2"})
    assert equal(additive.total(additive.without(kept, "c2")), never)
    subtracted = additive.subtract(additive.total(parts), parts["c2"])
    torch.testing.assert_close(solve(subtracted), solve(never), atol=1e-5, rtol=1e-5)
    joined = additive.add(never, parts["c2"])
    torch.testing.assert_close(solve(joined), solve(additive.total(parts)), atol=1e-5, rtol=1e-5)
    with pytest.raises(FedcarError, match='--without "c9": no such client in this run; it has c0, c1, c2, c3'):
        additive.without(kept, "c9")
    with pytest.raises(FedcarError, match="belongs to another collection"):
        additive.read_statistics(tmp_path / "statistics", {"collection": "b"})


@given(clients=st.integers(1, 8), seed=st.integers(0, 50), questions=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_federated_mixture_equals_central(clients: int, seed: int, questions: int) -> None:
    """The weights learned over any partition are those of all questions; a constant feature keeps its own."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(questions, 5, 4)).astype(np.float32) * np.array([1, 10, 0.1, 1], np.float32)
    features[..., 3] = 2.0
    relevance = (np.arange(5) == generator.integers(0, 5, questions)[:, None]).astype(np.float32)
    features[..., 0] += relevance
    prior = np.array([0.5, 0.0, 1.0, 3.0], dtype=np.float32)
    owner = generator.integers(0, clients, questions)
    parts = {f"c{one}": Evidence.of(features[owner == one], relevance[owner == one]) for one in range(clients)}
    weights, rounds = federated_mixture(parts, prior)
    np.testing.assert_allclose(weights, fit_mixture(features, relevance, prior), rtol=2e-2, atol=2e-3)
    assert weights[3] == prior[3] and rounds <= 30


def test_statistics_are_checked_before_they_are_added(world: World) -> None:
    about = np.arange(240) % DOCUMENTS
    parts: dict[str, Any] = {
        f"c{number}": ridge_statistics(world.training.hidden_states[rows], about[rows])
        for number, rows in enumerate(shares(240, 5))
    }
    honest = additive.total({name: parts[name] for name in ("c0", "c1", "c2")})
    parts["c3"] = {**parts["c3"], "gram": parts["c3"]["gram"] * 1e6}
    parts["c4"] = {**parts["c4"], "cross": parts["c4"]["cross"] * float("nan")}
    parts["c5"] = {"gram": parts["c0"]["gram"]}
    parts["c6"] = {**parts["c0"], "gram": parts["c0"]["gram"].double()}
    parts["c7"] = parts["c0"]
    questions = {**dict.fromkeys(parts, 48), "c7": 0}
    passed, refused = additive.check_statistics(parts, questions, parts["c0"], 10.0)
    assert equal(additive.total(passed), honest)
    assert sorted(refused) == ["c3", "c4", "c5", "c6", "c7"]


# -------------------------------------------------------------------- bad clients, whole runs


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
        judge, records, _ = spoiled.run(tmp_path / "bad", parts, **ROBUST)
    else:
        judge, records, _ = world.run(tmp_path / "bad", parts, **ROBUST, spoil=dict.fromkeys(names, how[attack]))
    assert judge.best.score.success >= honest.best.score.success - 0.02
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
    judge, records, _ = world.run(tmp_path / compression, shares(240, 3), compression=compression)
    assert judge.best.score.success >= plain.best.score.success - 0.02
    assert records[0]["bytes_up"] < whole[0]["bytes_up"]


def test_private_documents_stay_with_their_clients(world: World, tmp_path: Path) -> None:
    """A client is sent, trains and returns the rows of its own documents alone; the others' softmax never sees them."""
    parts = [np.arange(240)[np.arange(240) % DOCUMENTS % 3 == client] for client in range(3)]
    sent: list[tuple[Any, Any]] = []

    def look(update: Any, state: Any) -> Any:
        sent.append((update, state))
        return update

    names = [f"client-{number:02}" for number in (1, 2, 3)]
    judge, records, _ = world.run(
        tmp_path / "run", parts, private_documents=True, weight="row", spoil=dict.fromkeys(names, look)
    )
    for update, state in sent:
        own = [document for document in range(DOCUMENTS) if document % 3 == names.index(update.client)]
        assert update.tensors["head.rows|rows"].tolist() == own
        assert all(not state["head.rows"][document].any() for document in range(DOCUMENTS) if document not in own)
    assert judge.best.score.success > untrained(world)
    shared = world.run(tmp_path / "shared", parts)[1]
    assert records[-1]["bytes_down"] < shared[-1]["bytes_down"]


def test_the_same_round_asked_twice_gives_the_same_update(world: World) -> None:
    rounds = RoundSettings(rounds=3, compression="int8", local_optimizer="kept", questions=240)
    members, judge = world.clients(shares(240, 2), local(rounds))
    one = members["client-01"]
    state = {**judge.initial, "head.active": torch.ones(DOCUMENTS, dtype=torch.bool)}
    one.train(state, rounds, 1)
    first, again = one.train(state, rounds, 2), one.train(state, rounds, 2)
    assert equal(dict(first.tensors), dict(again.tensors))


def test_fed_prox_keeps_clients_near_the_server(world: World) -> None:
    lengths = []
    for proximal in (0.0, 1.0, 100.0):
        rounds = RoundSettings(rounds=3, proximal=proximal, local_optimizer="kept", questions=240)
        members, judge = world.clients(shares(240, 2), local(rounds))
        state = {**judge.initial, "head.active": torch.ones(DOCUMENTS, dtype=torch.bool)}
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


# -------------------------------------------------------------------- interrupted and resumed


class Killed(BaseException):
    """Stands for kill -9 within this process."""


OPTIONS: dict[str, Any] = {
    "rounds": 3, "participation": 0.7, "server_optimizer": "adam", "server_rate": 0.05, "compression": "int8",
    "clock": VirtualClock(dropout=0.2),
}  # fmt: skip


PARTS = shares(60, 3)


def test_resumed_equals_uninterrupted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at 20 random calls that reach the disk: the state, the best and the history are those of one go."""
    judge, records, _ = world.run(tmp_path / "whole", PARTS, **OPTIONS)
    fsync, generator, calls = os.fsync, random.Random(0), [0]
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.__setitem__(0, calls[0] + 1))
    world.run(tmp_path / "counted", PARTS, **OPTIONS)
    calls_in_all = calls[0]

    def until(limit: int) -> Callable[[int], None]:
        def dying(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] >= limit:
                raise Killed
            fsync(descriptor)

        return dying

    for point in sorted(generator.sample(range(1, calls_in_all), 20)):
        folder, calls[0] = tmp_path / f"cut-{point}", 0
        monkeypatch.setattr(os, "fsync", until(point))
        try:
            world.run(folder, PARTS, **OPTIONS)
        except Killed:
            monkeypatch.setattr(os, "fsync", fsync)
            resumed, again, _ = world.run(folder, PARTS, resume=True, **OPTIONS)
            assert resumed.best.score == judge.best.score
            assert [without_seconds(record) for record in again] == [without_seconds(record) for record in records]
        monkeypatch.setattr(os, "fsync", fsync)
        assert equal(final(folder), final(tmp_path / "whole")), point
        history = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in history] == [1, 2, 3]


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "seconds" not in name}


KILLED_RUN = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from federated import World
from test_federation import OPTIONS, PARTS
world = World(Path(sys.argv[2]))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        world.run(Path(line.strip()), PARTS, resume=True, **OPTIONS)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_resumed_equals_uninterrupted_after_kill_9(world: World, tmp_path: Path, encoder_folder: Path) -> None:
    """A real process, killed at 20 random moments and started again until it is done."""
    process = python(KILLED_RUN, Path(__file__).parent, encoder_folder, stdin=-1)
    assert process.stdin and process.stdout

    def start(folder: Path) -> int:
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    needed = []
    for name in ("whole", "again", "once more"):  # the first waits for the disk
        begin = time.monotonic()
        start(tmp_path / name)
        assert process.stdout.readline().strip() == "0"
        needed.append(time.monotonic() - begin)
    generator, killed, number = random.Random(0), 0, 0
    while killed < 20 and number < 100:
        number += 1
        folder = tmp_path / f"killed-{number}"
        child = start(folder)
        time.sleep(generator.random() * min(needed))
        with suppress(ProcessLookupError):  # done before its time
            os.kill(child, signal.SIGKILL)
        killed += process.stdout.readline().strip() == str(-signal.SIGKILL)
        start(folder)
        assert process.stdout.readline().strip() == "0"
        assert equal(final(folder), final(tmp_path / "whole"))
        history = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in history] == [1, 2, 3]
    assert killed == 20
    process.stdin.close()
    process.wait()


def test_half_a_line_at_the_end_of_the_history_is_taken_away(world: World, tmp_path: Path) -> None:
    _, _, run = world.run(tmp_path / "run", shares(240, 2), rounds=2)
    file = tmp_path / "run" / "history.jsonl"
    whole = file.read_text()
    file.write_text(whole.splitlines(keepends=True)[0] + '{"round": 2, "sel')
    assert run.restore() is not None
    assert file.read_text() == whole


def test_a_changed_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    world.run(tmp_path / "run", shares(240, 2), rounds=2)
    state = tmp_path / "run" / "checkpoint" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(FedcarError, match="state.safetensors"):
        world.run(tmp_path / "run", shares(240, 2), rounds=2, resume=True)


# -------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def options(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    return ("--encoder", tiny_model("llama"), "--cache", tmp_path_factory.mktemp("cache"))


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


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_federate_resumed_and_refused(
    collection_folder: Path, options: tuple[object, ...], tmp_path: Path, method: str, tiny_model: Callable[..., Path]
) -> None:
    """Through the whole command: a run goes on where it stopped, and only with what it was started with."""
    ask = (
        "federate",
        collection_folder,
        "-o",
        tmp_path / "out",
        "--clients",
        2,
        "--method",
        method,
        "--rounds",
        3,
        "--no-central",
    )
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
    ask = (
        "federate",
        collection_folder,
        "-o",
        tmp_path / "out",
        "--clients",
        2,
        "--rounds",
        2,
        "--no-central",
        *options,
    )
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
