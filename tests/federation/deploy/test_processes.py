"""Locks of a served folder: who holds one is told from who looks whether it is held."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from fedcar.common.files import lock_of
from fedcar.federation.deploy import processes


def test_who_looks_is_not_taken_for_who_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOOKING_SECONDS", 10.0)
    looks = threading.Event()

    def look() -> None:
        with lock_of(tmp_path / "run.lock", shared=True):
            looks.set()
            time.sleep(0.1)

    other = threading.Thread(target=look)
    other.start()
    looks.wait(10)
    assert not processes.held(tmp_path / "run.lock")
    other.join()


@pytest.mark.skipif(sys.platform == "win32", reason="those who look cannot share a lock there")
def test_looking_at_a_lock_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with processes.locked(tmp_path / "run.lock"):
        monkeypatch.setattr("fedcar.common.files.time.sleep", lambda seconds: pytest.fail("waited"))
        assert processes.held(tmp_path / "run.lock")


def test_a_lock_says_what_it_is_for_while_others_look(tmp_path: Path) -> None:
    file = tmp_path / "run.lock"
    with processes.locked(file, "run-2") as free:
        assert free and processes.held(file) and file.read_text() == "run-2"
        with processes.locked(file, "run-3") as second:
            assert not second and file.read_text() == "run-2"
    assert not processes.held(file)
    with processes.locked(file) as free:
        assert free and file.read_text() == ""
