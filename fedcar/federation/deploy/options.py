"""What a run over the network was asked for, and the names of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.common.progress import Silent
from fedcar.errors import FedcarError, quoted
from fedcar.version import __version__

if TYPE_CHECKING:
    from fedcar.collection.collection import Collection
    from fedcar.federation.rounds.record import Watch

OPTIONS = "run.json"
ENROLMENT = "enrolment.safetensors"
DEVICES = "devices.json"  # who takes part in a run under epsilon, which has no enrolment: n_i is a question's too
HEADS = "heads.json"  # in the server's folder: where each device's ledgers over runs stood last
RETRIEVER = "retriever"
LOCK = "run.lock"


@dataclass(frozen=True)
class RunOptions:
    """What `fedcar run` was asked for, kept in RUN/run.json so that `fedcar resume` needs nothing but its name."""

    method: str
    adapter: str
    rounds: Mapping[str, Any]
    over_selection: float = 1.0
    cache: str | None = None
    target: Mapping[str, Any] | None = None  # the fields of a Target, under epsilon
    ledgers: str | None = None
    exchanges: int | None = None  # what a run under epsilon has in all
    public: str | None = None  # a file of public questions
    public_dev: bool = False  # whether the server's own dev split is public too
    version: str = __version__

    @classmethod
    def read(cls, run: Path) -> RunOptions:
        try:
            return cls(**json.loads((run / OPTIONS).read_text(encoding="utf-8")))
        except OSError as error:
            raise FedcarError(f"{quoted(run.name)}: no such run; fedcar status lists them") from error


@dataclass(frozen=True)
class ServedRun:
    """A run over the devices of a server, as it is under way: its folder, what it was asked for, who hears of it."""

    folder: Path
    options: RunOptions
    collection: Collection
    resume: bool = False
    report: Silent = field(default_factory=Silent)
    watch: Watch = lambda record, beside: None
