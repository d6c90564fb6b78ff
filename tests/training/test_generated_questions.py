"""Questions of a language model: what its server may answer, and what is sent to it."""

from __future__ import annotations

import _socket
import gzip
import json
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.machines import DOCUMENTS

import fedcar.training.generated_questions as module
from fedcar import train
from fedcar.collection import pseudo_queries
from fedcar.collection.collection import Collection, Document
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.training.generated_questions import check_questions_from, questions_from, questions_in

SECRET = "sk-secret-1234567890"

# -------------------------------------------------------------------- what a model answers


@pytest.mark.parametrize(
    "answer",
    [
        '["Why one?", "Why two?"]',
        '```json\n["Why one?", "Why two?"]\n```',
        'Here you are:\n["Why one?", "Why two?"] I hope it helps [1].',
        '{"questions": ["Why one?", "Why two?"]}',
        '{"count": 2, "items": [{"question": "Why one?"}, {"question": "Why two?"}]}',
        '[{"q": "Why one?"}, {"query": "Why two?"}, {"other": 1}, 7, null]',
        '<think>["No?"] or not</think>["Why one?", "Why two?"]',
        "1. Why one?\n2) Why two?\n",
        "- Why one?\n* **no question**\n  • Why  two?",
        '["Why one?", "why  ONE?", "", "  ", "...", "Why two?", "Why three?"]',
        "[broken json\nWhy one?\nWhy two?",
    ],
)
def test_questions_are_found_in(answer: str) -> None:
    assert questions_in(answer, 2) == ["Why one?", "Why two?"]


@pytest.mark.parametrize(
    "answer", ["", "I cannot help with that.", "[]", "{}", "[[1, 2]]", "[1]", "[" * 100_000, '{"a": ' * 5000, "\0"]
)
def test_no_questions_in(answer: str) -> None:
    assert questions_in(answer, 5) == []


def test_a_question_is_clean_text_of_one_line() -> None:
    assert questions_in('["Why\\n so\\ud800?", "%s?"]' % ("x" * 1000), 5) == ["Why so?"]


# -------------------------------------------------------------------- a server on this machine


class Server:
    """A fake server: `reply(request, number)` gives status, headers and body for each request, all of them kept."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes]] = lambda *_: completion("[]")
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                    number = len(outer.requests)
                status, headers, content = outer.reply(body, number)
                if status:
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(content))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def completion(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def two_questions(body: dict[str, Any], _: int) -> tuple[int, dict[str, str], bytes]:
    title = body["messages"][0]["content"].rpartition("\n\n")[2].split(".")[0]
    return completion(json.dumps([f"how is my {title} kept?", f"what about a {title}?"]))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    def loopback_alone(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            raise OSError(f"the tests have no network: {address}")
        _socket.socket.connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_alone)
    monkeypatch.setattr(module, "WAITS", (0.0,))
    for name in ("FEDCAR_QUESTIONS_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    found = Server()
    found.reply = two_questions
    yield found
    found.close()


def test_questions_of_a_language_model(server: Server, tmp_path: Path) -> None:
    empty = Document("empty", "", " ")
    found = questions_from(server.url, (*DOCUMENTS, empty), model="tiny", each=2, cache=tmp_path)
    assert found.document_ids == ("fan", "fan", "pump", "pump", "hose", "hose")
    assert found.texts[2:4] == ("how is my Pump kept?", "what about a Pump?")
    assert (
        set(found.weights.tolist()) == {module.WEIGHT_OF_QUESTION}
        and pseudo_queries.WEIGHT < module.WEIGHT_OF_QUESTION < 1
    )
    assert len(server.requests) == 3
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions" and "Authorization" not in request["headers"]
    assert request["body"]["model"] == "tiny" and "2 short questions" in request["body"]["messages"][0]["content"]


def test_whole_address_and_no_model_are_fine(server: Server, tmp_path: Path) -> None:
    questions_from(f"{server.url}/chat/completions/", DOCUMENTS[:1], cache=tmp_path)
    assert server.requests[0]["path"] == "/v1/chat/completions" and "model" not in server.requests[0]["body"]


def test_a_document_is_asked_about_once(server: Server, tmp_path: Path) -> None:
    first = questions_from(server.url, DOCUMENTS[:2], cache=tmp_path)
    again = questions_from(server.url, DOCUMENTS[:2], cache=tmp_path)
    assert again.texts == first.texts and len(server.requests) == 2
    more = questions_from(server.url, DOCUMENTS, cache=tmp_path)
    assert more.texts[: len(first)] == first.texts and len(server.requests) == 3
    changed = replace(DOCUMENTS[0], text="Another text.")
    questions_from(server.url, [changed], cache=tmp_path)
    questions_from(server.url, DOCUMENTS[:1], model="other", cache=tmp_path)
    questions_from(server.url, DOCUMENTS[:1], each=3, cache=tmp_path)
    assert len(server.requests) == 6, "another text, model or number is another question"


def test_cache_is_private_and_survives_a_crash(server: Server, tmp_path: Path) -> None:
    questions_from(server.url, DOCUMENTS[:2], cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "questions").iterdir()
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
    assert "blades" not in file.read_text(), "texts of documents are not kept, their hashes are"
    file.write_bytes(b'["odd"]\n{"document": 1}\nnot json\n\xff\n' + file.read_bytes().rstrip()[:-9])
    found = questions_from(server.url, DOCUMENTS[:2], cache=tmp_path / "cache")
    assert len(found) == 4 and len(server.requests) == 3
    questions_from(server.url, DOCUMENTS[:2], cache=tmp_path / "cache")
    assert len(server.requests) == 3, "what follows the line that was cut off can be read"


def test_cache_that_cannot_be_used_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "questions").write_text("a file")
    with pytest.raises(FedcarError, match=r"cache of questions cannot be used .*--cache") as error:
        questions_from(server.url, DOCUMENTS, cache=tmp_path)
    assert "\n" not in str(error.value) and not server.requests


def test_long_document_is_cut(server: Server, tmp_path: Path) -> None:
    questions_from(server.url, [Document("a", "Long", "word " * 100_000), Document("b", "\ud800")], cache=tmp_path)
    assert max(len(request["body"]["messages"][0]["content"]) for request in server.requests) < 7000


def test_key_is_sent_and_never_shown(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    questions_from(server.url, DOCUMENTS[:1], cache=tmp_path / "1")
    monkeypatch.setenv("FEDCAR_QUESTIONS_KEY", SECRET)
    questions_from(server.url, DOCUMENTS[:1], cache=tmp_path / "2")
    sent = [request["headers"]["Authorization"] for request in server.requests]
    assert sent == ["Bearer sk-other", f"Bearer {SECRET}"]
    server.reply = lambda *_: (401, {}, json.dumps({"error": {"message": f"bad key {SECRET}\nsorry"}}).encode())
    with pytest.raises(
        FedcarError, match=r"401 \"bad key \*\*\* sorry\"; set the key in FEDCAR_QUESTIONS_KEY"
    ) as error:
        questions_from(server.url, DOCUMENTS, cache=tmp_path / "3")
    assert SECRET not in str(error.value)
    monkeypatch.setenv("FEDCAR_QUESTIONS_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(FedcarError, match="FEDCAR_QUESTIONS_KEY: holds a character") as error:
        questions_from(server.url, DOCUMENTS, cache=tmp_path / "4")
    assert SECRET not in str(error.value)


def test_a_key_for_others_never_travels_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDCAR_QUESTIONS_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    keys = {url: module._Server.at(url, None, 1.0).key for url in ("http://example.org/v1", "https://example.org/v1")}
    assert keys == {"http://example.org/v1": "", "https://example.org/v1": SECRET}
    monkeypatch.setenv("FEDCAR_QUESTIONS_KEY", "for-it")
    assert module._Server.at("http://example.org/v1", None, 1.0).key == "for-it"


@pytest.mark.parametrize(
    "busy",
    [
        (429, {"Retry-After": "0"}, b'{"error": {"message": "slow down"}}'),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""),
        (503, {}, b"<html>busy</html>"),
        (500, {}, b'{"error": "oops"}'),
        (0, {}, b""),
    ],
)
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, busy: tuple[int, dict[str, str], bytes]) -> None:
    server.reply = lambda body, number: busy if number < 3 else two_questions(body, number)
    assert len(questions_from(server.url, DOCUMENTS[:1], cache=tmp_path)) == 2
    assert len(server.requests) == 3


def test_server_that_stays_busy_is_one_line_and_what_was_answered_is_kept(server: Server, tmp_path: Path) -> None:
    questions_from(server.url, DOCUMENTS[:1], cache=tmp_path)
    server.reply = lambda *_: (429, {"Retry-After": "0.0"}, b'{"error": {"message": "slow down"}}')
    match = r'^--questions-from 127\.0\.0\.1:\d+: no answer after 5 tries \(429 "slow down"\); check the address'
    with pytest.raises(FedcarError, match=match) as error:
        questions_from(server.url, DOCUMENTS, cache=tmp_path)
    assert "\n" not in str(error.value)
    server.reply, before = two_questions, len(server.requests)
    assert len(questions_from(server.url, DOCUMENTS, cache=tmp_path)) == 6
    assert len(server.requests) == before + 2


def test_waits_as_long_as_the_server_says_up_to_a_minute() -> None:
    assert [module._wait(said, 2.0) for said in ("7", " 3.5 ", "99999", "-1", "nan", "later", "", None)] == [
        7.0, 3.5, 60.0, 2.0, 2.0, 2.0, 2.0, 2.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        ((404, {}, b"<html>nginx</html>"), r'404 "Not Found"; check the address'),
        ((400, {}, b'{"error": {"message": "model is required"}}'), r'400 "model is required"; .*--questions-model'),
        ((403, {}, b"{}"), r"403 .*; set the key"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), r"302 .*; redirects are not followed"),
    ],
)
def test_refusal_is_one_line_at_once(server: Server, tmp_path: Path, reply: Any, match: str) -> None:
    server.reply = lambda *_: reply
    with pytest.raises(FedcarError, match=match) as error:
        questions_from(server.url, DOCUMENTS[:1], cache=tmp_path)
    assert "\n" not in str(error.value) and len(server.requests) == 1


def test_nobody_there_is_one_line(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.http.server_close()
    with pytest.raises(FedcarError, match=r"no answer after 5 tries \(.*refused.*\)"):
        questions_from(url, DOCUMENTS[:1], cache=tmp_path)


def test_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    free = threading.Event()

    def hang(*_: object) -> tuple[int, dict[str, str], bytes]:
        free.wait(10)
        return 0, {}, b""

    server.reply = hang
    try:
        with pytest.raises(FedcarError, match=r"no answer after 5 tries \(.*timed out.*\)"):
            questions_from(server.url, DOCUMENTS[:1], cache=tmp_path, timeout=0.05)
    finally:
        free.set()


@pytest.mark.parametrize(
    "garbage",
    [
        completion("I am sorry, I cannot."),
        completion(None),
        completion(7),
        (200, {}, b"not json"),
        (200, {}, b"[]"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b"\xff\xfe" * 10),
        (200, {}, b" " * (module.LARGEST_ANSWER + 1)),
    ],
)
def test_garbage_alone_is_one_line(server: Server, tmp_path: Path, garbage: tuple[int, dict[str, str], bytes]) -> None:
    server.reply = lambda *_: garbage
    with pytest.raises(FedcarError, match=r"none of 3 answers was a list of questions; .*--questions-model"):
        questions_from(server.url, DOCUMENTS, cache=tmp_path)


def test_a_compressed_answer_is_not_unpacked(server: Server, tmp_path: Path) -> None:
    """A few bytes could unpack to gigabytes; nobody asked for it, and it counts as no answer."""
    answers = server.requests
    server.reply = lambda body, number: (200, {"Content-Encoding": "gzip"}, gzip.compress(two_questions(body, 0)[2]))
    with pytest.raises(FedcarError, match="none of 3 answers"):
        questions_from(server.url, DOCUMENTS, cache=tmp_path)
    assert {request["headers"]["Accept-Encoding"] for request in answers} == {"identity"}


def test_a_proxy_that_cannot_be_used_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "odd://proxy")
    with pytest.raises(FedcarError, match=r"^--questions-from host: this machine's proxy .*; see ALL_PROXY") as error:
        questions_from("https://host/v1", DOCUMENTS, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_garbage_for_some_documents_is_one_warning_and_asked_again(server: Server, tmp_path: Path) -> None:
    garbage = completion("no")
    server.reply = lambda body, _: garbage if "Hose" in str(body) else two_questions(body, 0)
    with pytest.warns(FedcarWarning, match="answers on 1 of 3 documents could not be read"):
        found = questions_from(server.url, DOCUMENTS, cache=tmp_path)
    assert set(found.document_ids) == {"fan", "pump"}
    server.reply = two_questions
    assert set(questions_from(server.url, DOCUMENTS, cache=tmp_path).document_ids) == {"fan", "pump", "hose"}
    assert len(server.requests) == 4


def test_answer_in_parts(server: Server, tmp_path: Path) -> None:
    server.reply = lambda *_: completion([{"type": "text", "text": '["Why?"'}, {"type": "text", "text": "]"}, "odd"])
    assert questions_from(server.url, DOCUMENTS[:1], cache=tmp_path).texts == ("Why?",)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8080", "file:///etc/passwd", "ftp://host/v1", "http://", "http://[::1", "http://host:port/v1",
     "http://ho st/v1", "http://ho\nst/v1", "http://user:word@host/v1", "http://host/v1?key=1", "http://host:99999/v1"],
)  # fmt: skip
def test_odd_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(FedcarError, match="^--questions-from") as error:
        check_questions_from(url, None, "auto")
    assert "\n" not in str(error.value) and "word" not in str(error.value)
    with pytest.raises(FedcarError, match="^--questions-from"):
        questions_from(url, DOCUMENTS, cache=tmp_path)


def test_options_that_do_not_go_together() -> None:
    check_questions_from(None, None, "head")
    with pytest.raises(FedcarError, match="--questions-from URL too"):
        check_questions_from(None, "model", "auto")
    with pytest.raises(FedcarError, match="--method head does not use them"):
        check_questions_from("http://localhost/v1", None, "head")


# -------------------------------------------------------------------- in training


def test_training_asks_and_sends_documents_alone(
    server: Server, collection: Collection, encoder_folder: Path, tmp_path: Path
) -> None:
    found = train(
        collection,
        encoder=encoder_folder,
        method="ridge",
        cache=tmp_path,
        questions_from=server.url,
        questions_model="tiny",
    )
    assert {"evidence", "ridge", "ridge+pseudo"} <= set(found.training.selection)
    assert len(server.requests) == len(collection.documents)
    sent = json.dumps([request["body"] for request in server.requests])
    assert all(document.text in sent for document in collection.documents)
    documents = " ".join(document.full_text for document in collection.documents)
    private = [query.text for query in collection.queries.values() if query.text not in documents]
    assert private and not any(text in sent for text in private)


def test_training_asks_nobody_by_default(
    server: Server, collection: Collection, encoder_folder: Path, tmp_path: Path
) -> None:
    train(collection, encoder=encoder_folder, method="ridge", cache=tmp_path)
    assert not server.requests


def test_training_without_training_questions_asks_nobody_and_says_so(
    server: Server, collection: Collection, encoder_folder: Path, tmp_path: Path
) -> None:
    without = replace(collection, judgements={"test": collection.judgements["test"]})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(without, encoder=encoder_folder, cache=tmp_path, questions_from=server.url)
    assert not server.requests
    assert any("--questions-from: not asked" in str(one.message) for one in said)
