"""docs/files.md: every file that fedcar writes, found in a small real run or told from the program's own constants."""

from __future__ import annotations

import fnmatch
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from tools.shapes import fields as content
from tools.small_run import small_run

HEAD = """# Files

Written by `make docs` from the program; a test compares. Do not edit it.

All files are safetensors, JSON, JSON lines, tab-separated text or ONNX. Nothing is pickled. What is readable by "its
owner" can be read by nobody else on the machine, whatever the umask says; all other files follow the umask. A question
mark stands behind a field or tensor that only some have. Tensors are named with their type: F32 is float32, I8 int8.

A *sealed* folder holds `manifest.json` (its kind, the format version, the sha256 of every file) and `manifest.sha256`
(the hash of that). It takes its name in one step when it is whole. It is refused when one byte of it has changed, or
when its format is later than this program's. Files that are replaced are replaced in one step too.
"""
SEALS = {
    "manifest.json": "the seal: kind, format version, hashes of all files",
    "manifest.sha256": "the hash of `manifest.json`, in hexadecimal",
}
FOREIGN = (
    "config.json",
    "tokenizer.json",
    "encoders/*-quick-*/tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "1_Pooling/config.json",
)


@dataclass(frozen=True)
class Folder:
    """Folders of one kind: what is said of them, where the small run has them, and what their files are.

    `also` are files that the small run does not write, with what the program says of them.
    """

    title: str
    says: str
    examples: Sequence[str]
    files: Mapping[str, str]
    also: Sequence[tuple[str, str, str, str]] = field(default_factory=tuple)  # file, mode, sentence, fields


def named(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def folders() -> list[Folder]:
    """All kinds of folders; formats, names and fields come from the modules that write them."""
    from fedcar.common.folders import FORMAT_VERSION
    from fedcar.encoder.cache import PUBLIC
    from fedcar.export.bundle import KIND as BUNDLE
    from fedcar.federation.deploy import options as run_files
    from fedcar.federation.deploy.enroll import FIELDS
    from fedcar.federation.deploy.folder import FORMAT as SERVER_FORMAT
    from fedcar.federation.job.noised import COINS, PRIVATE
    from fedcar.federation.ledgers import LEDGER, WITNESSES
    from fedcar.federation.rounds.run_folder import CENTRAL, CHECKPOINT, HISTORY
    from fedcar.federation.rounds.run_folder import KIND as RUN_CHECKPOINT
    from fedcar.privacy.ledger import FORMAT as LEDGER_FORMAT
    from fedcar.privacy.statement import FORMAT as STATEMENT_FORMAT
    from fedcar.retriever.parts import KIND as RETRIEVER
    from fedcar.training.checkpoint import KIND as TRAINING_CHECKPOINT
    from fedcar.training.noised.tally import REGISTER

    def sealed(kind: str) -> str:
        return f'Sealed, kind "{kind}", format version {FORMAT_VERSION}.'

    owner, umask = "its owner", "umask"
    statement = f"the statement of privacy, under epsilon; format {STATEMENT_FORMAT}"
    return [
        Folder(
            "A collection",
            "Written by `fedcar import`; the BEIR layout, which has no version. It appears when it is whole.",
            ("collection", "imported"),
            {
                "corpus.jsonl": "the documents, one a line",
                "queries.jsonl": "the questions, one a line; who asked them, and what has no answer",
                "qrels/*.tsv": "the judgements of one split: train, dev or test",
            },
        ),
        Folder(
            "A retriever",
            f"Written by `fedcar train`, `federate`, `run`, `add`, `update` and `remove`. {sealed(RETRIEVER)} "
            "Some encoders leave more. One with prompts, modules or limits of its own: `manner` and "
            "`state_fingerprint` of `encoder`. One with modules behind its pooling, or several poolings: "
            "`late.own_mean` U8. One whose cosines find nothing: `view.centres`, `view.directions` and `view.shares` "
            "F32, in `evidence.safetensors` and `ridge.safetensors`. Two encoders beside each other, where "
            "the second was kept: `beside` of `encoder`, and `beside.*` in `ridge.safetensors` or the head's "
            "`centres`.",
            ("ridge", "head", "adapter", "federated", "noised"),
            {
                "retriever.json": "which encoder (by hash), head, weights, calibration, and the record of the training",
                "documents.jsonl": "the documents, one a line, in the order of the rows",
                "evidence.safetensors": "what search needs without training: words, sentences, token states, vectors",
                "words.json": "the vocabularies that the sparse matrices count by, and how texts are taken apart",
                "head.safetensors": "embeddings, rows, which rows are active, temperature",
                "adapter.safetensors": "the adapter, where one was trained",
                "ridge.safetensors": "rows in closed form and naive Bayes, by the method ridge",
                "privacy.json": statement,
                **SEALS,
            },
            (
                ("rows.faiss", umask, "an index over the rows, past 200,000 documents where faiss is installed", ""),
                ("rows.numbers.npy", umask, "which document each row of the index is", ""),
            ),
        ),
        Folder(
            "A bundle",
            f"Written by `fedcar export --format bundle`; searched without torch. {sealed(BUNDLE)} "
            "Some encoders leave more here too. One with a prompt for questions: `prompt` and `left_out` of `encoder`. "
            "One whose vectors are not as wide as its token states: `width`. One whose cosines find nothing: its view, "
            "as in a retriever (`ridge.view.*` in `rows.safetensors`), and beside that `viewed`, which documents are "
            "compared by (F32, or I8 with `viewed.scales`). Two encoders: `beside-encoder.onnx`, "
            "`beside-tokenizer.json`, and `beside` of `encoder` and of `origin`.",
            ("bundle",),
            {
                "bundle.json": "encoder, weights, calibration and the record of the training",
                "documents.jsonl": "the documents, one a line; read only where they are shown",
                "rows.safetensors": "embeddings and learned rows, and where each document begins in its file",
                "evidence.safetensors": "as in a retriever, vocabularies included",
                "encoder.onnx": "the encoder: a batch of tokens to pooled vectors, layer means and token states",
                "tokenizer.json": "the tokenizer, as the library tokenizers reads it",
                "requirements.txt": "the packages that searching it needs",
                **SEALS,
            },
            (("privacy.json", umask, statement, "as in a retriever"),),
        ),
        Folder(
            "A stock model",
            "Written by `fedcar export --format transformers` (read by transformers and sentence-transformers) or "
            "`--format onnx`. The adapter is folded into the embedding table.",
            ("transformers",),
            {
                "config.json": "the model's own configuration",
                "model.safetensors": "the model's weights",
                "tokenizer*.json": "the tokenizer",
                "modules.json": "the modules of sentence-transformers",
                "sentence_bert_config.json": "the most tokens of a text",
                "config_sentence_transformers.json": "how vectors are compared",
                "1_Pooling/config.json": "how token states become one vector",
                "rows.safetensors": "embeddings, centre, rows and temperature of the head",
                "documents.jsonl": "the documents, in the order of the rows",
                "README.md": "how to score a question with it",
            },
            (("model.onnx", umask, "with `--format onnx`: the model, in place of weights and configuration", ""),),
        ),
        Folder(
            "A run",
            "Written by `fedcar federate` (RETRIEVER.run, or `--run`) and `fedcar run` (SERVER/runs/RUN); it lasts, so "
            f"that `--resume` goes on. Its `{CHECKPOINT}/` is sealed, kind \"{RUN_CHECKPOINT}\".",
            ("run", "noised-run"),
            {
                HISTORY: "the history: one record a round (under epsilon: an exchange), only ever added to",
                CENTRAL: "what central training came to, for comparison",
                f"{CHECKPOINT}/checkpoint.json": "the last round, the best round, and what the run belongs to",
                f"{CHECKPOINT}/state.safetensors": "the server's state after the last round",
                f"{CHECKPOINT}/server.safetensors": "the server's optimiser, with `--server-optimizer adam`",
                f"{CHECKPOINT}/best.safetensors": "the state of the best round",
                f"{CHECKPOINT}/clients.safetensors": "what each client keeps from round to round, `NAME@CLIENT`",
                **{f"{CHECKPOINT}/{name}": says for name, says in SEALS.items()},
                PRIVATE: "under epsilon: the run's name, what it belongs to, where each ledger stood last, and over a "
                "network what each device says was spent",
                "privacy.json": statement,
                f"clients/*/{LEDGER}": f"a client's ledger, format {LEDGER_FORMAT}; see below",
                f"clients/*/{LEDGER}.updates/*": "a noised update, as it was sent: safetensors",
                f"clients/*/{LEDGER}.*": "its head and its lock",
            },
            (
                (run_files.OPTIONS, umask, "over a network: what `fedcar run` was asked for",
                 named(*(one.name for one in fields(run_files.RunOptions)))),
                (run_files.ENROLMENT, owner, "over a network, un-noised: n_i and questions a document, by client",
                 "`QUESTIONS@CLIENT`"),
                (run_files.DEVICES, umask, "over a network, under epsilon: who takes part", "names"),
                ("mixture.json", umask, "over a network: the mixture's weights", named("weights", "exchanges")),
                (COINS, umask, "over a network, unit client: who was drawn for the exchange that is not done yet",
                 named("exchange", "clients")),
                (f"{run_files.RETRIEVER}/", umask, "over a network: the retriever that the run ended with", ""),
                (run_files.LOCK, owner, "held while the run is on", ""),
            ),
        ),
        Folder(
            "A ledger",
            "In RUN/clients/CLIENT, in a device's `ledgers/`, with the user's state, or where `--ledgers` and "
            f"`--ledger` say. Format {LEDGER_FORMAT}. Kinds of lines: `open` (the budget), `budget` (one for a "
            "ledger opened without any), `charge` (a release, on disk before anything is read), `update` (what was "
            "stored before it was sent), `recovered` (half a line was dropped), `clock` (the clock was set back on "
            "purpose). Each line holds the hash of the one before.",
            ("noised-run/clients/client-1",),
            {
                LEDGER: "one line an entry",
                f"{LEDGER}.head": "number and hash of the last line that was acknowledged",
                f"{LEDGER}.lock": "held while it is written",
                f"{LEDGER}.updates/*": "the noised updates, by the number of their charge",
            },
        ),
        Folder(
            "A collection's ledger",
            "With the user's state ($XDG_STATE_HOME, ~/.local/state), in `fedcar/ledgers/NAME-HASH`: what all runs "
            "under epsilon over a collection's folder have spent together. The hash is that of the folder's resolved "
            "path. The folder is for its owner.",
            ("state/fedcar/ledgers/collection-*",),
            {
                REGISTER: "which collection it is, and where its ledger lies",
                LEDGER: "the ledger, as above; that of another unit is `ledger-UNIT.jsonl`",
                f"{LEDGER}.*": "its head and its lock",
            },
        ),
        Folder(
            "The witnesses of ledgers",
            "With the user's data ($XDG_DATA_HOME, ~/.local/share), in `fedcar/witnesses`: where each ledger over runs "
            "stood last, so that one restored from a copy is refused. They are made anew where they are gone.",
            ("data/fedcar/witnesses",),
            {"*.json": "by the hash of a ledger's first line: where it lies, number and hash of its last line"},
        ),
        Folder(
            "A training that was interrupted",
            "Written by `fedcar train` after every epoch as `.RETRIEVER.training` beside the retriever, for "
            f"`--resume`; taken away when the training is done. {sealed(TRAINING_CHECKPOINT)}",
            ("checkpoint",),
            {
                "checkpoint.json": "the epochs so far, the best one, and what the training belongs to",
                "current.safetensors": "the trained tensors after the last epoch",
                "best.safetensors": "those of the best epoch",
                "optimizer.safetensors": "Adam's moments and steps",
                **SEALS,
            },
        ),
        Folder(
            "A server",
            f"Written by `fedcar serve --data-dir SERVER`; the folder itself is for its owner. Format {SERVER_FORMAT}.",
            ("server",),
            {
                "server.json": "address, collection, encoder, and their fingerprints",
                "ca.pem": "the certificate of the server's own authority",
                "ca.key": "its key",
                "front.pem": "the certificate of the TLS front",
                "front.key": "its key",
                "link.pem": "the certificate of the SuperLink on loopback",
                "link.key": "its key",
                "secret": "what the server's processes know each other by",
            },
            (
                ("nodes.json", umask, "the devices that were let in, by name", named("node", "key")),
                (run_files.HEADS, umask, "where each device's ledgers over runs stood last",
                 "`NODE`: `LEDGER`: number, hash, ledger"),
                ("front-ca.pem", umask, "the authority of a certificate that was given", ""),
                ("runs/RUN/", umask, "the runs, see above", ""),
                ("superlink.sqlite, flower/, superlink.log", umask, "Flower's own files", ""),
                ("serve.lock, enroll.lock, run.lock", owner, "held while the command runs", ""),
            ),
        ),
        Folder(
            "A device",
            "`fedcar keygen` writes the keys, `fedcar enroll` (on the server) the join file, `fedcar join` the folder "
            "NODE.node beside it.",
            ("device",),
            {
                "*.key": "the device's private key, which stays on it",
                "*.pub": "its public key, for the server",
            },
            (
                ("NODE.join", umask, f"what it joins with, no secret; format {SERVER_FORMAT}",
                 named("format", *FIELDS)),
                (f"NODE.node/ledgers/RUN/{LEDGER}", owner, "a ledger a run, where the device has no budget of its own; "
                 "see above", ""),
                (f"NODE.node/ledgers/{LEDGER}", owner, "a ledger over all runs of before, gone on with", ""),
                (f"NODE.node/ledgers/{WITNESSES}/*.json", owner, "where the ledger over runs lies, and stood last",
                 named("ledger", "number", "hash")),
                ("NODE.node/kept/*.safetensors", umask, "what the device keeps from round to round of a run", ""),
                ("NODE.node/supernode.log, flower/", umask, "Flower's own files", ""),
                ("NODE.node/join.lock", owner, "held while the device is joined", ""),
            ),
        ),
        Folder(
            "The cache",
            "`--cache`, or fedcar's folder in the user's cache ($XDG_CACHE_HOME, ~/.cache). It may be removed at any "
            "time; it holds no text of a question, but hidden states and hashes, so it is for its owner.",
            ("cache/fedcar",),
            {
                f"{PUBLIC}/*/states.bin": "hidden states of what is public: documents, what is made of them, the "
                "packaged reference texts, questions that were declared public; never touched by another question",
                f"{PUBLIC}/*/sums.crc32": "as below",
                f"{PUBLIC}/*/keys.sha256": "as below",
                f"{PUBLIC}/*/lock": "held while it is written",
                "*/states.bin": "hidden states, one record a text: pooled vector and layer means",
                "*/sums.crc32": "each record's checksum",
                "*/keys.sha256": "which text each record is of, by hash",
                "*/lock": "held while it is written",
                "encoders/*-quick-*/encoder.json": "of a sealed folder that a search leaves, so that later ones "
                "need no torch: settings of the encoder, or the reason why ONNX cannot express it",
                "encoders/*-quick-*/encoder.onnx": "the encoder with the adapter, as in a bundle",
                "encoders/*-quick-*/tokenizer.json": "its tokenizer, as in a bundle",
                "encoders/frequencies-*/frequencies.safetensors": "the random frequencies of ridge, for equal widths "
                "and seeds; sealed too",
                "encoders/*/manifest.*": "their seals",
            },
            (
                ("encoders/*", umask, "encoders converted for ONNX Runtime or OpenVINO, in a folder for its owner", ""),
                ("encoders/gguf-*", umask, "a GGUF file as a folder of Hugging Face's, weights in float32; sealed", ""),
                ("encoders/*-bfloat16", umask, "a large float32 model, its weights rounded to bfloat16", ""),
                ("encoders/.unfinished-*", umask, "what is being written", ""),
                ("runtime.json", umask, "which runtimes work with which encoder on this machine, and which was the "
                 "fastest", ""),
                ("runtime.lock", owner, "held while one process tries runtimes; stays, empty", ""),
                ("*/NAME.jsonl", owner, "questions that a language model asked of documents, with `--questions-from`",
                 named("document", "questions")),
            ),
        ),
    ]  # fmt: skip


def mode(files: Sequence[Path]) -> str:
    return "umask" if any(file.stat().st_mode & 0o077 for file in files) else "its owner"


def rows(folder: Folder, place: Path) -> list[str]:
    """A line for each file of the folder's kind; ValueError where one is described and not there, or not described."""
    lines, left = [], {}
    for example in folder.examples:
        for start in sorted(place.glob(example)):
            for file in sorted(start.rglob("*")):
                if file.is_file():
                    left[file] = str(file.relative_to(start))
    for pattern, says in folder.files.items():
        found = [file for file, name in left.items() if fnmatch.fnmatch(name, pattern)]
        if not found:
            raise ValueError(f"tools/files.py: {folder.title}: {pattern} was not written; describe what is")
        left = {file: name for file, name in left.items() if file not in found}
        opaque = pattern in FOREIGN or ("*" in Path(pattern).name and found[0].suffix != ".tsv")
        inside = "" if opaque else content(found)
        lines.append(f"| `{pattern}` | {says} | {mode(found)} | {inside} |")
    if left:
        raise ValueError(f"tools/files.py: {folder.title}: {next(iter(left.values()))} is written and not described")
    lines += [f"| `{name}` | {says} | {who} | {inside} |" for name, who, says, inside in folder.also]
    return lines


def statement_parts() -> list[str]:
    """How a statement's releases are written: once for all files that hold one."""
    written = json.loads((small_run().folder / "noised" / "privacy.json").read_text(encoding="utf-8"))
    names = named(*written["releases"][0])
    says = textwrap.fill(f"In statements and ledgers, what was given out once or several times: {names}.", 118)
    return ["## A release", "", says, ""]


def page() -> str:
    """The whole page."""
    lines, place = [HEAD], small_run().folder
    for folder in folders():
        lines += [f"## {folder.title}", "", textwrap.fill(folder.says, 118, break_on_hyphens=False), ""]
        lines += ["| file | what it is | readable by | what stands in it |", "|---|---|---|---|"]
        lines += [*rows(folder, place), ""]
    lines += statement_parts()
    lines += [
        "## Single files",
        "",
        "`fedcar evaluate --run FILE` writes a TREC run: question, `Q0`, document, rank, score, `fedcar`.",
    ]
    return "\n".join(lines) + "\n"
