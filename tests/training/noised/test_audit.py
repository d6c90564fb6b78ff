"""The audit looks at what really leaves: right runs are not flagged, planted faults are, by kind.

Here one fault of each kind on short runs; `slow` plants all of them on whole ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.faults import FAULTS, KINDS, Fault

from fedcar.collection.collection import Collection
from fedcar.collection.splits import subset
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.privacy.audit import Check, noise_is_as_large_as_stated
from fedcar.privacy.noise import NoiseSource, add_noise
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised import plan as plans
from fedcar.training.noised.audit import collection as audited
from fedcar.training.noised.audit.collection import audit_collection, of_setting, settings_of
from fedcar.training.noised.audit.definition import Blocks, Definition
from fedcar.training.noised.audit.residuals import Terms, residual_of
from fedcar.training.noised.audit.trial import quieter
from fedcar.training.noised.clients import NoisedRequest
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.sums import ROWS, ClippedSums
from fedcar.training.target import Target

TARGET = Target(1.0, against_advice=True)
FAST = (  # one of each kind
    "class_sums_bare",
    "class_sums_of_four_fifths",
    "documents_without_questions_bare",
    "same_noise_at_each_device",
    "of_numpys_global_generator",
    "clipped_at_twice_the_norm",
    "count_of_two",
    "everyone_takes_part",
    "coins_of_one_step_again",
    "bit_fifty_times",
    "norms_leave_too",
    "rates_by_the_true_count",
    "centre_of_private_questions",
    "half_of_epsilon",
    "charged_with_more_noise",
    "seeded_by_the_sums",
    "not_rounded",
)


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("llama"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def asked(collection: Collection, encoder: Encoder, cache: FeatureCache) -> tuple[Retriever, Questions]:
    untrained = Retriever.untrained(collection.documents, encoder, cache)
    return untrained, prepare(untrained, collection.judged("train"), cache, Silent(), "questions")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, so that a run takes a second."""
    monkeypatch.setattr(plans, "STEPS", 6)
    monkeypatch.setattr(audited, "SHORT_STEPS", 10)
    monkeypatch.setattr(audited, "TIMES", 20)


def checks_of(asked: tuple[Retriever, Questions], method: str, which: str) -> list[Check]:
    """Of one of the runs of an audit."""
    untrained, fresh = (audited.copied(asked[0]) for _ in range(2))
    [setting] = [one for one in settings_of(untrained, asked[1], TARGET, method) if one.name == which]
    return [replace(check, name=f"{which}: {check.name}") for check in of_setting(setting, fresh, asked[1])]


def flagged(checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks if check.flagged]


@pytest.mark.parametrize(
    ("method", "which"),
    [("ridge", "ridge"), ("ridge", "unit client"), ("head", "head"), ("head", "adaptive clip, held out")],
)
def test_a_right_run_is_not_flagged(asked: tuple[Retriever, Questions], short: None, method: str, which: str) -> None:
    checks = checks_of(asked, method, which)
    assert flagged(checks) == [] and len(checks) > 15


@pytest.mark.parametrize("planted", FAULTS, ids=lambda one: one.plant.__name__)
def test_each_kind_of_fault_is_found_in_a_short_run(
    asked: tuple[Retriever, Questions], short: None, monkeypatch: pytest.MonkeyPatch, planted: Fault
) -> None:
    if planted.plant.__name__ not in FAST:
        pytest.skip("found by the slow test")
    planted.plant(monkeypatch)
    found = flagged(checks_of(asked, planted.method, planted.run))
    assert any(planted.found_by in name for name in found), found


def test_the_fast_test_has_a_fault_of_each_kind() -> None:
    assert {one.kind for one in FAULTS if one.plant.__name__ in FAST} == set(KINDS)
    assert len(FAULTS) >= 40 and len(KINDS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("planted", FAULTS, ids=lambda one: one.plant.__name__)
def test_every_planted_fault_is_found(
    collection: Collection, encoder: Encoder, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, planted: Fault
) -> None:
    planted.plant(monkeypatch)
    checks = audit_collection(collection, Target(1.0), method=planted.method, encoder=encoder, features=cache)
    assert any(planted.found_by in name for name in flagged(checks)), flagged(checks)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(50))
def test_no_right_run_of_fifty_is_flagged(
    collection: Collection, encoder: Encoder, cache: FeatureCache, number: int
) -> None:
    """By turns of every method, at epsilons from .5 to 8."""
    method, epsilon = ("ridge", "head", "adapter")[number % 3], (0.5, 1.0, 3.0, 8.0)[number // 3 % 4]
    checks = audit_collection(collection, Target(epsilon), method=method, encoder=encoder, features=cache, seed=number)
    assert flagged(checks) == []


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("variant", [None, "full", "lowrank:3", "diagonal"])
@pytest.mark.parametrize("adaptive", [None, 0.3])
def test_the_products_sums_are_those_of_the_definition(
    collection: Collection, asked: tuple[Retriever, Questions], variant: str | None, adaptive: float | None
) -> None:
    """And the definition is one of its own: the test fails where a question counts twice."""
    untrained, questions = asked
    questions = questions.take(np.arange(7))
    module = None if variant is None else Adapter(variant, untrained.encoder.embedding_width)
    sums = ClippedSums(untrained, questions, module)
    generator = torch.Generator().manual_seed(1)
    state = {ROWS: torch.randn(untrained.head.rows.shape, generator=generator)}
    if module is not None:
        for name, tensor in module.named_parameters():
            state[name] = torch.randn(tensor.shape, generator=generator)
    target = replace(TARGET, adaptive_clip=adaptive is not None)
    plan = make_plan(target, "adapter" if variant else "head", len(untrained.documents), clip_norm=0.3)
    definition = Definition(untrained, questions, Blocks(untrained.encoder) if variant else None)
    for request in (
        NoisedRequest.of(plan, 0),
        NoisedRequest.of(plan, 1),
        NoisedRequest.of(plan, 2, state, adaptive),
    ):
        found = request.sums(sums)
        flat = torch.cat([tensor.reshape(-1).double() for tensor in found.values()]).numpy()
        exact = sum(term for term, _ in definition.terms(request))
        np.testing.assert_allclose(flat, exact, atol=2e-5 * np.abs(exact).max())


def test_questions_of_several_documents_count_by_their_share(
    collection: Collection, encoder: Encoder, cache: FeatureCache
) -> None:
    """Graded judgements: class sums and losses of product and definition agree there too."""
    train = collection.judged("train")
    few = subset(train, [row < 4 for row in range(len(train))])
    several = replace(few, relevant=tuple({**judged, "hose": 2, "pump": 1} for judged in few.relevant))
    untrained = Retriever.untrained(collection.documents, encoder, cache)
    questions = prepare(untrained, several, cache, Silent(), "")
    sums, definition = ClippedSums(untrained, questions), Definition(untrained, questions, None)
    state = {ROWS: torch.randn(untrained.head.rows.shape, generator=torch.Generator().manual_seed(1))}
    plan = make_plan(TARGET, "head", len(untrained.documents))
    for request in (NoisedRequest.of(plan, 1), NoisedRequest.of(plan, 2, state)):
        exact = sum(term for term, _ in definition.terms(request))
        np.testing.assert_allclose(request.sums(sums)[ROWS].double().numpy().reshape(-1), exact, atol=1e-5)


def test_a_value_that_rounds_to_what_was_expected_is_not_missing_noise() -> None:
    """A count of 200 under little noise leaves some hundred float32 values: one in a thousand is the count itself."""
    request = quieter(NoisedRequest.of(make_plan(replace(TARGET, adaptive_clip=True), "head", 108), 0))
    count, deviation, source = np.array([200.0]), request.release.standard_deviation, NoiseSource()
    terms = Terms(count, None, edge=False)
    for _ in range(4000):
        [released] = add_noise({"count": count}, deviation, source).values.values()
        left = torch.from_numpy(released).float().double().numpy()
        assert not noise_is_as_large_as_stated([residual_of(left, terms, request, quiet=True)]).flagged
    missing = [residual_of(count, terms, request, quiet=True) for _ in range(20)]
    assert noise_is_as_large_as_stated(missing).flagged


def test_an_audit_takes_two_questions(collection: Collection, encoder: Encoder, cache: FeatureCache) -> None:
    with pytest.raises(FedcarError, match="0 training questions"):
        audit_collection(replace(collection, judgements={}), TARGET, method="ridge", encoder=encoder, features=cache)
