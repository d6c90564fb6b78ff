"""A server that lies asks a device for what no honest one would: the device's own budget holds all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import learnable

from fedcar.collection.collection import Collection
from fedcar.common.files import user_folder
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.federation.device.device import Device
from fedcar.federation.ledgers import Ledgers
from fedcar.federation.wire.payload import Payload
from fedcar.federation.wire.setup import Setup
from fedcar.privacy.clip import Part, clip
from fedcar.privacy.errors import LedgerError, PrivacyError
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.noise import NoiseSource
from fedcar.training.noised.clients import noised
from fedcar.training.noised.plan import LEAST_CLIP_NORM, make_plan
from fedcar.training.noised.settings import PrivateSettings
from fedcar.training.noised.tally import opened
from fedcar.training.target import Target
from fedcar.version import __version__

BUDGET = Budget(8.0, 1e-5)


@pytest.fixture
def join(
    toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Device]:
    collection = learnable(Collection.read(toy_collection))
    cache = FeatureCache(tmp_path_factory.getbasetemp() / "lies")

    def joined(budget: Budget | None = BUDGET) -> Device:
        ledgers = Ledgers(tmp_path / "ledgers", None, budget)
        return Device(collection, tmp_path, Encoder.load(tiny_model("llama")), cache, ledgers=ledgers)

    return joined


def charges(folder: Path) -> int:
    return len(Ledger(folder / "ledgers" / "ledger.jsonl").releases())


def ask(
    device: Device, target: Target, number: int = 1, *, method: str = "head", adapter: str = "full", **values: Any
) -> Payload:
    tensors, steps, rate = values.pop("tensors", {}), values.pop("steps", 3), values.pop("rate", None)
    settings = PrivateSettings(target, method, steps, rate, adapter, 0).values
    setup = Setup("run", __version__, device.model.fingerprint, device.documents, settings, {}).json
    return device.answer(
        Payload("noised", {"setup": setup, "number": number, "adaptive": 0.0, "head": "", **values}, tensors)
    )


def test_the_noise_is_never_of_a_servers_seed(join: Callable[..., Device], tmp_path: Path) -> None:
    """Neither asked for outright nor by a setup that fails half-way and leaves parts of another behind."""
    device, seeded = join(), Target(8.0, noise_seed=7)
    assert ask(device, seeded).values["reason"] == "request"
    assert ask(device, seeded, 999).values["reason"] == "request"
    assert ask(device, Target(8.0), 0, method="adapter", adapter="bogus").kind == "refused"
    assert ask(device, seeded).values["reason"] == "request"
    assert charges(tmp_path) == 0
    assert ask(device, Target(8.0)).kind == "noised" and charges(tmp_path) == 1
    assert device.private.source.name == "operating-system"


def test_noise_is_what_was_charged() -> None:
    release = make_plan(Target(8.0), "ridge", 6).sums
    with pytest.raises(PrivacyError, match="noise of kind seeded-test for what is charged as operating-system"):
        noised({"rows": torch.zeros(6, 16)}, release, NoiseSource(3))


def test_no_answer_tells_how_many_questions_there_are(join: Callable[..., Device], tmp_path: Path) -> None:
    """A delta above 1 / n is as good as one below for all a server hears; a device checks its own when it joins."""
    device = join()
    found = [ask(device, Target(8.0, 1 / count), 999).values for count in (2, 10, 1000, 10**6)]
    assert all(one == found[0] for one in found) and charges(tmp_path) == 0


@pytest.mark.parametrize("clip_norm", [1e-37, LEAST_CLIP_NORM / 2, 1e9, float("nan"), float("inf"), -1.0])
def test_a_clip_norm_far_from_the_usual_is_refused(
    join: Callable[..., Device], tmp_path: Path, clip_norm: float
) -> None:
    device = join()
    state = {"state/rows": torch.zeros_like(device.untrained.head.rows)}
    target = Target(8.0, adaptive_clip=True)
    assert ask(device, target, 2, adaptive=clip_norm, tensors=state).values["reason"] == "request"
    assert charges(tmp_path) == 0
    assert ask(device, target, 2, adaptive=LEAST_CLIP_NORM, tensors=state).kind == "noised"


def test_a_gradient_whose_square_is_nothing_in_float32_is_clipped() -> None:
    gradient = torch.full((1, 4), 1e-25)
    part = Part(gradient.square().sum(1), lambda factors, keep: {"rows": factors @ gradient.double()})
    assert float(clip([part], 1e-37).sums["rows"].double().norm()) <= 1e-37


def test_a_budget_stays_where_it_is_not_given_again(join: Callable[..., Device], tmp_path: Path) -> None:
    assert ask(join(), Target(8.0)).kind == "noised"
    again = join(None)
    assert again.ledgers.budget == BUDGET
    setup = Setup("run", __version__, again.model.fingerprint, again.documents, {}, {}).json
    assert again.answer(Payload("enrol", {"setup": setup})).values["reason"] == "un-noised"
    state = {"state/rows": torch.zeros_like(again.untrained.head.rows)}
    assert ask(again, Target(100.0), 2, tensors=state).values["reason"] == "budget"
    assert ask(again, Target(1e6), 0).values["reason"] == "request"
    assert charges(tmp_path) == 1


@pytest.mark.parametrize("head", ["9" * 5000 + ":" + "0" * 64, "1:short", "x:" + "0" * 64])
def test_rubbish_for_a_ledgers_head_is_refused(join: Callable[..., Device], tmp_path: Path, head: str) -> None:
    assert ask(join(), Target(8.0), head=head).values["reason"] == "request" and charges(tmp_path) == 0


@pytest.mark.parametrize("method", ["head", "adapter"])
@pytest.mark.parametrize("rate", [0.5, 1e-300, -0.0, float("nan"), 2.0, "1", True])
def test_a_sampling_rate_of_the_servers_own_is_refused(
    join: Callable[..., Device], tmp_path: Path, method: str, rate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if rate is True and method == "head":
        rate = False
    refused = ask(join(), Target(8.0), method=method, rate=rate)
    assert refused.values["reason"] == "request" and charges(tmp_path) == 0
    assert "a sampling rate of" in capsys.readouterr().err, "the device's log says why"


def test_the_plans_own_sampling_rate_may_be_named(join: Callable[..., Device], tmp_path: Path) -> None:
    device = join()
    assert ask(device, Target(2.0), rate=1.0).kind == "noised"
    assert ask(device, Target(2.0), 0, method="adapter", rate=0.05).kind == "noised" and charges(tmp_path) == 2


@pytest.mark.parametrize("epsilon", [1e-300, 1e6, float("inf"), float("nan"), -1.0, 10**400, "8", None, True])
def test_a_budget_that_no_plan_can_be_made_for_is_refused(
    join: Callable[..., Device], tmp_path: Path, epsilon: Any
) -> None:
    for target in (Target(epsilon), Target(1.0, epsilon if epsilon != 8 else 2.0)):
        assert ask(join(), target).values["reason"] == "request"
    assert charges(tmp_path) == 0


@pytest.mark.parametrize("steps", [10**9, 0, -1, 1.5, "3", True, 10**400])
def test_a_number_of_steps_that_takes_long_is_refused(join: Callable[..., Device], tmp_path: Path, steps: Any) -> None:
    for method in ("head", "adapter"):
        assert ask(join(), Target(8.0), method=method, steps=steps).values["reason"] == "request"
    assert charges(tmp_path) == 0


def test_a_budget_is_the_devices_own_word(tmp_path: Path) -> None:
    """A ledger over runs takes an epsilon of the device's; it once took that of the server's first request."""
    with pytest.raises(PrivacyError, match="give this device's own with --epsilon"):
        Ledgers(tmp_path / "ledgers", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    counted = opened(tmp_path / "kept" / "ledger.jsonl", None, 1e-5)  # by trainings, without any limit
    with pytest.raises(PrivacyError, match="no ledger with a budget stands there"):
        Ledgers(tmp_path / "ledgers", tmp_path / "kept")
    assert Ledgers(tmp_path / "ledgers", tmp_path / "kept", BUDGET).budget == BUDGET == counted.budget()
    assert Ledgers(tmp_path / "ledgers", tmp_path / "kept").budget == BUDGET


def test_a_ledger_that_is_removed_is_not_made_again_by_a_request(join: Callable[..., Device], tmp_path: Path) -> None:
    device = join()
    assert ask(device, Target(2.0)).kind == "noised"
    (tmp_path / "ledgers" / "ledger.jsonl").unlink()
    assert ask(device, Target(2.0), 0).values["reason"] == "ledger"
    with pytest.raises(LedgerError, match="no ledger"):
        join(None)


def test_restored_ledger_is_refused_in_the_next_run(join: Callable[..., Device], tmp_path: Path) -> None:
    """By what the server saw in former runs alone (the witnesses are gone), and by a witness alone."""
    device = join()
    assert ask(device, Target(2.0)).kind == "noised"
    shutil.copytree(tmp_path / "ledgers", tmp_path / "backup")
    seen = str(ask(device, Target(2.0), 0).values["head"])
    shutil.rmtree(tmp_path / "ledgers")
    shutil.copytree(tmp_path / "backup", tmp_path / "ledgers")  # with the witness beside it, but for the user's
    assert ask(device, Target(2.0), 0).values["reason"] == "ledger", "by the witness in the user's folder"
    [witness] = [file for file in (user_folder("data") / "witnesses").iterdir() if str(tmp_path) in file.read_text()]
    witness.unlink()
    other = "~3:" + "0" * 64 + ":" + "1" * 64  # another ledger of this device's: nothing is known of this one
    assert ask(device, Target(2.0), 0, head=f"{other},~{seen}").values["reason"] == "ledger", "by the server"
    assert ask(device, Target(2.0), 0, head=other).kind == "noised", "who rewrites all of them cannot be stopped"


@pytest.mark.parametrize("head", ["~", "~1:" + "0" * 64 + ",1:" + "0" * 64, ",".join(["~1:" + "0" * 64] * 101)])
def test_rubbish_for_heads_of_former_runs_is_refused(join: Callable[..., Device], tmp_path: Path, head: str) -> None:
    assert ask(join(), Target(8.0), head=head).values["reason"] == "request" and charges(tmp_path) == 0
