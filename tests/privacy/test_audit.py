"""A correct run is not flagged; each planted fault is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedcar.privacy import audit as u
from fedcar.privacy.accountant import noise_multiplier
from fedcar.privacy.clip import clip, linear_head
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.noise import NoiseSource, add_noise
from fedcar.privacy.release import Release

CLIP_NORM, DELTA = 0.5, 1e-5


class Run:
    """Noisy full-batch steps of a linear head, with one fault planted on request."""

    def __init__(self, fault=None, epsilon=1.0, steps=10):
        self.fault, self.steps, self.epsilon = fault, steps, epsilon
        self.plan = plan = Release(
            name="head",
            noise_multiplier=1.0,
            sensitivity=CLIP_NORM,
            sampler="full-batch",
            unit="example",
            adjacency="add-or-remove-one",
            steps=steps,
        )
        self.plan = replace(plan, noise_multiplier=noise_multiplier(plan, epsilon, DELTA))
        self.deviation = self.plan.standard_deviation
        self.source = NoiseSource(test_seed=1 if fault == "repeated seed" else None)
        torch.manual_seed(0)
        self.p, self.h = torch.randn(12, 5) * torch.logspace(-3, 2, 12)[:, None], torch.randn(12, 6)

    def clipped_sum(self, indices):
        rows = torch.tensor(list(indices), dtype=torch.long)
        clip_norm = 1e6 if self.fault == "missing clipping" else CLIP_NORM
        total = clip([linear_head(self.p[rows], self.h[rows])], clip_norm).sums["rows"].flatten()
        return total / max(1, len(rows)) if self.fault == "divided" else total

    def noised(self, total):
        if self.fault == "missing noise":
            self.source.draws += 1
            return total
        deviation = self.deviation / 2 if self.fault == "halved noise" else self.deviation
        released = add_noise({"rows": total}, deviation, self.source).values["rows"]
        if self.fault == "forgotten row":
            released[:6] = total[:6]
        return released

    def checks(self, size=512, canaries=200):
        self.source.draws = 0
        zeros = np.zeros(size)
        draws = np.stack([self.noised(zeros) for _ in range(self.steps)])
        if self.fault == "repeated seed":
            draws = np.concatenate([draws, np.stack([Run(self.fault).noised(zeros)])])
        inserted = u.canary_gradients(canaries, 4096, CLIP_NORM)
        included = u.draw_inclusion(canaries)
        total = sum(self.noised(inserted[included].sum(axis=0)) for _ in range(self.steps))
        scores = u.canary_scores(total, inserted)
        charged = self.steps if self.fault == "uncharged steps" else 2 * self.steps
        return [
            u.noise_is_as_large_as_stated(draws, self.deviation),
            u.noise_is_fresh(draws),
            u.clipping_holds_on_neighbours(self.clipped_sum, 12, CLIP_NORM),
            u.sums_add_up(self.clipped_sum, 12),
            u.steps_charged_equal_steps_noised(charged, self.source.draws),
            u.canaries_agree_with_the_claim(scores, included, [self.plan], guesses=100),
        ]


def flagged(run):
    return {check.name for check in run.checks() if check.flagged}


def test_correct_run_is_not_flagged():
    for _ in range(5):
        assert flagged(Run()) == set()


def test_halved_noise_is_flagged():
    assert "noise is as large as stated" in flagged(Run("halved noise"))


def test_missing_noise_is_flagged():
    assert {"noise is as large as stated", "canaries agree with the claim"} <= flagged(Run("missing noise"))


def test_rows_without_noise_are_flagged():
    assert "noise is as large as stated" in flagged(Run("forgotten row", steps=20))


def test_missing_clipping_is_flagged():
    assert "clipping holds on neighbours" in flagged(Run("missing clipping"))


def test_repeated_seed_is_flagged():
    assert "noise is fresh" in flagged(Run("repeated seed"))


def test_division_by_the_batch_size_is_flagged():
    assert "sums add up" in flagged(Run("divided"))


def test_uncharged_steps_are_flagged():
    assert "steps charged = steps noised" in flagged(Run("uncharged steps"))


def test_chi_square_p_values_are_upper_bounds():
    from scipy.stats import chi2

    for freedom in (10, 500, 50_000):
        for ratio in (0.25, 0.9, 0.99, 1.01, 1.3, 4.0):
            exact = chi2.cdf(ratio * freedom, freedom) if ratio < 1 else chi2.sf(ratio * freedom, freedom)
            assert u._chi_square_tail(ratio, freedom) >= exact


def test_one_run_p_value_is_that_of_the_paper():
    """Steinke, Nasr and Jagielski 2023, appendix D, computed with scipy's binomial."""
    from scipy.stats import binom

    for m, r, v, epsilon, delta in [
        (1000, 100, 75, 0.5, 0.0),
        (1000, 100, 80, 1.0, 1e-5),
        (500, 500, 400, 0.7, 1e-4),
        (50, 50, 50, 2.0, 1e-3),
    ]:
        q = 1 / (1 + np.exp(-epsilon))
        worst = max((sum(binom.pmf(v - j, r, q) for j in range(1, i + 1)) / i for i in range(1, v + 1)), default=0.0)
        expected = min(1.0, binom.sf(v - 1, r, q) + 2 * m * delta * worst)
        assert u.one_run_p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-8)


def test_lower_bound_is_below_the_true_epsilon():
    """Randomised response at epsilon 1 on 20,000 canaries: the bound comes close and stays below."""
    draw = np.random.default_rng(0)
    included = draw.random(20_000) < 0.5
    truthful = draw.random(20_000) < 1 / (1 + np.exp(-1.0))
    scores = np.where(truthful, included, ~included).astype(float) + 1e-3 * draw.random(20_000)
    correct = u.right_guesses(scores, included, 10_000)
    bound = u.one_run_lower_bound(20_000, 10_000, correct, 0.0)
    assert 0.8 < bound < 1.0
    assert u.one_run_lower_bound(1000, 100, 50, 1e-5) == 0.0


def test_too_few_canaries_are_said_to_be_too_few():
    included = u.draw_inclusion(10)
    check = u.canaries_agree_with_the_claim(
        np.where(included, 1.0, -1.0), included, [Run(epsilon=8.0).plan], guesses=10
    )
    assert not check.flagged and "too few canaries" in check.detail


def test_bad_input_is_refused():
    with pytest.raises(PrivacyError, match="draws have shape"):
        u.noise_is_as_large_as_stated(np.zeros(5), 1.0)
    with pytest.raises(PrivacyError, match="at least two"):
        u.noise_is_fresh(np.zeros((1, 5)))
