"""What a server sends a device before anything else: the head's kind, the settings, the promise of privacy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedcar.encoder.adapter import Adapter
from fedcar.privacy.ledger import LedgerHead
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.sums import ROWS


@dataclass(frozen=True)
class Setup:
    """What a request says of the run it belongs to; `settings` is empty before training."""

    run: str
    version: str
    encoder: str
    documents: str
    settings: Mapping[str, Any]
    rounds: Mapping[str, Any]

    @classmethod
    def parse(cls, text: object) -> Setup:
        """ValueError or TypeError for what is none."""
        return cls(**json.loads(str(text)))

    @property
    def json(self) -> str:
        return json.dumps(self.__dict__, sort_keys=True)


def head_of(text: object) -> LedgerHead:
    """Where a ledger stands, as it is written on the wire; ValueError for what is none."""
    number, _, digest = str(text).partition(":")
    if not (number.isdecimal() and len(number) <= 12 and len(digest) == 64):
        raise ValueError("no head of a ledger")
    return LedgerHead(int(number), digest)


def state_forms(untrained: Retriever, module: Adapter | None) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of every tensor of a state under epsilon: rows, and those of the adapter."""
    forms = {ROWS: (torch.float32, untrained.head.rows.shape)}
    if module is not None:
        forms |= {name: (tensor.dtype, tensor.shape) for name, tensor in module.named_parameters()}
    return forms
