"""Faults of the noise: missing, of another size, form or place, repeated, known, or in the know."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from support.planting import (
    FRESH,
    GAUSSIAN,
    IGNORES,
    SIZE,
    STEPS,
    SUM,
    WITHIN,
    Patch,
    Sums,
    bare,
    fault,
    noising,
    normals,
    scaled,
    spoiled,
)
from torch import Tensor

from fedcar.privacy import noise as noises
from fedcar.privacy.noise import NoiseSource
from fedcar.privacy.release import Release
from fedcar.training.noised.clients import NoisedClient, NoisedRequest
from fedcar.training.noised.sums import BELOW, ROWS, SUMS

# ---------------------------------------------------------------- without noise


@fault("un-noised", SIZE)
def steps_bare(patch: Patch) -> None:
    """Steps leave without noise."""
    bare(patch, lambda release: release.name in STEPS)


@fault("un-noised", SIZE, "ridge")
def class_sums_bare(patch: Patch) -> None:
    """Class sums leave without noise."""
    bare(patch, lambda release: release.name == "class sums")


@fault("un-noised", "count: noise is as large", "ridge")
def count_bare(patch: Patch) -> None:
    """The count leaves without noise."""
    bare(patch, lambda release: release.name == "count")


@fault("un-noised", "held out: noise is as large", "ridge")
def held_out_bare(patch: Patch) -> None:
    """What is held out is counted without noise."""
    bare(patch, lambda release: release.name == "held out")


@fault("un-noised", SIZE)
def one_step_bare(patch: Patch) -> None:
    """Of thirteen steps one has no noise."""
    seen: list[int] = []

    def thirteenth(release: Release) -> bool:
        seen.append(1)
        return release.name in STEPS and len(seen) % 13 == 0

    bare(patch, thirteenth)


@fault("un-noised", SUM)
def bit_bare(patch: Patch) -> None:
    """How many gradients were below the adaptive clip norm leaves without noise."""
    spoiled(patch, lambda name, noisy, exact: exact if name == BELOW else noisy)


@fault("un-noised", SIZE)
def one_device_bare(patch: Patch) -> None:
    """`answer` of one device goes round the door."""
    right = NoisedClient.answer

    def answer(self: NoisedClient, request: NoisedRequest) -> Any:
        given = right(self, request)
        if self.name == "device 2" and request.release.name == "head" and self.private_questions is not None:
            return {name: bare.float() for name, bare in request.sums(self.private_questions).items()}
        return given

    patch.setattr(NoisedClient, "answer", answer)


@fault("un-noised", "class sums: noise is as large", "ridge")
def answered_by_hand(patch: Patch) -> None:
    """`answer` noises, charges, and then sends the class sums as they were."""
    right = NoisedClient.answer

    def answer(self: NoisedClient, request: NoisedRequest) -> Any:
        given = right(self, request)
        if request.release.name == "class sums" and self.private_questions is not None:
            return {ROWS: self.private_questions.class_sums()[SUMS].float()}
        return given

    patch.setattr(NoisedClient, "answer", answer)


# ---------------------------------------------------------------- of another size


@fault("noise of another size", SIZE)
def noise_of_four_fifths(patch: Patch) -> None:
    """All noise is .8 of what is stated."""
    scaled(patch, lambda release: 0.8)


@fault("noise of another size", "class sums: noise is as large", "ridge")
def class_sums_of_four_fifths(patch: Patch) -> None:
    """The class sums' noise is .8 of what is stated."""
    scaled(patch, lambda release: 0.8 if release.name == "class sums" else 1.0)


@fault("noise of another size", "adapter: noise is as large", "adapter")
def adapter_of_four_fifths(patch: Patch) -> None:
    """The noise of the adapter's steps is .8 of what is stated."""
    scaled(patch, lambda release: 0.8 if release.name == "adapter" else 1.0)


@fault("noise of another size", "unit client: class sums: noise is as large", "ridge")
def noise_shared_out(patch: Patch) -> None:
    """With clients as the unit the noise is made for the mean of two of them."""
    scaled(patch, lambda release: 0.5 if release.unit == "client" else 1.0)


@fault("noise of another size", SIZE)
def variance_for_deviation(patch: Patch) -> None:
    """The standard deviation is taken for the variance."""
    scaled(patch, lambda release: release.standard_deviation**-0.5)


# ---------------------------------------------------------------- on some coordinates


@fault("noise on some coordinates", SIZE)
def first_row_bare(patch: Patch) -> None:
    """The first document's row has no noise."""

    def how(name: str, noisy: Tensor, exact: Tensor) -> Tensor:
        noisy[0] = exact[0]
        return noisy

    spoiled(patch, how)


@fault("noise on some coordinates", SIZE)
def tenth_coordinates_bare(patch: Patch) -> None:
    """Every tenth coordinate has no noise."""

    def how(name: str, noisy: Tensor, exact: Tensor) -> Tensor:
        noisy.reshape(-1)[::10] = exact.reshape(-1)[::10]
        return noisy

    spoiled(patch, how)


@fault("noise on some coordinates", "adapter: ", "adapter")
def adapter_bare(patch: Patch) -> None:
    """The adapter's matrix has no noise, the rows have."""
    spoiled(patch, lambda name, noisy, exact: exact if name == "difference" else noisy)


@fault("noise on some coordinates", SIZE, "ridge")
def documents_without_questions_bare(patch: Patch) -> None:
    """Class sums of documents that nobody asks for stay zero."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        given = right(sums, release, source)
        if release.name == "class sums":
            given[ROWS][(sums[ROWS] == 0).all(1)] = 0.0
        return given

    noising(patch, how)


# ---------------------------------------------------------------- that comes again


@fault("repeated noise", FRESH)
def same_noise_in_each_step(patch: Patch) -> None:
    """Steps use the same noise again."""
    kept: dict[Any, Any] = {}

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        return kept.setdefault(shape, right(self, shape)).copy()

    normals(patch, how)


@fault("repeated noise", FRESH)
def same_noise_at_each_device(patch: Patch) -> None:
    """Two devices have the same noise."""
    kept: dict[Any, Any] = {}

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        normal = right(self, shape)
        return kept.setdefault((self.draws, shape), normal).copy()

    normals(patch, how)


@fault("repeated noise", FRESH)
def noise_with_the_other_sign(patch: Patch) -> None:
    """Every second draw is the one before with the other sign."""
    kept: dict[Any, Any] = {}

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        normal = right(self, shape)
        if shape in kept:
            return -kept.pop(shape)
        kept[shape] = normal
        return normal.copy()

    normals(patch, how)


@fault("repeated noise", WITHIN)
def one_row_of_noise(patch: Patch) -> None:
    """All rows of a release have the noise of one."""

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        width = 32
        normal = right(self, shape)
        return normal if normal.size % width else np.tile(normal[:width], normal.size // width)

    normals(patch, how)


@fault("repeated noise", "noise is fresh over all kinds")
def class_sums_noise_in_steps(patch: Patch) -> None:
    """The first step has the noise of the class sums."""
    kept: dict[Any, Any] = {}

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        normal = right(self, shape)
        if self.draws == 3 and (id(self), shape) in kept:
            return kept[id(self), shape].copy()
        kept[id(self), shape] = normal.copy()
        return normal

    normals(patch, how)


# ---------------------------------------------------------------- that can be known


@fault("seeded noise", FRESH)
def seeded_by_a_constant(patch: Patch) -> None:
    """Normals of a generator with a constant for a seed."""
    normals(patch, lambda self, shape, right: [right(self, shape), np.random.default_rng(7).standard_normal(shape)][1])


@fault("seeded noise", FRESH)
def seeded_by_the_step(patch: Patch) -> None:
    """Normals of a generator that is seeded by the number of the draw."""

    def how(self: NoiseSource, shape: tuple[int, ...], right: Any) -> Any:
        right(self, shape)
        return np.random.default_rng(self.draws).standard_normal(shape)

    normals(patch, how)


@fault("seeded noise", FRESH)
def of_numpys_global_generator(patch: Patch) -> None:
    """Normals of numpy's global generator, which --seed may seed."""
    normals(patch, lambda self, shape, right: [right(self, shape), np.random.standard_normal(shape)][1])  # noqa: NPY002


@fault("seeded noise", FRESH)
def of_torchs_global_generator(patch: Patch) -> None:
    """Normals of torch's global generator."""
    normals(patch, lambda self, shape, right: [right(self, shape), torch.randn(shape).double().numpy()][1])


# ---------------------------------------------------------------- noise that knows


@fault("noise depends on data", IGNORES)
def noise_where_sums_are_large(patch: Patch) -> None:
    """Noise is larger where the sums are."""

    def how(name: str, noisy: Tensor, exact: Tensor) -> Tensor:
        order = exact.abs().reshape(-1).argsort().argsort().reshape(exact.shape) / exact.numel()
        return exact + (noisy - exact) * (0.5 + order)

    spoiled(patch, how)


@fault("noise depends on data", SIZE)
def noise_by_the_length_of_the_sum(patch: Patch) -> None:
    """The noise is in proportion to the sum's own length."""
    spoiled(patch, lambda name, noisy, exact: exact + (noisy - exact) * float(exact.norm()))


@fault("noise depends on data", FRESH)
def seeded_by_the_sums(patch: Patch) -> None:
    """The noise's seed is a hash of the sums."""

    def how(right: Any, sums: Sums, release: Release, source: NoiseSource) -> Any:
        content = b"".join(tensor.numpy().tobytes() for tensor in sums.values())
        generator = np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:8], "big"))
        source.draws += 1
        return {
            name: (
                tensor + release.standard_deviation * torch.from_numpy(generator.standard_normal(tensor.shape))
            ).float()
            for name, tensor in sums.items()
        }

    noising(patch, how)


@fault("noise of another form", GAUSSIAN)
def uniform_noise(patch: Patch) -> None:
    """Uniform noise of the same variance."""
    normals(
        patch,
        lambda self, shape, right: [right(self, shape), np.random.default_rng().uniform(-(3**0.5), 3**0.5, shape)][1],
    )


@fault("noise of another form", GAUSSIAN)
def laplace_noise(patch: Patch) -> None:
    """Laplace noise of the same variance."""
    normals(
        patch,
        lambda self, shape, right: [right(self, shape), np.random.default_rng().laplace(0, 0.5**0.5, shape)][1],
    )


@fault("noise of another form", "rounded to the grid", "ridge")
def not_rounded(patch: Patch) -> None:
    """What leaves is not rounded."""
    patch.setattr(noises, "round_to_grid", lambda values, deviation: None)
