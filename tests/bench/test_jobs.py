"""The benchmark: every peer in its own process, on the same questions; what cannot take part is named."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from support.command import REPOSITORY, environment
from support.toy import TOY_DOCUMENTS

from fedcar import evaluate, train
from fedcar.bench import contestants as bench_train
from fedcar.bench import jobs as bench
from fedcar.bench import one_contestant as bench_peer
from fedcar.bench.contestants import PeerLeftOut, Task
from fedcar.bench.one_contestant import Measurement
from fedcar.cli.bench import bench as command
from fedcar.collection.collection import Collection, Query
from fedcar.common.progress import Silent
from fedcar.errors import FedcarError

FORMS = ("{0}", "{0} {0}", "{0}!", "{0} - {0}", "the {0}", "{0} is", "a {0}", "my {0}", "of {0}", "{0} here", "no {0}")
MEASURES = {f"{name} {part}" for name in ("success@1", "mrr@10", "ndcg@10") for part in ("all", "seen")}


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def labels(toy_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's first five documents as labels: 11 training, 2 dev and 1 test question each."""
    read = Collection.read(toy_collection)
    queries: dict[str, Query] = {}
    judgements: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    splits = {"train": FORMS, "dev": ("{0}?", "{0}, {0}"), "test": ("{0}.",)}
    for document in read.documents[:5]:
        for split, forms in splits.items():
            for number, form in enumerate(forms):
                query = Query(f"{document.id}-{split}-{number}", form.format(TOY_DOCUMENTS[document.id][2]))
                queries[query.id], judgements[split][query.id] = query, {document.id: 1}
    folder = tmp_path_factory.mktemp("bench") / "labels"
    Collection("labels", read.documents[:5], queries, judgements).write(folder)
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Task]:
    """The jobs run in this process, as the child would run them; the list holds them."""
    done: list[Task] = []

    def run(job: Task) -> tuple[list[Measurement], str | None]:
        done.append(job)
        monkeypatch.chdir(tmp_path)
        return bench_peer.compete(job), "cpu"

    monkeypatch.setattr(bench, "in_its_own_process", run)
    return done


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The jobs that would run, with an outcome made up for each."""
    done: list[Task] = []
    numbers = {"success@1": 0.5, "mrr@10": 0.5, "ndcg@10": 0.5}

    def run(job: Task) -> tuple[list[Measurement], str | None]:
        done.append(job)
        return [Measurement(bench.job_name(job), {"all": numbers, "seen": numbers, "unseen": None}, 2.0, 300.0)], "cpu"

    monkeypatch.setattr(bench, "in_its_own_process", run)
    return done


def task(peer: str, collection: Path, encoder: Path, **options: Any) -> Task:
    return Task(peer, str(collection), str(encoder), "mean", **options)


def test_the_shape_is_the_contract(labels: Path, encoder_folder: Path, in_process: list[Task]) -> None:
    result = bench.bench_train(labels, bench.Comparison(against=["hybrid", "bm25s"], encoder=str(encoder_folder)))
    assert list(result) == ["machine", "rows", "speedup"]
    assert [job.peer for job in in_process] == ["fedcar", "bm25s", "hybrid"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {row["peer_name"] for row in result["rows"]} == {"bm25s", "hybrid"}
    for row in result["rows"]:
        assert list(row) == ["what", "ours", "peer", "peer_name", "unit", "ratio", "runs"] and row["runs"] == 1
    assert {row["what"] for row in result["rows"] if row["unit"] == "score"} == MEASURES  # nothing is unseen here
    assert {row["what"]: row["unit"] for row in result["rows"] if row["unit"] != "score"} == {
        "training": "s",
        "peak memory": "MB",
    }
    assert result["speedup"] is None  # the main peer did not take part
    assert result["machine"]["cores"] >= 1 and result["machine"]["left_out"] == {}
    assert result["machine"]["collection"] == {
        "name": "labels",
        "documents": 5,
        "training_questions": 55,
        "test_questions": 5,
    }


def test_a_ratio_above_one_means_that_fedcar_is_better() -> None:
    ours = Measurement("fedcar", {"all": {"success@1": 0.9, "mrr@10": 0.9, "ndcg@10": 0.6}, "unseen": None}, 2.0, 300.0)
    main = Measurement("sentence-transformers, 1 epoch", ours.quality, 10.0, 600.0)
    other = Measurement("other", {"all": {"success@1": 0.45, "mrr@10": 0.0, "ndcg@10": 1.2}, "unseen": None}, 1.0, None)
    rows = bench.compared(ours, [main, other], 1)
    found = {(row["peer_name"], row["what"]): row["ratio"] for row in rows}
    assert found["sentence-transformers, 1 epoch", "training"] == 5
    assert found["sentence-transformers, 1 epoch", "peak memory"] == 2
    assert found["other", "success@1 all"] == 2 and found["other", "ndcg@10 all"] == 0.5
    assert found["other", "mrr@10 all"] is None and found["other", "training"] == 0.5
    assert ("other", "peak memory") not in found
    assert bench.speedup(rows) == 1.0 and bench.speedup([row for row in rows if row["peer_name"] == "other"]) is None


def test_figures_are_medians() -> None:
    runs = [Measurement("x", {"all": {"success@1": value}, "unseen": None}, value, None) for value in (3.0, 1.0, 8.0)]
    assert bench.middle(runs) == Measurement("x", {"all": {"success@1": 3.0}, "unseen": None}, 3.0, None)


def test_baselines_are_those_of_evaluate(toy_collection: Path, encoder_folder: Path, tmp_path: Path) -> None:
    read = Collection.read(toy_collection)
    retriever = train(replace(read, judgements={}, queries={}), encoder=encoder_folder, cache=tmp_path)
    systems = evaluate(retriever, read, cache=tmp_path)["systems"]
    for peer, name in (("bm25s", "bm25"), ("hybrid", "hybrid")):
        (outcome,) = bench_peer.compete(task(peer, toy_collection, encoder_folder))
        assert outcome.quality == systems[name]


def test_fedcar_is_measured_as_evaluate_measures_it(
    toy_collection: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = Collection.read(toy_collection)
    (outcome,) = bench_peer.compete(task("fedcar", toy_collection, encoder_folder))
    retriever = train(read, encoder=encoder_folder, pooling="mean", cache=tmp_path / "cache")
    assert outcome.quality == evaluate(retriever, read, cache=tmp_path / "cache")["systems"]["retriever"]


def test_logistic_regression_learns_labels(labels: Path, tiny_model: Callable[..., Path]) -> None:
    pytest.importorskip("sklearn")
    (outcome,) = bench_peer.compete(task("sklearn", labels, tiny_model("llama")))
    assert outcome.name == "sklearn logistic regression" and outcome.seconds > 0
    assert outcome.quality["all"]["success@1"] > 0.5 and outcome.quality["unseen"] is None


@pytest.mark.parametrize("peer", ["sklearn", "setfit"])
def test_a_classifier_is_left_out_where_documents_have_few_questions(
    peer: str, toy_collection: Path, encoder_folder: Path
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip(peer)
    with pytest.raises(PeerLeftOut, match="4.0 training questions a seen document, 10 are needed"):
        bench_peer.compete(task(peer, toy_collection, encoder_folder))


def test_what_is_not_installed_is_named_and_left_out(
    labels: Path, encoder_folder: Path, ran: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"datasets", "sklearn"}
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name in missing else find_spec(name))
    heard = Heard()
    against = ["sentence-transformers", "sklearn", "hybrid"]
    result = bench.bench_train(labels, bench.Comparison(against=against, encoder=str(encoder_folder), runs=2), heard)
    assert [(job.peer, job.seed) for job in ran] == [(peer, seed) for seed in (0, 1) for peer in ("fedcar", "hybrid")]
    assert all(row["runs"] == 2 for row in result["rows"])
    assert {row["peer_name"] for row in result["rows"]} == {"hybrid"} and result["speedup"] is None
    said = [line for line in heard.lines if "left out" in line]
    assert said[-1] == "sklearn is left out: sklearn is not installed; pip install 'scikit-learn'"
    assert len(said) == 3 and all("pip install 'sentence-transformers[train]'" in line for line in said[:2])
    assert list(result["machine"]["left_out"]) == [
        "sentence-transformers, 1 epoch",
        "sentence-transformers, 3 epochs",
        "sklearn",
    ]


def test_a_peer_that_fails_is_left_out_and_fedcar_that_fails_is_an_error(
    labels: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Measurement("fedcar", {"all": None, "seen": None, "unseen": None}, 1.0, 1.0)

    def run(failing: str) -> Callable[[Task], Any]:
        def answer(job: Task) -> Any:
            if job.peer == failing:
                raise PeerLeftOut("ended early (exit code 1): no reason")
            return [replace(outcome, name=job.peer)], None

        return answer

    monkeypatch.setattr(bench, "in_its_own_process", run("hybrid"))
    result = bench.bench_train(labels, bench.Comparison(against=["hybrid", "bm25s"], encoder=str(encoder_folder)))
    assert list(result["machine"]["left_out"]) == ["hybrid"] and result["rows"][0]["peer_name"] == "bm25s"
    monkeypatch.setattr(bench, "in_its_own_process", run("fedcar"))
    with pytest.raises(FedcarError, match="fedcar cannot be measured: ended early"):
        bench.bench_train(labels, bench.Comparison(against=["hybrid"], encoder=str(encoder_folder)))


def test_a_process_of_its_own(labels: Path, encoder_folder: Path) -> None:
    """What this process holds is no part of the peer's memory; what a child says when it breaks is the reason."""
    held = bytearray(b"x") * 400_000_000
    (outcome,), device = bench.in_its_own_process(task("bm25s", labels, encoder_folder))
    assert len(held) and outcome.memory_mb is not None and 10 < outcome.memory_mb < 300
    assert outcome.name == "bm25s" and device is None
    with pytest.raises(PeerLeftOut, match="corpus.jsonl"):
        bench.in_its_own_process(task("bm25s", labels / "qrels", encoder_folder))


def test_a_killed_benchmark_leaves_no_training_behind() -> None:
    child = (
        "import time; from fedcar.bench.one_contestant import end_with_parent as watch; watch(0.1); print(flush=True); "
        "time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid)"
    )
    run = subprocess.run([sys.executable, "-c", parent, child], env=environment(), capture_output=True, timeout=50)
    left = int(run.stdout)
    until = time.monotonic() + 20
    while is_running(left) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(left)


def is_running(process: int) -> bool:
    """A process whose end nobody has asked for counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_peer_over_its_budget_gives_up_after_a_few_steps() -> None:
    pytest.importorskip("transformers")
    from types import SimpleNamespace as Names

    def steps(budget: int) -> None:
        callback = bench_train.within_budget(budget)
        for step in range(1, 10):
            time.sleep(0.01)
            callback.on_step_end(None, Names(global_step=step, max_steps=10_000), None)

    steps(10_000)
    with pytest.raises(PeerLeftOut, match=r"would train for about \d+ s; the budget is 5 s"):
        steps(5)


def test_limit_takes_the_same_questions_for_everyone(labels: Path) -> None:
    read = Collection.read(labels)
    few = bench_peer.limited(read, 7)
    assert len(few.judged("train")) == 7 and few.judged("test") == read.judged("test")
    assert bench_peer.limited(read, 7).judgements == few.judgements
    assert bench_peer.limited(read, 0) is read and bench_peer.limited(read, 1000) is read


def test_few_shots_take_as_many_of_each(labels: Path) -> None:
    pairs = bench_train.positives(Collection.read(labels).judged("train"))
    texts, documents = bench_train.few_shots(pairs, 0)
    assert len(set(texts)) == 8 * 5 and {documents.count(one) for one in set(documents)} == {8}
    assert set(zip(texts, documents, strict=True)) <= set(pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["colbert"]}, '--against "colbert"'),
        ({"runs": 0}, "--runs 0"),
        ({"limit": -1}, "--limit -1"),
        ({"epochs": (0, 1)}, "--epochs 0,1"),
    ],
)
def test_what_cannot_be_compared_is_refused(labels: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FedcarError, match=message):
        bench.bench_train(labels, bench.Comparison(**options))


def test_without_test_questions_there_is_nothing_to_compare_by(labels: Path, tmp_path: Path) -> None:
    read = Collection.read(labels)
    judgements = {split: one for split, one in read.judgements.items() if split != "test"}
    asked = {query_id: query for query_id, query in read.queries.items() if "-test-" not in query_id}
    replace(read, queries=asked, judgements=judgements).write(tmp_path / "none")
    with pytest.raises(FedcarError, match="no judged query in the split test"):
        bench.bench_train(tmp_path / "none")


def test_the_command_line(labels: Path, encoder_folder: Path, ran: list[Task]) -> None:
    words = ["train", str(labels), "--against", "hybrid, bm25s", "--encoder", str(encoder_folder), "--limit", "20"]
    shown = CliRunner().invoke(command, words, env={"COLUMNS": "80"}, catch_exceptions=False)
    assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    assert all(name in shown.stdout for name in ("fedcar", "hybrid", "bm25s", "training", "memory"))
    assert all(job.limit == 20 for job in ran)
    printed = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    assert set(json.loads(printed.stdout)) == {"machine", "rows", "speedup"}
    assert CliRunner().invoke(command, ["train", str(labels), "--epochs", "x"]).exit_code == 2
    assert isinstance(command, click.Group)


def test_the_widest_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcar.cli.tables import print_bench

    monkeypatch.setenv("COLUMNS", "80")
    numbers = {"success@1": 0.123, "mrr@10": 0.123, "ndcg@10": 0.123}
    ours = Measurement("fedcar", dict.fromkeys(("all", "seen", "unseen"), numbers), 10_000.0, 10_000.0)
    names = ["sentence-transformers, 3 epochs, BM25", "sklearn logistic regression"]
    rows = bench.compared(ours, [replace(ours, name=name) for name in names], 1)
    on = {"name": "squad_part", "documents": 847, "training_questions": 2497, "test_questions": 1047}
    print_bench(
        {"machine": {**bench.machine(), "collection": on, "left_out": {"setfit": "no"}}, "rows": rows, "speedup": 1}
    )
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80, shown
    assert "3 epochs, BM25" in shown and "10000" in shown and "setfit was left out" in shown and "…" not in shown


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; import fedcar.cli.bench; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=REPOSITORY).returncode == 0
    code = "import sys; import fedcar.bench.jobs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), cwd=REPOSITORY).returncode == 0


@pytest.mark.slow
def test_every_peer_for_real(labels: Path, encoder_folder: Path) -> None:
    """Each in its own process: a tiny model, 64 questions at most, one epoch."""
    for module in ("sentence_transformers", "datasets", "sklearn", "setfit"):
        pytest.importorskip(module)
    result = bench.bench_train(labels, bench.Comparison(encoder=str(encoder_folder), limit=64, epochs=(1,)))
    assert result["machine"]["left_out"] == {}
    assert list(dict.fromkeys(row["peer_name"] for row in result["rows"])) == [
        "sentence-transformers, 1 epoch",
        "sentence-transformers, 1 epoch, BM25",
        "sklearn logistic regression",
        "setfit",
        "bm25s",
        "hybrid",
    ]
    assert result["speedup"] == min(
        row["ratio"] for row in result["rows"] if row["peer_name"].startswith("sentence-transformers")
    )
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in result["rows"] if row["unit"] != "score")
