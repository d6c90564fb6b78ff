"""What a server sends a device before anything else: the head's kind, the settings, the promise of privacy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedcar.encoder.adapter import Adapter
from fedcar.federation.wire.payload import read_json
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
        return cls(**read_json(text))

    @property
    def json(self) -> str:
        return json.dumps(self.__dict__, sort_keys=True)


HEAD = re.compile(r"([0-9]{1,12}):([0-9a-f]{64})(?::([0-9a-f]{64}))?")
FORMER, MOST_FORMER = "~", 100  # the mark of a head from a former run, and how many are heard


def head_of(text: object) -> LedgerHead:
    """Where a ledger stands, as it is written on the wire; ValueError for what is none."""
    if not (found := HEAD.fullmatch(str(text))):
        raise ValueError("no head of a ledger")
    return LedgerHead(int(found[1]), found[2], found[3] or "")


def in_text(head: LedgerHead) -> str:
    """What `head_of` reads."""
    return ":".join([str(head.number), head.hash, *([head.ledger] if head.ledger else [])])


def heads_in_text(head: LedgerHead | None, former: Iterable[LedgerHead] = ()) -> str:
    """Where the server last saw a device's ledger in this run; before that, its ledgers over former runs."""
    if head is not None:
        return in_text(head)
    return ",".join(FORMER + in_text(one) for one in list(former)[-MOST_FORMER:])


def heads_of(text: object) -> tuple[LedgerHead | None, tuple[LedgerHead, ...]]:
    """What `heads_in_text` was given; ValueError for what is none."""
    words = str(text).split(",") if text else []
    if words and not words[0].startswith(FORMER):
        return head_of(text), ()
    if len(words) > MOST_FORMER or not all(word.startswith(FORMER) for word in words):
        raise ValueError("no heads of ledgers")
    return None, tuple(head_of(word.removeprefix(FORMER)) for word in words)


def state_forms(untrained: Retriever, module: Adapter | None) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Type and shape of every tensor of a state under epsilon: rows, and those of the adapter."""
    forms = {ROWS: (torch.float32, untrained.head.rows.shape)}
    if module is not None:
        forms |= {name: (tensor.dtype, tensor.shape) for name, tensor in module.named_parameters()}
    return forms
