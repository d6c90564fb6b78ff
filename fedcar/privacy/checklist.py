"""What a privacy officer asks of a statement: a person with many questions, and the points of a checklist."""

from __future__ import annotations

from collections.abc import Iterable

from fedcar.privacy.accountant import epsilon_of, epsilon_of_a_change
from fedcar.privacy.release import Release
from fedcar.privacy.statement import RELATIONS, THINGS, Statement

USUAL_QUESTIONS = (1, 2, 5, 10)
NO_PROMISE = 100.0  # an epsilon above which none is worth printing


def person_table(statement: Statement, questions: int | None = None) -> list[tuple[int, float]]:
    """The epsilon that holds for someone who asked 1, 2, 5, 10, ... up to so many of the questions.

    Exactly k times the distance of the Gaussians where every step takes all questions; where each is drawn by its own
    coin the mixture of all numbers that may be drawn. Empty where it is not single questions that are protected.

    Formal guarantees:
        a_person_of_k_questions_has_the_epsilon_of_k_times_the_distance.
    """
    if statement.unit != "example" or not statement.holds or not statement.releases:
        return []
    most = max(questions or USUAL_QUESTIONS[-1], 1)
    steps = [leading * 10**power for power in range(len(str(most))) for leading in (1, 2, 5)]
    counts = sorted({count for count in steps if count < most} | {most})
    return [(count, epsilon_of(statement.releases, statement.delta, group=count)) for count in counts]


def in_a_table(table: Iterable[tuple[int, float]]) -> list[str]:
    """A line a number of questions."""
    lines = []
    for count, epsilon in table:
        asked = "1 question" if count == 1 else f"{count} questions"
        worth = f"epsilon {epsilon:.3g}" if epsilon < NO_PROMISE else f"no promise (epsilon above {NO_PROMISE:.0f})"
        lines.append(f"- {asked}: {worth}")
    return lines


def person_words(statement: Statement, questions: int | None = None) -> list[str]:
    """What the statement is worth for a person who asked several questions, and for a question that is reworded."""
    table = person_table(statement, questions)
    if not table:
        return []
    changed = epsilon_of_a_change(statement.releases, statement.delta)
    return [
        "For a person who asked so many of the questions:",
        *in_a_table(table),
        f"A question that is reworded: epsilon {changed:.3g}.",
    ]


def checklist(statement: Statement) -> dict[str, str]:
    """What an officer ticks off, by heading, in short sentences."""
    thing = THINGS[statement.unit]
    return {
        "claim": _claim(statement),
        "unit": _unit(statement),
        "relation": f"{statement.adjacency}: {RELATIONS[statement.adjacency].format(thing=thing)}.",
        "composition": _composition(statement),
        "bounding": _bounding(statement),
        "floating point": (
            "Sums are added up in float64. Each number of noise is made of 64 fresh bits of the operating system. What "
            "leaves is rounded to a grid of a millionth of the noise. That this is fine enough is argued, not proved."
        ),
        "timing": (
            "How long a computation takes is not hidden. No time is written into a file that is published. Who watches "
            "the machine or the network learns roughly how many questions there are."
        ),
        "exposure": _exposure(statement),
        "trust": _trust(statement),
        "public": _public(statement),
        "not covered": " ".join(statement.not_covered),
    }


def _claim(statement: Statement) -> str:
    if not statement.holds:
        return f"None: {statement.reason}."
    return f"Epsilon {statement.epsilon:.3g} at delta {statement.delta:g}."


def _unit(statement: Statement) -> str:
    return {
        "example": "One question with its judgements.",
        "person": "All questions of one person, by a field of the questions' metadata.",
        "client": "All that one client has.",
    }[statement.unit]


def _composition(statement: Statement) -> str:
    given = sum(release.steps for release in statement.releases)
    text = f"{given} noised sums were given out. Their cost is added up by {statement.accountant}."
    if statement.clients > 1 and statement.unit != "client":
        text += (
            f" Each of the {statement.clients} clients adds its own noise to its own sums. A "
            f"{THINGS[statement.unit]} is with one client, so what one client spends holds for "
            "all. At two clients it adds up."
        )
    return text + " Other runs over the same questions add up too."


def _bounding(statement: Statement) -> str:
    if not statement.releases:
        return "Nothing was given out."
    thing = THINGS[statement.unit]
    parts = [
        f"{release.name}: one {thing} moves the sum by at most {release.sensitivity:.4g}, the noise is "
        f"{release.noise_multiplier:.4g} times that" for release in statement.releases
    ]  # fmt: skip
    how = {
        "example": "The gradient of each question is clipped.",
        "person": "The gradient of each question is clipped, and then the sum of a person's as one.",
        "client": "The gradient of each question is clipped. A client counts with their mean.",
    }[statement.unit]
    return f"{how} In the l2 norm: {'; '.join(parts)}."


def _exposure(statement: Statement) -> str:
    sampled = [release for release in statement.releases if release.sampler == "poisson"]
    thing = THINGS[statement.unit]
    text = "What was given out stands in the statement. It may be published. What is made of it costs nothing more."
    if sampled:
        text += f" Which {thing}s were drawn for a step is hidden, and must stay so: {_rates(sampled)}."
    return text


def _rates(sampled: list[Release]) -> str:
    return ", ".join(f"{release.name} with probability {release.sampling_rate:g}" for release in sampled)


def _trust(statement: Statement) -> str:
    if statement.unit == "client":
        return "The server is trusted with each client's clipped mean, and with the noise."
    if statement.clients > 1:
        return (
            "Each client trusts itself: it adds the noise before anything leaves. The server is not trusted, but for "
            "its word whether a run is private, unless a device joined with an epsilon of its own."
        )
    return "Who has the collection trains and adds the noise. Nobody else needs to be trusted."


def _public(statement: Statement) -> str:
    known = "The documents, the settings, and the number and names of clients are public."
    reasons = [f"{name}: {why or 'no reason was given'}." for name, why in statement.public.items()]
    return " ".join([known, *(["Declared public by whoever trained:"] if reasons else []), *reasons])
