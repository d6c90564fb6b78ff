"""A small run of everything that can be run without a network: a tiny random model, the packaged collection.

What the pages say of files and of `--json` comes from here, so that it is what the program does.
"""

from __future__ import annotations

import functools
import io
import os
import tempfile
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]


@dataclass
class SmallRun:
    """The folder of a run, and what each command printed with --json, by its words."""

    folder: Path
    printed: dict[str, Any] = field(default_factory=dict)

    def fedcar(self, command: str, *arguments: object) -> None:
        """Run a command; RuntimeError where it fails."""
        from support.command import fedcar

        words = [*command.split(), *map(str, arguments), "--json"]
        result = fedcar(*words)
        if result.code:
            raise RuntimeError(f"fedcar {' '.join(words)}: {result.err}")
        self.printed.setdefault(command, result.json)


@functools.cache
def small_run() -> SmallRun:
    """Made once a process; about fifteen seconds on one core."""
    folder = tempfile.TemporaryDirectory(prefix="fedcar-pages-")
    kept.append(folder)
    own = {f"XDG_{kind.upper()}_HOME": str(Path(folder.name) / kind) for kind in ("cache", "state", "data")}
    with patch.dict(os.environ, {**own, "HF_HUB_OFFLINE": "1"}):
        return _run(SmallRun(Path(folder.name)))


kept: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def _run(run: SmallRun) -> SmallRun:
    from support.command import learnable
    from support.models import save_model, save_tokenizer
    from support.toy import TOY_DOCUMENTS

    from fedcar.collection.collection import Collection, Document
    from fedcar.collection.demo import FOLDER
    from fedcar.retriever import quick_writing

    model, place = run.folder / "bert", run.folder
    for name in ("bert", "llama"):
        with redirect_stderr(io.StringIO()):  # which a progress bar is written to
            save_model(place / name, name)
        save_tokenizer(place / name, name)
    Collection.read(FOLDER).write(place / "collection")
    documents = tuple(Document(name, title, text) for name, (title, text, _) in TOY_DOCUMENTS.items())
    learnable(Collection("toy", documents, {}, {})).write(place / "toy")
    collection, encoder, exact = place / "collection", ("--encoder", model), ("--runtime", "torch")
    questions, more = place / "questions.csv", place / "more.jsonl"
    questions.write_text("text,label\nthe fan is loud,fan\nno water,pump\n", encoding="utf-8")
    more.write_text('{"_id": "new", "title": "New", "text": "A new document about the lamp."}\n', encoding="utf-8")
    run.fedcar("import", questions, "--out", place / "imported", "--text-column", "text", "--label-column", "label")
    for method, epochs in (("head", ("--epochs", 2)), ("ridge", ())):
        run.fedcar("train", collection, "-o", place / method, "--method", method, *epochs, *encoder, *exact)
    adapter = ("--method", "adapter", "--epochs", 12, "--encoder", place / "llama")  # sure to be better than search
    run.fedcar("train", place / "toy", "-o", place / "adapter", *adapter, *exact)
    run.fedcar("evaluate", place / "ridge", collection, "--run", place / "hits.run", *exact)
    with patch.object(quick_writing, "PACKAGES", ()):  # which tests leave out
        run.fedcar("search", place / "ridge", "the squeegee leaves water behind")
    run.fedcar("list", place / "ridge")
    run.fedcar("info", place / "ridge")
    run.fedcar("add", place / "ridge", more)
    run.fedcar("update", place / "ridge", more)
    run.fedcar("remove", place / "ridge", "new")
    for form in ("bundle", "transformers"):
        run.fedcar("export", place / "adapter", "--format", form, "--out", place / form)
    rounds = ("--clients", 2, "--method", "head", "--rounds", 2, *encoder)
    run.fedcar("federate", collection, "-o", place / "federated", *rounds, "--run", place / "run")
    noised = ("--epsilon", 3, "--delta", 1e-3, "--against-advice", "--run", place / "noised-run")
    run.fedcar("federate", collection, "-o", place / "noised", *rounds, *noised)
    run.fedcar("privacy plan", "--questions", 900, "--documents", 77, "--epsilon", 1)
    run.fedcar("privacy statement", place / "noised")
    run.fedcar("privacy attack", collection, *encoder)
    run.fedcar("privacy audit", collection, *encoder)
    run.fedcar("privacy ledger", collection)
    _checkpoint(run, collection, model)
    _server(run, collection, model)
    _benchmarks(run, collection, encoder)
    return run


def _checkpoint(run: SmallRun, collection: Path, model: Path) -> None:
    """What an interrupted training leaves: the command takes it away when it is done, the function does not."""
    from fedcar import Collection, train

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(Collection.read(collection), encoder=model, method="head", epochs=1, checkpoint=run.folder / "checkpoint")


def _server(run: SmallRun, collection: Path, model: Path) -> None:
    """The folder of a server before its first device, and a device's keys; no process is started."""
    from fedcar.federation.deploy.folder import ServerFolder
    from fedcar.federation.deploy.processes import free_port
    from fedcar.federation.deploy.server import front_certificate, prepare_server

    place = ServerFolder(run.folder / "server")
    prepare_server(place, "127.0.0.1", None, free_port(), collection, str(model), None)
    front_certificate(place, "127.0.0.1", None)
    run.fedcar("keygen", "--node", "hospital-a", "--out", run.folder / "device")


def _benchmarks(run: SmallRun, collection: Path, encoder: tuple[object, ...]) -> None:
    run.fedcar("bench search", "--rows", 2000, "--runs", 1)
    run.fedcar("bench step", collection, *encoder, "--runs", 1, "--questions", 16, "--batch", 2, "--paragraphs", 2,
               "--no-memory")  # fmt: skip
