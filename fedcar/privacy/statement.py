"""The statement: what is claimed about privacy in a run, as one JSON object and in plain words.

Library: `join` makes one claim of clients that were trained apart, each with a statement of its own; in a run of fedcar
the server knows all releases and states them at once.

    plain_words(join([from_json(file.read_text()) for file in folder.glob("*.json")]))
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fedcar.privacy import accountant
from fedcar.privacy.errors import PrivacyError, require
from fedcar.privacy.release import Release, merged

FORMAT = 2
DOCUMENTS = "The documents are known to everyone. Only questions and judgements are protected."
LATER = "Questions that are asked of the finished retriever are outside this statement."
NOT_COVERED = {
    "example": (
        "One question is not one person. A person who asked several questions is protected less, and by more than "
        "their number says.",
        "A question that is reworded counts as two: one that is taken out, and one that is put in.",
        "A question in two collections, or at two devices, is given out twice. What is spent on it adds up.",
        DOCUMENTS,
        LATER,
    ),
    "person": (
        "A person is whoever has one name in the field that was named. Who has two names there counts as two persons.",
        "A person with questions in two collections, or at two devices, is given out twice. What is spent adds up.",
        DOCUMENTS,
        LATER,
    ),
    "client": (
        "The server is trusted: it gets each client's clipped mean un-noised where clients are not in its own process.",
        "The server sees which clients take part, and when.",
        "That a client is there is not hidden. What it has is hidden, as if it had nothing to say.",
        "A person at two clients is given out twice. What is spent adds up.",
        DOCUMENTS,
        LATER,
    ),
}
RELATIONS = {
    "add-or-remove-one": "two collections are neighbours where one {thing} more is in one of them",
    "zero-out-one": "two collections are neighbours where one {thing} has something to say in one and nothing in the "
    "other",
    "replace-one": "two collections are neighbours where one {thing} is another",
}
THINGS = {"example": "question", "person": "person", "client": "client"}
OLDER = (
    "it is of an older version, which drew simulated clients over all questions at once, so that one question more "
    "moved the others, and published how long devices took; train again"
)
PAPER_RECIPE = (
    "the paper's recipe has no formal guarantee: it warms up without noise, adapts its threshold to un-noised "
    "gradients and clips the batch mean"
)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Everything that a reader needs in order to check the claim; epsilon infinite is no claim, and `reason` says why.

    selection: for each choice that a run makes (best step, mixing weights, threshold, ...) where it came from:
    "charged", "documents alone", "public dev set" or "fixed in advance". public: what was declared public, and the
    reason that was given; empty where none was.
    """

    epsilon: float
    delta: float
    unit: str
    adjacency: str
    method: str
    releases: tuple[Release, ...]
    clip_norm: float | None = None
    accountant: str = accountant.NAME
    released: tuple[str, ...] = ()
    selection: Mapping[str, str] = field(default_factory=dict)
    not_covered: tuple[str, ...] = ()
    clients: int = 1
    reason: str | None = None
    public: Mapping[str, str] = field(default_factory=dict)
    spent_before: float | None = None  # by the runs before, as the ledger counts; None where no ledger was kept
    spent_in_all: float | None = None  # with this run

    @property
    def holds(self) -> bool:
        """Whether there is a formal guarantee at all."""
        return math.isfinite(self.epsilon)


SPENT = ("spent_before", "spent_in_all")
SOURCES = ("charged", "documents alone", "public dev set", "fixed in advance")


def state(
    releases: Sequence[Release],
    delta: float,
    *,
    method: str,
    clip_norm: float | None,
    released: Sequence[str],
    selection: Mapping[str, str] | None = None,
    clients: int = 1,
    no_guarantee: str | None = None,
) -> Statement:
    """Return the statement over these releases; `no_guarantee` is a reason why epsilon is infinite in any case.

    Formal guarantees: statement_epsilon_is_the_accountants, seeded_or_missing_noise_gives_infinite_epsilon,
    an_uncharged_private_choice_gives_infinite_epsilon.
    """
    epsilon = accountant.epsilon_of(releases, delta)
    chosen = dict(selection or {})
    uncharged = sorted(name for name, source in chosen.items() if source not in SOURCES)
    weak = sorted({f"{release.name}: {release.noise}" for release in releases if not release.has_noise_that_counts})
    reason = no_guarantee
    if reason is None and weak:
        reason = (
            f"the noise does not count ({', '.join(weak)}): it is missing, or anyone who knows the seed can take it off"
        )
    if reason is None and uncharged:
        reason = f"chosen on private questions and not charged: {', '.join(uncharged)}"
    if reason is None and math.isinf(epsilon):
        reason = "the noise is too small for any epsilon at this delta"
    unit = releases[0].unit if releases else "example"
    adjacencies = {release.adjacency for release in releases} or {"add-or-remove-one"}
    adjacency = "zero-out-one" if "zero-out-one" in adjacencies else min(map(str, adjacencies))
    return Statement(
        epsilon=epsilon if reason is None else math.inf,
        delta=delta,
        unit=str(unit),
        adjacency=str(adjacency),
        method=method,
        releases=merged(releases),
        clip_norm=clip_norm,
        released=tuple(released),
        selection=chosen,
        not_covered=NOT_COVERED[str(unit)],
        clients=clients,
        reason=reason,
    )


def join(statements: Sequence[Statement]) -> Statement:
    """One statement over disjoint clients, each noising its own updates: the weakest one's (parallel composition).

    Not for unit "client": each question, or person, is with one client. Raises PrivacyError where the statements are
    not of one kind.
    """
    require(len(statements) > 0, "no statement to join")
    for name in ("unit", "adjacency", "method", "accountant", "delta"):
        values = sorted({str(getattr(statement, name)) for statement in statements})
        require(len(values) == 1, f"statements of several kinds cannot be joined: {name} is {' and '.join(values)}")
    require(statements[0].unit != "client", 'statements of unit "client" are not joined: each is over all clients')
    weakest = max(statements, key=lambda statement: statement.epsilon)
    require(
        accountant.in_parallel(statement.epsilon for statement in statements) == weakest.epsilon,
        "epsilon is not a number",
    )
    return replace(weakest, clients=sum(statement.clients for statement in statements))


def to_json(statement: Statement) -> dict[str, Any]:
    """For `json`: the infinite epsilon is the word "infinity", which float() reads back."""
    values = asdict(statement)
    values["epsilon"] = statement.epsilon if statement.holds else "infinity"
    values["releases"] = [release.to_json() for release in statement.releases]
    values["selection"], values["public"] = dict(statement.selection), dict(statement.public)
    values |= {name: "infinity" for name in SPENT if values[name] == math.inf}
    return {"format": FORMAT, "guarantee": statement.holds, **values}


def from_json(text: str) -> Statement:
    """Read what json.dumps(to_json(...)) wrote; the epsilon is computed again and must be the one that stands there.

    One of format 1 is read with today's sentences. Where it is over questions of several clients its epsilon is
    infinite: what it promised was not kept.
    """
    try:
        values = upgraded(json.loads(text))
        values.pop("format"), values.pop("guarantee")
        values["releases"] = tuple(Release.from_json(release) for release in values["releases"])
        for name in ("released", "not_covered"):
            values[name] = tuple(values[name])
        values["epsilon"] = float(values["epsilon"])
        values |= {name: float(values[name]) for name in SPENT if values.get(name) is not None}
        statement = Statement(**values)
    except PrivacyError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError):
        raise PrivacyError("not a privacy statement") from None
    if statement.holds:
        recomputed = accountant.epsilon_of(statement.releases, statement.delta)
        require(
            recomputed <= statement.epsilon * (1 + 1e-6) + 1e-9,
            f"the statement says epsilon {statement.epsilon:g}, its own releases give {recomputed:g}; it was edited",
        )
    return statement


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A statement as to_json makes it today, of one that was written before."""
    if values["format"] == FORMAT:
        return values
    if values["format"] != 1:
        raise PrivacyError(f"the statement's format must be {FORMAT}, or 1")
    values = {**values, "format": FORMAT, "not_covered": NOT_COVERED[values["unit"]], "public": {}}
    if "public dev set" in values["selection"].values():
        values["public"] = {"dev split": ""}
    sampled = any(release.get("sampling_rate", 1) < 1 for release in values["releases"])
    if values["clients"] > 1 and (values["unit"] == "example" or sampled):
        values |= {"guarantee": False, "epsilon": "infinity", "reason": values["reason"] or OLDER}
    return values


def plain_words(statement: Statement) -> str:
    """Return the statement for someone who has never heard of epsilon: a few short paragraphs."""
    lines = [_claim(statement), *_spent(statement), "", "What was given out:"]
    lines += [f"- {thing}" for thing in statement.released] or ["- nothing"]
    lines += [f"- {_release_words(release)}" for release in statement.releases]
    if statement.selection:
        lines += ["", "Where the choices came from:"]
        lines += [f"- {name}: {source}" for name, source in statement.selection.items()]
    if statement.public:
        lines += ["", "What was declared public:"]
        lines += [f"- {name}: {why or 'no reason was given'}" for name, why in statement.public.items()]
    lines += ["", "What this does not cover:"]
    lines += [f"- {sentence}" for sentence in statement.not_covered]
    clip = "" if statement.clip_norm is None else f", clip norm {statement.clip_norm:g}"
    lines += [
        "",
        f"In numbers: epsilon {_number(statement.epsilon)}, delta {statement.delta:g}, unit {statement.unit}, "
        f"adjacency {statement.adjacency}{clip}, accountant: {statement.accountant}.",
    ]
    return "\n".join(lines)


def _claim(statement: Statement) -> str:
    if not statement.holds:
        return f"No formal guarantee (epsilon = infinity): {statement.reason}."
    thing = THINGS[statement.unit]
    sure = 100 / (1 + math.exp(-statement.epsilon))
    certain = f"can become at most {sure:.1f} % sure" if sure < 99.9 else "can become nearly certain"
    each = f" of each of the {statement.clients} clients" if statement.clients > 1 and thing != "client" else ""
    whole = " All questions of one person count as one." if thing == "person" else ""
    return (
        f"Every single {thing}{each} is protected with epsilon {_number(statement.epsilon)} "
        f"(delta {statement.delta:g}).{whole} Think of someone who sees all that was given out, and knows every other "
        f"{thing}. Before, they hold it for fifty-fifty that this one was used. Afterwards they {certain}, "
        f"but for a chance of about {statement.delta:g}."
    )


def _spent(statement: Statement) -> list[str]:
    """What the ledger counts over all runs, where one was kept."""
    before, in_all = statement.spent_before, statement.spent_in_all
    if before is None or in_all is None:
        return []
    return [f"Spent over all runs: epsilon {_number(in_all)} with this one, {_number(before)} before it."]


def _release_words(release: Release) -> str:
    how = {
        "full-batch": "every question in each",
        "poisson": f"each question in each with probability {release.sampling_rate:g}, drawn independently",
        "fixed-order": "in a fixed order, no random sampling assumed",
    }[str(release.sampler)]
    how = how.replace("question", THINGS[str(release.unit)])
    times = "once" if release.steps == 1 else f"{release.steps} times"
    return (
        f"{release.name}, {times}, {how}; noise of standard deviation {release.standard_deviation:.4g} on every "
        f"coordinate ({release.noise_multiplier:.4g} times the most that one {THINGS[str(release.unit)]} can change), "
        f"from: {release.noise}"
    )


def _number(epsilon: float) -> str:
    return "infinity" if math.isinf(epsilon) else f"{epsilon:.3g}"
