"""`fedcar bench encode` and `bench search`: the contract's shape, true recall, ratios the right way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import fedcar

from fedcar.bench import encode as bench_encode
from fedcar.bench import search as bench_search
from fedcar.bench import step as bench_step
from fedcar.common.progress import Silent
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError

ROW = {"what", "ours", "peer", "peer_name", "unit", "ratio", "runs"}


def test_encoding_is_measured_beside_sentence_transformers(
    toy_collection: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(bench_encode, "MATRIX", 64)
    options = ["--encoder", tiny_model("bert"), "--questions", 5, "--paragraphs", 2, "--runs", 2, "--json"]
    result = fedcar("bench", "encode", toy_collection, "--runtime", "torch,torch-bf16", *options, "--success")
    found = result.json
    assert found.keys() == {"machine", "rows", "speedup"} and len(found["rows"]) == 4
    assert all(row.keys() == ROW and row["unit"] == "texts/s" and row["ratio"] > 0 for row in found["rows"])
    assert found["speedup"] == min(row["ratio"] for row in found["rows"])
    exact, half, *_ = found["machine"]["encoded"]
    assert exact["cosine"] == 1.0 > half["cosine"] > 0.99
    assert 0 <= exact["success@1"] == exact["of_float32"] == half["of_float32"] <= 1
    shown = fedcar("bench", "encode", toy_collection, "--runtime", "torch", *options[:-1])
    assert shown.code == 0 and "paragraph, torch" in shown.out.replace("\n", " ") and "cosine 1.0" in shown.out
    assert fedcar("bench", "encode", toy_collection, "--runtime", "fast").code == 2


def test_a_ratio_above_one_means_that_fedcar_is_faster() -> None:
    now = [0.0]

    def job(seconds: float) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + seconds)

    seconds, ratios = bench_encode.in_turns({"peer": job(2.0), "ours": job(0.5)}, 3, lambda: now[0])
    assert seconds == {"peer": 2.0, "ours": 0.5} and ratios == {"peer": 1.0, "ours": 4.0}


def test_the_work_of_a_pass_is_counted(tiny_model: Callable[..., Path]) -> None:
    encoder = Encoder.load(tiny_model("bert"))
    one, two = (bench_encode.flop(encoder, ["water"] * number) for number in (1, 2))
    blocks = sum(one.numel() for name, one in encoder.model.transformer.named_parameters() if "encoder.layer" in name)
    assert two == 2 * one and one > 2 * 3 * blocks  # [CLS] water [SEP]


def test_steps_are_measured_beside_what_they_consist_of(
    toy_collection: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_step, "MANY_DOCUMENTS", 12)
    sizes = ["--encoder", tiny_model("bert"), "--questions", 20, "--batch", 3, "--paragraphs", 2, "--runs", 1]
    rows = fedcar("bench", "step", toy_collection, *sizes, "--no-memory", "--json").json["rows"]
    assert all(row.keys() == ROW and row["unit"] == "s" and row["ratio"] > 0 for row in rows)
    names = [row["what"] for row in rows if "bfloat16" not in row["what"]]
    of_rows = ["head, 6 documents", "ridge, 6 documents", "head, 12 documents"]
    assert names == [*of_rows, "adapter, question, float32", "adapter, paragraph, float32"]
    assert {row["peer_name"] for row in rows} == {bench_step.PRODUCTS, bench_step.FORWARD}
    shown = fedcar("bench", "step", toy_collection, *sizes, "--no-memory")
    assert shown.code == 0 and "forward pass" in shown.out
    assert fedcar("bench", "step", toy_collection, "--runs", 0).code == 1


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tiny_model: Callable[..., Path]) -> None:
    update = bench_step.UpdateTask("", str(tiny_model("bert")), ["the fan is broken"] * 4)
    rows = bench_step.memory_rows(update, 1, Silent())
    assert all(row.keys() == ROW and row["ours"] > 0 for row in rows) and len(rows) % 3 == 0
    with pytest.raises(FedcarError, match="full fine-tuning cannot be measured: "):
        bench_step.in_its_own_process(bench_step.UpdateTask(bench_step.FULL, "nowhere", []))


def test_search_is_measured_beside_faiss(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    found = fedcar("bench", "search", "--rows", 2000, "--runs", 2, "--json").json
    assert found.keys() == {"machine", "rows", "speedup"} and all(row.keys() == ROW for row in found["rows"])
    searched = {one["what"]: one for one in found["machine"]["searched"]}
    assert searched["exact, float32"] == {"what": "exact, float32", "recall@10": 1.0, "memory": 1.0}
    assert searched["exact, int8"]["memory"] < 0.26 and searched["index"]["recall@10"] >= 0.99
    refused = fedcar("bench", "search", "--cache", tmp_path)
    assert refused.code == 1 and "0 hidden states" in refused.err


def test_made_up_vectors_lie_in_clusters_and_are_the_same_every_time() -> None:
    vectors = bench_search.clustered(500)
    np.testing.assert_array_equal(vectors, bench_search.clustered(500))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    assert np.quantile(cosines, 0.5) < 0.1 and np.quantile(cosines, 0.9) > 0.5
