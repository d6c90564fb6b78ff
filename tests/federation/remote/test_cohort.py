"""A cohort behind a network (unit "client"): when it is charged, and whose coins are tossed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from support.processes import kill_itself, killed
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.federation.ledgers import opened_ledger
from fedcar.federation.remote import noised
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.remote.noised import RemoteCohort
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.wire.exchange import Replies
from fedcar.privacy.errors import BudgetError
from fedcar.privacy.ledger import Ledger
from fedcar.privacy.noise import Floats, NoiseSource
from fedcar.training.noised.clients import NoisedClient, NoisedRequest
from fedcar.training.noised.plan import PrivatePlan, Target, make_plan
from fedcar.training.noised.sums import ROWS, Tensors

PLAN = make_plan(Target(8.0, unit="client", against_advice=True), "head", 3, steps=3, sampling_rate=0.5)
SUM = torch.eye(3)


class Devices:
    """The network and what asks over it in one: each of 64 clients gives out its mean; `asked` keeps who was asked."""

    def __init__(self, meanwhile: Callable[[], object] = str) -> None:
        self.clients = {f"client-{number:02}": None for number in range(64)}
        self.asked: list[list[str]] = []
        self.away: set[str] = set()
        self.meanwhile = meanwhile

    def __call__(
        self, kind: str, request: NoisedRequest, names: Iterable[str], heads: Mapping[str, Any], needed: int
    ) -> tuple[dict[str, Tensors], Replies]:
        self.meanwhile()
        self.asked.append(sorted(names))
        there = [name for name in self.asked[-1] if name not in self.away]
        return {name: {ROWS: SUM / 64} for name in there}, Replies(failed=dict.fromkeys(self.away, "away"))

    def zeros(self, request: NoisedRequest) -> dict[str, Tensor]:
        return {ROWS: torch.zeros(3, 3)}


class Killed(NoiseSource):
    """The operating system's noise in a process that is killed, as by kill -9, when the first of it is drawn."""

    def normal(self, shape: tuple[int, ...]) -> Floats:
        kill_itself()
        raise AssertionError("still alive")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noised, "Asking", lambda devices: devices)


def cohort(folder: Path, devices: Devices, source: NoiseSource | None = None, plan: PrivatePlan = PLAN) -> RemoteCohort:
    """As a server that was just started has it: all that it knows of before stands in the folder."""
    ledger = opened_ledger(folder / "ledger.jsonl", None, plan.target)
    door = NoisedClient("server", None, source or NoiseSource(), ledger, "run")
    settings = RoundSettings(quorum=1.0, attempts=2)
    return RemoteCohort(cast(RemoteNetwork, devices), plan, door, settings, folder / "coins.json")


def asked_in_a_process(folder: Path, devices: Devices, source: NoiseSource | None, exchange: int) -> None:
    """What a server does with one request, in a process of its own, to be killed on the way."""
    noised.Asking = lambda devices: devices  # type: ignore[assignment, misc]
    cohort(folder, devices, source).ask(NoisedRequest.of(PLAN, exchange))


def charges(folder: Path) -> list[int]:
    """The exchanges that are charged on the disk, read anew."""
    return [entry.values["round"] for entry in Ledger(folder / "ledger.jsonl").open() if entry.kind == "charge"]


def test_charged_before_it_is_noised(tmp_path: Path) -> None:
    """Killed when the first noise is drawn: the charge is on the disk and no answer is; while devices answer, none."""
    before: list[list[int]] = []
    devices = Devices(lambda: before.append(charges(tmp_path)))
    request = NoisedRequest.of(PLAN, 1)
    assert killed(asked_in_a_process, tmp_path, Devices(), Killed(), 1)
    assert charges(tmp_path) == [1]
    assert not list(tmp_path.rglob("*.bin")), "nothing noised was made, so nothing is stored"
    given = cohort(tmp_path, devices).ask(request).given["server"][ROWS]
    assert before == [[1]], "while the devices answer nothing more is charged"
    assert charges(tmp_path) == [1, 1], "what was charged counts, though it gave nothing out"
    again = cohort(tmp_path, devices).ask(request).given["server"][ROWS]
    assert torch.equal(again, given) and charges(tmp_path) == [1, 1], "sent again, not charged again"


def test_charged_before_it_is_noised_and_without_room_no_device_is_asked(tmp_path: Path) -> None:
    devices, request = Devices(), NoisedRequest.of(PLAN, 1)
    cohort(tmp_path, devices)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(BudgetError):
        for number in range(100, 200):
            ledger.charge("another run", number, request.release)
    spent = ledger.spent()
    with pytest.raises(BudgetError):
        cohort(tmp_path, devices).ask(request)
    assert devices.asked == [] and not (tmp_path / "coins.json").exists() and ledger.spent() == spent <= 8


def test_coins_are_tossed_once(tmp_path: Path) -> None:
    """64 real coins an exchange, so that new ones would not come out the same; a new server each time."""
    devices = Devices()
    first, second = NoisedRequest.of(PLAN, 2), NoisedRequest.of(PLAN, 3)
    devices.away = set(devices.clients)
    for _ in range(3):
        with pytest.raises(FedcarError, match="exchange 2: too few devices after 2 attempts"):
            cohort(tmp_path, devices).ask(first)
    assert len(devices.asked) == 6 and 0 < len(devices.asked[0]) < 64
    assert all(names == devices.asked[0] for names in devices.asked), "asked again by the same coins"
    assert charges(tmp_path) == []
    devices.away = set()
    cohort(tmp_path, devices).ask(first)
    assert devices.asked[6] == devices.asked[0] and charges(tmp_path) == [2]
    cohort(tmp_path, devices).ask(second)
    assert devices.asked[7] != devices.asked[0], "the next exchange has coins of its own"


def test_coins_are_tossed_once_also_where_the_server_is_killed(tmp_path: Path) -> None:
    """Between the coins and the noise: who was drawn is on the disk before anyone is asked."""
    assert killed(asked_in_a_process, tmp_path, Devices(kill_itself), None, 2)
    kept = (tmp_path / "coins.json").read_bytes()
    devices = Devices(lambda: seen.append((tmp_path / "coins.json").read_bytes()))
    seen: list[bytes] = []
    assert killed(asked_in_a_process, tmp_path, Devices(), Killed(), 2), "after the answers, at the noise"
    assert (tmp_path / "coins.json").read_bytes() == kept
    cohort(tmp_path, devices).ask(NoisedRequest.of(PLAN, 2))
    assert seen == [kept] and all(f'"{name}"'.encode() in kept for name in devices.asked[0])
