"""What lies in deploy/: every command is one that fedcar understands, and the compose file's walk as real processes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from support.command import REPOSITORY, environment

pytest.importorskip("flwr")

from support.deployments import newest, until  # noqa: E402

from fedcar.federation.deploy.processes import fedcar_command, free_port  # noqa: E402

pytest_plugins = ("support.deployments",)
COMPOSE = (REPOSITORY / "deploy" / "compose.yaml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE)["services"]
WALK = re.findall(r"^# {3}(\S[^#]*?)(?: +# (.*))?$", COMPOSE, re.M)  # command, remark


def commands() -> list[list[str]]:
    """What units and services start, without the program's name."""
    found = [service["command"] for service in SERVICES.values()]
    for unit in sorted((REPOSITORY / "deploy").glob("*.service")):
        (line,) = re.findall(r"^ExecStart=/opt/fedcar/bin/fedcar (.*)$", unit.read_text(encoding="utf-8"), re.M)
        found.append(shlex.split(line.replace("${PORT}", "9443")))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_what_is_started_is_understood(words: list[str]) -> None:
    from fedcar.cli.commands import commands as fedcar_commands

    command = fedcar_commands.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]))  # click refuses what it does not know
    assert words[0] == "serve" or context.params["file"].suffix == ".join"


def test_services_are_fenced() -> None:
    for service in SERVICES.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["restart"] == "always"
        assert service["networks"] == ["federation"] and "ports" not in service
    assert len(WALK) == 9


def both(line: str, remark: str) -> list[str]:
    """A line of the walk, and the same for the other hospital where its remark says so."""
    return [line, line.replace("hospital-a", "hospital-b")] if remark.startswith("and ") else [line]


class Engine:
    """Plays docker compose: a container's folder is the working folder, and loopback its network."""

    def __init__(self, place: Path, encoder: Path) -> None:
        self.place, self.encoder, self.port = place, encoder, str(free_port())
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: str, words: list[str], log: str) -> subprocess.Popen[bytes]:
        own = ["127.0.0.1" if before == "--host" else self.port if word == "9443" else word
               for before, word in zip(["", *words], words, strict=False)]  # fmt: skip
        own += ["--encoder", str(self.encoder)] if words[0] in ("serve", "join") else []
        folder = self.place / service
        inside = environment(HF_HUB_OFFLINE="1", XDG_CACHE_HOME=str(folder / "cache"), HOME="/nonexistent")
        with (folder / log).open("wb") as stream:
            return subprocess.Popen(fedcar_command(*own), cwd=folder, stdout=stream, stderr=stream, env=inside)

    def up(self, *services: str) -> None:
        """Those that do not run yet; waits as --wait does, and as people do for whom nothing is online yet."""
        for service in services or SERVICES:
            if service not in self.running:
                self.running[service] = self.start(service, SERVICES[service]["command"], "up.log")
                log = self.place / service / "up.log"
                until(lambda log=log: any(word in log.read_text() for word in ("serving on", "joining", "error:")))
                assert "error:" not in log.read_text(), log.read_text()

    def once(self, service: str, *words: str) -> None:
        words = words[1:] if words[0] == "fedcar" else words  # `run` has the entry point before it, `exec` has not
        process = self.start(service, list(words), "once.log")
        assert process.wait(200) == 0, (self.place / service / "once.log").read_text()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(20)


@pytest.mark.slow
@pytest.mark.ci
def test_the_walk_of_the_compose_file(collections: Path, encoder: Path, tmp_path: Path) -> None:
    """Its lines as they stand there, with all that a container has but the container."""
    engine = Engine(tmp_path, encoder)
    actions = {"up": engine.up, "run": engine.once, "exec": engine.once}
    try:
        for line in (one for command, remark in WALK for one in both(command, remark)):
            words = shlex.split(line)
            if words[:4] == ["docker", "compose", "-f", "deploy/compose.yaml"]:
                actions[words[4]](*(word for word in words[5:] if word not in ("--rm", "-d", "--wait")))
                continue
            subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
            if words[0] == "mkdir":  # and the collections that its remark asks for
                (tmp_path / "server" / "central").symlink_to(collections / "central")
                for name in "ab":
                    (tmp_path / f"hospital-{name}" / "questions").symlink_to(collections / f"questions-{name}")
        run = newest(tmp_path / "server" / "server")
        assert (run / "retriever" / "retriever.json").exists()
        assert (run / "history.jsonl").read_text().count("\n") == 4
        assert sorted(file.parent.name for file in tmp_path.rglob("hospital-*.key")) == ["hospital-a", "hospital-b"]
    finally:
        engine.stop()
