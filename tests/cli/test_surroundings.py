"""The command line in poor surroundings: terminals, streams, signals, modes, and words that begin with a dash."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from support.command import environment, fedcar, learnable, python

from fedcar.cli.commands import commands
from fedcar.cli.output import echo_blamed, in_words, prepare_streams, show_plan
from fedcar.collection.collection import Collection, Document
from fedcar.errors import typed_path
from tools.commands import commands as all_commands

DOCUMENTS = (Document("泵-1", "Saugpumpe “läuft” leer…", "水泵 prime it"), Document("fan", "Fan", "clean the fan"))
START = "from fedcar.cli.main import main; main()"
INTERRUPTED = (130, "", "interrupted\n")


def ended(code: str, *words: str) -> tuple[int | None, str, str]:
    """How a process that runs the code ends: its exit code, and what it has said on stdout and stderr."""
    process = python(code, *words)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(toy_collection: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, its name with a blank, with a trained retriever and one whose documents few terminals can show."""
    place = tmp_path_factory.mktemp("a place")
    learnable(Collection.read(toy_collection)).write(place / "collection")
    Collection("foreign", DOCUMENTS, {}, {}).write(place / "foreign")
    options = ("--encoder", encoder, "--cache", place / "cache", "--method", "ridge")
    before = os.umask(0o022)
    for name in ("collection", "foreign"):
        result = fedcar("train", place / name, "-o", place / f"{name}-retriever", *options)
        assert result.code == 0, result.err
    os.umask(before)
    return place


# Terminals


@contextmanager
def terminal(encoding: str) -> Iterator[io.BytesIO]:
    """Standard output in this encoding; what was written to it."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, write_through=True)
    with patch.object(sys, "stdout", stream):
        prepare_streams()
        yield written
        stream.detach()  # which would be closed with it


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_every_terminal_shows_what_it_can(place: Path, encoding: str) -> None:
    from fedcar.cli.tables import print_answer
    from fedcar.retriever.searcher import Answer, Hit

    hit = Hit("泵-1", 1.0, 0.5, DOCUMENTS[0].title, "水泵 " * 100)
    with terminal(encoding) as written:
        print_answer(Answer("q", None, (hit,), "no threshold"))
    shown = written.getvalue().decode(encoding)
    assert "1. Saugpumpe" in shown and "confidence 0.50" in shown
    assert ("泵-1" in shown) == (encoding == "utf-8") and ("\\u6cf5-1" in shown) == (encoding != "utf-8")
    assert ("läuft" in shown) == (encoding != "ascii") and ("leer..." in shown) == (encoding in ("ascii", "latin-1"))


def test_a_long_passage_is_shown_from_the_sentence_that_has_the_questions_words() -> None:
    from fedcar.cli.tables import print_answer
    from fedcar.retriever.searcher import Answer, Hit, Passage

    before = "The fan is cleaned once a month by the one who is on duty then. " * 6
    text = f"{before}A valve that drips is closed by hand before anything else is done. The fan is off."
    hit = Hit("fan", 1.0, None, "Fan", text, passage=Passage(text, 0, len(text)))
    with terminal("utf-8") as written:
        print_answer(Answer("what is done about the valve that drips?", None, (hit,)))
    shown = " ".join(written.getvalue().decode().split())
    assert "Fan fan … A valve that drips is closed" in shown


def test_half_a_character_is_spelled_out_even_in_utf_8() -> None:
    from fedcar.cli.output import echo

    with terminal("utf-8") as written:
        echo("file-\udcff.csv")
    assert written.getvalue() == b"file-\\udcff.csv\n"


def test_who_was_refused_is_said_with_how_often_and_the_last_reason_in_80_columns() -> None:
    reason = "left out: the judge's questions are surely better off without it (by 0.031)"
    records = [{"refused": {"north": "not finite"}}, {"refused": {"north": reason}}, {"refused": {}}]
    with terminal("utf-8") as written:
        echo_blamed(records)
    lines = written.getvalue().decode().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(" ".join(lines).split()) == f"north: refused in 2 of 3 rounds, last: {reason}"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_json_on_every_terminal(encoding: str) -> None:
    from fedcar.cli.output import print_json

    content = {"id": "泵", "text": "läuft 😀"}
    with terminal(encoding) as written:
        print_json(content)
    assert json.loads(written.getvalue().decode("utf-8")) == content


def test_a_search_on_a_terminal_of_ascii(place: Path, tmp_path: Path) -> None:
    """A process of its own: the whole way from the words to the table; its cache has no room for a quick start."""
    (tmp_path / "fedcar").mkdir()
    (tmp_path / "fedcar" / "encoders").write_text("no folder")
    quick = {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", START, "search", place / "foreign-retriever", "水泵", "-k", "1"],
        env=environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C", PYTHONCOERCECLOCALE="0", **quick),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"Saugpumpe" in done.stdout and b"\\u6cf5-1" in done.stdout and done.stdout.isascii()


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_no_figure_is_cut_off_in_a_narrow_terminal(place: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ("evaluate", place / "collection-retriever", place / "collection", "--cache", place / "cache")
    found, shown = fedcar(*words, "--json").json, fedcar(*words).out
    assert max(map(len, shown.splitlines())) <= columns
    figures = [
        f"{value:.3f}" for one in found["systems"].values() for name, value in one["all"].items() if name != "queries"
    ]
    assert all(shown.count(figure) >= figures.count(figure) for figure in figures) and "…" not in shown
    assert all(name in shown for name in ("BM25", "MIPS", "hybrid", "fedcar", "success@1", "ndcg@10"))


# Streams


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command of the shell in which `fedcar` is this one."""
    words = f'fedcar() {{ "$PYTHON" -c \'{START}\' "$@"; }}; {command}'
    return subprocess.run(["sh", "-c", words], env=environment(PYTHON=sys.executable), capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("fedcar --help >&-", 1, "error: standard output is closed; let it be a file, or /dev/null\n"),
        ("fedcar --help 2>&- > /dev/null", 0, ""),
        ("fedcar --help <&- > /dev/null", 0, ""),
        ("fedcar --nonsense 2>/dev/full", 2, ""),
        ("fedcar --nonsense >/dev/null 2>&-", 2, ""),
    ],
)
def test_streams_that_are_closed(command: str, code: int, said: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_reader_that_went_away_is_one_line() -> None:
    read, write = os.pipe()
    os.close(read)
    process = python("import sys; sys.argv[1:] = ['--help']; " + START, stdout=write)
    os.close(write)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "error: standard output: its reader went away before the end\n")


# Signals


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["fedcar.cli.commands", "click", "fedcar.cli.tables", "json"])
def test_an_interruption_while_importing_is_one_line(number: str, module: str) -> None:
    code = f"""
import signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and not seen:
            seen.append(name)
            signal.raise_signal(signal.{number})
seen = []
sys.meta_path.insert(0, Interrupts())
{START}
"""
    assert ended(code, "--help") == INTERRUPTED


@pytest.mark.parametrize("swallows", ["raise OSError('made of it')", "raise RuntimeError", "raise ImportError('x')"])
def test_an_interruption_that_became_another_error_is_one(swallows: str) -> None:
    code = f"""
import signal
from fedcar.cli import commands
def run():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        {swallows}
commands.run = run
{START}
"""
    assert ended(code) == INTERRUPTED


def test_an_interruption_that_a_callback_swallows_is_heard_all_the_same() -> None:
    code = f"""
import signal, time
from fedcar.cli import commands
class Gone:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def run():
    Gone()
    time.sleep(20)
commands.run = run
{START}
"""
    assert ended(code) == INTERRUPTED


def test_what_a_process_was_told_to_ignore_it_goes_on_ignoring() -> None:
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from fedcar.cli import commands
commands.run = lambda: signal.raise_signal(signal.SIGINT)
{START}
"""
    assert ended(code) == (0, "", "")


# Modes


def test_what_is_not_private_is_as_open_as_the_umask_says(place: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        retriever = place / "collection-retriever"
        assert fedcar("export", retriever, "--format", "transformers", "--out", tmp_path / "stock").code == 0
        words = ("federate", place / "collection", "-o", tmp_path / "r", "--clients", 2, "--no-central")
        encoder = json.loads((retriever / "retriever.json").read_text())["encoder"]["name"]
        noised = ("--epsilon", 3, "--delta", 1e-3, "--against-advice")
        assert fedcar(*words, *noised, "--encoder", encoder, "--cache", tmp_path / "cache").code == 0
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in retriever.iterdir()}
    assert set(modes.values()) == {0o644}, modes
    for folder in ("stock", "r"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert set(modes.values()) == {0o640}, modes
    for part in (tmp_path / "cache", *(tmp_path / "r.run" / "clients").rglob("ledger*")):
        assert part.stat().st_mode & 0o077 == 0, part


def test_a_file_of_somebody_else_is_not_to_be_restored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    said = fedcar("search", place / "collection-retriever", "fan").err
    assert "cannot be read (Permission denied); let this user read it (chmod), or run as its owner" in said


# Words


@pytest.mark.parametrize(
    ("words", "question", "k"),
    [
        (["R", "-5 degrees"], "-5 degrees", 5),
        (["R", "-40"], "-40", 5),
        (["-5 degrees", "-k", "2"], None, None),
        (["R", "-make it stop", "-k", "2"], "-make it stop", 2),
        (["R", "-k3", "-k is what?"], "-k is what?", 3),
        (["R", "--json does not work"], "--json does not work", 5),
        (["R", "--", "-x"], "-x", 5),
        (["R", "--json", "--", "--json"], "--json", 5),
        (["R", "--encoder", "-my folder", "why?"], "why?", 5),
        (["R", "-k", "4", "plain"], "plain", 4),
        (["R", "-"], "-", 5),
    ],
)
def test_a_question_may_begin_with_a_dash(words: list[str], question: str | None, k: int | None) -> None:
    command = commands.commands["search"]
    if question is None:  # it stands where the retriever is wanted
        result = fedcar("search", *words)
        assert result.code == 2 and "give a question, or a file of questions with --file" in result.err
        return
    found = command.make_context("search", words).params
    assert (found["question"], found["k"], str(found["retriever"])) == (question, k, "R")


@pytest.mark.parametrize("words", [["R", "q", "--jsn"], ["R", "q", "-x"], ["--encodr=x", "R", "q"]])
def test_what_is_like_an_option_is_refused_with_the_way_out(words: list[str]) -> None:
    result = fedcar("search", *words)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "No such option" in result.err and 'no option go last, behind " -- "' in result.err


def test_ids_may_be_anything_but_an_option() -> None:
    command = commands.commands["remove"]
    assert command.make_context("remove", ["R", "-1", "-head", "--json", "x", "--x"]).params["ids"] == (
        "-1", "-head", "x", "--x",
    )  # fmt: skip


def test_a_folder_with_a_blank_is_quoted_where_a_command_is_named(place: Path, encoder: Path) -> None:
    options = ("--encoder", encoder, "--cache", place / "cache", "--method", "ridge")
    told = fedcar("train", place / "foreign", "-o", place / "a retriever", *options).out.splitlines()[-1]
    assert told == f"next: fedcar evaluate '{place / 'a retriever'}' '{place / 'foreign'}'"
    assert typed_path("-x y") == "'./-x y'" and typed_path("x") == "x"


def test_every_command_takes_json() -> None:
    left = [words for words, command in all_commands() if not any("--json" in one.opts for one in command.params)]
    assert left == []


THREAD_THAT_STAYS = """
import threading, time
import fedcar.cli.commands as commands
from fedcar.cli.main import main
def run():
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("on", flush=True)
    time.sleep(60)
commands.run = run
main()
"""


def test_who_was_interrupted_and_waits_for_a_thread_is_ended_by_the_next_signal() -> None:
    process = python(THREAD_THAT_STAYS)
    assert process.stdout and process.stderr and process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "interrupted\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130


def test_keygen_prints_json(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    found = fedcar("keygen", "--node", "a", "--out", tmp_path, "--json").json
    assert found == {"node": "a", "private": str(tmp_path / "a.key"), "public": str(tmp_path / "a.pub")}


def test_a_plan_is_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    releases = [
        {"name": "count", "steps": 1, "noise": 13.90591234567, "sampled": False},
        {"name": "sums", "unit": None},
    ]
    show_plan({"documents": 6, "rounds": {"seed": 0}, "releases": releases * 2}, as_json=False)
    count, sums = "- count: steps 1, noise 13.9059, sampled no", "- sums: unit none"
    expected = ["documents: 6", "rounds: seed 0", "releases:", count, sums, count, sums]
    assert capsys.readouterr().out.splitlines() == expected
    assert in_words([]) == in_words({}) == in_words(None) == "none" and in_words({"site_a": [1, 2]}) == "site_a 1, 2"


def test_every_tenth_exchange_has_a_line_however_long_it_took(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedcar.cli import tables
    from fedcar.training.noised.record import ExchangeRecord

    monkeypatch.setattr(tables, "SECONDS_BETWEEN_LINES", -1.0)  # every look at the clock would be a line
    exchange = ExchangeRecord(round=0, clients=["a"], refused={}, failed={}, bytes_up=4, bytes_down=0)
    with tables.live_table() as show:
        for number in range(22):
            show(replace(exchange, round=number), {})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["round 0", "round 10", "round 20"]


def test_rounds_without_news_share_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    from fedcar.cli.tables import live_table
    from fedcar.federation.rounds.record import RoundRecord

    record = RoundRecord(
        round=0, clients=["a"], questions=1, refused={}, failed={}, bytes_down=0, bytes_up=4, client_seconds={},
        clock_seconds=0.0,
    )  # fmt: skip
    with live_table() as show:
        for number in range(31):
            show(replace(record, round=number), {})
        show(replace(record, round=31, failed={"b": "away"}), {})
        show(replace(record, round=32, selection=0.5, clock_seconds=0.25), {})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["round 0", "round 31", "round 32"]
    assert "s 0.00" not in "".join(lines) and "b: away" in lines[1] and lines[2].endswith("s 0.25")
