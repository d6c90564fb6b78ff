"""What a watched run is tested for: its noise, its sums, its books, its claim, and what its choices follow from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedcar.privacy import audit
from fedcar.privacy.audit import Check, certain
from fedcar.privacy.errors import BudgetError, PrivacyError
from fedcar.privacy.reference import epsilon_at_least
from fedcar.privacy.release import Release, merged
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.audit.definition import starts_of
from fedcar.training.noised.audit.residuals import Residuals
from fedcar.training.noised.audit.trial import Setting, Trial
from fedcar.training.noised.audit.watched import Exchange, Recorded, same
from fedcar.training.noised.clients import NoisedRequest, mean
from fedcar.training.noised.plan import HELD_OUT
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import COUNT, ClippedSums

NEIGHBOURS = 12
ROOM = 1e-6  # relative, of an epsilon that is computed twice


def of_what_leaves(found: Mapping[str, Residuals]) -> Iterator[Check]:
    """Noise and sums of every kind of release; "sums" are those tests at a thousandth of the noise."""
    for kind, residuals in found.items():
        detail = "; ".join(residuals.strange[:3]) or "each answer has the tensors of the plan and no other"
        yield certain(f"{kind}: nothing else leaves", not residuals.strange, detail)
        if not residuals.stated or not residuals.quiet:
            yield certain(f"{kind}: noise is as large as stated", False, "no answer can be read")
            continue
        starts = starts_of(residuals.shapes)
        stated, quiet = np.stack(residuals.stated), np.stack(residuals.quiet)
        for check in of_the_noise(stated, quiet, residuals, starts):
            yield replace(check, name=f"{kind}: {check.name}")


def of_the_noise(stated: np.ndarray, quiet: np.ndarray, residuals: Residuals, starts: Sequence[int]) -> Iterator[Check]:
    yield audit.noise_is_as_large_as_stated(stated, starts)
    exact = audit.noise_is_as_large_as_stated(quiet, starts)
    yield replace(exact, name="sums are those of the definition")
    yield audit.noise_has_no_mean(stated)
    if stated.shape[1] > audit.BLOCKS:
        width = residuals.shapes[0][-1]
        yield audit.noise_is_gaussian(stated)
        yield audit.noise_is_independent_within(stated, width)
        yield audit.noise_ignores_the_sums(stated, np.stack(residuals.sums))
        yield audit.noise_is_fresh(np.concatenate([stated, quiet]))


def across_kinds(found: Mapping[str, Residuals]) -> Check:
    """Noise of one kind that comes again in another: the coordinates that all large ones have."""
    large = [residuals for residuals in found.values() if residuals.stated and residuals.stated[0].size > audit.BLOCKS]
    size = min((residuals.stated[0].size for residuals in large), default=0)
    rows = [one[:size] for residuals in large for one in (*residuals.stated, *residuals.quiet)]
    check = audit.noise_is_fresh(np.stack(rows)) if len(rows) > 1 else certain("", True, "nothing to compare")
    return replace(check, name="noise is fresh over all kinds")


def grid(trial: Trial) -> Check:
    values, deviations = [], []
    for exchange in (*trial.exchanges, *trial.again):
        for answer in exchange.given.values():
            for tensor in answer.values():
                values.append(tensor.numpy())
                deviations.append(exchange.request.release.standard_deviation)
    return audit.released_values_are_on_the_grid(values, deviations)


def neighbours(setting: Setting, exchanges: Sequence[Exchange]) -> Iterator[Check]:
    """How far single units move the product's own sums, at states of the run, before any noise."""
    by_kind = {one.request.release.name: one.request for one in exchanges}  # the last of each
    questions = next(iter(setting.parts.values()))
    sums = ClippedSums(setting.untrained, questions, setting.module())
    for kind, request in by_kind.items():
        if kind in (COUNT, HELD_OUT):
            continue
        moves = list(moved_by_members(setting, request) if setting.cohort else moved_by_questions(sums, request))
        check = audit.clipping_holds_on_neighbours(moves, float(request.release.sensitivity or 0.0))
        yield replace(check, name=f"{kind}: {check.name}")


def moved_by_questions(sums: ClippedSums, request: NoisedRequest) -> Iterator[float]:
    count = min(NEIGHBOURS, len(sums))
    whole = flat(request.sums(sums, torch.arange(count)))
    for left_out in range(count):
        others = torch.tensor([row for row in range(count) if row != left_out], dtype=torch.long)
        yield float((whole - flat(request.sums(sums, others))).norm())


def moved_by_members(setting: Setting, request: NoisedRequest) -> Iterator[float]:
    for questions in list(setting.parts.values())[:NEIGHBOURS]:
        yield float(flat(mean(request, ClippedSums(setting.untrained, questions, setting.module()))).norm())


def flat(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1).double() for name in sorted(tensors)])


def books(trial: Trial) -> Iterator[Check]:
    """Every release that left stands in its ledger, was noised once, and is sent again as it was."""
    left = Counter((one.request.number, one.request.release) for one in trial.exchanges)
    steps = Counter(one.request.release.name for one in trial.exchanges)
    planned = {release.name: release.steps for release in trial.setting.plan.releases}
    refused = "" if trial.outcome.refusal is None else f"; {trial.outcome.refusal}"
    yield certain("the whole plan is run", steps == planned, f"{steps.total()} of {sum(planned.values())}{refused}")
    differing, draws, resent = [], [], []
    for door in trial.doors:
        assert door.ledger is not None
        entries = [entry.values for entry in door.ledger.open() if entry.kind == "charge"]
        charged = Counter((values["round"], Release.from_json(values["release"])) for values in entries)
        numbers = {number for number, _ in (*(left - charged), *(charged - left))}
        differing += [f"{door.name}: exchange {number}" for number in sorted(numbers)]
        draws.append((len(entries), door.source.draws))
    charges, noised = (sum(one) for one in zip(*draws, strict=True))
    for exchange in trial.exchanges[-2:]:
        try:
            answers = trial.watched.clients.ask(exchange.request).given
        except BudgetError:  # it would be charged again
            answers = {}
        resent += [name for name, answer in exchange.given.items() if not same(answer, answers.get(name, {}))]
    more = sum(len(door.ledger.releases()) for door in trial.doors if door.ledger is not None) - charges
    said = ", ".join(differing[:4]) or f"{charges} charges in {len(draws)} ledgers, one for each answer"
    yield certain("the ledger has what left", not differing, said)
    yield audit.steps_charged_equal_steps_noised(charges, noised)
    yield certain(
        "what is asked again is sent again",
        not resent and not more,
        f"{len(resent)} answers differ, {more} more charges",
    )


def claims(trial: Trial) -> Iterator[Check]:
    """Every epsilon that is claimed, against a lower bound that no accountant of fedcar has a part in."""
    target, plan = trial.setting.plan.target, trial.setting.plan
    left = merged(exchange.request.release for exchange in trial.exchanges)
    least = epsilon_at_least(left, target.delta)
    statement = trial.outcome.statement
    assert statement is not None
    spent = [door.ledger.spent() for door in trial.doors if door.ledger is not None]
    said = {"asked for": target.epsilon, "of the plan": plan.epsilon, "of the statement": statement.epsilon}
    said |= {"of the ledger": min(spent)}
    low = [f"{name} {value:.4g}" for name, value in said.items() if value < least * (1 - ROOM)]
    detail = f"what left gives away at least {least:.4g} at delta {target.delta:g}"
    yield certain("the claim holds", not low, f"{detail}; {', '.join(low) or 'every epsilon that is said is larger'}")
    stated = sorted(merged(statement.releases), key=str)
    yield certain(
        "the statement names what left", stated == sorted(left, key=str), f"{len(stated)} kinds of releases stated"
    )
    over = max(spent) > target.epsilon * (1 + ROOM)
    yield certain("the budget holds", not over, f"{max(spent):.4g} of epsilon {target.epsilon:g} spent")


def choices(trial: Trial, fresh: Retriever, others: Setting) -> Check:
    """The server once more, over the answers as they were recorded and clients that have other questions.

    `fresh` is the untrained retriever, made of the documents anew.
    """
    name = "choices follow from answers alone"
    recorded = Recorded(others.clients(), trial.exchanges, list(trial.outcome_given))
    setting = trial.setting
    try:
        outcome = PrivateTraining(fresh, recorded, setting.plan, adapter=setting.module()).run()
    except (PrivacyError, AttributeError, LookupError, TypeError, ValueError) as error:
        return certain(name, False, f"the server wants more than the answers: {type(error).__name__}: {error}")
    found = trial.outcome
    differing = [f"exchange {number} is asked otherwise" for number in recorded.differing]
    if not same(public_values(outcome.retriever), public_values(found.retriever)):
        differing.append("another retriever")
    for what in ("name", "scores", "statement", "records"):
        if getattr(outcome, what) != getattr(found, what):
            differing.append(f"another {what}")
    detail = ", ".join(differing[:4]) or "the same requests and the same retriever, bit for bit, with other questions"
    return certain(name, not differing, detail)


def public_values(retriever: Retriever) -> dict[str, torch.Tensor]:
    """Every number of a retriever that training may have moved."""
    values = {name: tensor.detach() for name, tensor in retriever.head.state_dict().items()}
    values["weights"] = torch.from_numpy(np.array(retriever.weights))
    adapter = retriever.encoder.adapter
    if adapter is not None:
        values |= {f"adapter.{name}": tensor.detach() for name, tensor in adapter.state_dict().items()}
    return values


def documents_stay(before: Mapping[str, torch.Tensor], untrained: Retriever, fresh: Retriever) -> Check:
    """Whether the untrained retriever is still what the documents alone make of it."""
    now = public_values(untrained)
    holds = same(now, before) and same(now, public_values(fresh))
    return certain("what documents make stays", holds, "the untrained retriever before and after the run, and a copy")
