"""What left, less what it should be by the definitions, over the noise that was stated: standard normals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedcar.training.noised.audit.definition import Definition, names_of, shapes_of
from fedcar.training.noised.audit.watched import Exchange
from fedcar.training.noised.clients import NoisedRequest
from fedcar.training.noised.sums import BELOW

Floats = NDArray[np.float64]
PLAIN_TO_SEE = 15.0  # standard deviations by which a unit's part in a sum must stand out for its coin to be read


@dataclass(frozen=True)
class Terms:
    """What a sum is made of: the exact one, or what each unit adds where coins decide; `edge`: the bits are unsure."""

    total: Floats
    by_unit: Floats | None
    edge: bool


@dataclass
class Residuals:
    """Of one kind of release: the residuals (n,) of each answer, and the exact sums beside the stated ones."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    stated: list[NDArray[np.float32]] = field(default_factory=list)
    quiet: list[NDArray[np.float32]] = field(default_factory=list)
    sums: list[NDArray[np.float32]] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


class Expected:
    """The exact terms of what each client answers, by the definitions."""

    def __init__(self, definitions: Mapping[str, Sequence[Definition]], cohort: bool) -> None:
        self.definitions, self.cohort = definitions, cohort

    def terms(self, request: NoisedRequest, name: str) -> Terms:
        """A unit is a question or, of a cohort, the mean of a member's questions."""
        units: list[Floats] = []
        total, edge, sampled = np.zeros(1), False, request.release.sampling_rate < 1
        for definition in self.definitions[name]:
            mean = np.zeros(1)
            for term, on_the_edge in definition.terms(request):
                edge = edge or on_the_edge
                mean = mean + term / len(definition)
                if sampled and not self.cohort:
                    units.append(term)
                total = total + (term / len(definition) if self.cohort else term)
            if sampled and self.cohort:
                units.append(mean)
        return Terms(total, np.stack(units) if sampled else None, edge)


def residuals_of(
    expected: Expected, passes: Mapping[str, Sequence[Exchange]], rows: tuple[int, ...]
) -> dict[str, Residuals]:
    """By the kind of release. `passes`: the exchanges at the stated noise, and "quiet" ones.

    All answers to one request are looked at together, so that its terms are made once and then forgotten.
    """
    found: dict[str, Residuals] = defaultdict(Residuals)
    by_number: dict[int, list[tuple[str, Exchange]]] = defaultdict(list)
    for which, exchanges in passes.items():
        for exchange in exchanges:
            by_number[exchange.request.number].append((which, exchange))
    for answers in by_number.values():
        known: dict[str, Terms] = {}
        for which, exchange in answers:
            request, of = exchange.request, found[exchange.request.release.name]
            names, of.shapes = names_of(request), shapes_of(request, rows)
            for client, answer in exchange.given.items():
                forms = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in answer.items()}
                stated = {name: (torch.float32, shape) for name, shape in zip(names, of.shapes, strict=True)}
                if forms != stated:
                    of.strange.append(f"exchange {request.number}, {client}: {forms}")
                    continue
                flat = torch.cat([answer[name].reshape(-1) for name in names]).double().numpy()
                if client not in known:
                    known[client] = expected.terms(request, client)
                residual = residual_of(flat, known[client], request, which == "quiet")
                (of.quiet if which == "quiet" else of.stated).append(residual)
                if which == "stated":
                    of.sums.append(known[client].total.astype(np.float32))
    return dict(found)


def residual_of(released: Floats, terms: Terms, request: NoisedRequest, quiet: bool) -> NDArray[np.float32]:
    """(n,): independent standard normals where all is right.

    Of a sampled step nobody is told whose coins said yes. With little noise they are read; directions in which the
    coins might hide are filled up with normals of our own. So are bits on the edge.
    """
    random, deviation = np.random.default_rng(), request.release.standard_deviation
    if terms.by_unit is None:
        residual = (released - terms.total) / deviation
    elif quiet:
        residual = read_coins(released, terms.by_unit, deviation)
    else:
        residual = without(terms.by_unit, released / deviation)
    if terms.edge and BELOW in names_of(request):
        residual[-1] = random.standard_normal()
    return (residual + rounding(released) / deviation).astype(np.float32)


def rounding(released: Floats) -> Floats:
    """(n,): where in its step of float32 each value may have lain before it was rounded.

    Of little noise on a large sum few values are possible. One that is just what was expected is no missing noise.
    """
    steps = np.spacing(np.abs(released).astype(np.float32)).astype(np.float64)
    return steps * np.random.default_rng().uniform(-0.5, 0.5, released.shape)


def read_coins(released: Floats, by_unit: Floats, deviation: float) -> Floats:
    """The residual once those who took part are told by least squares; who cannot be told is projected away."""
    products = by_unit @ by_unit.T
    ridge = 1e-12 * max(float(np.trace(products)), 1e-300) * np.eye(len(products))
    standing_out = 1 / np.sqrt(np.diag(np.linalg.inv(products + ridge)).clip(min=1e-300))
    told = standing_out > PLAIN_TO_SEE * deviation
    hidden = basis(by_unit[~told])
    seen = by_unit[told] - (by_unit[told] @ hidden.T) @ hidden
    residual = released - hidden.T @ (hidden @ released)
    if told.any():
        amounts = np.linalg.solve(seen @ seen.T, seen @ residual)
        residual = residual - np.clip(np.rint(amounts), 0, 1) @ seen
    return residual / deviation + hidden.T @ np.random.default_rng().standard_normal(len(hidden))


def without(by_unit: Floats, residual: Floats) -> Floats:
    """The residual with fresh normals in place of whatever lies in the span of the units."""
    hidden = basis(by_unit)
    filled = np.random.default_rng().standard_normal(len(hidden)) - hidden @ residual
    return residual + hidden.T @ filled


def basis(vectors: Floats) -> Floats:
    """Orthonormal rows that span these: shape (rank, n). What is a millionth of the largest counts as nothing."""
    if not len(vectors):
        return np.zeros((0, vectors.shape[1]))
    squares, mixing = np.linalg.eigh(vectors @ vectors.T)
    kept = squares > 1e-12 * max(float(squares[-1]), 1e-300)
    return np.asarray((mixing[:, kept] / np.sqrt(squares[kept])).T @ vectors)
