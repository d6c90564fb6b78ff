"""Collections that differ in one question, and how much of a retriever's files may differ for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load

from fedcar.collection.collection import Collection, Query

TINY = 1e-9  # an epsilon at which the noise swallows everything: what then still differs between neighbours leaks


def neighbours(collection: Collection) -> dict[str, Collection]:
    """The collection with one private question taken out, reworded, answered by another document, or one more."""
    judgements, queries = dict(collection.judgements["train"]), dict(collection.queries)
    first = next(iter(judgements))
    without = {query: scores for query, scores in judgements.items() if query != first}

    def having(train: dict[str, Any], queries: dict[str, Query] = queries) -> Collection:
        return replace(collection, queries=queries, judgements={**collection.judgements, "train": train})

    long = replace(queries[first], text="so many words that the encoder cuts them off " * 20)
    return {
        "taken out": having(without, {name: query for name, query in queries.items() if name != first}),
        "reworded": having(judgements, {**queries, first: long}),
        "another answer": having({**judgements, first: {"hose": 1}}),
        "stop words": having(judgements, {**queries, first: replace(queries[first], text="the of and")}),
        "one more": having({**judgements, "new": {"hose": 1}}, {**queries, "new": Query("new", "who fixes the tube")}),
    }


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The same bytes in every file, but for float tensors: to the grid that noise is rounded to, relative 1e-5."""
    tensors = {name for name in one if name.endswith(".safetensors")}
    hashes = {"manifest.json", "manifest.sha256"}
    assert set(one) == set(other) and all(one[name] == other[name] for name in set(one) - tensors - hashes)
    for name in tensors:
        first, second = load(one[name]), load(other[name])
        assert set(first) == set(second)
        for key, tensor in first.items():
            if not tensor.is_floating_point():
                assert torch.equal(tensor, second[key]), (name, key)
            elif (tensor - second[key]).abs().max() > 1e-5 * tensor.abs().max():
                return False
    return True
