"""A promised risk at search: what is answered then, and what is said where nothing supports a promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedcar.collection.collection import Collection
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.export.bundle import load_bundle
from fedcar.export.bundle_writing import write_bundle
from fedcar.retriever.calibration import NO_PROMISE, STEPS, Calibration
from fedcar.retriever.retriever import Retriever

WEIGHTS = (0.0, 1.0, 0.0, 0.0)
FULL = ((300, 0),) * len(STEPS)
BAD = ((300, 100),) * len(STEPS)
NOT_SUPPORTED = "nothing is answered: the dev questions support no risk of 0.05; the least that they support is 0.42"


@pytest.fixture
def untrained(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> Retriever:
    encoder = Encoder.load(tiny_model("bert"), "mean")
    return Retriever.untrained(Collection.read(toy_collection).documents, encoder, FeatureCache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("calibration", "answered", "reason"),
    [
        (Calibration(), False, NO_PROMISE),
        (Calibration(1.0, hits=WEIGHTS), False, NO_PROMISE),
        (Calibration(1.0, hits=WEIGHTS, counts=BAD), False, NOT_SUPPORTED),
        (Calibration(1000.0, hits=WEIGHTS, counts=FULL[:-1] + ((300, 0),)), True, None),
    ],
)
def test_a_question_is_answered_where_the_risk_is_supported(
    untrained: Retriever, tmp_path: Path, calibration: Calibration, answered: bool | None, reason: str | None
) -> None:
    """In a retriever that was saved, and in its bundle, the same."""
    retriever = replace(untrained, calibration=calibration)
    retriever.save(tmp_path / "retriever")
    write_bundle(retriever, tmp_path / "bundle")
    for one in (Retriever.load(tmp_path / "retriever"), load_bundle(tmp_path / "bundle")):
        assert one.calibration == calibration
        answer = one.search("suction pump", risk=0.05)
        assert answer.answered is answered and (answer.reason or "").startswith(reason or "")
        assert (answer.reason is None) == (reason is None)
        assert [hit.id for hit in answer] == [hit.id for hit in untrained.search("suction pump")]


@pytest.mark.parametrize("risk", [0.0, 1.0, -0.1, 7.0])
def test_a_risk_that_is_no_share_is_refused(untrained: Retriever, risk: float) -> None:
    with pytest.raises(FedcarError, match="give a share of wrong answers between 0 and 1"):
        untrained.search("pump", risk=risk)
