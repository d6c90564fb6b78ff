"""Prompts in a federation: the server keeps them, tells its devices, and refuses others from then on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedcar.errors import FedcarError
from fedcar.federation.deploy.enroll import JoinFile
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.server import prepare_server

PROMPTS = ("query: ", "passage: ")


def join_file(place: Path, **more: str) -> JoinFile:
    return JoinFile(place, "1", "north", 1, "key", "host:1", "ca", "documents", "encoder", None, "print", **more)


def test_a_device_is_told_the_prompts(tmp_path: Path) -> None:
    written = join_file(tmp_path / "a.join", query_prompt=PROMPTS[0], document_prompt=PROMPTS[1])
    written.write()
    assert JoinFile.read(tmp_path / "a.join") == written


def test_a_file_from_before_there_were_prompts_is_read(tmp_path: Path) -> None:
    written = join_file(tmp_path / "a.join")
    written.write()
    content = json.loads(written.file.read_text())
    for name in ("query_prompt", "document_prompt"):
        del content[name]
    written.file.write_text(json.dumps(content))
    assert JoinFile.read(written.file) == written


def test_a_server_keeps_its_prompts_and_refuses_others(
    tmp_path: Path, collection_folder: Path, encoder_folder: Path
) -> None:
    place = ServerFolder(tmp_path / "server")

    def prepare(prompts: tuple[str | None, str | None]) -> None:
        prepare_server(place, "127.0.0.1", None, 9443, collection_folder, str(encoder_folder), None, prompts)

    prepare(PROMPTS)
    assert (place.settings().query_prompt, place.settings().document_prompt) == PROMPTS
    prepare(PROMPTS)
    with pytest.raises(FedcarError, match="serves another encoder"):
        prepare((None, None))
