"""Runtimes are tried in a process of their own: what crashes, hangs or is wrong there harms no training."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_openvino
from support.command import fedcar

from fedcar.common import measure
from fedcar.common.measure import OtherWork
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model import FrozenModel
from fedcar.encoder.reading import padded
from fedcar.encoder.runtimes import building, choice, names, remembered, trial, watching
from fedcar.encoder.runtimes.watching import Known, Trial
from fedcar.errors import FedcarError, FedcarWarning

TEXTS = ["the fan is broken", "who charges the battery over night?", "water", "Prime the pump. " * 4, ""]
SLOW = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(autouse=True)
def own_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "setting", names.Setting())
    monkeypatch.setattr(choice, "WORTH", 0.0)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Runtimes are really tried in this test; which ones, trial by trial."""
    seen: list[Sequence[str]] = []

    def counted(model: FrozenModel, tried_names: Sequence[str], *texts: Any) -> Trial:
        seen.append(list(tried_names))
        return watching.tried(model, tried_names, *texts)

    monkeypatch.setattr(choice, "tried", counted)
    return seen


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """OpenVINO, the only candidate beside torch, misbehaves as it is told."""
    package = tmp_path / "site" / "openvino"
    package.mkdir(parents=True)
    shutil.copy(fake_openvino.__file__, package / "__init__.py")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(choice, "candidates", lambda model: ["torch", "openvino"])
    return lambda how: monkeypatch.setenv("FAKE_OPENVINO", how)


@pytest.fixture
def encoder(tiny_model: Callable[..., Path]) -> Encoder:
    return Encoder.load(tiny_model("bert"), "mean")


def chosen(folder: Path) -> tuple[str, list[str]]:
    """What auto takes for the encoder, read anew, and what is said of it."""
    names.use("auto")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FedcarWarning)
        name = choice.chosen(Encoder.load(folder, "mean").model, TEXTS)
    return name, [str(one.message) for one in said]


def left_behind(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob(".unfinished*")]


@pytest.mark.parametrize("how", ["crash", pytest.param("exit", marks=SLOW)])
def test_a_runtime_that_kills_its_process_is_no_candidate(
    how: str, fake: Callable[[str], None], encoder: Encoder, trials: list[Sequence[str]], tmp_path: Path
) -> None:
    fake(how)
    name, said = chosen(encoder.folder)
    assert name == "torch" and len(said) == 1, said
    reason = {"crash": "SIGFPE", "exit": "exit code 3"}[how]
    assert said[0].startswith(f"runtime openvino ends its process ({reason}) with this encoder")
    assert chosen(encoder.folder) == ("torch", []) and len(trials) == 1, "remembered, and said once"
    names.use("openvino")
    with pytest.raises(FedcarError, match=r"--runtime openvino: ends its process .*; take --runtime torch or auto"):
        Encoder.load(encoder.folder, "mean").encode(TEXTS)
    assert len(trials) == 1, "it is not asked to kill a second process"
    assert left_behind(tmp_path) == []


@pytest.mark.slow
@pytest.mark.ci
def test_a_runtime_that_hangs_is_no_candidate(
    fake: Callable[[str], None], encoder: Encoder, trials: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "IDLE_SECONDS", 3.0)
    fake("hang")
    name, said = chosen(encoder.folder)
    assert name == "torch" and [line[:48] for line in said] == ["runtime openvino hangs (it did nothing for 3 sec"]
    assert chosen(encoder.folder) == ("torch", []) and len(trials) == 1
    names.use("openvino")
    fake("wrong")
    with pytest.raises(FedcarError, match="wrong numbers"):  # asked for by name it gets another chance
        Encoder.load(encoder.folder, "mean").encode(TEXTS)


@pytest.mark.slow
@pytest.mark.ci
def test_a_runtime_that_is_slower_than_torch_would_be_for_everything_is_not_waited_for(
    fake: Callable[[str], None], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LEAST_SECONDS", 2.0)
    fake("hang")
    found = watching.tried(encoder.model, ["openvino", "openvino-bf16"], encoder.tokenize(TEXTS), None, 1.0)
    assert found.known["openvino"] == Known(fault="time", said="is not done after 2 seconds")
    assert found.known["openvino-bf16"] == found.known["openvino"], "it would wait for the same"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("how", ["wrong", "nan"])
def test_a_runtime_with_wrong_numbers_is_no_candidate(
    how: str, fake: Callable[[str], None], encoder: Encoder, trials: list[Sequence[str]]
) -> None:
    fake(how)
    name, said = chosen(encoder.folder)
    assert name == "torch" and len(said) == 1
    assert said[0].startswith("runtime openvino gives wrong numbers (cosine "), said
    assert chosen(encoder.folder) == ("torch", []) and len(trials) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_a_runtime_that_takes_the_memory_is_ended(
    fake: Callable[[str], None], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if watching.free_memory() is None:
        pytest.skip("this system does not tell how much memory is free")
    monkeypatch.setattr(watching, "free_memory", lambda: 3_000_000_000)
    fake("memory")
    found = watching.tried(encoder.model, ["openvino"], encoder.tokenize(TEXTS))
    assert found.known["torch"].cosine == pytest.approx(1)
    assert found.known["openvino"].said == "takes more than 1.5 GB of memory, half of what was free"


@pytest.mark.slow
@pytest.mark.ci
def test_a_runtime_that_raises_is_no_candidate_and_one_line_by_name(
    fake: Callable[[str], None], encoder: Encoder, trials: list[Sequence[str]]
) -> None:
    fake("error")
    assert chosen(encoder.folder) == ("torch", []), "what cannot run a model is no news where another one can"
    names.use("openvino")
    wanted = "--runtime openvino: it fails (no kernel for this shape); take --runtime torch"
    for _ in range(2):
        with pytest.raises(FedcarError) as error:
            Encoder.load(encoder.folder, "mean").encode(TEXTS)
        assert str(error.value) == wanted
    assert trials == [["torch", "openvino"], ["openvino"], ["openvino"]], "an error may pass, so it is tried again"


def test_a_runtime_asked_for_by_name_that_kills_its_process_is_one_line(
    fake: Callable[[str], None],
    toy_collection: Path,
    encoder_folder: Path,
    trials: list[Sequence[str]],
    tmp_path: Path,
) -> None:
    fake("crash")
    words = ("--encoder", encoder_folder, "--cache", tmp_path / "states", "--runtime", "openvino-bf16")
    for _ in range(2):
        result = fedcar("train", toy_collection, "-o", tmp_path / "out", *words)
        assert result.code == 1 and not (tmp_path / "out").exists()
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert errors == [
            "error: --runtime openvino-bf16: ends its process (SIGFPE) when it was tried with this encoder; "
            "take --runtime torch or auto"
        ]
    assert trials == [["openvino-bf16"]]


@pytest.mark.slow
@pytest.mark.ci
def test_training_goes_on_beside_a_runtime_that_kills_its_process(
    fake: Callable[[str], None], toy_collection: Path, encoder_folder: Path, trials: list[Sequence[str]], tmp_path: Path
) -> None:
    fake("crash")
    words = ("--encoder", encoder_folder, "--cache", tmp_path / "states", "--runtime", "auto")
    result = fedcar("train", toy_collection, "-o", tmp_path / "out", "--method", "head", *words)
    assert result.code == 0, result.err
    assert [line[:62] for line in result.warnings if "runtime" in line] == [
        "warning: runtime openvino ends its process (SIGFPE) with this "
    ]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("runtime", ["auto", "openvino-bf16"])
def test_an_encoder_with_grouped_query_attention_is_trained_with_every_runtime_tried(
    runtime: str, toy_collection: Path, tiny_model: Callable[..., Path], trials: list[Sequence[str]], tmp_path: Path
) -> None:
    """OpenVINO in bfloat16 divides by zero there on some processors: then auto goes on, and by name it is one line."""
    folder = tiny_model("llama", hidden_size=48, num_attention_heads=6, num_key_value_heads=2, initializer_range=0.1)
    words = ("--encoder", folder, "--cache", tmp_path / "states", "--runtime", runtime)
    result = fedcar("train", toy_collection, "-o", tmp_path / "out", "--method", "head", *words)
    assert len(trials) == 1
    if runtime == "auto" or result.code == 0:
        assert result.code == 0 and (tmp_path / "out").is_dir(), result.err
    else:
        assert "error: --runtime openvino-bf16: " in result.err and "Traceback" not in result.err


def test_what_a_trial_tells_may_come_in_pieces() -> None:
    process = watching._Process({}, 0.5)
    assert not process._read('{"step": "to') and process.step == ""
    assert process._read('rch"}\n{"of": "torch", "cosine": 1.0, "seco') and process.step == "torch"
    assert not process._read('nds": 50.0}\n{"st')
    assert process.events == [{"of": "torch", "cosine": 1.0, "seconds": 50.0}]
    assert process._limit == 100.0, "as long as torch would need for everything"


class Noted:
    """Torch, which notes when it runs."""

    def __init__(self, encoder: Encoder, events: list[str], name: str) -> None:
        self.exact, self.events, self.name = building.built(encoder.model, "torch"), events, name

    def run(self, token_ids: np.ndarray, mask: np.ndarray) -> Any:
        self.events.append(self.name)
        return self.exact.run(token_ids, mask)


def test_runtimes_are_timed_in_turns_by_both_clocks(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """By clocks that go on by a second a look; eight of the wall's are over after two turns of four looks and one."""
    events: list[str] = []
    batch = padded(encoder.tokenize(TEXTS), encoder.model.padding_id)
    runtimes = {name: Noted(encoder, events, name) for name in ("first", "second")}
    wall, cpu = itertools.count(), itertools.count(step=3)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(trial.time, "process_time", lambda: next(cpu))
    found = trial.in_turns(runtimes, [batch], 8)
    assert events == ["first", "second", "first", "second"]
    assert found == {name: {"wall": 1, "cpu": 3} for name in runtimes}


def outcome(seconds: dict[str, tuple[float, float]], others: float | None) -> Trial:
    """A trial in which these agreed, with seconds on the wall and of the CPU."""
    known = {name: Known(1.0) for name in seconds}
    return Trial(known, {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu) in seconds.items()}, others)


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trial], list[Any]]:
    """Trials come out so from now on; the list has an entry for each."""

    def comes_out(found: Trial) -> list[Any]:
        asked: list[Any] = []
        monkeypatch.setattr(choice, "tried", lambda model, *order: asked.append(order) or found)
        return asked

    return comes_out


def test_auto_takes_the_fastest_that_agrees_and_remembers_it(
    encoder: Encoder, tiny_model: Callable[..., Path], measurement: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times = {"torch": (0.3, 0.3), "openvino": (0.1, 0.1)}
    asked = measurement(outcome(times, 0.0))
    monkeypatch.setattr(choice, "is_installed", lambda name: True)
    names.use("auto")
    monkeypatch.setattr(choice, "WORTH", 3e12)
    assert choice.chosen(encoder.model, TEXTS) == "torch" and not asked, "few texts are not worth it"
    monkeypatch.setattr(choice, "WORTH", 0.0)
    assert choice.chosen(encoder.model, TEXTS) == "openvino" and len(asked) == 1
    assert choice.chosen(Encoder.load(encoder.folder, "mean").model, TEXTS) == "openvino" and len(asked) == 1
    assert choice.chosen(Encoder.load(tiny_model("llama"), "mean").model, TEXTS) == "openvino"
    assert len(asked) == 2, "another encoder is measured by itself"
    names.use("auto", agreement=-1.0)
    asked = measurement(outcome(times | {"onnx-int8": (0.01, 0.01)}, 0.0))
    assert choice.chosen(encoder.model, TEXTS) == "onnx-int8", "asked for less, it takes the fastest"
    memory = json.loads((tmp_path / "cache" / "fedcar" / "runtime.json").read_text())
    found = sorted(one["name"] for record in memory.values() for one in record["fastest"].values())
    assert found == ["onnx-int8", "openvino", "openvino"]


def test_what_was_measured_on_a_busy_machine_is_measured_again_on_a_quiet_one(
    encoder: Encoder, measurement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine CPU seconds decide, and what they say holds until the machine is quiet."""
    times = {"torch": (0.3, 0.3), "torch-bf16": (0.5, 0.1)}
    asked = measurement(outcome(times, 0.6))
    names.use("auto")
    quiet: list[bool] = []
    monkeypatch.setattr(choice, "is_quiet", lambda: quiet[-1])
    assert choice.chosen(encoder.model, TEXTS) == "torch-bf16" and len(asked) == 1
    quiet.append(False)
    assert choice.chosen(Encoder.load(encoder.folder, "mean").model, TEXTS) == "torch-bf16" and len(asked) == 1
    quiet.append(True)
    asked = measurement(outcome(times, 0.0))
    assert choice.chosen(Encoder.load(encoder.folder, "mean").model, TEXTS) == "torch" and len(asked) == 1
    assert choice.chosen(Encoder.load(encoder.folder, "mean").model, TEXTS) == "torch"
    assert len(asked) == 1 and len(quiet) == 2, "measured in quiet it is remembered for good"


def test_where_the_system_tells_nothing_of_other_work_cpu_seconds_decide(
    encoder: Encoder, measurement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measurement(outcome({"torch": (0.3, 0.3), "torch-bf16": (0.5, 0.1)}, None))
    monkeypatch.setattr(choice.OtherWork, "share", lambda self, seconds=0.0: None)
    names.use("auto")
    for _ in range(2):
        assert choice.chosen(Encoder.load(encoder.folder, "mean").model, TEXTS) == "torch-bf16"
    assert len(asked) == 1, "nothing says that the machine is quiet now"


def test_the_work_of_others_is_seen_and_ones_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two processors a second passes, of which all have worked 1.5 CPU seconds, this process .5 of them."""
    clocks = {"worked": 100.0, "own": 7.0, "wall": 50.0}
    monkeypatch.setattr(measure, "_worked", lambda: clocks["worked"])
    monkeypatch.setattr(measure.time, "process_time", lambda: clocks["own"])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clocks["wall"])
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 2)
    others = OtherWork()
    clocks |= {"worked": 101.5, "own": 7.5, "wall": 51.0}
    assert others.share() == pytest.approx(0.5)
    clocks["worked"] = None
    assert others.share() is None


def test_the_system_tells_how_much_all_processors_have_worked() -> None:
    before = measure._worked()
    if before is None:
        pytest.skip("this system does not tell")
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    after = measure._worked()
    assert after is not None and after - before > 0.25


def test_faults_that_may_pass_are_not_remembered_beyond_the_process(encoder: Encoder) -> None:
    faults = {"openvino": Known(fault="crash", said="x"), "onnx": Known(fault="time", said="y")}
    remembered.remember(encoder.model, faults | {"torch-bf16": Known(0.9)})
    assert set(remembered.recall(encoder.model).tried) == {"openvino", "onnx", "torch-bf16"}
    later = remembered.recall(Encoder.load(encoder.folder, "mean").model)
    assert later.tried == {"openvino": faults["openvino"], "torch-bf16": Known(0.9)}


@pytest.mark.parametrize("content", ["", "[]", '{"KEY": "openvino"}', '{"KEY": {"tried": [], "fastest": 3}}'])
def test_a_memory_that_cannot_be_read_is_none(content: str, encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "fedcar" / "runtime.json"
    file.parent.mkdir(parents=True)
    file.write_text(content.replace("KEY", remembered._key(encoder.model)))
    assert remembered.recall(encoder.model) == remembered.Record()
