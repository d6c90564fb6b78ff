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

from fedcar.common import files
from fedcar.common.files import default_cache, has_home, lock_of, remove_tree
from fedcar.errors import FedcarError, FedcarWarning

HOLD = """
import sys, time
from pathlib import Path
from fedcar.common.files import lock_of
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


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a home and without an entry in the list of users; the folder of temporary files."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_cache_is_a_temporary_folder_of_this_user(nobody: Path) -> None:
    assert not has_home()
    for _ in range(2):
        with pytest.warns(FedcarWarning, match="no home folder to write to.*--cache or XDG_CACHE_HOME"):
            folder = default_cache()
        assert folder.parent == nobody and folder.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_to_is_none(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(files.os, "access", lambda path, _: str(path).startswith(str(nobody)))  # root may everything
    with pytest.warns(FedcarWarning, match="no home folder to write to"):
        assert default_cache().parent == nobody
    monkeypatch.setenv("HOME", str(nobody / "user"))
    assert default_cache() == nobody / "user" / ".cache" / "fedcar" and not (nobody / "user").exists()


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_temporary_folder_that_others_can_look_into_is_refused(nobody: Path, mode: int) -> None:
    folder = nobody / f"fedcar-{os.getuid()}"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(FedcarError, match="not a folder of this user alone; name a folder for the cache with --cache"):
        default_cache()


def test_a_link_in_its_place_is_refused(nobody: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (nobody / f"fedcar-{os.getuid()}").symlink_to(tmp_path_factory.mktemp("else"))
    with pytest.raises(FedcarError, match="not a folder of this user alone"):
        default_cache()


def test_without_any_folder_the_way_out_is_named(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(nobody / "gone"))
    with pytest.raises(FedcarError, match="--cache or XDG_CACHE_HOME"):
        default_cache()
