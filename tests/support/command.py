"""The command line as the tests call it: in this process where that is enough, in a real one where signals count."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from fedcar.collection.collection import Collection

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that is all of stdout."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        return json.loads(self.out)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("warning: ")]


def fedcar(*arguments: object, cwd: Path | None = None) -> Result:
    """Run the command line in this process; an exception that is no exit would be a traceback, and fails the test."""
    from fedcar.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    words = ["fedcar", *map(str, arguments)]
    before, signals = os.getcwd(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = sys.unraisablehook
    os.chdir(cwd or before)
    with warnings.catch_warnings(), patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        finally:  # main leaves the signals of an ending process behind it
            os.chdir(before)
            sys.unraisablehook = hook
            for number, handler in signals.items():
                signal.signal(number, handler)
    return Result(code, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "80", **more}


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a real process that runs the code."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"text": True, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below the folder: the content of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def learnable(collection: Collection) -> Collection:
    """The toy's documents, asked for by words that stand in none of them: whoever learns is better than search.

    20 training, 10 dev and 5 test questions about five documents; "hose" is unseen.
    """
    from dataclasses import replace

    from support.toy import TOY_DOCUMENTS

    from fedcar.collection.collection import Query

    forms = {"train": ("{0}", "{0} {0}", "{0}!", "{0} - {0}"), "dev": ("{0}?", "{0}, {0}"), "test": ("{0}.",)}
    queries, judgements = {}, {split: {} for split in forms}
    for name, (_, _, word) in TOY_DOCUMENTS.items():
        for split, texts in forms.items() if name != "hose" else ():
            for number, text in enumerate(texts):
                query = Query(f"{name}-{split}-{number}", text.format(word))
                queries[query.id], judgements[split][query.id] = query, {name: 1}
    return replace(collection, name="learnable", queries=queries, judgements=judgements)
