"""Results as tables for people, on stdout; 80 columns are enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcar.federation.rounds.record import Record, Watch
    from fedcar.retriever.searcher import Answer

COLUMNS = ("round", "selection", "MIPS", "hybrid", "central", "loss", "clients", "refused", "failed", "kB", "s")
MEASURES = ("success@1", "recall@10", "mrr@10", "ndcg@10")
TITLES = {"bm25": "BM25", "mips": "MIPS", "hybrid": "hybrid", "retriever": "fedcar"}
TEXT_SHOWN = 160


@contextmanager
def live_table() -> Iterator[Watch]:
    """A context whose value shows each round's record on stderr: a growing table on a terminal, a line otherwise."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True)
    if not console.is_terminal:

        def tell(record: Record, beside: Mapping[str, float | None]) -> None:
            print(_line(_cells(record, beside), record), file=sys.stderr, flush=True)  # noqa: T201 - progress

        yield tell
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right")
    with Live(table, console=console, auto_refresh=False) as live:

        def show(record: Record, beside: Mapping[str, float | None]) -> None:
            table.add_row(*_cells(record, beside))
            live.update(table, refresh=True)

        yield show


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
        f"{record.clock_seconds:.2f}",
    ]


def _line(cells: Sequence[str], record: Record) -> str:
    told = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True) if cell)
    reasons = {**record.refused, **record.failed}
    return told + "".join(f"; {client}: {reason}" for client, reason in reasons.items())


def print_evaluation(result: dict[str, Any]) -> None:
    """The four systems side by side, over all, seen and unseen documents."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    of_retriever = result["systems"]["retriever"]
    parts = [part for part in ("seen", "unseen") if of_retriever[part]]
    counts = ", ".join(f"{of_retriever[part]['queries']} {part}" for part in parts)
    asked = f"{result['queries']} queries ({counts}), {result['documents']} documents"
    console.print(f"{result['collection']}, {result['split']}: {asked}", markup=False)
    columns = [("all", measure) for measure in MEASURES]
    if len(parts) == 2:  # otherwise `all` says it
        columns += [(part, MEASURES[0]) for part in parts]
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="")
    table.add_column("")
    for part, measure in columns:
        table.add_column(f"{part}\n{measure}", justify="right", no_wrap=True)
    for name, system in result["systems"].items():
        cells = [f"{system[part][measure]:.3f}" for part, measure in columns]
        table.add_row(TITLES[name], *cells, style="bold" if name == "retriever" else "")
    console.print(table)
    differences = {part: result["difference"][part] for part in ("all", "unseen") if len(parts) == 2 or part == "all"}
    console.print("success@1 over hybrid (95 %): " + ", ".join(map(_difference, differences, differences.values())))
    if result["trained_on"]:
        console.print(f"{result['trained_on']} queries whose text stands in train were left out")
    calibration, unanswerable = result["calibration"], result["unanswerable"]
    console.print(f"expected calibration error {calibration['ece']:.3f}")
    if unanswerable:
        auroc = f"AUROC {unanswerable['auroc']:.3f}"
        console.print(f"telling {unanswerable['queries']} unanswerable queries apart: {auroc}")


def print_bench(result: dict[str, Any]) -> None:
    """Fedcar and its peers, a line each; what was left out, with the reason, goes to stderr as it happens."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    systems: dict[str, dict[str, float]] = {"fedcar": {}}
    for row in result["rows"]:
        systems["fedcar"][row["what"]] = row["ours"]
        systems.setdefault(row["peer_name"], {})[row["what"]] = row["peer"]
    console, machine = Console(highlight=False), result["machine"]
    on = machine["collection"]
    asked = f"{on['training_questions']} training and {on['test_questions']} test questions"
    console.print(f"{on['name']}: {asked}, {on['documents']} documents", markup=False)
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB", markup=False)
    columns = {"success@1 all": "success\n@1", "mrr@10 all": "mrr\n@10", "ndcg@10 all": "ndcg\n@10"}
    columns |= {f"success@1 {part}": f"success\n{part}" for part in ("seen", "unseen")}
    columns |= {"training": "train\ns", "peak memory": "memory\nMB"}
    shown = [what for what in columns if any(what in values for values in systems.values())]
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 0, 0, 1), header_style="")
    table.add_column("")
    for what in shown:
        table.add_column(columns[what], justify="right", no_wrap=True)
    for name, values in systems.items():
        digits = {"training": 1 if values.get("training", 0) < 1000 else 0, "peak memory": 0}
        cells = [f"{values[what]:.{digits.get(what, 3)}f}" if what in values else "" for what in shown]
        table.add_row(name.replace(", ", "\n", 1), *cells, style="bold" if name == "fedcar" else "")
    if result["rows"]:
        console.print(table)
    if result["speedup"] is not None:
        console.print(f"smallest ratio to sentence-transformers: {result['speedup']:.3f} (above 1: fedcar is better)")
    for name in machine["left_out"]:
        console.print(f"{name} was left out", markup=False)


def _difference(part: str, found: dict[str, float]) -> str:
    numbers = [f"{found[name]:+.3f}".replace("0.", ".", 1) for name in ("success@1", "low", "high")]
    return f"{'' if part == 'all' else f'{part} '}{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def print_rows(result: dict[str, Any]) -> None:
    """A benchmark's rows as they are, with what stands beside them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, machine = Console(highlight=False), result["machine"]
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB", markup=False)
    beside = {one["what"]: one for name in ("encoded", "searched") for one in machine.get(name, [])}
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    peers = list(dict.fromkeys(one["peer_name"] for one in result["rows"]))
    for name in ("", "unit", "fedcar", peers[0] if len(peers) == 1 else "peer", "ratio", "beside"):
        table.add_column(name, justify="left" if name in ("", "unit", "beside") else "right")
    for one in result["rows"]:
        more = beside.get(one["what"], beside.get(one["what"].rpartition(", ")[0], {}))
        said = ", ".join(f"{name} {value}" for name, value in more.items() if name != "what")
        said = said if len(peers) == 1 else one["peer_name"]
        table.add_row(one["what"], one["unit"], f"{one['ours']:.4g}", f"{one['peer']:.4g}", f"{one['ratio']}", said)
    console.print(table)


def print_answer(answer: Answer) -> None:
    """The hits of one question, best first."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    if not answer.hits:
        console.print("no document found")
    elif not answer.answered:
        console.print("no confident answer; the nearest documents:")
    for rank, hit in enumerate(answer.hits, 1):
        text = one_line(hit.text)
        line = Text(f"{rank}. ")
        line.append(one_line(hit.title or hit.id), style="bold")
        line.append(f"  {one_line(hit.id)}  confidence {hit.confidence:.2f}", style="dim")
        console.print(line)
        if text:
            shown = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1].rstrip() + "…"
            console.print(Padding(Text(shown), (0, 0, 0, 3)))


def one_line(text: str) -> str:
    """The text on one line and without control characters, which could change the terminal."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
