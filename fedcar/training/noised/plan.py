"""The plan of a training under epsilon: what will be given out, how often, with how much noise; no question is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedcar.errors import FedcarError
from fedcar.privacy.accountant import epsilon_of, fits, noise_multiplier
from fedcar.privacy.errors import PrivacyError
from fedcar.privacy.release import Release
from fedcar.privacy.statement import Statement, state
from fedcar.training.target import Target, check_steps, shown

# Measured on dev of banking77, arxiv_meta, ag_news and sms_spam and parts of them, epsilon .5 to 3: strength, and the
# share of what un-noised training gains over the encoder alone that `head` kept; single runs lie within .15 of it.
STRENGTHS = (9.0, 16.0, 25.0, 40.0, 80.0, 160.0, 240.0, 500.0)
SHARES = (0.1, 0.35, 0.5, 0.6, 0.8, 0.87, 0.93, 0.97)
METHODS = ("auto", "ridge", "head", "adapter")
COUNT_SHARE, SUMS_SHARE = 0.01, 0.19  # of the budget, in 1 / variance; the steps get the rest
HELD_OUT_SHARE = 0.04  # of it, where held-out questions of the clients count at the end
HELD_OUT = "held out"
STEPS, CLIP_NORM = 30, 0.5
LEAST_CLIP_NORM, LARGEST_CLIP_NORM = 1e-3 * CLIP_NORM, 1e3 * CLIP_NORM  # where it adapts
SAMPLED_EPOCHS = 4
SAMPLING_RATE = 0.05  # of the adapter's steps: each question by its own coin
LEAST_STRENGTH = 9.0
MOST_WEIGHT = 7.0  # of a person, counted in persons of one question: what the root of 49 questions is
MOST_UNITS = 10**12  # questions or documents that a plan can be asked for
GRID_SLACK = 1 + 1e-4
SLACK = 1 + 1e-6  # on calibrated noise, so that adding up one release at a time never ends above the budget


@dataclass(frozen=True)
class PrivatePlan:
    """All releases of a run, in order: `count` once (None where the number of units is public), `sums` once, `step`.

    `sums` is None where public questions stand for class sums and steps follow, which have their share.

    A release under unit "example" is what each client makes of its own questions, with its own noise: the same plan
    for every client, so that each spends the same epsilon and the largest, which is this one, holds for all.
    """

    method: str
    target: Target
    documents: int
    count: Release | None
    sums: Release | None
    step: Release | None
    clip_norm: float
    total_noise: float  # the noise multiplier of the whole budget, spent on one full-batch release
    held_out: Release | None = None

    @property
    def steps(self) -> int:
        return self.step.steps if self.step is not None else 0

    @property
    def releases(self) -> tuple[Release, ...]:
        everything = (self.count, self.sums, self.step, self.held_out)
        return tuple(release for release in everything if release is not None)

    @property
    def epsilon(self) -> float:
        """What the whole plan gives away, by the accountant."""
        return epsilon_of(self.releases, self.target.delta)

    def in_words(self) -> dict[str, object]:
        """Plain values: what will be given out, how often, with how much noise."""
        releases = [
            {**release.to_json(), "standard_deviation": release.standard_deviation} for release in self.releases
        ]
        return {"epsilon": self.epsilon, "delta": self.target.delta, "method": self.method, "releases": releases}

    def strength(self, units: float, loudness: float = 1.0) -> float:
        """Units a document over the noise, `loudness` times one client's: how far what is learned stands above it.

        Below LEAST_STRENGTH training ends below search (docs/privacy.md has the measurements).
        """
        return units / (self.documents * self.total_noise * loudness)

    def statement(self, given: tuple[Release, ...], clients: int, selection: dict[str, str]) -> Statement:
        """The claim over what was really given out, by one client (they all spend alike)."""
        what = {
            "count": "how many persons there are and how much they asked together, noised"
            if self.target.protects == "person"
            else "how many questions there are, noised",
            "class sums": "for each document the sum of its questions' vectors, noised",
            "head": "sums of clipped gradients of the rows, noised",
            "adapter": "sums of clipped gradients of adapter and rows, noised",
            HELD_OUT: "how many held-out questions there are and how many search and training get right, noised",
        }
        if self.target.adaptive_clip:
            what |= {name: f"{what[name]}, with how many were not clipped" for name in ("head", "adapter")}
        names = list(dict.fromkeys(release.name for release in given))
        claim = state(
            given,
            self.target.delta,
            method=self.method,
            clip_norm=self.clip_norm if self.step is not None else 1.0,
            released=[what[name] for name in names],
            selection=selection,
            clients=clients,
        )
        declared = {"dev split": self.target.public_dev, "questions of a file": self.target.public_file}
        public = {what: self.target.public_because or "" for what, given in declared.items() if given}
        return replace(claim, public=public)


def calibrated(template: Release, target: Target, already: Sequence[Release] = ()) -> float:
    """The noise multiplier with which the template fits the budget, after what was released already."""
    try:
        return noise_multiplier(template, target.epsilon, target.delta, already)
    except PrivacyError:
        raise
    except (OverflowError, ValueError) as error:  # the numbers leave what floating point holds
        budget = f"--epsilon {target.epsilon:g} --delta {target.delta:g}"
        raise FedcarError(f"{budget}: no noise can be worked out; give an epsilon from 0.001 to 100") from error


def one_release(target: Target) -> Release:
    """One sum over all units, of which each adds at most 1; how many clients there are is known."""
    return Release(
        name="count",
        noise_multiplier=1.0,
        sensitivity=1.0,
        sampler="full-batch",
        unit=target.protects,
        adjacency="zero-out-one" if target.unit == "client" else "add-or-remove-one",
    )


def make_plan(
    target: Target,
    method: str,
    documents: int,
    *,
    steps: int | None = None,
    clip_norm: float = CLIP_NORM,
    sampling_rate: float | None = None,
) -> PrivatePlan:
    """Share the budget out and calibrate the noise; `auto` is `head`: a choice fixed in advance, which costs nothing.

    `sampling_rate` below 1 is Poisson sampling (each unit in each step by its own coin); by default the adapter's steps
    are sampled and all others take every question.
    """
    method = "head" if method == "auto" else method
    if method not in METHODS:
        raise FedcarError(f'--method "{method}": not known; give one of {", ".join(METHODS)}')
    target.check()
    if not 1 <= documents <= MOST_UNITS:
        raise FedcarError(f"--documents {shown(documents)}: must be 1 or more, and at most {MOST_UNITS:g}")
    rate = sampling_rate if sampling_rate is not None else SAMPLING_RATE if method == "adapter" else 1.0
    check_steps(steps, rate, target)
    counted = one_release(target)  # calibrated as if noise counted; a test seed makes the claim infinite below
    total = calibrated(counted, target)
    count = (
        None
        if target.unit == "client"
        else replace(
            counted,
            noise_multiplier=total / COUNT_SHARE**0.5 * SLACK,
            sensitivity=2**0.5 if target.protects == "person" else 1.0,  # see ClippedSums.counts
        )
    )
    held_out = None
    if target.held_out:  # each question adds at most (1, 1, 1)
        noise = total / HELD_OUT_SHARE**0.5 * SLACK
        held_out = replace(counted, name=HELD_OUT, sensitivity=3**0.5, noise_multiplier=noise)
    share = 1.0 - (COUNT_SHARE if count is not None else 0.0) - (HELD_OUT_SHARE if held_out is not None else 0.0)
    sums: Release | None = replace(counted, name="class sums", noise_multiplier=total / share**0.5 * SLACK)
    step = None
    if method != "ridge":
        alone = replace(counted, name="class sums", noise_multiplier=total / SUMS_SHARE**0.5 * SLACK)
        sums = None if target.public_rows else alone
        template = replace(
            counted,
            name=method,
            sensitivity=1.0 if target.adaptive_clip else clip_norm,
            sampler="full-batch" if rate == 1 else "poisson",
            sampling_rate=rate,
            steps=steps or (STEPS if rate == 1 else round(SAMPLED_EPOCHS / rate)),
        )
        before = [release for release in (count, sums, held_out) if release is not None]
        multiplier = calibrated(template, target, before)
        step = replace(template, noise_multiplier=multiplier * SLACK)
        while not fits((*before, step), target.epsilon, target.delta):  # the accountant's grid moves with the noise
            step = replace(step, noise_multiplier=step.noise_multiplier * GRID_SLACK)
    if target.noise_seed is not None:
        count, sums, step, held_out = (
            part and replace(part, noise="seeded-test") for part in (count, sums, step, held_out)
        )
    return PrivatePlan(method, target, documents, count, sums, step, clip_norm, total, held_out)
