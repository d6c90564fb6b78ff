"""What a run over the network was asked for, and the names of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcar.errors import FedcarError, quoted
from fedcar.version import __version__

OPTIONS = "run.json"
ENROLMENT = "enrolment.safetensors"
DEVICES = "devices.json"  # who takes part in a run under epsilon, which has no enrolment: n_i is a question's too
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
    version: str = __version__

    @classmethod
    def read(cls, run: Path) -> RunOptions:
        try:
            return cls(**json.loads((run / OPTIONS).read_text(encoding="utf-8")))
        except OSError as error:
            raise FedcarError(f"{quoted(run.name)}: no such run; fedcar status lists them") from error
