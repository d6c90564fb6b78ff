"""Files: a lock is one process's, and ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedcar.common.files import lock_of, remove_tree

HOLD = """
import sys, time
from pathlib import Path
from fedcar.common.files import lock_of, remove_tree
with lock_of(Path(sys.argv[1]), create=sys.argv[2] == "file"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_ends_with_its_process(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    create = kind == "file"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(place), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with lock_of(place, 0.0, create=create) as free:
        assert not free
    process.send_signal(signal.SIGKILL)
    with lock_of(place, 10.0, create=create) as free:
        assert free
    process.communicate(timeout=120)
    assert os.listdir(tmp_path) == ["place"], "nothing lies beside it"


def test_a_lock_is_held_once_within_a_process_too(tmp_path: Path) -> None:
    with lock_of(tmp_path / "lock") as first, lock_of(tmp_path / "lock", 0.0) as second:
        assert first and not second
    with lock_of(tmp_path / "lock", 0.0) as third:
        assert third
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_lock_waits_so_long(tmp_path: Path) -> None:
    release = threading.Event()

    def hold() -> None:
        with lock_of(tmp_path / "lock"):
            held.set()
            release.wait(10)

    held, thread = threading.Event(), threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    start = time.monotonic()
    with lock_of(tmp_path / "lock", 0.2) as free:
        assert not free and 0.2 <= time.monotonic() - start < 5
    threading.Timer(0.1, release.set).start()
    with lock_of(tmp_path / "lock") as free:
        assert free
    thread.join()


def test_a_lock_that_must_be_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock_of(tmp_path / "lock", create=False):
        pass
    assert not os.listdir(tmp_path)


def test_an_interrupt_while_a_folder_is_removed_stays_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just as rmtree has closed a file: Python 3.11 closes it again, and that error would hide the interrupt."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            os.close(-1)

    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_tree(tmp_path)
