"""The commands below `fedcar privacy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedcar.cli.options import FOLDER, as_json, cache_option, encoder_option, seed_option, together
from fedcar.cli.output import echo, print_json
from fedcar.errors import FedcarError
from fedcar.privacy.errors import PrivacyError

with_budget = together(
    click.option("--epsilon", default=1.0, show_default=True), click.option("--delta", default=1e-5, show_default=True)
)
with_trial = together(with_budget, encoder_option, cache_option, seed_option, as_json)


@click.group("privacy")
def privacy() -> None:
    """What is promised, what it costs, what leaks without it, and whether the code keeps it."""


@privacy.command()
@click.option("--questions", required=True, help="Of all clients, or of each: 900 or 900,300,40.")
@click.option("--documents", type=int, required=True, help="How many documents share the rows.")
@click.option("--clients", type=int, default=None, help="How many clients.  [default: as many as --questions lists]")
@click.option("--unit", default="example", show_default=True, help="example (a question), person or client.")
@click.option("--persons", type=click.IntRange(1), help="How many persons asked the questions.")
@click.option("--person-questions", type=click.FloatRange(1), help="Or: how many questions a person asked.")
@click.option("--method", type=click.Choice(["auto", "ridge", "head", "adapter"]), default="auto", show_default=True)
@click.option("--steps", type=int, help="Noised steps.  [default: by method]")
@with_budget
@as_json
def plan(
    questions: str,
    documents: int,
    clients: int | None,
    persons: int | None,
    person_questions: float | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Before anything runs: which method, which noise, what to expect. Reads no question."""
    from fedcar.training.noised.units import advise

    if options["steps"] is not None and options["steps"] < 1:
        raise FedcarError(f"--steps {options['steps']}: must be 1 or more")
    counts = _counts(questions, clients)
    each = _questions_each(sum(counts), persons, person_questions)
    if options["unit"] == "person":  # the field that names them plays no part yet
        options["unit"] = "person=COLUMN"
    found = advise(counts, documents, persons_ask=each, **options)
    if as_json:
        print_json(found)
        return
    echo(f"{found['units']} over {found['clients']} clients, {documents} documents: {found['advice']}")
    if found["delta_warning"]:
        echo(f"warning: {found['delta_warning']}", err=True)
    echo(f"epsilon {found['epsilon']:.4g} at delta {found['delta']:g}, unit {options['unit']}, given out:")
    for release in found["releases"]:
        times = "once" if release["steps"] == 1 else f"{release['steps']} times"
        sampled = f", each unit with probability {release['sampling_rate']:g}" if release["sampling_rate"] < 1 else ""
        echo(f"- {release['name']}, {times}{sampled}: noise of standard deviation {release['standard_deviation']:.4g}")
    echo(f"what is protected, and what training then gives (epsilon {options['epsilon']:g}):")
    for row in found["side_by_side"]:
        echo(f"- {_protected(row)}: {_expected(row)}")
    echo("a person with so many questions, share of the gain at epsilon 1, 3, 8 (search: search is kept):")
    for questions_each in sorted({row["questions_each"] for row in found["persons"]}):
        rows = [row for row in found["persons"] if row["questions_each"] == questions_each]
        shares = [f"{100 * row['expected_share_of_gain']:.0f} %" if row["train"] else "search" for row in rows]
        echo(f"- {questions_each:g}: {', '.join(shares)}")


def _protected(row: dict[str, Any]) -> str:
    clients = "the one client whole" if row["units"] == 1 else f"each of {row['units']} clients"
    names = {"example": "each question", "client": clients}
    return names.get(row["unit"], f"each of {row['units']} persons with {row['questions_each']:.3g} questions")


def _expected(row: dict[str, Any]) -> str:
    share = f"about {100 * row['expected_share_of_gain']:.0f} % of the gain" if row["train"] else "search is kept"
    return f"{share} (strength {row['strength']:.1f})"


def _questions_each(total: int, persons: int | None, person_questions: float | None) -> float | None:
    if persons is not None and person_questions is not None:
        raise FedcarError("--persons and --person-questions: one says what the other does; give one")
    if persons is not None and persons > total:
        raise FedcarError(f"--persons {persons}: must be at most {total}, the number of questions")
    if person_questions is not None and not person_questions <= total:
        raise FedcarError(f"--person-questions {person_questions:g}: must be at most {total}, the number of questions")
    return total / persons if persons is not None else person_questions


@privacy.command()
@click.argument("place", type=FOLDER)
@click.option("--person-questions", type=click.IntRange(1, 1000), help="What holds for who asked up to so many.")
@click.option("--checklist", "as_checklist", is_flag=True, help="Point by point, for a privacy officer.")
@as_json
def statement(place: Path, person_questions: int | None, as_checklist: bool, as_json: bool) -> None:
    """Say in plain words what is promised for PLACE: a retriever, a run, or a privacy.json."""
    from fedcar.privacy.checklist import checklist, person_table, person_words
    from fedcar.privacy.statement import from_json, plain_words, to_json

    if not place.exists():
        raise FedcarError(f"{place}: no such file or folder; give a retriever, a run, or the privacy.json of one")
    file = place / "privacy.json" if place.is_dir() else place
    if not file.is_file():
        raise FedcarError(f"{file}: no statement; nothing is promised for what was trained without --epsilon")
    try:
        found = from_json(file.read_bytes().decode())
    except (PrivacyError, UnicodeDecodeError) as error:
        why = error if isinstance(error, PrivacyError) else "not a privacy statement"
        raise FedcarError(f"{file}: {why}; give a retriever, a run, or the privacy.json of one") from error
    if person_questions is not None and found.unit != "example":
        raise FedcarError(f"--person-questions: this statement protects each {found.unit} whole; leave it out")
    if as_json:
        content = to_json(found)
        if person_questions is not None:
            table = person_table(found, person_questions)
            content["persons"] = [{"questions": count, "epsilon": epsilon} for count, epsilon in table]
        print_json(content | ({"checklist": checklist(found)} if as_checklist else {}))
        return
    if as_checklist:
        for heading, text in checklist(found).items():
            echo(f"{heading}: {text}")
    else:
        echo(plain_words(found))
    for line in ["", *person_words(found, person_questions)]:
        echo(line)


@privacy.command()
@click.argument("place", type=FOLDER)
@click.option("--set-clock", is_flag=True, help="Go on by this clock, where an entry is from one that was ahead.")
@as_json
def ledger(place: Path, set_clock: bool, as_json: bool) -> None:
    """Show what a ledger allows and what was spent, run by run. PLACE: its file, its folder, or a collection."""
    from fedcar.training.noised.tally import account, found_of, ledger_file, witnessed

    file = ledger_file(place)
    if not file.exists():
        file = found_of(place) or file
    if not file.exists():
        raise FedcarError(f"{file}: no ledger; give its file, its folder, or a collection that was trained on")
    found = witnessed(file)
    went_back = found.set_clock() if set_clock else 0.0
    shown = account(found)
    if as_json:
        print_json({**shown, **({"clock_went_back": went_back} if set_clock else {})})
        return
    if set_clock:
        echo(f"the clock goes back by {went_back:.0f} s; every charge stays" if went_back else "the clock is right")
    limit = "no limit" if shown["budget"] == "infinity" else f"at most epsilon {shown['budget']:g}"
    echo(f"{shown['ledger']}: {limit} over all runs at delta {shown['delta']:g}")
    echo(f"spent: epsilon {float(shown['spent']):.4g} in {len(shown['runs'])} runs")
    for run in shown["runs"]:
        echo(
            f"- {run['run']} ({run['begun']}): epsilon {float(run['epsilon']):.4g} by itself, {run['charges']} charges"
        )
    if shown["ahead"] > 0:
        echo(f"the last entry is {shown['ahead']:.0f} s ahead of this clock; --set-clock goes on by this one")


@privacy.command()
@click.argument("collection", type=FOLDER)
@click.option("--questions", default=128, show_default=True, help="How many questions share the update.")
@with_trial
def attack(collection: Path, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Try to read COLLECTION's training questions out of updates, without noise and with it. Prints what it finds."""
    from fedcar.training.noised.attack import attack_collection

    found = attack_collection(**_trial(collection, **options))
    if as_json:
        print_json(found)
    else:
        _print_attack(found)


@privacy.command()
@click.argument("collection", type=FOLDER, required=False)
@click.option("--method", type=click.Choice(["ridge", "head", "adapter"]), default="head", show_default=True)
@click.option("--questions", default=200, show_default=True, help="How many training questions to try it on.")
@with_trial
def audit(collection: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Test the code that trains under epsilon on COLLECTION (or the packaged one); exit code 1 at a fault."""
    from fedcar.collection.demo import FOLDER as COLLECTION
    from fedcar.training.noised.audit.collection import audit_collection

    checks = audit_collection(**_trial(collection or COLLECTION, **options))
    flagged = [check.name for check in checks if check.flagged]
    if as_json:
        rows = [
            {"name": one.name, "p_value": one.p_value, "flagged": one.flagged, "detail": one.detail} for one in checks
        ]
        print_json({"flagged": flagged, "checks": rows})
    else:
        for check in checks:
            echo(f"{'FAULT' if check.flagged else 'ok':<6}{check.name} (p = {check.p_value:.2g}): {check.detail}")
        echo("an audit finds faults; it proves no epsilon")
    if flagged:
        raise FedcarError(f"audit: {len(flagged)} of {len(checks)} checks found a fault: {', '.join(flagged)}")


def _trial(
    collection: Path,
    *,
    epsilon: float,
    delta: float,
    encoder: str | None,
    cache: Path | None,
    **options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """What attack and audit take: the collection and its encoder loaded, the budget checked."""
    from fedcar.collection.collection import Collection
    from fedcar.common.progress import Console
    from fedcar.encoder.cache import FeatureCache
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.model_files import DEFAULT_ENCODER
    from fedcar.training.target import Target

    target = Target(epsilon, delta)
    target.check()
    for name, least in (("questions", 1), ("seed", 0)):
        if options[name] < least:
            raise FedcarError(f"--{name} {options[name]}: must be {least} or more")
    return {
        "collection": Collection.read(collection),
        "target": target,
        "encoder": Encoder.load(encoder or DEFAULT_ENCODER),
        "features": FeatureCache(cache),
        "report": Console(),
        **options,
    }


def _counts(questions: str, clients: int | None) -> list[int]:
    try:
        counts = [int(word) for word in questions.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise FedcarError(f'--questions "{questions}": give a number, or one for each client: 900,300,40')
    if clients is not None and clients != len(counts):
        if len(counts) > 1:
            raise FedcarError(f"--clients {clients}: --questions lists {len(counts)}; give one number, or as many")
        [total] = counts
        if not 1 <= clients <= total:
            raise FedcarError(f"--clients {clients}: must be from 1 to {total}, the number of questions")
        counts = [total // clients + (place < total % clients) for place in range(clients)]
    return counts


def _print_attack(found: dict[str, Any]) -> None:
    words = found["words"]
    echo(
        f"{found['questions']} questions with {words['distinct']} different words; budget epsilon {found['epsilon']:g}"
    )
    for title, part, kinds in (
        ("words, from an adapter update", words, ("without_noise", "with_noise")),
        ("words of one question only", words, ("of_one_question_without_noise", "of_one_question_with_noise")),
        ("documents, from a rows update", found["documents"], ("without_noise", "with_noise")),
        ("questions, from class sums", found["class_sums"], ("without_noise", "with_noise")),
    ):
        for kind in kinds:
            told = part[kind]
            numbers = f"precision {told['precision']:.3f}, recall {told['recall']:.3f}, AUC {told['auc']:.3f}"
            echo(f"{title}, {'with' if 'without' not in kind else 'without'} noise: {numbers}")
    for name in ("true", "recovered_without_noise", "recovered_with_noise"):
        echo(f"{name.replace('_', ' ')}: {' '.join(words[name]) or '-'}")
    row = found["class_sums"]["one_row"]
    echo(f"one class sum: {row['true']}; nearest without noise {row['nearest_without_noise']}, "
               f"with noise {row['nearest_with_noise']}")  # fmt: skip
    for method, member in found["membership"].items():
        echo(
            f"was a question there, {method}, {member['canaries']} made-up ones: AUC {member['auc']:.3f} "
            f"({member['auc_allowed']:.3f} allowed), {100 * member['right']:.1f} % right "
            f"({100 * member['right_allowed']:.1f} % allowed); mu {member['mu']:.3f}, at least "
            f"{member['mu_at_least']:.3f} with {100 * member['confidence']:.0f} % confidence "
            f"({member['mu_allowed']:.3f} allowed)"
        )
    echo(found["note"])


COMMANDS = (privacy,)
