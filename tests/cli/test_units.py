"""The files under deploy/: what they start is what the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from support.command import REPOSITORY

from fedcar.cli.commands import commands

DEPLOY = REPOSITORY / "deploy"


def check(words: list[str]) -> None:
    """Parse the words as the command line would, without doing anything."""
    command = commands.commands[words[0]]
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    assert isinstance(context, click.Context)


def test_only_one_module_imports_flower() -> None:
    importing = re.compile(r"^\s*(?:import|from)\s+flwr\b", re.M)
    found = [path.name for path in (REPOSITORY / "fedcar").rglob("*.py") if importing.search(path.read_text())]
    assert found == ["flower.py"]


@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.name)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    text = unit.read_text()
    (started,) = re.findall(r"^ExecStart=/opt/fedcar/bin/fedcar (.*)$", text, re.M)
    check(shlex.split(started.replace("${HOST}", "h").replace("${PORT}", "9443").replace("%i", "hospital-a")))
    assert "Restart=always" in text and "KillMode=control-group" in text


def test_the_compose_file_starts_commands_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    text = (DEPLOY / "compose.yaml").read_text()
    compose: dict[str, Any] = yaml.safe_load(text)
    assert set(compose["services"]) == {"server", "hospital-a", "hospital-b"}
    for service in compose["services"].values():
        check([str(word) for word in service["command"]])
        assert service["restart"] == "always" and len(service["volumes"]) == 1
    said = re.findall(r"(?:run --rm hospital-a|exec server fedcar) (.*?)(?:\s+#.*)?$", text, re.M)
    assert [line.split()[0] for line in said] == ["keygen", "enroll", "status", "run"]
    for line in said:
        check(shlex.split(line))
