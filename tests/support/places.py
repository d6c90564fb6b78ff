"""A user's folder to spoil in one way at a time, with a disk of its own; the fixture by `pytest_plugins`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.command import Result, fedcar

HEADER = "query-id\tcorpus-id\tscore\n"
Words = list[object]


@dataclass
class Place:
    """A folder with a collection (the toy), an encoder and a saved retriever; the cache lies elsewhere."""

    folder: Path
    cache: Path
    refuse_disk: Callable[[Path, str], None]

    @property
    def collection(self) -> Path:
        return self.folder / "toy"

    @property
    def retriever(self) -> Path:
        return self.folder / "retriever"

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder"

    def train(self, out: Path | None = None, encoder: Path | str | None = None) -> Words:
        options = ("--encoder", encoder or self.encoder, "--cache", self.cache, "--method", "head", "--epochs", 1)
        return ["train", self.collection, "-o", out or self.folder / "new", *options]

    def evaluate(self, *more: object) -> Words:
        return ["evaluate", self.retriever, self.collection, "--cache", self.cache, *more]

    def search(self, question: str = "the fan is broken", *more: object) -> Words:
        return ["search", self.retriever, question, *more]

    # ------------------------------------------------------------ changes

    def rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        file = self.collection / name
        file.write_bytes(change(file.read_bytes()))

    def append(self, name: str, line: str | bytes) -> str:
        """Add a line to a file of the collection; "file:line"."""
        added = line if isinstance(line, bytes) else line.encode()
        self.rewrite(name, lambda content: content + added + b"\n")
        return f"{self.collection / name}:{(self.collection / name).read_bytes().count(bytes([10]))}"

    def keep(self, name: str, wanted: Callable[[str], bool]) -> None:
        self.rewrite(
            name, lambda content: "".join(line for line in content.decode().splitlines(True) if wanted(line)).encode()
        )

    def drop_split(self, split: str, *numbers: int) -> None:
        """Take out a split and its questions (the toy numbers them)."""
        (self.collection / "qrels" / f"{split}.tsv").unlink()
        self.keep("queries.jsonl", lambda line: not any(f'-{number}"' in line for number in numbers))


@pytest.fixture(scope="module")
def model(toy_collection: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every place is a copy of."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(toy_collection, folder / "toy")
    shutil.copytree(tiny_model("bert"), folder / "encoder")
    return folder


@pytest.fixture
def home(model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place of its own for every test (not `place`, by which served.py means a server's folder)."""
    mounts: list[Path] = []

    def refuse_disk(folder: Path, options: str) -> None:
        """Make the folder a file system that is full, or read-only, with what the folder holds."""
        held = shutil.copytree(folder, tmp_path / "held") if folder.exists() else None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a disk of its own needs the right to mount one")
        mounts.append(folder)
        if held:
            shutil.copytree(held, folder, dirs_exist_ok=True)
            shutil.rmtree(held)
        if options == "ro":
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            with (folder / "filler").open("wb", buffering=0) as stream:
                try:
                    while stream.write(bytes(4096)):
                        pass
                except OSError:
                    stream.truncate(max(0, stream.tell() - int(options)))

    folder = shutil.copytree(model, tmp_path / "place")
    place = Place(folder, tmp_path_factory.mktemp("cache"), refuse_disk)
    result = fedcar(*place.train(place.retriever))
    assert (result.code, result.warnings) == (0, []), result.err
    yield place
    for folder in mounts:
        subprocess.run(["umount", folder], check=True)


def last_line(result: Result) -> str:
    """The error: one line, with a way out behind the semicolon; before it only progress."""
    assert (result.code, result.out) == (1, ""), result
    assert "Traceback" not in result.err
    *_, last = result.err.splitlines()
    assert last.startswith("error: ") and sum(line.startswith("error: ") for line in result.err.splitlines()) == 1
    assert "; " in last or "must be" in last, f"no way out: {last}"
    return last
