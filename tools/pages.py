"""Write the pages that come from the program: `make docs`. tests/tools/test_pages.py compares them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools import commands, files, guarantees, house

DOCS = Path(__file__).parents[1] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "house.svg": house.picture,
    "guarantees.md": guarantees.page,
    "cli.md": commands.page,
    "files.md": files.page,
}


def main() -> None:
    """Write all of them."""
    house.checked_floors()
    for name, made in PAGES.items():
        (DOCS / name).write_text(made(), encoding="utf-8")


if __name__ == "__main__":
    main()
