"""Collections that differ in one question, and whether anything that they leave behind tells which it was.

Under noise that swallows every sum all of it must be the same: files byte for byte, noised numbers to the grid that
noise is rounded to, and what was said.
"""

from __future__ import annotations

import io
import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load
from support.command import tree

from fedcar import train
from fedcar.collection.collection import Collection, Document, Query
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.privacy.ledger import Ledger
from fedcar.training.noised.server import PrivateTraining

TINY = 1e-9  # an epsilon at which the noise swallows everything: what then still differs between neighbours leaks
LONG = "so many words that the encoder cuts them off " * 20
SEALS = ("manifest.json", "manifest.sha256")

Left = dict[str, bytes | None]  # what a command leaves behind, by name


def crossed(collection: Collection) -> Collection:
    """With public texts that are a private question's too (a document, a dev question), and a dev question too long.

    Also with a question that nothing is known of.
    """
    private = collection.queries[next(iter(collection.judgements["train"]))].text
    more = {name: Query(name, text) for name, text in (("twin", private), ("long", LONG), ("unjudged", "who knows"))}
    dev = {**collection.judgements["dev"], "twin": {"hose": 1}, "long": {"fan": 1}}
    return replace(
        collection,
        documents=(*collection.documents, Document("twin", "", private)),
        queries={**collection.queries, **more},
        judgements={**collection.judgements, "dev": dev},
    )


def neighbours(collection: Collection, split: str = "train") -> dict[str, Collection]:
    """The collection with one private question taken out, reworded, answered by another document, or one more."""
    judgements, queries = dict(collection.judgements[split]), dict(collection.queries)
    first = next(iter(judgements))
    without = {query: scores for query, scores in judgements.items() if query != first}

    def having(judged: dict[str, Any], queries: dict[str, Query] = queries) -> Collection:
        return replace(collection, queries=queries, judgements={**collection.judgements, split: judged})

    return {
        "taken out": having(without, {name: query for name, query in queries.items() if name != first}),
        "reworded": having(judgements, {**queries, first: replace(queries[first], text=LONG)}),
        "another answer": having({**judgements, first: {"hose": 1}}),
        "stop words": having(judgements, {**queries, first: replace(queries[first], text="the of and")}),
        "one more": having({**judgements, "new": {"hose": 1}}, {**queries, "new": Query("new", "who fixes the tube")}),
    }


class ByBatch(Encoder):
    """States that depend on the texts that are encoded together: as the last bits of any encoder's do, but visibly."""

    def encode_parts(self, parts: Iterable[Sequence[str]], progress: Any = None) -> Iterator[Any]:
        for texts in parts:
            states = self.encode_states(texts, progress)
            drawn = np.random.default_rng(zlib.crc32("\0".join(texts).encode()))
            states["pooled"] += drawn.standard_normal(self.dimension, np.float32)
            yield states


def past(collection: Collection, encoder: Path, cache: Path) -> Path:
    """A cache with a past: the questions alone, un-noised training of this collection, training under epsilon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FeatureCache(cache).states(ByBatch.load(encoder), collection.judged("train").texts)
        train(collection, encoder=ByBatch.load(encoder), cache=cache, method="ridge")
        train(collection, encoder=ByBatch.load(encoder), cache=cache, method="ridge", epsilon=1.0, public_dev=True)
    return cache


@contextmanager
def heard(left: Left) -> Iterator[None]:
    """What is said in here on standard error, warnings too, is left behind as "stderr", and what choices are made by.

    Those are states of public dev questions; their last bits move a choice now and then, so they count themselves.
    """
    said, before = io.StringIO(), PrivateTraining.before

    def looking(self: PrivateTraining) -> Any:
        left["chosen by"] = self.selection.states.tobytes() if self.selection is not None else None
        return before(self)

    with redirect_stderr(said), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with patch.object(PrivateTraining, "before", looking):
            yield
    left["stderr"] = "\n".join([said.getvalue(), *sorted(str(one.message) for one in caught)]).encode()


def of_a_run(folder: Path) -> Left:
    """A run folder; of ledgers what was charged and the stored updates, without the names of runs, times and chains."""
    left = {}
    for name, content in tree(folder).items():
        path = folder / name
        if path.name == "private.json":
            content = json.dumps(json.loads(path.read_text())["belongs_to"]).encode()
        elif path.name == "ledger.jsonl":
            entries = [(one.kind, one.values.get("round"), one.values.get("charge")) for one in Ledger(path).open()]
            content = repr((entries, Ledger(path).releases())).encode()
        elif path.name == "ledger.jsonl.head":
            content = b"" if content else None
        left[f"{name}.safetensors" if path.suffix == ".bin" else name] = content
    return left


def difference(one: Left, other: Left) -> str:
    """The first thing that tells one from the other; "" where nothing does.

    The same bytes, but for float tensors: to the grid that noise is rounded to, relative 1e-5.
    """
    if set(one) != set(other):
        return f"there or not: {sorted(set(one) ^ set(other))}"
    for name, content in one.items():
        against = other[name]
        if name.endswith(".safetensors") and content is not None and against is not None:
            if found := difference_of_tensors(content, against):
                return f"{name}: {found}"
        elif content != against and Path(name).name not in SEALS:
            return f"{name}: {content!r:.2000} {against!r:.2000}"
    return ""


def difference_of_tensors(one: bytes, other: bytes) -> str:
    first, second = load(one), load(other)
    if {key: tensor.shape for key, tensor in first.items()} != {key: tensor.shape for key, tensor in second.items()}:
        return "other tensors"
    for key, tensor in first.items():
        if not tensor.is_floating_point():
            if not torch.equal(tensor, second[key]):
                return key
        elif tensor.numel() and not (tensor - second[key]).abs().max() <= 1e-5 * tensor.abs().max():
            return key
    return ""
