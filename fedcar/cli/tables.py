"""Results as tables for people, on stdout; 80 columns are enough."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from fedcar.cli.output import console, echo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedcar.federation.rounds.record import Record, Watch
    from fedcar.retriever.searcher import Answer, Passage

COLUMNS = ("round", "selection", "MIPS", "hybrid", "central", "loss", "clients", "refused", "failed", "kB", "s")
MEASURES = ("success@1", "recall@10", "mrr@10", "ndcg@10")
TITLES = {"bm25": "BM25", "mips": "MIPS", "hybrid": "hybrid", "retriever": "fedcar"}
TEXT_SHOWN = 160
WIDTH = 80
SECONDS_BETWEEN_LINES = 10.0  # as of other progress
EXCHANGES_BETWEEN_LINES = 10
P = ParamSpec("P")


def _on_stdout(show: Callable[Concatenate[Console, P], None]) -> Callable[P, None]:
    """What shows something on a console shows it on stdout."""

    @wraps(show)
    def shown(*arguments: P.args, **named: P.kwargs) -> None:
        with console() as stdout:
            show(stdout, *arguments, **named)

    return shown


@contextmanager
def live_table() -> Iterator[Watch]:
    """A context whose value shows each round's record on stderr: a growing table on a wide terminal, or lines."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True)
    if not console.is_terminal or console.width < WIDTH:
        yield _show_lines()
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right")
    with Live(table, console=console, auto_refresh=False) as live:

        def show(record: Record, beside: Mapping[str, float | None]) -> None:
            table.add_row(*_cells(record, beside))
            live.update(table, refresh=True)

        yield show


def _show_lines() -> Watch:
    """A line for every record that tells something; of other rounds one now and then, of other exchanges every tenth.

    Which exchanges have one follows from their numbers: how long one takes is a private question's business.
    """
    said = float("-inf")

    def show(record: Record, beside: Mapping[str, float | None]) -> None:
        nonlocal said
        news = record.selection, getattr(record, "loss", None), record.refused, record.failed
        if hasattr(record, "clock_seconds"):
            due = time.monotonic() - said > SECONDS_BETWEEN_LINES
        else:
            due = record.round % EXCHANGES_BETWEEN_LINES == 0
        if any(news) or due:
            echo(_line(_cells(record, beside), record), err=True)
            sys.stderr.flush()
            said = time.monotonic()

    return show


def _cells(record: Record, beside: Mapping[str, float | None]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        str(record.round),
        *(number(value, ".3f") for value in (record.selection, *map(beside.get, ("mips", "hybrid", "central")))),
        number(getattr(record, "loss", None), ".4f"),
        str(len(record.clients)),
        str(len(record.refused)),
        str(len(record.failed)),
        f"{(record.bytes_down + record.bytes_up) / 1000:.0f}",
        number(getattr(record, "clock_seconds", None) or None, ".2f"),
    ]


def _line(cells: Sequence[str], record: Record) -> str:
    told = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell)
    reasons = {**record.refused, **record.failed}
    return told + "".join(f"; {client}: {reason}" for client, reason in reasons.items())


def _table(console: Console, **more: Any) -> Table:  # noqa: ANN401 - what rich takes
    from rich import box
    from rich.table import Table

    lines = box.SIMPLE if console.encoding.startswith("utf") else None  # in ASCII it would have a frame, and be wider
    return Table(box=lines, pad_edge=False, header_style="", **more)


def _print_table(console: Console, table: Table) -> None:
    """The table, or where that would be cut off a line for each row, with the names of its columns."""
    from rich.text import Text

    if console.measure(table, options=console.options.update(max_width=1000)).minimum <= console.width:
        console.print(table)
        return
    names = [" ".join(str(column.header).split()) for column in table.columns]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        values = (f"{head} {cell}" for head, cell in zip(names[1:], cells, strict=True) if cell)
        console.print(Text(f"{' '.join(str(name).split())}: {', '.join(values)}"))


@_on_stdout
def print_evaluation(console: Console, result: dict[str, Any]) -> None:
    """The four systems side by side, over all, seen and unseen documents."""
    of_retriever = result["systems"]["retriever"]
    parts = [part for part in ("seen", "unseen") if of_retriever[part]]
    counts = ", ".join(f"{of_retriever[part]['queries']} {part}" for part in parts)
    asked = f"{result['queries']} queries ({counts}), {result['documents']} documents"
    console.print(f"{result['collection']}, {result['split']}: {asked}", markup=False)
    columns = [("all", measure) for measure in MEASURES]
    if len(parts) == 2:  # otherwise `all` says it
        columns += [(part, MEASURES[0]) for part in parts]
    table = _table(console)
    table.add_column("")
    for part, measure in columns:
        table.add_column(f"{part}\n{measure}", justify="right", no_wrap=True)
    for name, system in result["systems"].items():
        cells = [f"{system[part][measure]:.3f}" for part, measure in columns]
        table.add_row(TITLES[name], *cells, style="bold" if name == "retriever" else "")
    _print_table(console, table)
    differences = {part: result["difference"][part] for part in ("all", "unseen") if len(parts) == 2 or part == "all"}
    console.print("success@1 over hybrid (95 %): " + ", ".join(map(_difference, differences, differences.values())))
    if result["trained_on"]:
        console.print(f"{result['trained_on']} queries whose text stands in train were left out")
    calibration, unanswerable = result["calibration"], result["unanswerable"]
    if calibration["ece"] is None:
        console.print("no confidence: too few dev questions, or none that were public")
    else:
        console.print(f"expected calibration error {calibration['ece']:.3f}")
    if (promised := calibration["at_risk"]) is not None:
        wrong = "" if promised["wrong"] is None else f", {promised['wrong']:.3f} of the answers wrong"
        console.print(f"at a risk of {promised['risk']:g} {promised['coverage']:.3f} are answered{wrong}")
    if unanswerable:
        auroc = f"AUROC {unanswerable['auroc']:.3f}"
        console.print(f"telling {unanswerable['queries']} unanswerable queries apart: {auroc}")


@_on_stdout
def print_bench(console: Console, result: dict[str, Any]) -> None:
    """Fedcar and its peers, a line each; what was left out, with the reason, goes to stderr as it happens."""
    systems: dict[str, dict[str, float]] = {"fedcar": {}}
    for row in result["rows"]:
        systems["fedcar"][row["what"]] = row["ours"]
        systems.setdefault(row["peer_name"], {})[row["what"]] = row["peer"]
    machine = result["machine"]
    on = machine["collection"]
    asked = f"{on['training_questions']} training and {on['test_questions']} test questions"
    console.print(f"{on['name']}: {asked}, {on['documents']} documents", markup=False)
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB", markup=False)
    columns = {"success@1 all": "success\n@1", "mrr@10 all": "mrr\n@10", "ndcg@10 all": "ndcg\n@10"}
    columns |= {f"success@1 {part}": f"success\n{part}" for part in ("seen", "unseen")}
    columns |= {"training": "train\ns", "peak memory": "memory\nMB"}
    shown = [what for what in columns if any(what in values for values in systems.values())]
    table = _table(console, padding=(0, 0, 0, 1))
    table.add_column("")
    for what in shown:
        table.add_column(columns[what], justify="right", no_wrap=True)
    for name, values in systems.items():
        digits = {"training": 1 if values.get("training", 0) < 1000 else 0, "peak memory": 0}
        cells = [f"{values[what]:.{digits.get(what, 3)}f}" if what in values else "" for what in shown]
        table.add_row(name.replace(", ", "\n", 1), *cells, style="bold" if name == "fedcar" else "")
    if result["rows"]:
        _print_table(console, table)
    if result["speedup"] is not None:
        console.print(f"smallest ratio to sentence-transformers: {result['speedup']:.3f} (above 1: fedcar is better)")
    for name in machine["left_out"]:
        console.print(f"{name} was left out", markup=False)


def _difference(part: str, found: dict[str, float]) -> str:
    numbers = [f"{found[name]:+.3f}".replace("0.", ".", 1) for name in ("success@1", "low", "high")]
    return f"{'' if part == 'all' else f'{part} '}{numbers[0]} [{numbers[1]}, {numbers[2]}]"


@_on_stdout
def print_rows(console: Console, result: dict[str, Any]) -> None:
    """A benchmark's rows as they are, with what stands beside them."""
    machine = result["machine"]
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB", markup=False)
    beside = {one["what"]: one for name in ("encoded", "searched") for one in machine.get(name, [])}
    table = _table(console, padding=(0, 1, 0, 0))
    peers = list(dict.fromkeys(one["peer_name"] for one in result["rows"]))
    for name in ("", "unit", "fedcar", peers[0] if len(peers) == 1 else "peer", "ratio", "beside"):
        table.add_column(name, justify="left" if name in ("", "unit", "beside") else "right")
    for one in result["rows"]:
        more = beside.get(one["what"], beside.get(one["what"].rpartition(", ")[0], {}))
        said = ", ".join(f"{name} {value}" for name, value in more.items() if name != "what")
        said = said if len(peers) == 1 else one["peer_name"]
        table.add_row(one["what"], one["unit"], f"{one['ours']:.4g}", f"{one['peer']:.4g}", f"{one['ratio']}", said)
    _print_table(console, table)


@_on_stdout
def print_answer(console: Console, answer: Answer, heading: bool = False) -> None:
    """The hits of one question, best first, each with the passage that matched; with a heading under the question."""
    from rich.padding import Padding
    from rich.text import Text

    if heading:
        console.print(Text(f"? {one_line(answer.query)}"))
    if not answer.hits:
        console.print("no document found")
    elif answer.answered is False:
        console.print("no confident answer; the nearest documents:")
    for rank, hit in enumerate(answer.hits, 1):
        text = one_line(hit.text if hit.passage is None else _in_its_place(hit.passage, hit.text, answer.query))
        line = Text(f"{rank}. ")
        line.append(one_line(hit.title or hit.id), style="bold")
        sure = "" if hit.confidence is None else f"  confidence {hit.confidence:.2f}"
        line.append(f"  {one_line(hit.id)}{sure}", style="dim")
        console.print(line)
        if text:
            shown = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1].rstrip() + "…"
            console.print(Padding(Text(shown), (0, 0, 0, 3)))
    if answer.reason:
        console.print(Text(answer.reason, style="dim"))


def _in_its_place(passage: Passage, text: str, question: str) -> str:
    """The passage from the sentence that has most of the question's words, with signs of what is left out."""
    start = passage.start + _nearest_sentence(passage.text, question)
    return f"{'… ' if start else ''}{text[start : passage.end]}{' …' if passage.end < len(text.rstrip()) else ''}"


def _nearest_sentence(text: str, question: str) -> int:
    """Where the sentence begins that shares most stems with the question; those of few sentences count for more."""
    from fedcar.collection.wording import Wording
    from fedcar.collection.words import sentences

    wording = Wording.of([text])
    asked, starts = set(wording.stems(question)), sentences(text)
    shared = [asked.intersection(wording.stems(text[start:end])) for start, end in starts]
    often = Counter(stem for stems in shared for stem in stems)
    best = max(range(len(starts)), key=lambda row: sum(1 / often[stem] for stem in shared[row]))
    return starts[best][0]


def one_line(text: str) -> str:
    """The text on one line and without control characters, which could change the terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
