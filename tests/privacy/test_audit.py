"""A correct run is not flagged; each planted fault is: the checks by themselves, on noise that is made here."""

import math

import numpy as np
import pytest

from fedcar.privacy import audit, coins, membership, reference
from fedcar.privacy.accountant import delta_of, epsilon_of, gaussian_delta
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.noise import NoiseSource, add_noise
from fedcar.privacy.release import Release

ROWS, WIDTH, RELEASES = 12, 32, 30
STARTS = range(0, ROWS * WIDTH, WIDTH)
RATE = 0.05


def release(multiplier, steps=1, rate=1.0, sensitivity=0.5):
    return Release(
        name="head",
        noise_multiplier=multiplier,
        sensitivity=sensitivity,
        sampler="full-batch" if rate == 1 else "poisson",
        sampling_rate=rate,
        unit="example",
        adjacency="add-or-remove-one",
        steps=steps,
    )


def normals(count=RELEASES):
    return NoiseSource().normal((count, ROWS * WIDTH))


def found(residuals, sums=None):
    """The names of the checks of noise that are flagged, on residuals (releases, coordinates)."""
    exact = np.random.default_rng(0).standard_normal(residuals.shape) if sums is None else sums
    checks = [
        audit.noise_is_as_large_as_stated(residuals, STARTS),
        audit.noise_is_gaussian(residuals),
        audit.noise_has_no_mean(residuals),
        audit.noise_is_fresh(residuals),
        audit.noise_is_independent_within(residuals, WIDTH),
        audit.noise_ignores_the_sums(residuals, exact),
    ]
    return {check.name.removeprefix("noise ") for check in audit.together(checks) if check.flagged}


def test_correct_run_is_not_flagged():
    for _ in range(20):
        assert found(normals()) == set()


def test_halved_noise_is_flagged():
    assert "is as large as stated" in found(normals() / 2)
    assert "is as large as stated" in found(normals() * 2), "stated is stated, on both sides"


def test_missing_noise_is_flagged():
    one_row, one_release = normals(), normals()
    one_row[:, 32:64] = 0.0
    one_release[7] = 0.0
    one_row_of_one_release = normals()
    one_row_of_one_release[3, 64:96] = 0.0
    one_coordinate = normals()
    one_coordinate[:, 5] = 1e-6
    for noise in (one_row, one_release, one_row_of_one_release, one_coordinate, normals() * 1e-7):
        assert "is as large as stated" in found(noise)


def test_scattered_coordinates_without_noise_are_flagged():
    """In one release, where no coordinate can be seen twice."""
    noise = normals(1)
    noise[0, np.random.default_rng(0).permutation(noise.size)[:40]] = 1e-7
    assert audit.noise_is_gaussian(noise).flagged
    uniform = np.random.default_rng(0).uniform(-(3**0.5), 3**0.5, (RELEASES, ROWS * WIDTH))
    assert "is Gaussian" in found(uniform)


def test_repeated_seed_is_flagged():
    again, negated, related = normals(), normals(), normals()
    again[9] = again[4]
    negated[9] = -negated[4]
    related[9] = 0.6 * related[4] + 0.8 * related[9]
    for noise in (again, negated, related):
        assert "is fresh" in found(noise)
    always = np.tile(normals(1), (RELEASES, 1))
    assert {"is fresh", "has no mean"} <= found(always)
    with pytest.raises(PrivacyError, match="at least two"):
        audit.noise_is_fresh(normals(1))


def test_noise_that_comes_again_within_a_release_is_flagged():
    one_row = np.tile(normals()[:, :WIDTH], ROWS)
    blocks = np.tile(normals()[:, :120], 4)[:, : ROWS * WIDTH]
    two_rows = normals()
    two_rows[3, :WIDTH] = -two_rows[3, 2 * WIDTH : 3 * WIDTH]
    for noise in (one_row, blocks):
        assert "is independent within a release" in found(noise)
    long = NoiseSource().normal((1, 40 * 256))
    long[0, 7 * 256 : 8 * 256] = long[0, 2 * 256 : 3 * 256]
    assert audit.noise_is_independent_within(long, 256).flagged


def test_noise_that_knows_the_sums_is_flagged():
    sums = np.random.default_rng(0).standard_normal((RELEASES, ROWS * WIDTH))
    assert "ignores the sums" in found(normals() * (0.5 + np.abs(sums[:1])), np.tile(sums[:1], (RELEASES, 1)))
    assert "ignores the sums" in found(normals() + 0.5 * sums, sums), "the sum itself is another one than is said"


def test_values_off_the_grid_are_flagged():
    noised = add_noise({"rows": np.zeros((50, 4))}, 0.3, NoiseSource()).values["rows"].astype(np.float32)
    assert not audit.released_values_are_on_the_grid([noised], [0.3]).flagged
    assert audit.released_values_are_on_the_grid([noised + np.float32(1e-7)], [0.3]).flagged


def test_missing_clipping_is_flagged():
    assert not audit.clipping_holds_on_neighbours([0.1, 0.5 * (1 + 1e-6)], 0.5).flagged
    assert audit.clipping_holds_on_neighbours([0.1, 0.51], 0.5).flagged


def test_uncharged_steps_are_flagged():
    assert audit.steps_charged_equal_steps_noised(10, 11).flagged
    assert not audit.steps_charged_equal_steps_noised(10, 10).flagged


def test_many_checks_together_are_flagged_no_more_often_than_one():
    checks = audit.together([audit.Check("a", 1e-7, ""), *[audit.Check("b", 0.5, "")] * 19])
    assert checks[0].p_value == pytest.approx(2e-6) and not checks[0].flagged and checks[1].p_value == 1
    assert audit.together([audit.certain("c", False, "")] * 30)[0].flagged


def test_p_values_are_upper_bounds():
    """Against scipy's distributions; and of all p-values of right runs at most so many are small."""
    from scipy.stats import binom, chi2

    for freedom in (10, 500, 50_000):
        for ratio in (0.25, 0.9, 0.99, 1.01, 1.3, 4.0):
            exact = chi2.cdf(ratio * freedom, freedom) if ratio < 1 else chi2.sf(ratio * freedom, freedom)
            assert audit._chi_square_tail(ratio, freedom) >= exact
    for right in (0, 3, 20, 60, 100):
        exact = binom.cdf(right, 100, 0.2) if right < 20 else binom.sf(right - 1, 100, 0.2)
        assert audit.binomial_tail(right, 100, 0.2) >= exact * (1 - 1e-9)
        assert membership._as_many(right, 100, 0.2) == pytest.approx(binom.sf(right - 1, 100, 0.2))
    generator = np.random.default_rng(0)
    small = {"stated": 0, "independent": 0, "noise": 0}
    for _ in range(300):
        taken = generator.random((20, 15)) < RATE
        small["stated"] += coins.coins_are_as_stated(taken, RATE).p_value < 0.05
        small["independent"] += coins.coins_are_independent(taken, RATE).p_value < 0.05
        noise = generator.standard_normal((5, 40))
        small["noise"] += audit.noise_is_as_large_as_stated(noise, range(0, 40, 8)).p_value < 0.05
    assert max(small.values()) <= 25, small  # 15 are allowed on average; 25 or more by chance in one of 100


# ---------------------------------------------------------------- coins


def tossed(steps=80, units=300, rate=RATE):
    return np.random.default_rng().random((steps, units)) < rate


def test_right_coins_are_not_flagged():
    for rate in (RATE, 0.3, 0.9):
        for _ in range(10):
            runs = [tossed(rate=rate), tossed(rate=rate)]
            checks = [coins.coins_are_as_stated(runs[0], rate), coins.coins_are_independent(runs[0], rate)]
            assert not any(check.flagged for check in [*checks, coins.coins_are_fresh(runs, rate)])
    everyone = np.ones((3, 5), dtype=bool)
    assert not coins.coins_are_as_stated(everyone, 1.0).flagged
    assert not coins.coins_are_independent(everyone, 1.0).flagged


def test_wrong_coins_are_flagged():
    for rate in (0.5, 0.08, 0.02, 0.0):
        assert coins.coins_are_as_stated(tossed(rate=rate), RATE).flagged
    one_unit, one_step = tossed(), tossed()
    one_unit[:, 4], one_step[9] = True, True
    assert coins.coins_are_as_stated(one_unit, RATE).flagged and coins.coins_are_as_stated(one_step, RATE).flagged
    not_all = np.ones((3, 5), dtype=bool)
    not_all[1, 1] = False
    assert coins.coins_are_as_stated(not_all, 1.0).flagged


def test_dependent_coins_are_flagged():
    generator = np.random.default_rng(0)
    shuffled = np.zeros((80, 300), dtype=bool)
    for epoch in range(4):
        for step, chosen in enumerate(np.array_split(generator.permutation(300), 20)):
            shuffled[20 * epoch + step, chosen] = True
    of_one_size = np.zeros((80, 300), dtype=bool)
    for row in of_one_size:
        row[generator.permutation(300)[:15]] = True
    cohort = np.tile(tossed(1), (80, 1))
    pairs, held = np.repeat(tossed(units=150), 2, axis=1), np.repeat(tossed(steps=40), 2, axis=0)
    from_before = tossed()
    from_before[40:] = from_before[:40]
    for taken in (shuffled, of_one_size, cohort, pairs, held, from_before):
        assert coins.coins_are_independent(taken, RATE).flagged
    taken = tossed()
    assert coins.coins_are_fresh([taken, taken], RATE).flagged


# ---------------------------------------------------------------- the attack, and the claim


def attack(multiplier, actual, steps=1, rate=1.0, count=1000):
    """The likelihood ratio on made-up canaries of length 1, noised with `actual` where `multiplier` is stated."""
    generator = np.random.default_rng()
    included = membership.draw_inclusion(count)
    drawn = (generator.random((steps, count)) < rate) & included
    amounts = drawn + actual * generator.standard_normal((steps, count))
    settings = [1.0] * steps, [multiplier] * steps, [rate] * steps
    ratios = membership.log_likelihood_ratios(list(amounts), *settings)
    _, apart = reference.deltas([release(multiplier, steps, rate)], 0.0)
    return membership.attacked(ratios, included, (1 + apart) / 2, membership.simulated_area(*settings))


@pytest.mark.parametrize(("multiplier", "steps", "rate"), [(3.7, 1, 1.0), (2.0, 30, 1.0), (1.0, 80, RATE)])
def test_canaries_agree_with_a_claim_that_holds(multiplier, steps, rate):
    for _ in range(5):
        attacked = attack(multiplier, multiplier, steps, rate)
        assert not membership.canaries_agree_with_the_claim(attacked).flagged
        assert attacked.area == pytest.approx(attacked.area_allowed, abs=0.1)
        assert attacked.distance_at_least < attacked.distance + 0.1


def test_canaries_refute_a_claim_that_does_not_hold():
    for settings in ((3.7, 0.5), (3.7, 1e-3), (20.0, 5.0, 30)):
        attacked = attack(*settings)
        assert membership.canaries_agree_with_the_claim(attacked).flagged
        assert attacked.distance_at_least > attacked.distance_allowed


def test_the_attack_finds_what_gaussian_privacy_allows():
    """At mu .267 (epsilon 1 at delta 1e-5) the AUC is Phi(mu / sqrt 2) = .575: the mean of some runs comes near."""
    runs = [attack(1 / 0.267, 1 / 0.267, count=5000) for _ in range(4)]
    assert runs[0].area_allowed == pytest.approx(0.575, abs=0.01)
    assert np.mean([run.area for run in runs]) == pytest.approx(0.575, abs=0.02)
    assert runs[0].distance_allowed == pytest.approx(0.267, abs=0.005)


def test_canaries_are_at_right_angles_and_are_read_again():
    canaries = membership.Canaries(7, 40)
    each = np.stack([canaries.planted(one) for one in np.eye(7)])
    np.testing.assert_allclose(each @ each.T, np.eye(7), atol=1e-12)
    np.testing.assert_allclose(canaries.read(canaries.planted(np.arange(7.0))), np.arange(7.0), atol=1e-12)
    fewer = canaries.among(23)
    np.testing.assert_allclose(fewer.read(fewer.planted(np.arange(7.0))), np.arange(7.0), atol=1e-12)
    with pytest.raises(PrivacyError, match="do not fit"):
        membership.Canaries(41, 40)


SETTINGS = [
    [release(3.7, sensitivity=1.0)],
    [release(37.3), release(8.6), release(22.8, 30)],
    [release(8.6), release(2.1, 80, RATE)],
    [release(1.1, 80, RATE)],
    [release(0.7, 10, 0.3), release(4.0, 3)],
    [release(0.4, 2)],
]


@pytest.mark.parametrize("releases", SETTINGS)
def test_lower_bound_is_below_the_true_epsilon(releases):
    """Against dp-accounting's pessimistic epsilon, and near it."""
    pld = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    total = None
    for one in releases:
        part = pld.from_gaussian_mechanism(one.noise_multiplier, sampling_prob=one.sampling_rate)
        part = part.self_compose(one.steps)
        total = part if total is None else total.compose(part)
    true = total.get_epsilon_for_delta(1e-5)
    least = reference.epsilon_at_least(releases, 1e-5)
    assert 0.985 * true < least <= true
    low, high = reference.deltas(releases, 1.0)
    assert low <= total.get_delta_for_epsilon(1.0) * (1 + 1e-6) and total.get_delta_for_epsilon(1.0) <= high * 1.001


@pytest.mark.parametrize("releases", SETTINGS)
def test_the_accountant_stands_between_the_bounds(releases):
    assert reference.epsilon_at_least(releases, 1e-5) <= epsilon_of(releases, 1e-5)
    for epsilon in (0.0, 0.7, 2.0):
        low, high = reference.deltas(releases, epsilon)
        assert low <= delta_of(releases, epsilon) <= high


def test_the_reference_is_the_exact_gaussian_formula():
    for distance in (0.05, 0.27, 1.0, 4.0):
        low, high = reference.deltas([release(1 / distance)], 0.5)
        assert low <= gaussian_delta(distance, 0.5) <= high and high - low < 1e-3
    assert reference.epsilon_at_least([], 1e-5) == 0
    assert math.isinf(reference.epsilon_at_least([release(0.0)], 1e-5))


def test_bad_input_is_refused():
    with pytest.raises(PrivacyError, match="residuals have shape"):
        audit.noise_is_as_large_as_stated(np.zeros(5))
    with pytest.raises(PrivacyError, match="coins have shape"):
        coins.coins_are_as_stated(np.zeros(5, dtype=bool), RATE)
