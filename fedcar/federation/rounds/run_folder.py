"""The run folder: an append-only history and, after every round, a checkpoint that a run goes on from unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcar.common.files import remove_tree, replace_json, write_json
from fedcar.common.folders import check_folder, write_folder
from fedcar.common.history import History
from fedcar.errors import FedcarError
from fedcar.federation.rounds.record import RoundRecord
from fedcar.federation.rounds.update import ServerState
from fedcar.training.checkpoint import Best, difference
from fedcar.training.selection import Score

KIND = "run checkpoint"
HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint"
CENTRAL = "central.json"

Kept = dict[str, dict[str, Tensor]]  # what each client keeps, by client


class RunFolder:
    """RUN/history.jsonl, one record a round; RUN/checkpoint, sealed and replaced in one step after every round.

    The checkpoint is written first and holds its round's record: a history that was cut off before that record gets it
    when the run goes on, and half a line at its end, which only a crash can leave, is taken away. Whole records are
    never changed.
    """

    def __init__(self, folder: Path, belongs_to: Mapping[str, object] | None = None) -> None:
        self.folder = folder
        self.belongs_to = dict(belongs_to or {})

    @property
    def started(self) -> bool:
        return any((self.folder / name).exists() for name in (HISTORY, CHECKPOINT, CENTRAL))

    def start(self, resume: bool) -> None:
        """Make the folder; refuse one that holds a run already, or anything that is no run."""
        if self.folder.exists() and not self.folder.is_dir():
            raise FedcarError(f"--run {self.folder}: a file stands there; give another folder")
        if self.started and not resume:
            raise FedcarError(f"--run {self.folder}: holds a run; go on with --resume, or give another folder")
        if self.folder.is_dir() and not self.started and any(self.folder.iterdir()) and not self._interrupted_at_once():
            raise FedcarError(f"--run {self.folder}: exists and is not a run; give another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(f".{CHECKPOINT}.*"):
                remove_tree(left_over)
        except OSError as error:
            raise FedcarError(
                f"--run {self.folder}: cannot be written ({error.strerror}); give another folder"
            ) from error

    def _interrupted_at_once(self) -> bool:
        """Only what a crash before the first record leaves."""
        return all(entry.name.startswith((f".{CHECKPOINT}.", f".{CENTRAL}")) for entry in self.folder.iterdir())

    def write(self, state: ServerState, client_states: Kept, best: Best, record: RoundRecord) -> None:
        """All of the run after a round, then the round's record at the end of the history."""

        def fill(folder: Path) -> None:
            save_file(dict(state.tensors), folder / "state.safetensors")
            save_file(dict(state.optimizer), folder / "server.safetensors")
            save_file(best.tensors, folder / "best.safetensors")
            save_file(_flat(client_states), folder / "clients.safetensors")
            content = {
                "belongs_to": self.belongs_to,
                "round": state.round,
                "failures": {client: list(failure) for client, failure in state.failures.items()},
                "best": {"round": best.epoch, "score": list(best.score)},
                "record": record.to_json(),
            }
            write_json(folder / "checkpoint.json", content)

        write_folder(self.folder / CHECKPOINT, KIND, fill, private=True)
        self.append(record.to_json())

    def restore(self) -> tuple[ServerState, Kept, Best, list[RoundRecord]] | None:
        """The run where it stood; None where no round was finished. Refuses another collection, encoder or settings."""
        folder = self.folder / CHECKPOINT
        if not folder.exists():
            return None
        check_folder(folder, KIND)
        content: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        refuse_another(folder, content["belongs_to"], self.belongs_to)
        records = self.records()
        if not records or records[-1]["round"] < content["round"]:
            self.append(content["record"])
            records.append(content["record"])
        failures = {client: (count, again) for client, (count, again) in content["failures"].items()}
        state = ServerState(
            content["round"],
            load_file(folder / "state.safetensors"),
            load_file(folder / "server.safetensors"),
            failures,
        )
        best = content["best"]
        client_states = _nested(load_file(folder / "clients.safetensors"))
        best_so_far = Best(best["round"], Score(*best["score"]), load_file(folder / "best.safetensors"))
        return state, client_states, best_so_far, [RoundRecord(**record) for record in records]

    def central(self) -> dict[str, Any] | None:
        """What central training came to, where this run has done it already."""
        file = self.folder / CENTRAL
        if not file.exists():
            return None
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        refuse_another(file, content["belongs_to"], self.belongs_to)
        return content

    def keep_central(self, content: Mapping[str, Any]) -> None:
        replace_json(self.folder / CENTRAL, {"belongs_to": self.belongs_to, **content})

    def records(self) -> list[dict[str, Any]]:
        """The history; half a line at its end is taken away."""
        return History.of(self.folder / HISTORY).records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record at the end of the history."""
        History.of(self.folder / HISTORY).add(**record)


def refuse_another(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise FedcarError where a run belongs to another collection, encoder or settings; names both."""
    for what, value in now.items():
        if before.get(what) != value:
            raise FedcarError(
                f"{folder}: belongs to {difference(what, before.get(what), value)}; "
                "give what it was started with, or start again with another --run"
            )


def _flat(client_states: Kept) -> dict[str, Tensor]:
    """All clients' tensors in one mapping; the client's name comes last, since it may hold any character."""
    return {f"{name}@{client}": tensor for client, tensors in client_states.items() for name, tensor in tensors.items()}


def _nested(tensors: Mapping[str, Tensor]) -> Kept:
    client_states: Kept = {}
    for key, tensor in tensors.items():
        name, client = key.split("@", 1)
        client_states.setdefault(client, {})[name] = tensor
    return client_states
