"""Training under epsilon: what leaves is clipped, noised and charged, and nothing else knows a private question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import fedcar, tree
from support.federated import WIDTH, World

from fedcar import train
from fedcar.collection.collection import Collection
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.head.losses import candidate_losses
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.statement import from_json
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.clients import InTurn, NoisedClient, NoisedRequest, within
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ROWS, SUMS, ClippedSums
from fedcar.training.selection import Standard
from fedcar.training.target import Target


@pytest.fixture(scope="module")
def world(tiny_model: Callable[..., Path]) -> World:
    return World(tiny_model("llama"), questions=2400)


def trained(collection: Collection, encoder: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Every byte of the retriever of a training under epsilon."""
    train(collection, encoder=encoder, noise_seed=0, cache=folder.parent / "cache", **options).save(folder)
    return tree(folder)


def test_dev_is_read_only_where_it_was_declared_public(collection: Collection, encoder: Path, tmp_path: Path) -> None:
    bare = replace(collection, judgements={"train": collection.judgements["train"]})
    options = {"method": "head", "epsilon": 50.0, "delta": 1e-9, "against_advice": True}
    with_dev, without = (
        trained(one, encoder, tmp_path / name, **options) for name, one in (("a", collection), ("b", bare))
    )
    assert with_dev["head.safetensors"] == without["head.safetensors"]
    assert with_dev["retriever.json"] == without["retriever.json"]
    public = train(collection, encoder=encoder, cache=tmp_path / "cache", public_dev=True, **options)
    assert public.training.selection and public.training.selection_questions == 5, "half of ten teach"
    assert public.training.privacy["selection"]["the step that is kept"] == "public dev set"
    with pytest.raises(FedcarError, match="--public-dev: there is no dev split"):
        train(bare, encoder=encoder, cache=tmp_path / "cache", public_dev=True, **options)


def questions_of(collection: Collection, encoder: Path, folder: Path) -> tuple[Retriever, Questions]:
    features = FeatureCache(folder)
    untrained = Retriever.untrained(collection.documents, Encoder.load(encoder), features)
    return untrained, prepare(untrained, collection.judged("train"), features, Silent(), "")


@pytest.mark.parametrize("variant", [None, "full", "lowrank:3", "diagonal"])
def test_one_question_moves_a_sum_by_at_most_its_sensitivity(
    collection: Collection, encoder: Path, tmp_path: Path, variant: str | None
) -> None:
    retriever, questions = questions_of(collection, encoder, tmp_path)
    adapter = None if variant is None else Adapter(variant, retriever.encoder.embedding_width)
    asked = ClippedSums(retriever, questions, adapter)
    everything = asked.class_sums()[SUMS]
    state = {ROWS: torch.randn(everything.shape, generator=torch.Generator().manual_seed(1))}
    if adapter is not None:
        state |= {name: torch.full_like(tensor, 0.3) for name, tensor in adapter.named_parameters()}
    whole = asked.gradients(state, 0.05)
    assert set(whole) == set(state)
    for left_out in range(0, len(asked), 5):
        others = torch.tensor([row for row in range(len(asked)) if row != left_out])
        assert (everything - asked.class_sums(others)[SUMS]).norm() <= 1 + 1e-9
        moved = asked.gradients(state, 0.05, others)
        distance = torch.cat([(whole[name] - moved[name]).flatten() for name in state]).norm()
        assert 0.01 < distance <= 0.05 * (1 + 1e-9)
        both = [asked.gradients_and_below(state, 0.05, rows) for rows in (None, others)]
        distance = torch.cat([(both[0][name] - both[1][name]).flatten() for name in both[0]]).norm()
        assert 0.1 < distance <= 1 + 1e-9, "gradient and bit together"
    empty = torch.tensor([], dtype=torch.long)
    assert all(not tensor.any() for tensor in asked.gradients(state, 0.05, empty).values())
    assert not asked.class_sums(empty)[SUMS].any()


def test_sums_over_many_batches_are_float64(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 what one question adds to a sum over many is rounded away, up or down."""
    monkeypatch.setattr("fedcar.training.noised.sums.CELLS_AT_ONCE", 600)
    asked = ClippedSums(world.retriever(), world.training)
    state = {ROWS: torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))}
    others = torch.arange(1, len(asked))
    for sums in (
        lambda rows: asked.class_sums(rows),
        lambda rows: asked.gradients(state, 0.5, rows),
        lambda rows: asked.gradients_and_below(state, 0.5, rows),
    ):
        alone, whole, without = (sums(rows) for rows in (torch.tensor([0]), None, others))
        for name, tensor in whole.items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor - without[name], alone[name], rtol=0, atol=1e-12)
    request = NoisedRequest.of(plan(1.0), 0)
    assert request.sums(asked)["count"].dtype == torch.float64, "a float32 count ends at 2^24"


def test_a_mean_from_a_device_is_cut_to_its_bound() -> None:
    for sent, expected in (
        (torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8], dtype=torch.float64)),
        (torch.tensor([0.3, 0.4]), torch.tensor([0.3, 0.4]).double()),
        (torch.tensor([float("nan"), 1.0]), torch.zeros(2, dtype=torch.float64)),
    ):
        torch.testing.assert_close(within({"rows": sent}, 1.0)["rows"], expected)
    rounded_up = {"rows": torch.tensor([0.6, 0.8]) * (1 + 5e-5)}
    found = within(rounded_up, 1.0)["rows"]
    assert found.dtype == torch.float64 and float(found.norm()) <= 1.0


@pytest.mark.parametrize("variant", [None, "full", "lowrank:3", "diagonal"])
def test_the_gradient_is_that_of_the_retriever_that_ships(
    collection: Collection, encoder: Path, tmp_path: Path, variant: str | None
) -> None:
    """Moving along the (hardly clipped) gradient changes the shipped retriever's loss as the gradient says."""
    retriever, questions = questions_of(collection, encoder, tmp_path)
    adapter = None if variant is None else Adapter(variant, retriever.encoder.embedding_width)
    asked = ClippedSums(retriever, questions, adapter)
    server = PrivateTraining(retriever, InTurn([NoisedClient("one", asked)]), plan(1.0), adapter=adapter)
    generator = torch.Generator().manual_seed(1)
    state = {ROWS: torch.randn(len(retriever.documents), WIDTH, generator=generator)}
    state |= {name: torch.randn(tensor.shape, generator=generator) for name, tensor in server.first_adapter().items()}

    def loss(at: dict[str, torch.Tensor]) -> float:
        shipped = server.retriever(at)
        scores = torch.from_numpy(shipped.scores_of(questions)).double()
        return float(candidate_losses(scores, torch.from_numpy(questions.relevance)).sum())

    gradients = asked.gradients(state, 1e9)
    for name, gradient in gradients.items():
        step = 0.02 * gradient / gradient.norm()
        ahead, behind = ({**state, name: state[name] + sign * step} for sign in (1, -1))
        assert (loss(ahead) - loss(behind)) / 0.04 == pytest.approx(float(gradient.norm()), rel=0.02), name


def plan(epsilon: float, method: str = "head", documents: int = 6, **options: Any) -> Any:
    return make_plan(Target(epsilon, 1e-5, **options), method, documents)


@pytest.mark.parametrize("method", ["ridge", "head"])
def test_learns_under_a_budget_and_steps_charged_equal_steps_noised(world: World, method: str) -> None:
    source = NoiseSource()
    untrained = world.retriever()
    device = NoisedClient("one", ClippedSums(untrained, world.training), source)
    chosen = plan(1.0, method)
    outcome = PrivateTraining(untrained, InTurn([device]), chosen).run()
    before, after = (
        Standard().score(world.selection, one.scores_of(world.selection)).success
        for one in (untrained, outcome.retriever)
    )
    assert before < 0.4 and after > 0.85
    assert source.draws == sum(release.steps for release in device.given) == sum(one.steps for one in chosen.releases)
    statement = outcome.statement
    assert statement is not None and 0.99 < statement.epsilon <= 1.0 and statement.holds
    assert outcome.retriever.head.active.all()


@pytest.mark.parametrize("start", [0.02, 0.0002])
def test_an_adaptive_clip_norm_finds_the_median_and_costs_nothing_more(world: World, start: float) -> None:
    untrained = world.retriever()
    asked = ClippedSums(untrained, world.training)
    chosen = make_plan(Target(100.0, 1e-5, adaptive_clip=True), "head", 6, steps=150, clip_norm=start)
    assert 0.99 * 100 < chosen.epsilon <= 100
    server = PrivateTraining(untrained, InTurn([NoisedClient("one", asked)]), chosen)
    server.rates = lambda units: {ROWS: 0.0}  # type: ignore[method-assign]  # the state stays: its median too
    outcome = server.run()
    norms = [record.clip_norm for record in outcome.records if record.clip_norm is not None]
    sums = server.best[0]
    assert sums is not None and len(norms) == 150 and norms[0] == start
    part = asked.parts({ROWS: sums[ROWS]}, slice(0, len(asked)))
    below = float((part[0].squared_norms.sqrt() <= norms[-1]).float().mean())
    assert below == pytest.approx(0.5, abs=0.05), "from either side"
    assert outcome.statement is not None and dict(outcome.statement.selection)["clip norm"] == "charged"


def test_learns_with_an_adaptive_clip_norm(world: World) -> None:
    untrained = world.retriever()
    device = NoisedClient("one", ClippedSums(untrained, world.training))
    outcome = PrivateTraining(untrained, InTurn([device]), plan(1.0, adaptive_clip=True)).run()
    after = Standard().score(world.selection, outcome.retriever.scores_of(world.selection)).success
    assert after > 0.85 and outcome.statement is not None and 0.99 < outcome.statement.epsilon <= 1.0


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_a_plan_spends_its_budget_and_never_more(method: str, epsilon: float) -> None:
    found = plan(epsilon, method)
    assert 0.995 * epsilon < found.epsilon <= epsilon
    seeded = plan(epsilon, method, noise_seed=1)
    assert seeded.epsilon == np.inf and seeded.sums.noise_multiplier == found.sums.noise_multiplier


def test_where_search_is_expected_to_be_better_it_is_kept_and_nearly_nothing_spent(
    collection: Collection, encoder: Path, tmp_path: Path
) -> None:
    kept = train(collection, encoder=encoder, cache=tmp_path, epsilon=1.0)
    statement = kept.training.privacy
    assert kept.training.method == "none" and not kept.is_trained
    assert [release["name"] for release in statement["releases"]] == ["count"] and statement["epsilon"] < 0.2


class Low(NoiseSource):
    """Noise that takes a count far below zero."""

    def normal(self, shape: tuple[int, ...]) -> Any:
        return super().normal(shape) * 0 - 9


def test_a_count_that_noise_took_below_zero_is_no_reason_to_train(world: World) -> None:
    few = world.training.take(np.arange(20))
    device = NoisedClient("one", ClippedSums(world.retriever(), few), Low())
    server = PrivateTraining(world.retriever(), InTurn([device]), plan(1.0))
    assert server.counted() == 1.0 and server.loudness == 1.0
    assert server.plan.strength(server.counted(), server.loudness) < 1


def test_the_statement_goes_with_the_retriever(collection: Collection, encoder: Path, tmp_path: Path) -> None:
    collection.write(tmp_path / "collection")
    options = ("--encoder", encoder, "--cache", tmp_path / "cache", "--method", "head", "--against-advice")
    result = fedcar("train", tmp_path / "collection", "-o", tmp_path / "out", "--epsilon", 2, *options, "--json")
    assert result.code == 0, result.err
    statement = from_json((tmp_path / "out" / "privacy.json").read_text())
    assert 1.99 < statement.epsilon <= 2 and statement.unit == "example" and "epsilon 2" in result.err
    assert result.json["privacy"]["epsilon"] == statement.epsilon and result.json["questions"] is None
    assert Retriever.load(tmp_path / "out", encoder).training.privacy["releases"][0]["name"] == "count"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epsilon", 0), "epsilon is 0.0, must be above 0"),
        (("--epsilon", "nan"), "must be above 0"),
        (("--epsilon", 1, "--delta", 0.05), "must be below 1/n = 0.05 for n = 20"),
        (("--epsilon", 1, "--delta", 0), "delta is 0.0"),
        (("--epsilon", 1, "--head", "cosine"), "the head is then linear"),
        (("--epsilon", 1, "--resume"), "no checkpoint is kept"),
        (("--adaptive-clip",), "--adaptive-clip: is for training under --epsilon"),
        (("--public-dev",), "--public-dev: is for training under --epsilon"),
    ],
)
def test_refused_in_one_line(
    collection: Collection, encoder: Path, tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    collection.write(tmp_path / "collection")
    result = fedcar(
        "train", tmp_path / "collection", "-o", tmp_path / "out", "--encoder", encoder, "--cache", tmp_path, *options
    )
    assert result.code == 1 and result.out == "" and not (tmp_path / "out").exists()
    assert message in result.err.splitlines()[-1] and "Traceback" not in result.err


def test_a_question_moves_the_rows_of_its_candidates_alone(world: World) -> None:
    """Where there are many documents a question has a hundred candidates, in any order."""
    questions = world.training.take(np.arange(40))
    turned = replace(
        questions,
        candidates=questions.candidates[:, ::-1].copy(),
        evidence=questions.evidence[:, ::-1].copy(),
        relevance=questions.relevance[:, ::-1].copy(),
    )
    fewer = replace(
        questions,
        candidates=questions.candidates[:, 2:],
        evidence=questions.evidence[:, 2:],
        relevance=questions.relevance[:, 2:],
    )
    state = {ROWS: torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2))}
    found = [ClippedSums(world.retriever(), one).gradients(state, 0.5)[ROWS] for one in (questions, turned, fewer)]
    torch.testing.assert_close(found[0], found[1])
    assert not found[2][:2].any() and found[2][2:].any()
