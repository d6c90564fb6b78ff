"""The audit's eye on a network: what really left the devices, against the definition of every sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.wire import over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.federation.device.noised import PrivateSide
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.federation.wire.payload import GIVEN, Payload, with_prefix
from fedcar.privacy import audit
from fedcar.training.noised.audit.checks import across_kinds
from fedcar.training.noised.audit.definition import Blocks, Definition, starts_of
from fedcar.training.noised.audit.residuals import Expected, Residuals, residuals_of
from fedcar.training.noised.audit.watched import Watched
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.target import Target


@contextmanager
def watched_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watched]]:
    """Every server's clients are watched."""
    found: list[Watched] = []
    right = PrivateTraining.__init__

    def watched(self: PrivateTraining, untrained: Any, clients: Any, *rest: Any, **more: Any) -> None:
        found.append(Watched(clients))
        right(self, untrained, found[-1], *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PrivateTraining, "__init__", watched)
        yield found


def residuals(
    collection: Collection, encoder: Path, cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, Residuals]:
    """Of a run over a network of two devices, against the definition of what stands on each."""
    method = options.pop("method", "head")
    target = replace(Target(8.0, against_advice=True), **options)
    with watched_servers(monkeypatch) as servers, over_wire(folder / "devices", encoder, cache) as over:
        federate_under_epsilon(
            collection, target, run=folder / "run", clients=2, encoder=Encoder.load(encoder), cache=cache, over=over,
            rounds=RoundSettings(rounds=6), method=method,
        )  # fmt: skip
        sides = [over.wire.devices[node].private for node in sorted(over.wire.devices)]
        names = sorted(over.network.clients)
    blocks = Blocks(sides[0].untrained.encoder) if method == "adapter" else None
    definitions = [Definition(side.untrained, side.training, blocks) for side in sides]
    cohort = target.unit == "client"
    by_name = {"server": definitions} if cohort else {n: [one] for n, one in zip(names, definitions, strict=True)}
    [server] = servers
    rows = tuple(sides[0].untrained.head.rows.shape)
    return residuals_of(Expected(by_name, cohort), {"stated": server.exchanges}, rows)


def flagged(found: dict[str, Residuals]) -> set[str]:
    checks = [across_kinds(found)]
    for kind, of in found.items():
        assert of.strange == [], "nothing else leaves"
        check = audit.noise_is_as_large_as_stated(np.stack(of.stated), starts_of(of.shapes))
        checks.append(replace(check, name=f"{kind}: {check.name}"))
    return {check.name for check in audit.together(checks) if check.flagged}


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "ridge"}, {"method": "adapter"}, {"adaptive_clip": True}, {"unit": "client", "delta": 0.1}],
    ids=str,
)
def test_what_leaves_devices_is_the_definitions_sum_and_its_noise(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:  # fmt: skip
    found = residuals(collection, encoder, cache, tmp_path, monkeypatch, **options)
    assert flagged(found) == set() and len(found) >= 2


def test_a_device_that_answers_without_noise_is_found(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PrivateSide.noised` goes through the door, and then sends the sums as they were."""
    right = PrivateSide.noised

    def bare(self: PrivateSide, setup: Any, request: Payload) -> Payload:
        reply = right(self, setup, request)
        due = self._due(setup, request)
        exact = {name: tensor.float() for name, tensor in due.sums(self.private_questions).items()}
        return replace(reply, tensors=with_prefix(exact, GIVEN)) if due.number > 1 else reply

    monkeypatch.setattr(PrivateSide, "noised", bare)
    assert "head: noise is as large as stated" in flagged(residuals(collection, encoder, cache, tmp_path, monkeypatch))


def test_a_server_that_noises_too_little_is_found(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clients as the unit the noise is the server's: here half of it."""
    from fedcar.training.noised import clients

    right = clients.noised

    def half(sums: Any, release: Any, source: Any) -> dict[str, torch.Tensor]:
        return right(sums, replace(release, noise_multiplier=release.noise_multiplier / 2), source)

    monkeypatch.setattr(clients, "noised", half)
    found = residuals(collection, encoder, cache, tmp_path, monkeypatch, unit="client", delta=0.1)
    assert {"class sums: noise is as large as stated", "head: noise is as large as stated"} <= flagged(found)
