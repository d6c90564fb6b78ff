"""Federation under epsilon: each client noises, charges and keeps what it gives out; nothing else knows a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import fedcar
from support.federated import World, shares

from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.privacy.errors import LedgerError
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.training.noised.clients import Cohort, InTurn, NoisedClient, NoisedRequest, poisson
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ROWS, ClippedSums
from fedcar.training.selection import Standard
from fedcar.training.target import Target


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("llama"))


@pytest.fixture(scope="module")
def world(tiny_model: Callable[..., Path]) -> World:
    return World(tiny_model("llama"), questions=3000)


def devices_of(world: World, clients: int, folder: Path | None = None, plan: Any = None) -> list[NoisedClient]:
    untrained = world.retriever()
    found = []
    for number, rows in enumerate(shares(len(world.training), clients)):
        ledger = None
        if folder is not None:
            ledger = Ledger(folder / str(number) / "ledger.jsonl")
            if not ledger.path.exists():
                ledger.create(Budget(plan.target.epsilon, plan.target.delta))
        found.append(
            NoisedClient(f"c{number}", ClippedSums(untrained, world.training.take(rows)), ledger=ledger, run="run")
        )
    return found


def reached(world: World, outcome: Any) -> float:
    return Standard().score(world.selection, outcome.retriever.scores_of(world.selection)).success


def test_clients_with_their_own_noise_learn_together(world: World, tmp_path: Path) -> None:
    plan = make_plan(Target(3.0), "head", 6)
    devices = devices_of(world, 5, tmp_path, plan)
    outcome = PrivateTraining(world.retriever(), InTurn(devices), plan).run()
    assert reached(world, outcome) > 0.85 and outcome.statement is not None
    assert outcome.statement.clients == 5 and outcome.statement.epsilon <= 3.0
    for device in devices:
        assert device.ledger is not None and 2.99 < device.ledger.spent() <= 3.0
        assert device.source.draws == len(device.ledger.releases()) == 32
    noise = {str(device.release(99, plan.sums, lambda: {"x": torch.zeros(9)})) for device in devices_of(world, 3)}
    assert len(noise) == 3  # nobody's noise is anybody else's


def test_a_finished_run_is_replayed_from_its_stored_updates_and_nothing_is_charged_again(
    world: World, tmp_path: Path
) -> None:
    plan = make_plan(Target(3.0), "head", 6)
    first = PrivateTraining(world.retriever(), InTurn(devices_of(world, 3, tmp_path, plan)), plan).run()
    again = devices_of(world, 3, tmp_path, plan)
    second = PrivateTraining(world.retriever(), InTurn(again), plan).run()
    assert torch.equal(first.retriever.head.rows, second.retriever.head.rows)
    assert all(device.source.draws == 0 for device in again)
    assert second.statement == first.statement


class Failing(NoiseSource):
    """Fails at its nth draw: the charge is then on disk, the update is not."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def normal(self, shape: tuple[int, ...]) -> Any:
        if self.draws + 1 == self.at:
            raise KeyboardInterrupt
        return super().normal(shape)


def test_refused_before_the_budget_is_crossed(world: World, tmp_path: Path) -> None:
    """A round that was charged and lost is charged again; the last one then finds no room, the model so far is kept."""
    plan = make_plan(Target(3.0), "head", 6)
    devices = devices_of(world, 2, tmp_path, plan)
    devices[1].source = Failing(10)
    with pytest.raises(KeyboardInterrupt):
        PrivateTraining(world.retriever(), InTurn(devices), plan).run()
    again = devices_of(world, 2, tmp_path, plan)
    outcome = PrivateTraining(world.retriever(), InTurn(again), plan).run()
    assert outcome.refusal is not None and outcome.refusal.exit_code == 3
    assert "not trained, not charged" in str(outcome.refusal)
    assert outcome.name == "head" and reached(world, outcome) > 0.8
    assert again[1].ledger is not None and again[1].ledger.spent() <= 3.0
    assert len(outcome.records) == 31  # all but the last step


def test_a_client_with_few_questions_brings_little_noise(world: World) -> None:
    untrained = world.retriever()
    plan = make_plan(Target(3.0), "head", 6)
    sizes = {"large": range(0, 1400), "larger": range(1400, 2990), "tiny": range(2990, 3000)}
    devices = [
        NoisedClient(name, ClippedSums(untrained, world.training.take(torch.tensor(list(rows)).numpy())))
        for name, rows in sizes.items()
    ]
    server = PrivateTraining(untrained, InTurn(devices), plan)
    units = server.counted()
    assert server.weights["tiny"] < 0.2 and server.weights["larger"] == 1.0 and 2800 < units < 3200
    assert server.loudness < 1.45  # that of two clients


def test_one_client_moves_a_sum_of_clients_by_at_most_the_clip_norm(world: World) -> None:
    untrained = world.retriever()
    members = [ClippedSums(untrained, world.training.take(rows)) for rows in shares(len(world.training), 6)]
    plan = make_plan(Target(3.0, unit="client"), "head", 6, clip_norm=0.1)
    assert plan.step is not None and plan.step.unit == "client"
    state = {ROWS: torch.randn(6, members[0].x.shape[1], generator=torch.Generator().manual_seed(0))}
    for order, bound in ((NoisedRequest.of(plan, 1), 1.0), (NoisedRequest.of(plan, 2, state), 0.1)):
        whole = Cohort(members, NoisedClient("server", None)).summed(order)[ROWS]
        less = Cohort(members[1:], NoisedClient("server", None)).summed(order)[ROWS]
        assert 0 < (whole - less).norm() <= bound * (1 + 1e-4)


@pytest.mark.parametrize(("search", "trained", "kept"), [(100.0, 900.0, "head"), (900.0, 100.0, "none")])
def test_clients_noised_counts_choose_between_search_and_training(
    world: World, tmp_path: Path, search: float, trained: float, kept: str
) -> None:
    plan = make_plan(Target(8.0, held_out=True), "head", 6, steps=3)
    devices = devices_of(world, 2, tmp_path, plan)
    for device in devices:
        device.held_out = lambda state: torch.tensor([1000.0, search, trained])
    outcome = PrivateTraining(world.retriever(), InTurn(devices), plan).run()
    assert outcome.name == kept and (outcome.retriever is not world.retriever())
    assert outcome.scores["head"] == pytest.approx(trained / 1000, abs=0.1) and outcome.scores["head"] != trained / 1000
    assert outcome.statement is not None and outcome.statement.selection["the step that is kept"] == "charged"
    assert devices[0].ledger is not None and devices[0].ledger.releases()[-1].name == "held out"
    assert 7.9 < devices[0].ledger.spent() <= 8.0 and outcome.statement.epsilon <= 8.0


def test_a_cohort_is_drawn_by_a_coin_a_client() -> None:
    sizes = [len(poisson(1000, 0.1)) for _ in range(50)]
    assert 85 < sum(sizes) / 50 < 115 and len(set(sizes)) > 5  # not a fixed size
    assert poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def place(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    collection.write(place / "collection")
    return place


def federated(place: Path, out: Path, encoder: Encoder, *options: Any) -> Any:
    common = ("--encoder", encoder.folder, "--cache", place / "cache", "--clients", 2, "--against-advice")
    return fedcar("federate", place / "collection", "-o", out, *common, *options)


def test_ledgers_outlive_a_run_and_refuse_the_next(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    options = ("--epsilon", 2, "--rounds", 3, "--ledgers", tmp_path / "ledgers", "--json")
    first = federated(place, tmp_path / "one", encoder, *options)
    assert first.code == 0, first.err
    assert first.json["privacy"]["epsilon"] <= 2 and first.json["privacy"]["clients"] == 2
    assert first.json["central"] is None and first.json["federated"] is None
    spent = [Ledger(file).spent() for file in sorted((tmp_path / "ledgers").glob("*/ledger.jsonl"))]
    assert len(spent) == 2 and all(1.99 < one <= 2 for one in spent)
    second = federated(place, tmp_path / "two", encoder, *options)
    assert second.code == 3 and (tmp_path / "two" / "retriever.json").exists()
    assert "the budget is 2" in second.err.splitlines()[-1]
    assert [Ledger(file).spent() for file in sorted((tmp_path / "ledgers").glob("*/ledger.jsonl"))] == spent
    again = federated(place, tmp_path / "one", encoder, *options, "--resume")
    assert again.code == 0 and again.json["rounds"] == first.json["rounds"]


def test_a_ledger_cut_or_edited_between_rounds_is_refused(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    options = ("--epsilon", 2, "--rounds", 3)
    assert federated(place, tmp_path / "one", encoder, *options).code == 0
    file = sorted((tmp_path / "one.run" / "clients").glob("*/ledger.jsonl"))[0]
    whole = file.read_bytes()
    file.write_bytes(b"\n".join(whole.split(b"\n")[:3]) + b"\n")
    file.with_name("ledger.jsonl.head").unlink()  # and what stands beside it: the server still knows better
    result = federated(place, tmp_path / "one", encoder, *options, "--resume")
    assert result.code == 1 and "ledger" in result.err.splitlines()[-1]
    file.write_bytes(whole.replace(b'"epsilon": 2.0', b'"epsilon": 9.0', 1))
    with pytest.raises(LedgerError):
        Ledger(file).open()
    assert federated(place, tmp_path / "one", encoder, *options, "--resume").code == 1


def test_public_dev_is_measured_and_a_dry_run_shows_the_plan(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    result = federated(place, tmp_path / "out", encoder, "--epsilon", 50, "--rounds", 3, "--public-dev", "--json")
    assert result.code == 0, result.err
    assert result.json["federated"]["queries"] == 10
    plan = federated(place, tmp_path / "other", encoder, "--epsilon", 2, "--dry-run", "--json").json
    assert [release["name"] for release in plan["releases"]] == ["count", "class sums", "head"]
    assert plan["releases"][2]["steps"] == 30 and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epsilon", 0), "epsilon is 0.0, must be above 0"),
        (("--epsilon", 1, "--delta", 0.5), "must be below 1/n"),
        (("--epsilon", 1, "--unit", "person"), '--unit "person": not known'),
        (("--epsilon", 1, "--no-privacy"), "one or the other"),
        (("--epsilon", 1, "--held-out", "--public-dev"), "--held-out: public questions choose already"),
        (("--epsilon", 1, "--held-out", "--unit", "client"), "--held-out: it takes --unit example"),
        (("--epsilon", 1, "--recipe", "best"), '--recipe "best": not known'),
        (("--epsilon", 1, "--participation", 0.5), "every client takes part in every round"),
        (("--epsilon", 1, "--public-dev", "--unit", "client", "--delta", 0.6), "must be below 1/n = 0.5 for n = 2"),
    ],
)
def test_refused_in_one_line(
    place: Path, tmp_path: Path, encoder: Encoder, options: tuple[Any, ...], message: str
) -> None:
    result = federated(place, tmp_path / "out", encoder, *options)
    assert result.code == 1 and message in result.err.splitlines()[-1] and not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


def test_the_statement_of_a_seeded_run_is_infinite(collection: Collection, encoder: Encoder, tmp_path: Path) -> None:
    target = replace(Target(5.0, noise_seed=1), against_advice=True)
    found = federate_under_epsilon(collection, target, run=tmp_path / "run", clients=2, encoder=encoder, cache=tmp_path)
    assert found.privacy is not None and found.privacy["epsilon"] == "infinity" and not found.privacy["guarantee"]


def test_a_run_goes_on_with_the_participation_it_was_started_with(
    collection: Collection, encoder: Encoder, tmp_path: Path
) -> None:
    """Its first steps were charged by that; by another the statement would claim less than the ledger has."""

    def run(participation: float, **options: Any) -> Any:
        return federate_under_epsilon(
            collection, Target(8.0, unit="client", against_advice=True), run=tmp_path / "run", clients=2,
            encoder=encoder, cache=tmp_path / "cache", rounds=RoundSettings(rounds=3, participation=participation),
            **options,
        )  # fmt: skip

    def interrupted(record: Any, beside: Any) -> None:
        if record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(0.1, watch=interrupted)
    with pytest.raises(FedcarError, match="participation.*give what it was started with"):
        run(1.0, resume=True)
    found = run(0.1, resume=True)
    spent = Ledger(tmp_path / "run" / "clients" / "server" / "ledger.jsonl").spent()
    assert found.privacy is not None and float(found.privacy["epsilon"]) == pytest.approx(spent, rel=1e-6)
