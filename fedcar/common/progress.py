"""What a long job says while it runs: a bar on a terminal, a line now and then elsewhere, nothing by default."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


class Silent:
    """Says nothing: the default of the Python interface."""

    def say(self, line: str) -> None:
        """One line that stays."""

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A context whose value is called with the number of things done since the last call."""
        yield lambda done: None


class Console(Silent):
    """Progress on stderr, so that stdout holds results alone."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints progress

    @contextmanager
    def track(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        if sys.stderr.isatty():
            with _bar(label, total) as advance:
                yield advance
        else:
            yield self._lines(label, total)

    def _lines(self, label: str, total: int) -> Callable[[int], None]:
        start = said = time.monotonic()
        sum_done = 0

        def advance(done: int) -> None:
            nonlocal said, sum_done
            sum_done += done
            now = time.monotonic()
            if now - said > SECONDS_BETWEEN_LINES and 0 < sum_done < total:
                rate = sum_done / (now - start)
                self.say(f"{label}: {sum_done} of {total}, {rate:.0f}/s, {(total - sum_done) / rate:.0f} s to go")
                said = now

        return advance


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),  # with the rest under 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, rate="")

        def advance(done: int) -> None:
            speed = progress.tasks[task].speed
            progress.update(task, advance=done, rate=f"{speed:.0f}/s" if speed else "")

        yield advance
