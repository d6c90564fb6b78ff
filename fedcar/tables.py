"""Results as tables for people, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcar.retriever import Answer

MEASURES = ("success@1", "recall@10", "mrr@10", "ndcg@10")
TITLES = {"bm25": "BM25", "mips": "MIPS (encoder)", "hybrid": "hybrid search", "retriever": "fedcar"}
TEXT_SHOWN = 160


def print_evaluation(result: dict[str, Any]) -> None:
    """The four systems side by side, over all, seen and unseen documents."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    numbers = result["systems"]["retriever"]
    parts = [part for part in ("all", "seen", "unseen") if numbers[part]]
    if len(parts) == 2:  # everything is seen, or everything unseen: one part says it all
        parts = ["all"]
    table = Table(title=f"{result['collection']}, {result['split']}: {result['queries']} queries, {result['documents']} documents")
    table.add_column("")
    for part in parts:
        for measure in MEASURES if part == "all" else MEASURES[:1]:
            table.add_column(f"{measure}\n{part} ({numbers[part]['queries']})", justify="right")
    for name, system in result["systems"].items():
        cells = [f"{system[part][measure]:.3f}" for part in parts for measure in (MEASURES if part == "all" else MEASURES[:1])]
        table.add_row(TITLES[name], *cells, style="bold" if name == "retriever" else "")
    console.print(table)
    if result["trained_on"]:
        console.print(f"{result['trained_on']} queries whose text stands in train were left out")
    calibration, unanswerable = result["calibration"], result["unanswerable"]
    console.print(f"expected calibration error {calibration['ece']:.3f}")
    if unanswerable:
        console.print(f"telling {unanswerable['queries']} unanswerable queries apart: AUROC {unanswerable['auroc']:.3f}")


def print_answer(answer: Answer) -> None:
    """The hits of one question, best first."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not answer.hits:
        console.print("no document found")
    elif not answer.answered:
        console.print("no confident answer; the nearest documents:")
    for rank, hit in enumerate(answer.hits, 1):
        line = Text(f"{rank}. ")
        line.append(hit.title or hit.id, style="bold")
        line.append(f"  {hit.id}  confidence {hit.confidence:.2f}", style="dim")
        console.print(line)
        console.print(Text("   " + (hit.text if len(hit.text) <= TEXT_SHOWN else hit.text[: TEXT_SHOWN - 1] + "…")))
