"""Questions that a language model asks of the documents, from an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.collection.collection import Document, normalised
from fedcar.collection.pseudo_queries import PseudoQueries
from fedcar.common.progress import Silent
from fedcar.errors import FedcarError, FedcarWarning, quoted

if TYPE_CHECKING:
    import httpx

WEIGHT_OF_QUESTION = 0.5  # of a language model's question
QUESTIONS_EACH = 5
KEYS = ("FEDCAR_QUESTIONS_KEY", "OPENAI_API_KEY")
PROMPT = (
    "Here is a document. Write {count} short questions that a user would ask and that this document answers. Use the "
    "user's own words rather than the document's, do not mention the document, and answer with nothing but a JSON list "
    "of {count} strings.\n\n{text}"
)
MOST_CHARACTERS = 6000  # of a document that are sent
LONGEST_QUESTION = 300
LARGEST_ANSWER = 1 << 20
MOST_BRACKETS = 100  # at which a list is looked for
SECONDS = 120.0
TRIES = 5
WAITS = (1.0, 2.0, 5.0, 15.0)  # seconds before another try, where the server does not say how long
LONGEST_WAIT = 60.0
AT_ONCE = 4
PATIENCE = 5  # so many documents without one answer that can be read, and it is given up
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
BULLET = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s*")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def questions_from(
    url: str,
    documents: Sequence[Document],
    *,
    model: str | None = None,
    each: int = QUESTIONS_EACH,
    cache: Path,
    weight: float = WEIGHT_OF_QUESTION,
    timeout: float = SECONDS,
    report: Silent | None = None,
) -> PseudoQueries:
    """Questions that a language model would ask of each document, from an OpenAI-compatible server.

    POST {url}/chat/completions. The documents' texts (their first 6,000 characters) leave this machine for that
    server; no question does. Answers are kept under `cache` by the hash of what was sent, so that a document is asked
    about once. The key is FEDCAR_QUESTIONS_KEY, else OPENAI_API_KEY, which goes only over https or to this machine.

    Raises FedcarError where the server cannot be reached, refuses, or answers nothing that can be read. Warns once
    where some documents have no questions.
    """
    report = report or Silent()
    server = _Server.at(url, model, timeout)
    prompts = {document.id: _prompt(document, each) for document in documents if document.full_text}
    keys = {identifier: hashlib.sha256(prompt.encode()).hexdigest() for identifier, prompt in prompts.items()}
    stored = _Kept(cache / "questions", hashlib.sha256(json.dumps([server.address, model]).encode()).hexdigest())
    answers = stored.read()
    missing = {keys[identifier]: prompt for identifier, prompt in prompts.items() if keys[identifier] not in answers}
    if missing:
        where = f"{len(missing)} documents' texts, no questions, to {server.host}"
        report.say(f"questions from a language model: sending {where}")
    unread = 0
    with report.track("asking for questions", len(missing)) as advance, stored.appending() as keep:
        for key, questions in server.ask_all(missing, each):
            if questions:
                answers[key] = questions
                keep(key, questions)
            else:
                unread += 1
                if unread >= min(PATIENCE, len(missing)) and not any(key in answers for key in missing):
                    raise FedcarError(
                        f"--questions-from {server.host}: none of {unread} answers was a list of questions; "
                        "give another model with --questions-model"
                    )
            advance(1)
    if unread:
        message = f"the answers on {unread} of {len(prompts)} documents could not be read; they go without"
        warnings.warn(f"--questions-from {server.host}: {message}", FedcarWarning, stacklevel=2)
    pairs = ((identifier, text) for identifier, key in keys.items() for text in answers.get(key, [])[:each])
    return PseudoQueries.of(pairs, weight)


def check_questions_from(url: str | None, model: str | None, method: str) -> None:
    """Refuse, before anything long begins, what `questions_from` would refuse or could not serve."""
    if url is None:
        if model is not None:
            raise FedcarError("--questions-model: says which model to ask, but not whom; give --questions-from URL too")
        return
    if method not in ("auto", "ridge"):
        raise FedcarError(f"--questions-from: --method {method} does not use them; give --method auto or ridge")
    _Server.at(url, model, SECONDS)


def _prompt(document: Document, count: int) -> str:
    text = document.full_text[:MOST_CHARACTERS].encode("utf-8", "replace").decode()
    return PROMPT.format(count=count, text=text)


@dataclass(frozen=True)
class _Server:
    """An OpenAI-compatible server; `address` holds no credentials and is safe to print, like `host`."""

    address: str
    host: str
    model: str | None
    key: str
    timeout: float
    local: bool

    @classmethod
    def at(cls, url: str, model: str | None, timeout: float) -> _Server:
        import httpx

        try:
            parts = httpx.URL(url.strip())
        except httpx.InvalidURL:
            parts = httpx.URL()
        server = parts.scheme in ("http", "https") and parts.host and (parts.port or 0) < 1 << 16
        if not server or " " in url.strip():
            raise FedcarError(f"--questions-from {quoted(url)}: not a server's address; write http://localhost:8080/v1")
        host, local = parts.netloc.decode(), parts.host in LOOPBACK
        if parts.userinfo or parts.query or parts.fragment:
            raise FedcarError(f"--questions-from {host}: no user or query in the address; the key goes in {KEYS[0]}")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        address = str(parts.copy_with(path=f"{path}/chat/completions", query=None))
        return cls(address, host, model, _key(private=local or parts.scheme == "https"), timeout, local)

    def ask_all(self, prompts: Mapping[str, str], each: int) -> Iterator[tuple[str, list[str]]]:
        """Key -> the questions of the answer to its prompt, none where it cannot be read; a few at a time, in order."""
        stop, pool = threading.Event(), ThreadPoolExecutor(AT_ONCE)
        with self._client() as client:
            try:
                futures = [(key, pool.submit(self._ask, client, prompt, stop)) for key, prompt in prompts.items()]
                for key, future in futures:
                    yield key, questions_in(future.result(), each)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _client(self) -> httpx.Client:
        """Follows no redirect, which would carry key and document to a server that nobody named; local, no proxy."""
        import httpx

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        system = ssl.create_default_context()  # the certificates of this machine, a company's own among them
        try:
            return httpx.Client(headers=headers, timeout=self.timeout, verify=system, trust_env=not self.local)
        except (ImportError, ValueError) as error:  # a proxy of a kind that httpx does not know
            reason = f"this machine's proxy cannot be used ({self._safe(str(error))}); see ALL_PROXY and HTTPS_PROXY"
            raise FedcarError(f"--questions-from {self.host}: {reason}") from error

    def _ask(self, client: httpx.Client, prompt: str, stop: threading.Event) -> str:
        """The text of the answer, "" where there is none; asks again where the server is busy."""
        import httpx

        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if self.model:
            body["model"] = self.model
        for tries in range(1, TRIES + 1):
            wait = WAITS[min(tries, len(WAITS)) - 1]
            try:
                with client.stream("POST", self.address, json=body) as response:
                    content = _read(response.iter_raw())
            except httpx.RequestError as error:
                reason = self._safe(str(error) or type(error).__name__)
            else:
                if response.is_success:
                    return _content(content)
                reason = f"{response.status_code} {self._said(content) or self._safe(response.reason_phrase)}"
                if response.status_code not in AGAIN:
                    raise FedcarError(f"--questions-from {self.host}: {reason}; {_way_out(response.status_code)}")
                wait = _wait(response.headers.get("Retry-After"), wait)
            if tries < TRIES and stop.wait(wait):
                break
        raise FedcarError(
            f"--questions-from {self.host}: no answer after {TRIES} tries ({reason}); "
            "check the address, or try again later: what was answered is kept"
        )

    def _said(self, content: bytes) -> str:
        """The server's own word on an error, short, on one line and without the key; "" where there is none."""
        text = content.decode("utf-8", "replace")
        with suppress(ValueError, AttributeError, RecursionError):
            answer = json.loads(text)
            inner = answer.get("error", answer)
            text = str(inner.get("message", text) if isinstance(inner, dict) else inner)
        return self._safe(text) if text.strip() and "<" not in text else ""

    def _safe(self, text: str) -> str:
        if self.key:
            text = text.replace(self.key, "***")
        return quoted(" ".join(text.split()), 160)


def _key(private: bool) -> str:
    """The key to send, "" for none; OPENAI_API_KEY was not set for this server, so never in the clear."""
    for name in KEYS:
        value = os.environ.get(name, "").strip()
        if value and not (value.isascii() and value.isprintable() and " " not in value):
            raise FedcarError(f"{name}: holds a character that no key has; set it again")
        if value and (private or name == KEYS[0]):
            return value
    return ""


def _way_out(code: int) -> str:
    if code in (401, 403):
        return f"set the key in {KEYS[0]}"
    if 300 <= code < 400:
        return "redirects are not followed; give the address it points to"
    return "check the address (it ends in /v1 for most servers) and --questions-model"


def _wait(said: str | None, otherwise: float) -> float:
    """The seconds of a Retry-After header, at most a minute; dates and nonsense count as none."""
    known = said and re.fullmatch(r"\d{1,6}(\.\d+)?", said.strip(), re.ASCII)
    return min(float(said or 0), LONGEST_WAIT) if known else otherwise


def _read(parts: Iterator[bytes]) -> bytes:
    """An answer's bytes, none where there are too many: then the rest is not waited for."""
    content = b""
    for part in parts:
        content += part
        if len(content) > LARGEST_ANSWER:
            return b""
    return content


def _content(body: bytes) -> str:
    """The message of a chat completion, "" where the body is none."""
    try:
        content = json.loads(body.decode("utf-8", "replace"))["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    if isinstance(content, list):  # some servers answer in parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def questions_in(answer: str, most: int) -> list[str]:
    """The questions of a model's answer, at most `most`, each once: a JSON list wherever it stands, else lines of "?".

    The list may be bare, a value of an object, or of objects with "question"; thoughts and code fences around it do not
    matter.
    """
    answer = answer.rpartition("</think>")[2]
    listed = _json_list(answer)
    if listed is None:
        lines = (BULLET.sub("", line).strip(" \t\"'`,") for line in answer.splitlines())
        listed = [line for line in lines if line.endswith(("?", "？"))]
    questions: dict[str, str] = {}
    for item in listed:
        if isinstance(item, dict):
            item = next((item[name] for name in ("question", "query", "text", "q") if name in item), None)
        if isinstance(item, str):
            text = " ".join(item.encode("utf-8", "ignore").decode().split())
            if 0 < len(text) <= LONGEST_QUESTION and any(map(str.isalnum, text)):
                questions.setdefault(normalised(text), text)
    return list(questions.values())[:most]


def _json_list(answer: str) -> list[Any] | None:
    """The first JSON list with something in it, bare or in an object."""
    decoder = json.JSONDecoder()
    for place in islice(re.finditer(r"[\[{]", answer), MOST_BRACKETS):
        try:
            value, _ = decoder.raw_decode(answer, place.start())
        except (ValueError, RecursionError):
            continue
        for candidate in [value] if isinstance(value, list) else value.values():
            if isinstance(candidate, list) and any(isinstance(item, (str, dict)) for item in candidate):
                return candidate
    return None


class _Kept:
    """Questions on disk, a JSON line a document: {"document": hash of what was sent, "questions": [...]}."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / f"{name[:24]}.jsonl"

    def read(self) -> dict[str, list[str]]:
        """What is there; a line that a crash cut off, or that is not ours, counts as not there."""
        try:
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines() if self.file.is_file() else []
        except OSError as error:
            raise self._unusable(error) from error
        answers: dict[str, list[str]] = {}
        for line in lines:
            try:
                record = json.loads(line)
                key, questions = record["document"], record["questions"]
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
            if (
                isinstance(key, str)
                and isinstance(questions, list)
                and all(isinstance(question, str) for question in questions)
            ):
                answers[key] = questions
        return answers

    @contextmanager
    def appending(self) -> Iterator[Any]:
        """A context whose value keeps the questions of one document, at once."""
        try:
            for folder in (self.file.parent.parent, self.file.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:

            def keep(key: str, questions: list[str]) -> None:
                try:  # a line of its own, whatever a crash left of the last one
                    stream.write(f"\n{json.dumps({'document': key, 'questions': questions}, ensure_ascii=True)}\n")
                    stream.flush()
                except OSError as error:
                    raise self._unusable(error) from error

            yield keep

    def _unusable(self, error: OSError) -> FedcarError:
        reason = f"the cache of questions cannot be used ({error.strerror or error})"
        return FedcarError(f"{self.file}: {reason}; free space or name another folder with --cache")
