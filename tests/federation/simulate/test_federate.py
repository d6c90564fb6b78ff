"""The federation's guarantees: what several clients train is what one place trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.federated import DOCUMENTS, World, equal, final, local, shares, untrained
from torch import Tensor

from fedcar.collection.collection import Collection
from fedcar.collection.partition import partition
from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate import federate as simulated
from fedcar.federation.sums import additive
from fedcar.federation.sums.additive import statistics_of, sums_of
from fedcar.federation.sums.mixture import MixtureTerms, federated_mixture
from fedcar.federation.sums.ridge import RidgeMember, feature_map, federated_ridge, gather
from fedcar.head import closed_form
from fedcar.head.closed_form import Statistics
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.clients import InProcess
from fedcar.training.gradient import Trainer
from fedcar.training.mixture import fit_mixture
from fedcar.training.ridge import fit_ridge


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
        selection, records, _ = world.run(tmp_path / weight, shares(240, 4), rounds=6, weight=weight)
        assert selection.best.score.success >= central.best.score.success - 0.05
        assert records[-1]["loss"] < records[0]["loss"]
        assert selection.best.score.success > untrained(world) + 0.3


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
    collection: Collection, encoder: Path, cache: Path
) -> None:
    """Rows and words over three clients are those of `fit_ridge` with everything in one place."""
    features = FeatureCache(cache)
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder), features)
    judged = collection.judged("train")
    training = prepare(untrained, judged, features, Silent(), "")
    shares = {name: training.take(rows) for name, rows in partition(judged, "dirichlet:0.5", 3, 0).items()}
    central = fit_ridge(untrained, training, features, 0).retriever
    fixed = feature_map(untrained, features, 0)
    clients = InProcess({name: RidgeMember(untrained, share, fixed, 0) for name, share in shares.items()})
    gathered = gather(untrained, clients)
    federated = federated_ridge(untrained, clients, gathered, features, 0, PseudoQueries()).fitted.retriever
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
    parts = {f"c{one}": MixtureTerms.of(features[owner == one], relevance[owner == one]) for one in range(clients)}
    weights, rounds = federated_mixture(InProcess(parts), prior)
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


def test_a_run_whose_clients_had_other_questions_does_not_go_on(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a version that drew the parts otherwise."""
    options: dict[str, Any] = {"clients": 2, "encoder": encoder, "cache": cache, "rounds": RoundSettings(rounds=1)}
    with monkeypatch.context() as before:
        before.setattr(simulated, "PARTS", "drawn over all at once")
        simulated.federate(collection, run=tmp_path / "run", compare=False, **options)
    with pytest.raises(
        FedcarError, match="belongs to other settings .parts drawn over all at once, now by each"
    ) as error:
        simulated.federate(collection, run=tmp_path / "run", compare=False, resume=True, **options)
    assert "\n" not in str(error.value)
