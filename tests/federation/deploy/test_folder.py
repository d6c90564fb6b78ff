"""What is asked of a server's folder alone waits for nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedcar.federation.deploy import keys
from fedcar.federation.deploy.folder import ServerFolder, ServerSettings
from fedcar.federation.deploy.options import RunOptions
from fedcar.federation.deploy.runs import new_run

HEAVY = {"torch", "flwr", "numpy", "transformers"}
COMMAND = """
import json, subprocess, sys

from fedcar.cli.main import main

started = []
subprocess.Popen = lambda command, **_: started.append(command)
try:
    main()
finally:
    print(json.dumps({"modules": sorted({name.split(".")[0] for name in sys.modules}), "started": started}))
"""


@pytest.fixture
def place(tmp_path: Path) -> ServerFolder:
    """A server's folder with a run, that is not being served."""
    folder = ServerFolder(tmp_path / "server")
    folder.folder.mkdir()
    keys.make_authority(folder.folder)
    settings = ServerSettings("127.0.0.1", "127.0.0.1", 9443, 9444, "collection", "", "encoder", None, "")
    folder.file.write_text(json.dumps(vars(settings)))
    new_run(folder, RunOptions("head", "full", {"rounds": 3}))
    return folder


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("status",), "not running (fedcar serve)"),
        (("resume", "RUN", "--detach"), "runs in the background"),
        (("enroll", "PUBLIC"), "no fedcar serve runs there"),
    ],
)
def test_a_folder_without_a_server_is_read_without_torch_and_flower(
    place: ServerFolder, command: tuple[str, ...], says: str
) -> None:
    (run,) = place.runs.iterdir()
    _, public = keys.keygen(place.folder, "a")
    words = [{"RUN": run.name, "PUBLIC": str(public)}.get(word, word) for word in command]
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND, *words, "--data-dir", str(place.folder)], capture_output=True, text=True
    )
    assert says in ran.stdout + ran.stderr, ran
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert not HEAVY & set(seen["modules"])
    assert bool(seen["started"]) == ("--detach" in command)
