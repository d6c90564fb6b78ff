"""The command line: a contract that scripts rely on (docs/cli.md). Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.command import REPOSITORY, environment, fedcar, learnable, tree

from fedcar.collection.collection import Collection
from fedcar.retriever.calibration import NO_CONFIDENCE

EPOCHS = ("--epochs", "4")
MEASURES = ["queries", "success@1", "recall@10", "mrr@10", "ndcg@10"]


@pytest.fixture(scope="module")
def place(toy_collection: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection, a trained retriever and a cache."""
    place = tmp_path_factory.mktemp("place")
    learnable(Collection.read(toy_collection)).write(place / "collection")
    options = ("--encoder", encoder, "--cache", place / "cache", "--method", "head", *EPOCHS)
    result = fedcar("train", place / "collection", "-o", place / "retriever", *options)
    assert result.code == 0, result.err
    return place


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def check_width(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 80, text


# --json: one object, nothing else on stdout


def test_import_json(tmp_path: Path) -> None:
    source = tmp_path / "texts.csv"
    source.write_text("text,label\n" + "".join(f"question number {n},{'AB'[n % 2]}\n" for n in range(20)))
    result = fedcar("import", source, "--out", tmp_path / "collection", "--json")
    assert result.code == 0
    assert result.json == {
        "collection": str(tmp_path / "collection"),
        "documents": 2,
        "queries": 20,
        "judged": {"train": 14, "dev": 2, "test": 4},
        "rows": 20,
        "merged": 0,
        "merged_of_other_clients": 0,
        "several_answers": [],
        "in_several_splits": 0,
        "columns_not_read": [],
        "files_not_read": [],
        "hidden": 0,
        "front_matter": 0,
    }
    assert Collection.read(tmp_path / "collection").judged("train")
    told = fedcar("import", source, "--out", tmp_path / "again")
    assert told.out.splitlines()[-1] == f"next: fedcar train {tmp_path / 'again'} -o RETRIEVER"


def test_train_json(place: Path, encoder: Path, tmp_path: Path) -> None:
    options = (
        "--encoder",
        encoder,
        "--cache",
        place / "cache",
        "--method",
        "adapter",
        "--adapter",
        "diagonal",
        *EPOCHS,
    )
    result = fedcar("train", place / "collection", "-o", tmp_path / "retriever", *options, "--json")
    assert result.code == 0
    found = result.json
    assert found["retriever"] == str(tmp_path / "retriever")
    assert found["method"] == "none" and list(found["selection"]) == ["evidence", "adapter"], "too few to prove it"
    assert found["settings"]["adapter"] == "diagonal" and found["settings"]["epochs"] == 4 and found["questions"] == 20
    assert found.keys() >= {"collection", "selection_questions", "history", "seconds", "peak_memory_mb"}
    assert [epoch["epoch"] for epoch in found["history"]] == [1, 2, 3, 4]
    assert found["history"][0].keys() >= {"epoch", "loss", "selection", "seconds"}
    assert result.err.count("\nepoch ") == 4, "one line an epoch where there is no terminal"


def test_evaluate_json(place: Path) -> None:
    result = fedcar("evaluate", place / "retriever", place / "collection", "--cache", place / "cache", "--json")
    assert result.code == 0
    found = result.json
    assert list(found) == [
        "collection", "split", "documents", "queries", "trained_on", "seconds", "systems", "calibration",
        "unanswerable", "risk_coverage", "difference",
    ]  # fmt: skip
    assert (found["collection"], found["split"], found["documents"], found["queries"]) == ("collection", "test", 6, 5)
    assert list(found["systems"]) == ["bm25", "mips", "hybrid", "retriever"]
    for system in found["systems"].values():
        assert list(system) == ["all", "seen", "unseen"]
        assert list(system["all"]) == list(system["seen"]) == MEASURES and system["unseen"] is None
    assert list(found["calibration"]) == ["ece", "coverage", "threshold", "ece@10", "at_risk"]
    assert found["unanswerable"] is None


def test_search_json(place: Path) -> None:
    result = fedcar("search", place / "retriever", "who mends the “blower”?", "-k", 2, "--json")
    assert result.code == 0
    found = result.json
    assert list(found) == ["query", "answered", "hits", "reason"]
    assert found["query"] == "who mends the “blower”?" and len(found["hits"]) == 2
    assert found["answered"] is None and found["reason"] == NO_CONFIDENCE
    for hit in found["hits"]:
        assert list(hit) == ["id", "score", "confidence", "title", "text", "metadata", "passage"]
        assert isinstance(hit["score"], float) and hit["confidence"] is None
    assert "“blower”" in result.out, "not escaped"


def test_a_dry_run_writes_nothing(place: Path, encoder: Path) -> None:
    before = tree(place)
    words = (
        "train",
        place / "collection",
        "-o",
        place / "deep" / "new",
        "--encoder",
        encoder,
        "--cache",
        place / "cache",
    )
    result = fedcar(*words, "--dry-run", "--json")
    assert result.code == 0 and result.json["documents"] == 6 and result.json["training questions"] == 20
    assert "documents: 6" in fedcar(*words, "--dry-run").out.splitlines()
    assert tree(place) == before


def test_the_test_split_is_the_default_and_the_others_can_be_asked_for(place: Path) -> None:
    words = ("evaluate", place / "retriever", place / "collection", "--cache", place / "cache", "--json")
    assert [fedcar(*words, "--split", split).json["queries"] for split in ("train", "dev")] == [20, 10]


# For people, on 80 columns


def test_the_evaluation_is_a_table_of_four_lines(toy_collection: Path, place: Path) -> None:
    result = fedcar("evaluate", place / "retriever", toy_collection, "--cache", place / "cache")
    assert result.code == 0
    check_width(result.out)
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == "toy, test: 12 queries (10 seen, 2 unseen), 6 documents".split()
    assert ["all", "all", "all", "all", "seen", "unseen"] in lines
    assert ["success@1", "recall@10", "mrr@10", "ndcg@10", "success@1", "success@1"] in lines
    for name in ("BM25", "MIPS", "hybrid", "fedcar"):
        (row,) = (line for line in lines if line[:1] == [name])
        assert len(row) == 7 and all(0 <= float(cell) <= 1 for cell in row[1:])


def test_the_answer_is_indented_and_cut(place: Path) -> None:
    result = fedcar("search", place / "retriever", "blower", "-k", 3)
    assert result.code == 0
    check_width(result.out)
    assert [line[:2] for line in result.out.splitlines() if line[:1] != " "] == ["1.", "2.", "3.", "no"]
    assert result.out.endswith(f"\n{NO_CONFIDENCE}\n")


def test_control_characters_of_documents_do_not_reach_the_terminal(encoder: Path, tmp_path: Path) -> None:
    corpus = [{"_id": "a\x1b]0;x\x07", "title": "T\x1b[31m\u202e", "text": "line\none \x9b2J [bold] long long " * 12}]
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "corpus.jsonl").write_text(json.dumps(corpus[0]) + "\n")
    words = (
        "train",
        tmp_path / "collection",
        "-o",
        tmp_path / "[red]",
        "--encoder",
        encoder,
        "--cache",
        tmp_path / "cache",
    )
    assert fedcar(*words).code == 0
    out = fedcar("search", tmp_path / "[red]", "line").out
    assert all(character.isprintable() or character == "\n" for character in out) and "line one" in out
    assert "[bold]" in out and out.splitlines()[-2].rstrip().endswith("…")
    check_width(out)


def test_train_says_what_comes_next(place: Path, encoder: Path, tmp_path: Path) -> None:
    options = ("--encoder", encoder, "--cache", place / "cache", "--method", "head", *EPOCHS)
    result = fedcar("train", place / "collection", "-o", "r", *options, cwd=tmp_path)
    assert result.out.splitlines()[0].startswith("r: saved (encode ")
    assert result.out.splitlines()[-1] == f"next: fedcar evaluate r {place / 'collection'}"
    check_width("\n".join(line for line in result.err.splitlines() if str(place) not in line))


def test_demo(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the encoder, which is a tiny one here."""
    from fedcar.training import train

    monkeypatch.setattr(train, "train", partial(train.train, encoder=encoder, epochs=2))
    result = fedcar("demo", "--cache", tmp_path / "cache", cwd=tmp_path)
    assert result.code == 0, result.err
    check_width(result.out)
    assert result.out.count("    before  ") == result.out.count("    after   ") == 3
    assert '  fedcar search fedcar-demo "' in result.out
    assert fedcar("search", "fedcar-demo", "wet trail", cwd=tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "fedcar-demo"]


@pytest.mark.slow
def test_demo_as_it_is(tmp_path: Path) -> None:
    """The packaged encoder and collection, in a process of its own: better than each baseline, under two minutes."""
    started = time.monotonic()
    words = [sys.executable, "-c", "from fedcar.cli.main import main; main()", "demo", "--cache", tmp_path / "cache"]
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 120
    check_width(done.stdout)
    success = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line[:5] in
               (" BM25", " MIPS", " hybr", " fedc")}  # fmt: skip
    assert success["fedcar"] > max(success["BM25"], success["MIPS"], success["hybrid"])


# Exit codes and mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "error: Missing argument 'COLLECTION'. (see fedcar train --help)"),
        (["tran"], "(see fedcar --help)"),
        (["--nonsense"], "error: No such option"),
        (["search", "r", "q", "-k", "many"], "(see fedcar search --help)"),
        (["train", "c", "-o", "r", "--method", "magic"], "'magic' is not one of"),
    ],
    ids=str,
)
def test_what_click_refuses_is_one_line_and_exit_code_2(words: list[str], said: str) -> None:
    result = fedcar(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and said in result.err


def test_without_a_command_the_help_is_shown() -> None:
    result = fedcar()
    assert result.code == 2 and "Usage: fedcar" in result.err


@pytest.mark.parametrize("command", ["import", "train", "evaluate", "search", "demo"])
def test_every_command_has_a_help(command: str) -> None:
    result = fedcar(command, "--help")
    assert result.code == 0 and result.out.startswith(f"Usage: fedcar {command}")
    check_width(result.out)


def test_the_version() -> None:
    from fedcar.version import __version__

    assert fedcar("--version").out == f"fedcar, version {__version__}\n"


def test_interrupted_is_exit_code_130(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcar.retriever.searcher import Searcher

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Searcher, "search", interrupt)
    result = fedcar("search", place / "retriever", "blower")
    assert (result.code, result.out, result.err.strip()) == (130, "", "interrupted")


def run(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment(), text=True, stderr=subprocess.PIPE, **options)


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    code = "import sys; sys.argv = ['fedcar', '--help']; from fedcar.cli.main import main; main()"
    with open("/dev/full", "w") as full:
        done = run(code, stdout=full)
    line = "error: standard output or a file: No space left on device; make room\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        "sys.argv = ['fedcar', '--help']; from fedcar.cli.main import main; main()"
    )
    done = run(code, stdout=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


# Nothing heavy before it is needed


def test_importing_the_command_line_is_light() -> None:
    code = (
        "import sys, fedcar.cli.commands\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'bm25s', 'safetensors', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run(code, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_is_fast() -> None:
    """Under 0.3 s of processor time; the clock on the wall belongs to whatever else the machine does."""
    code = (
        "import resource, sys; sys.argv = ['fedcar', '--help']; from fedcar.cli.main import main; main()\n"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, file=sys.stderr)"
    )
    assert min(float(run(code, stdout=subprocess.DEVNULL).stderr) for _ in range(3)) < 0.3


def test_the_public_names_are_what_they_say_whatever_was_imported_before() -> None:
    """`import fedcar.training.train` must not put the module in the place of the function."""
    code = (
        "import fedcar.training.train, fedcar.evaluation.evaluate, fedcar\n"
        "from fedcar import Retriever, evaluate, train\n"
        "assert all(callable(getattr(fedcar, name)) for name in fedcar.__all__)\n"
        "assert train is fedcar.training.train.train and len(fedcar.__all__) <= 10\n"
        "fedcar.nothing"
    )
    done = run(code, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert done.stderr.strip().splitlines()[-1] == "AttributeError: module 'fedcar' has no attribute 'nothing'"
