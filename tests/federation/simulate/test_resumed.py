"""A run that was interrupted, at any moment, goes on as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.command import python
from support.federated import World, equal, final, shares

from fedcar.errors import FedcarError
from fedcar.federation.rounds.clock import VirtualClock


class Killed(BaseException):
    """Stands for kill -9 within this process."""


OPTIONS: dict[str, Any] = {
    "rounds": 3, "participation": 0.7, "server_optimizer": "adam", "server_rate": 0.05, "compression": "int8",
    "clock": VirtualClock(dropout=0.2),
}  # fmt: skip


PARTS = shares(60, 3)


def test_resumed_equals_uninterrupted(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at 20 random calls that reach the disk: the state, the best and the history are those of one go."""
    selection, records, _ = world.run(tmp_path / "whole", PARTS, **OPTIONS)
    fsync, generator, calls = os.fsync, random.Random(0), [0]
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.__setitem__(0, calls[0] + 1))
    world.run(tmp_path / "counted", PARTS, **OPTIONS)
    calls_in_all = calls[0]

    def until(limit: int) -> Callable[[int], None]:
        def dying(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] >= limit:
                raise Killed
            fsync(descriptor)

        return dying

    for point in sorted(generator.sample(range(1, calls_in_all), 20)):
        folder, calls[0] = tmp_path / f"cut-{point}", 0
        monkeypatch.setattr(os, "fsync", until(point))
        try:
            world.run(folder, PARTS, **OPTIONS)
        except Killed:
            monkeypatch.setattr(os, "fsync", fsync)
            resumed, again, _ = world.run(folder, PARTS, resume=True, **OPTIONS)
            assert resumed.best.score == selection.best.score
            assert [without_seconds(record) for record in again] == [without_seconds(record) for record in records]
        monkeypatch.setattr(os, "fsync", fsync)
        assert equal(final(folder), final(tmp_path / "whole")), point
        history = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in history] == [1, 2, 3]


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if "seconds" not in name}


KILLED_RUN = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from support.federated import World, equal, final, shares
from federation.simulate.test_resumed import OPTIONS, PARTS
world = World(Path(sys.argv[2]))
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        world.run(Path(line.strip()), PARTS, resume=True, **OPTIONS)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_resumed_equals_uninterrupted_after_kill_9(world: World, tmp_path: Path, encoder_folder: Path) -> None:
    """A real process, killed at 20 random moments and started again until it is done."""
    process = python(KILLED_RUN, Path(__file__).parents[2], encoder_folder, stdin=-1)
    assert process.stdin and process.stdout

    def start(folder: Path) -> int:
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    needed = []
    for name in ("whole", "again", "once more"):  # the first waits for the disk
        begin = time.monotonic()
        start(tmp_path / name)
        assert process.stdout.readline().strip() == "0"
        needed.append(time.monotonic() - begin)
    generator, killed, number = random.Random(0), 0, 0
    while killed < 20 and number < 100:
        number += 1
        folder = tmp_path / f"killed-{number}"
        child = start(folder)
        time.sleep(generator.random() * min(needed))
        with suppress(ProcessLookupError):  # done before its time
            os.kill(child, signal.SIGKILL)
        killed += process.stdout.readline().strip() == str(-signal.SIGKILL)
        start(folder)
        assert process.stdout.readline().strip() == "0"
        assert equal(final(folder), final(tmp_path / "whole"))
        history = (folder / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in history] == [1, 2, 3]
    assert killed == 20
    process.stdin.close()
    process.wait()


def test_half_a_line_at_the_end_of_the_history_is_taken_away(world: World, tmp_path: Path) -> None:
    _, _, run = world.run(tmp_path / "run", shares(240, 2), rounds=2)
    file = tmp_path / "run" / "history.jsonl"
    whole = file.read_text()
    file.write_text(whole.splitlines(keepends=True)[0] + '{"round": 2, "sel')
    assert run.restore() is not None
    assert file.read_text() == whole


def test_a_changed_checkpoint_is_refused(world: World, tmp_path: Path) -> None:
    world.run(tmp_path / "run", shares(240, 2), rounds=2)
    state = tmp_path / "run" / "checkpoint" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    with pytest.raises(FedcarError, match="state.safetensors"):
        world.run(tmp_path / "run", shares(240, 2), rounds=2, resume=True)
