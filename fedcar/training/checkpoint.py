"""Checkpoints: after every epoch all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcar.common.files import write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.common.history import History
from fedcar.errors import FedcarError
from fedcar.training.selection import Score

KIND = "checkpoint"


class Best(NamedTuple):
    """The best epoch so far (0: before training), its score on the selection questions and the trained tensors."""

    epoch: int
    score: Score
    tensors: dict[str, Tensor]


class Stored(NamedTuple):
    """What an epoch leaves: the trained tensors, the optimiser's, the best epoch, the records of all epochs so far."""

    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: Best
    history: list[dict[str, Any]]


class Checkpoint:
    """A folder that is replaced in one step after every epoch."""

    def __init__(self, folder: Path, belongs_to: dict[str, object]) -> None:
        self.folder = folder
        self.belongs_to = belongs_to

    def write(self, stored: Stored) -> None:
        def fill(folder: Path) -> None:
            save_file(stored.trained, folder / "current.safetensors")
            save_file(stored.best.tensors, folder / "best.safetensors")
            save_file(stored.optimizer, folder / "optimizer.safetensors")
            record = {
                "belongs_to": self.belongs_to,
                "best": {"epoch": stored.best.epoch, "score": list(stored.best.score)},
                "history": stored.history,
            }
            write_json(folder / "checkpoint.json", record)

        write_folder(self.folder, KIND, fill, private=True)

    def read(self) -> Stored | None:
        """What the last epoch left; None where there is no checkpoint yet.

        FedcarError where it belongs to another collection, encoder or setting.
        """
        if not self.folder.exists():
            return None
        check_folder(self.folder, KIND, "remove it and start again without --resume")
        record: dict[str, Any] = json.loads((self.folder / "checkpoint.json").read_text(encoding="utf-8"))
        for what, value in self.belongs_to.items():
            before = record["belongs_to"].get(what)
            if before != value:
                raise FedcarError(
                    f"{self.folder}: belongs to {difference(what, before, value)}; "
                    "give what it was started with, or start again without --resume"
                )
        best = record["best"]
        return Stored(
            load_file(self.folder / "current.safetensors"),
            load_file(self.folder / "optimizer.safetensors"),
            Best(best["epoch"], Score(*best["score"]), load_file(self.folder / "best.safetensors")),
            record["history"],
        )


@dataclass(frozen=True)
class Course:
    """A gradient training on its way: what happened so far, and where it is kept, if anywhere, to go on from."""

    history: History = field(default_factory=History)
    checkpoint: Checkpoint | None = None
    resume: bool = False

    def stored(self) -> Stored | None:
        """What the last epoch left, its records in the history; None where there is nothing to go on from."""
        stored = self.checkpoint.read() if self.checkpoint is not None and self.resume else None
        for record in stored.history if stored is not None else ():
            self.history.add(**record)
        return stored

    def write(self, trained: dict[str, Tensor], optimizer: dict[str, Tensor], best: Best) -> None:
        """Keep what an epoch came to."""
        if self.checkpoint is not None:
            self.checkpoint.write(Stored(trained, optimizer, best, self.history.records))


def difference(what: str, before: object, now: object) -> str:
    """In words: another collection or encoder by its fingerprint, other settings by those that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "other settings (" + ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in names) + ")"
    return f"another {what} ({str(before)[:12]}, now {str(now)[:12]})"
