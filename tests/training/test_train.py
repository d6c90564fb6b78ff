"""Training from outside: what is chosen, what is said, and that an interruption changes nothing."""

from __future__ import annotations

import json
import math
import random
import re
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import Result, fedcar, python, tree

from fedcar import train
from fedcar.collection.collection import Collection, Document
from fedcar.encoder import reference
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.retriever.retriever import Retriever
from fedcar.training import settings
from fedcar.training.train import plan

EPOCHS = 5


@pytest.fixture(scope="module")
def arguments(collection_folder: Path, encoder: Path, cache: Path) -> Callable[..., list[str]]:
    """The words of `fedcar train` for an output folder and a method."""

    def words(out: Path, method: str, *more: object) -> list[str]:
        options = ("--encoder", encoder, "--cache", cache, "--method", method, "--epochs", EPOCHS)
        return [str(word) for word in ("train", collection_folder, "-o", out, *options, *more)]

    return words


def model(retriever: Path) -> dict[str, Any]:
    """Everything in a saved retriever but the clock's and the memory's numbers."""
    record = json.loads((retriever / "retriever.json").read_text())
    training = record["training"]
    del training["seconds"], training["peak_memory_mb"]
    for epoch in training["history"]:
        del epoch["seconds"]
    content = {name: data for name, data in tree(retriever).items() if name.endswith((".safetensors", ".jsonl"))}
    return {"record": record, **content}


# What goes on after an interruption is what would have been

PAUSED_IN_EPOCH_3 = """
import re, sys, time
from fedcar.cli.main import main
from fedcar.common.progress import Console
def say(self, line):
    print(line, file=sys.stderr, flush=True)
    if re.match(r"epoch 3\\b", line):
        time.sleep(60)
Console.say = say
main()
"""


def interrupted(words: list[str], how: signal.Signals) -> tuple[int, str]:
    """Start a real training, send the signal in epoch 3; the exit code and the last line said."""
    process = python(PAUSED_IN_EPOCH_3, *words)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.match(r"epoch 3\b", line):
            break
    else:
        pytest.fail(f"the training came to an end before epoch 3: {''.join(said)}")
    process.send_signal(how)
    rest, _ = process.stderr.read(), process.wait(timeout=60)
    return process.returncode, rest.strip()


def check_resumed(tmp_path: Path, arguments: Callable[..., list[str]], method: str, how: signal.Signals) -> None:
    assert fedcar(*arguments(tmp_path / "whole", method)).code == 0
    out = tmp_path / "a retriever"
    words = arguments(out, method)
    code, said = interrupted(words, how)
    assert not out.exists() and (tmp_path / ".a retriever.training").is_dir()
    if how == signal.SIGINT:
        assert code == 130 and said.count("\n") == 0
        sentence, command = said.split("To go on: ")
        assert sentence == "interrupted; the finished epochs are kept. "
        assert shlex.split(command) == ["fedcar", *words, "--resume"], "the hint can be typed as it stands"
        words = shlex.split(command)[1:]
    else:
        assert code == -signal.SIGKILL and said == ""
        words.append("--resume")
    result = fedcar(*words)
    assert result.code == 0, result.err
    assert "epoch 3 of" in result.err and "epoch 1 of" not in result.err, "what was done is not done again"
    assert model(out) == model(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a retriever", "whole"], "nothing is left behind"


@pytest.mark.parametrize(("method", "how"), [("head", signal.SIGINT), ("adapter", signal.SIGKILL)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, arguments: Callable[..., list[str]], method: str, how: signal.Signals
) -> None:
    check_resumed(tmp_path, arguments, method, how)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "how"), [("head", signal.SIGKILL), ("adapter", signal.SIGINT)])
def test_resumed_equals_uninterrupted_the_other_way_round(
    tmp_path: Path, arguments: Callable[..., list[str]], method: str, how: signal.Signals
) -> None:
    check_resumed(tmp_path, arguments, method, how)


class Stop(BaseException):
    """What ends a training at a moment of its own choosing."""


@pytest.mark.parametrize(
    "options", [["--adapter", "lowrank:2"], ["--head", "cosine", "--pre-classifier", "4"]], ids=str
)
@pytest.mark.parametrize("method", ["head", "adapter"])
def test_resumed_after_every_epoch(
    tmp_path: Path,
    arguments: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: list[str],
) -> None:
    """Stopped after each epoch in turn, each time by a new process's worth of state."""
    from fedcar.common.progress import Console

    assert fedcar(*arguments(tmp_path / "whole", method, *options)).code == 0
    say, said = Console.say, []

    def stop_after_each(self: Console, line: str) -> None:
        say(self, line)
        if line.startswith("epoch "):
            said.append(line)
            if len(said) > 1:  # the epoch before this one is on disk
                said.clear()
                raise Stop

    monkeypatch.setattr(Console, "say", stop_after_each)
    for _ in range(EPOCHS - 1):
        with pytest.raises(Stop):
            fedcar(*arguments(tmp_path / "stopped", method, *options, "--resume"))
    assert fedcar(*arguments(tmp_path / "stopped", method, *options, "--resume")).code == 0
    assert model(tmp_path / "stopped") == model(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path: Path, arguments: Callable[..., list[str]]) -> None:
    generator = random.Random(0)
    words = arguments(tmp_path / "killed", "adapter")
    words[words.index("--epochs") + 1] = "60"
    whole = [str(tmp_path / "whole") if word == str(tmp_path / "killed") else word for word in words]
    assert fedcar(*whole).code == 0
    for _ in range(6):
        process = python("from fedcar.cli.main import main; main()", *words, "--resume")
        assert process.stderr is not None
        process.stderr.readline()  # under way
        time.sleep(generator.uniform(0, 1))
        process.kill()
        process.communicate(timeout=120)
    assert fedcar(*words, "--resume").code == 0
    assert model(tmp_path / "killed") == model(tmp_path / "whole")


def test_resume_without_a_checkpoint_says_so_and_starts(tmp_path: Path, arguments: Callable[..., list[str]]) -> None:
    result = fedcar(*arguments(tmp_path / "retriever", "head", "--resume"))
    assert result.code == 0
    assert "training starts from the beginning" in result.err.splitlines()[0]
    assert "epoch 1 of" in result.err


def test_interrupted_before_the_first_epoch_the_hint_is_the_same_command(
    tmp_path: Path, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcar.encoder.encoder import Encoder

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "tokenize", interrupt)
    words = arguments(tmp_path / "retriever", "adapter")
    words[words.index("--cache") + 1] = str(tmp_path / "cache")
    result = fedcar(*words)
    assert result.code == 130
    assert (
        result.err.splitlines()[-1]
        == f"interrupted; what was encoded is kept. To go on: {shlex.join(['fedcar', *words])}"
    )
    assert not (tmp_path / "retriever").exists()


def leave_checkpoint(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Result:
    """Interrupt the training between epochs."""
    from fedcar.common.progress import Console

    def stop(self: Console, line: str) -> None:
        if line.startswith("epoch 3"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Console, "say", stop)
        result = fedcar(*words)
    assert result.code == 130
    return result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed", "7"], "other settings (seed 0, now 7)"),
        (["--epochs", "9"], "other settings (epochs 5, now 9)"),
        ("collection", "another collection"),
        ("encoder", "another encoder"),
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path,
    arguments: Callable[..., list[str]],
    collection: Collection,
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    change: list[str] | str,
    words: str,
) -> None:
    typed = arguments(tmp_path / "retriever", "head")
    leave_checkpoint(tmp_path, typed, monkeypatch)
    before = tree(tmp_path)
    if change == "collection":
        replace(collection, documents=collection.documents[::-1]).write(tmp_path.parent / f"{tmp_path.name}-other")
        typed[1] = str(tmp_path.parent / f"{tmp_path.name}-other")
    elif change == "encoder":
        typed[typed.index("--encoder") + 1] = str(tiny_model("bert"))
    else:
        typed += change
    result = fedcar(*typed, "--resume")
    assert result.code == 1 and words in result.err.splitlines()[-1] and "without --resume" in result.err
    assert tree(tmp_path) == before


def test_a_changed_checkpoint_is_refused(
    tmp_path: Path, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = arguments(tmp_path / "retriever", "head")
    leave_checkpoint(tmp_path, typed, monkeypatch)
    for file in sorted((tmp_path / ".retriever.training").iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = fedcar(*typed, "--resume")
        assert result.code == 1 and result.err.splitlines()[-1].startswith(f"error: {tmp_path}"), file
        assert "remove it and start again without --resume" in result.err
        file.write_bytes(content)
    assert fedcar(*typed, "--resume").code == 0


def test_an_older_checkpoint_is_not_offered_after_a_new_start(
    tmp_path: Path, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint of a training that was interrupted before its first checkpoint does not lead to another's."""
    from fedcar.common.progress import Console

    leave_checkpoint(tmp_path, arguments(tmp_path / "retriever", "head"), monkeypatch)
    say = Console.say

    def stop(self: Console, line: str) -> None:
        say(self, line)
        if line.startswith("epoch 1"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "say", stop)
    result = fedcar(*arguments(tmp_path / "retriever", "head", "--seed", "3"))
    assert result.code == 130 and "what was encoded is kept" in result.err and "--resume" not in result.err


# What is chosen and what is said


@pytest.mark.usefixtures("a_point_is_enough")
def test_the_training_is_recorded(collection: Collection, encoder: Path, cache: Path) -> None:
    retriever = train(collection, encoder=encoder, cache=cache, method="head", epochs=EPOCHS)
    record = retriever.training
    assert (record.method, record.questions, record.selection_questions) == ("head", 20, 10)
    assert [epoch["epoch"] for epoch in record.history] == [1, 2, 3, 4, 5]
    assert record.history[-1]["loss"] < record.history[0]["loss"]
    json.dumps(record.to_json())


@pytest.mark.parametrize(("method", "texts"), [("head", True), ("adapter", True), ("adapter", False)])
def test_a_dry_run_says_what_training_uses(
    collection: Collection, encoder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, method: str, texts: bool
) -> None:
    """Also what follows from the documents, labels or texts, and from an encoder that is not small."""
    if texts:
        longer = [replace(one, text=f"{one.text} Then ask whoever is there to look.") for one in collection.documents]
        collection = replace(collection, documents=tuple(longer))
    monkeypatch.setattr(settings, "SMALL_ENCODER", 0)
    options: dict[str, Any] = {"encoder": encoder, "cache": cache, "method": method, "epochs": 1, "seed": 0}
    shape = {"adapter": "full", "head": "linear", "pre_classifier": 0, "gradient_checkpointing": False}
    said = plan(collection, **options, **shape)
    used = train(collection, **options).training.settings
    assert {name: said[name] for name in used} == used and used["query_map"] is texts


def test_auto_leaves_steps_over_very_many_rows_out_where_ridge_can_be_had(
    collection: Collection, encoder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 labels with a question each; who asks for the head gets it, and so does auto where ridge is refused."""
    candidates = train(collection, encoder=encoder, cache=cache, epochs=1).training.selection
    assert {"ridge", "head"} <= set(candidates)
    monkeypatch.setattr("fedcar.training.train.MOST_CELLS", 19)
    candidates = train(collection, encoder=encoder, cache=cache, epochs=1).training.selection
    assert "ridge" in candidates and "head" not in candidates
    assert "head" in train(collection, encoder=encoder, cache=cache, epochs=1, method="head").training.selection
    monkeypatch.setattr("fedcar.training.ridge.MOST_ROWS", 1)
    candidates = train(collection, encoder=encoder, cache=cache, epochs=1).training.selection
    assert "ridge" not in candidates and "head" in candidates


def test_a_dry_run_of_auto_names_the_adapter_of_a_small_encoder(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*arguments(tmp_path / "new", "auto"), "--dry-run", "--json")
    assert fedcar(*words).json["and an adapter"] == {"method": "adapter", "epochs": 6, "batch_size": 64}
    monkeypatch.setattr(settings, "SMALL_ENCODER", 0)
    assert "and an adapter" not in fedcar(*words).json
    refused = fedcar(*words, "--epsilon", 1, "--head", "cosine", "--against-advice")
    assert refused.code == 1 and "the head is then linear" in refused.err


def test_without_dev_a_tenth_of_the_training_questions_chooses(
    collection: Collection, encoder: Path, cache: Path
) -> None:
    queries = {name: query for name, query in collection.queries.items() if "-dev-" not in name}
    without = replace(
        collection, queries=queries, judgements={k: v for k, v in collection.judgements.items() if k != "dev"}
    )
    record = train(without, encoder=encoder, cache=cache, method="head", epochs=2).training
    assert (record.questions, record.selection_questions) == (18, 2)


def test_a_dev_question_that_stands_in_train_does_not_choose(
    collection: Collection, encoder: Path, cache: Path
) -> None:
    judgements = {**collection.judgements, "dev": {**collection.judgements["dev"], "fan-train-0": {"fan": 1}}}
    record = train(
        replace(collection, judgements=judgements), encoder=encoder, cache=cache, method="head", epochs=2
    ).training
    assert (record.questions, record.selection_questions) == (20, 10)


def test_gradient_checkpointing_gives_the_same_model(collection: Collection, encoder: Path, cache: Path) -> None:
    made = [
        train(
            collection,
            encoder=encoder,
            cache=cache,
            method="adapter",
            epochs=3,
            gradient_checkpointing=on,
        )
        for on in (False, True)
    ]
    for name, tensor in made[0].head.state_dict().items():
        torch.testing.assert_close(made[1].head.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, '--method "magic"'),
        ({"epochs": 0}, "--epochs 0"),
        ({"seed": -1}, "--seed -1"),
        ({"adapter": "lowrank:0", "method": "adapter"}, "--adapter"),
        ({"adapter": "round", "method": "adapter"}, "--adapter"),
        ({"head": "square"}, "--head"),
        ({"pre_classifier": -2}, "--pre-classifier"),
        ({"pooling": "median"}, "--pooling"),
        ({"encoder": "/nowhere/model"}, "--encoder"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    collection: Collection, encoder: Path, cache: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(FedcarError) as caught:
        train(collection, **{"encoder": encoder, "cache": cache, **options})
    message = str(caught.value)
    assert message.startswith(words) and "\n" not in message


def test_too_few_questions_are_not_divided(collection: Collection, encoder: Path, cache: Path) -> None:
    few = dict(list(collection.judgements["train"].items())[:4])
    with pytest.warns(FedcarWarning, match="too few to learn from"):
        retriever = train(replace(collection, judgements={"train": few}), encoder=encoder, cache=cache, method="head")
    assert retriever.training.method == "none"


@pytest.mark.parametrize("method", ["ridge", "head", "adapter"])
def test_a_judgement_that_names_an_empty_document_does_no_harm(
    collection: Collection, encoder: Path, cache: Path, method: str
) -> None:
    """It is never returned, so there is nothing to learn from it; all numbers stay finite."""
    judgements = {**collection.judgements, "train": {**collection.judgements["train"], "pump-train-0": {"empty": 1}}}
    documents = (*collection.documents, Document("empty", "", " "))
    retriever = train(
        replace(collection, documents=documents, judgements=judgements),
        encoder=encoder,
        cache=cache,
        method=method,
        epochs=2,
    )
    assert all(math.isfinite(epoch["loss"]) for epoch in retriever.training.history)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in retriever.head.parameters())
    hits = retriever.search("sucker", 6).hits
    assert len(hits) == 6 and "empty" not in {hit.id for hit in hits} and all(math.isfinite(hit.score) for hit in hits)


def test_the_cache_is_used_and_the_collection_left_alone(
    collection_folder: Path, encoder: Path, tmp_path: Path
) -> None:
    before = tree(collection_folder.parent), tree(encoder)
    for _ in range(2):
        train(Collection.read(collection_folder), encoder=encoder, cache=tmp_path / "cache", method="head", epochs=1)
    public, questions = (
        sum(file.stat().st_size // 32 for file in (tmp_path / "cache").glob(f"{part}*-*/keys.sha256"))
        for part in ("public/", "")
    )
    assert (public, questions) == (6 + reference.TEXTS, 20 + 10), "each text once, in one part"
    assert (tree(collection_folder.parent), tree(encoder)) == before


def test_saved_and_loaded_it_searches_the_same(
    collection: Collection, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    for method in ("ridge", "head", "adapter"):
        retriever = train(collection, encoder=encoder, cache=cache, method=method, epochs=EPOCHS)
        retriever.save(tmp_path / method)
        loaded = Retriever.load(tmp_path / method)
        assert loaded.search("blower", 6) == retriever.search("blower", 6)
        assert loaded.training == retriever.training
