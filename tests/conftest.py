"""What the tests share: tiny random models of six families, a collection whose arithmetic can be seen, no network."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite(
    *(f"support.{name}" for name in ("command", "deployments", "federated", "places", "served", "wire"))
)

from support.models import FAMILIES, save_model, save_tokenizer  # noqa: E402 - rewritten first
from support.toy import TOY_CLIENTS, TOY_DOCUMENTS, TOY_QUESTIONS, TOY_UNANSWERABLE  # noqa: E402

if TYPE_CHECKING:
    from support.federated import World

    from fedcar.collection.collection import Collection

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a suite started in the background ignores Ctrl-C, and so would the processes that the tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def offline() -> Any:
    """No test reaches the network, only this machine; torch keeps to one thread."""
    import torch

    torch.set_num_threads(1)
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"the tests have no network: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Nothing that a test leaves in the user's cache, ledgers and witnesses has a say in another run of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cache", "state", "data"):
            patch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path_factory.mktemp(f"user-{name}")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_quick_starts() -> Any:
    """No search leaves a quick start, which takes seconds; what tests them undoes this."""
    from fedcar.retriever import quick_writing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_writing, "PACKAGES", ("no_such_package",))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_trials_of_runtimes() -> Any:
    """No runtime is tried in another process, which takes seconds; what tests that undoes this."""
    from fedcar.encoder.runtimes import choice
    from fedcar.encoder.runtimes.watching import Known, Trial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "tried", lambda model, names, *texts: Trial({name: Known(1.0) for name in names}))
        yield


@pytest.fixture(scope="session", autouse=True)
def few_frequencies() -> Any:
    """The closed form in 256 random features: the toys need no more, and a solve takes milliseconds."""
    from fedcar.head import feature_map

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_map, "FREQUENCIES", 64)
        yield


@pytest.fixture(scope="session", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An encoder is exported once a run, and copied for whoever exports an equal one again: seconds each."""
    from fedcar.common.files import written_whole
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.runtimes import onnx_file

    parallel = "PYTEST_XDIST_WORKER" in os.environ  # then all processes of the run share the folder above
    base = tmp_path_factory.getbasetemp()
    write, kept = onnx_file.write, (base.parent if parallel else base) / "exported"
    kept.mkdir(exist_ok=True)

    def write_once(model: Any, file: Path, precision: str = "fp32", adapter: Any = None) -> None:
        states = Encoder(model, adapter).state_fingerprint
        whole = kept / f"{states}-{model.pooling}-{precision}-{adapter and adapter.variant}.onnx"
        if not whole.exists():
            with written_whole(whole) as new:
                write(model, new, precision, adapter)
        shutil.copy(whole, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "write", write_once)
        yield


@pytest.fixture(scope="session")
def toy_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder; read it, never write into it.

    6 documents, 40 questions: of each of the 5 seen documents 4 train, 1 dev and 2 test; of the unseen "hose" 2 test; 3
    that nothing answers (1 dev, 2 test). Every other question names the document, the rest use its question word only.
    Clients: north (3 documents), south (2), west (the unseen one and what nothing answers).
    """
    folder = tmp_path_factory.mktemp("toy") / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": name, "title": title, "text": text} for name, (title, text, _) in TOY_DOCUMENTS.items()]
    queries: list[dict[str, Any]] = []
    judgements: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for name, (_, _, word) in TOY_DOCUMENTS.items():
        for number, question in enumerate(TOY_QUESTIONS):
            if name == "hose" and number < 5:
                continue
            split = "train" if number < 4 else "dev" if number == 4 else "test"
            query = f"{name}-{number}"
            text = question.format(name if number % 2 else word)
            queries.append({"_id": query, "text": text, "metadata": {"client": TOY_CLIENTS[name]}})
            judgements[split].append(f"{query}\t{name}\t1")
    for query, (text, split) in TOY_UNANSWERABLE.items():
        queries.append(
            {"_id": query, "text": text, "metadata": {"client": "west", "answerable": False, "split": split}}
        )
    for file, records in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for split, lines in judgements.items():
        (folder / "qrels" / f"{split}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model("bert") -> the folder of a random model with its tokenizer; made once a session, never write into it.

    `padding_side` goes into the tokenizer's configuration; other options into the model's configuration.
    """

    @functools.cache
    def make(family: str, padding_side: str = "right", **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(family)
        save_model(folder, family, **options)
        save_tokenizer(folder, family, padding_side)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder_folder(tiny_model: Callable[..., Path]) -> Path:
    """The folder of the tiny BERT: the encoder for tests to which any will do."""
    return tiny_model("bert")


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Path:
    """The folder of the tiny Llama: of the tiny models the one whose states differ most, so that it learns."""
    return tiny_model("llama")


@pytest.fixture(scope="module")
def collection(toy_collection: Path) -> Collection:
    """The toy's documents, with questions that can be learned."""
    from support.command import learnable

    from fedcar.collection.collection import Collection

    return learnable(Collection.read(toy_collection))


@pytest.fixture(scope="module")
def collection_folder(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder; read it, never write into it or beside it."""
    folder = tmp_path_factory.mktemp("collection") / "learnable"
    collection.write(folder)
    return folder


@pytest.fixture(scope="module")
def world(encoder_folder: Path) -> World:
    """Questions, and clients who have them, without any encoding."""
    from support.federated import World

    return World(encoder_folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hidden states are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Path:
    """The folder of a tiny model, for each of the six families."""
    return tiny_model(request.param)


@pytest.fixture
def a_point_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is better than hybrid search on the questions at hand is kept, however few they are.

    Toy collections have a handful of questions, which prove nothing (see `training.gains`).
    """
    monkeypatch.setattr("fedcar.training.gains.SURE", 0.0)
    monkeypatch.setattr("fedcar.training.gains.NOT_WORSE", 0.0)
