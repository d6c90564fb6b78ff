"""The history: records are only ever added, and half a line at the end of its file is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcar.common.history import History


def test_a_history_in_a_file_is_there_again(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert len(History.of(file)) == 0 and not file.exists()
    History.of(file).add(round=1, share=0.5)
    History.of(file).add(round=2, note="für")
    assert History.of(file).records == [{"round": 1, "share": 0.5}, {"round": 2, "note": "für"}]
    assert file.read_text(encoding="utf-8") == '{"round": 1, "share": 0.5}\n{"round": 2, "note": "für"}\n'


@pytest.mark.parametrize("mend", [True, False])
def test_half_a_line_is_no_record(tmp_path: Path, mend: bool) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(b'{"round": 1}\n{"rou')
    assert History.of(file, mend=mend).records == [{"round": 1}]
    assert file.read_bytes() == (b'{"round": 1}\n' if mend else b'{"round": 1}\n{"rou')


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = History([{"epoch": 1}])
    history.add(epoch=2)
    assert [record["epoch"] for record in history] == [1, 2] and not list(tmp_path.iterdir())
    history.records[0]["epoch"] = 9
    assert history.records[0]["epoch"] == 1, "what is handed out is a copy"
