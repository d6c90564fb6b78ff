"""The examples run as they stand, with a tiny encoder."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

import pytest
from support.command import REPOSITORY

# what each says when it has done what it shows
EXAMPLES = {
    "train_and_search.py": ["bm25", "mips", "hybrid", "retriever", "success@1"],
    "federate.py": ["round 3: 6 clients", "in one place", "bytes a round; kept: "],
    "train_under_epsilon.py": ["epsilon 3.00, delta 0.0001, unit example", "given out 30 times: head"],
    "bundle_without_torch.py": ["onnxruntime", "torch was imported: False"],
}


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == {file.name for file in (REPOSITORY / "examples").glob("*.py")}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore::fedcar.errors.FedcarWarning")
def test_an_example_runs(
    name: str, encoder_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = REPOSITORY / "examples" / name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(sys, "argv", [str(file), str(encoder_folder)])
    with warnings.catch_warnings():
        runpy.run_path(str(file), run_name="__main__")
    said = capfd.readouterr().out
    missing = [what for what in EXAMPLES[name] if what not in said]
    assert not missing, said


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len((REPOSITORY / "examples" / name).read_text(encoding="utf-8").splitlines()) < 40
