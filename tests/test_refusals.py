"""How it must hold up, line by line: what is accepted with one warning, and what is refused with one line.

Both tables are worked off through the command line, as a user would meet them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command import Result, fedcar, tree

from fedcar import lines

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
def place(model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
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


# ---------------------------------------------------------------- accepted, with one warning, exit 0


def no_train_split(place: Place) -> Words:
    place.drop_split("train", 0, 1, 2, 3)
    return place.train()


def no_dev_split(place: Place) -> Words:
    place.drop_split("dev", 4)
    return place.train()


def an_empty_document(place: Place) -> Words:
    place.append("corpus.jsonl", '{"_id": "void", "title": "", "text": "  "}')
    return place.train()


def a_text_that_is_too_long(place: Place) -> Words:
    for name in ("long", "longer"):
        place.append("corpus.jsonl", json.dumps({"_id": name, "title": name, "text": "pump " * 1000}))
    return place.train()


def crlf(place: Place) -> Words:
    place.rewrite("queries.jsonl", lambda content: content.replace(b"\n", b"\r\n"))
    return place.train()


def a_bom(place: Place) -> Words:
    place.rewrite("corpus.jsonl", lambda content: b"\xef\xbb\xbf" + content)
    return place.train()


def a_question_of_stop_words(place: Place) -> Words:
    return place.search("is it for the")


def a_query_of_stop_words(place: Place) -> Words:
    place.append("queries.jsonl", '{"_id": "stop", "text": "is it for the"}')
    place.append("qrels/train.tsv", "stop\tfan\t1")
    return place.train()


def a_single_document(place: Place) -> Words:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv"):
        place.keep(name, lambda line: "fan" in line or line == HEADER)
    return place.train()


def all_queries_on_one_document(place: Place) -> Words:
    for name in ("train", "dev", "test"):
        place.rewrite(
            f"qrels/{name}.tsv",
            lambda content: "".join(
                "\t".join([line.split("\t")[0], "fan", "1\n"]) if line != HEADER else line
                for line in content.decode().splitlines(True)
            ).encode(),
        )
    return place.train()


def k_larger_than_the_collection(place: Place) -> Words:
    return place.search("the fan is broken", "-k", 50)


def a_query_that_no_judgement_names(place: Place) -> Words:
    place.append("queries.jsonl", '{"_id": "lost", "text": "is the fan lost"}')
    return place.train()


ACCEPTED: list[tuple[Callable[[Place], Words], str]] = [
    (no_train_split, "no train split (0 judged queries in qrels/train.tsv); nothing is trained"),
    (no_dev_split, "no dev split"),
    (an_empty_document, "1 of 7 documents empty; kept, never returned"),
    (a_text_that_is_too_long, "2 texts are longer than 40 tokens"),
    (crlf, "CRLF ends"),
    (a_bom, "a BOM begins corpus.jsonl"),
    (a_question_of_stop_words, "stop words"),
    (a_query_of_stop_words, "1 of 21 queries have nothing but stop words"),
    (a_single_document, "a single document"),
    (all_queries_on_one_document, "have the same document"),
    (k_larger_than_the_collection, "k is 50, but there are 6 documents"),
    (a_query_that_no_judgement_names, "1 of 41 queries without a judgement"),
]


@pytest.mark.parametrize(("arrange", "words"), ACCEPTED, ids=lambda value: getattr(value, "__name__", ""))
def test_accepted_with_one_warning(place: Place, arrange: Callable[[Place], Words], words: str) -> None:
    arguments = arrange(place)
    before = tree(place.collection)
    result = fedcar(*arguments)
    assert result.code == 0, result.err
    (warning,) = result.warnings
    assert words in warning
    assert tree(place.collection) == before
    if arguments[0] == "train":
        found = fedcar("search", place.folder / "new", "the fan is broken", "-k", 1, "--json")
        assert (found.code, found.warnings, len(found.json["hits"])) == (0, [], 1)


# ---------------------------------------------------------------- refused with one line, exit 1, nothing half-written


def no_corpus(place: Place) -> tuple[Words, str]:
    (place.collection / "corpus.jsonl").unlink()
    return place.train(), f"{place.collection}: no corpus.jsonl"


def broken_json(place: Place) -> tuple[Words, str]:
    where = place.append("corpus.jsonl", '{"_id": "x", "text": ')
    return place.train(), f"{where}: broken JSON"


def missing_id(place: Place) -> tuple[Words, str]:
    where = place.append("corpus.jsonl", '{"text": "x"}')
    return place.train(), f'{where}: no "_id"'


def duplicate_id(place: Place) -> tuple[Words, str]:
    where = place.append("corpus.jsonl", '{"_id": "fan", "text": "x"}')
    return place.train(), f'{where}: "_id" "fan" is taken by an earlier line'


def duplicate_query_id(place: Place) -> tuple[Words, str]:
    where = place.append("queries.jsonl", '{"_id": "fan-0", "text": "x"}')
    return place.evaluate(), f'{where}: "_id" "fan-0" is taken by an earlier line'


def a_judgement_for_an_unknown_query(place: Place) -> tuple[Words, str]:
    where = place.append("qrels/dev.tsv", "nobody\tfan\t1")
    return place.train(), f'{where}: query "nobody" is not in queries.jsonl'


def a_judgement_for_an_unknown_document(place: Place) -> tuple[Words, str]:
    where = place.append("qrels/test.tsv", "fan-5\tnothing\t1")
    return place.evaluate(), f'{where}: document "nothing" is not in corpus.jsonl'


def a_score_that_is_no_integer(place: Place) -> tuple[Words, str]:
    where = place.append("qrels/train.tsv", "fan-0\tpump\t0.5")
    return place.train(), f'{where}: score "0.5" is not an integer'


def an_empty_query(place: Place) -> tuple[Words, str]:
    where = place.append("queries.jsonl", '{"_id": "silent", "text": " "}')
    return place.train(), f"{where}: empty query"


def invalid_utf8(place: Place) -> tuple[Words, str]:
    where = place.append("queries.jsonl", b'{"_id": "x", "text": "caf\xe9"}')
    return place.train(), f"{where}: not valid UTF-8"


def nul_bytes(place: Place) -> tuple[Words, str]:
    where = place.append("corpus.jsonl", b'{"_id": "x", "text": "a\x00b"}')
    return place.train(), f"{where}: a NUL byte"


def a_line_over_the_limit(place: Place) -> tuple[Words, str]:
    where = place.append("corpus.jsonl", json.dumps({"_id": "x", "text": "y" * lines.MAXIMUM_LINE_BYTES}))
    return place.train(), f"{where}: a line over"


def a_full_disk_under_the_checkpoint(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    place.refuse_disk(disk, "8192")
    return place.train(disk / "new"), f"{disk / '.new.training'}: cannot be written (No space left on device)"


def a_full_disk_under_the_old_retriever(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    shutil.copytree(place.retriever, disk / "retriever")
    place.refuse_disk(disk, "8192")
    return place.train(disk / "retriever"), "cannot be written (No space left on device)"


def a_full_disk_under_the_cache(place: Place) -> tuple[Words, str]:
    place.cache = place.folder / "disk"
    place.refuse_disk(place.cache, "0")
    return place.train(), "the hidden-state cache cannot be used (No space left on device)"


def a_full_disk_under_the_run(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    place.refuse_disk(disk, "0")
    return place.evaluate(
        "--run", disk / "run.trec"
    ), f"{disk / 'run.trec'}: cannot be written (No space left on device)"


def a_full_disk_under_an_import(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    place.refuse_disk(disk, "0")
    return ["import", place.collection, "--out", disk / "copy"], "cannot be written (No space left on device)"


def a_read_only_folder(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    place.refuse_disk(disk, "ro")
    return place.train(disk / "new"), f"{disk / 'new'}: cannot be written (Read-only file system)"


def a_retriever_in_a_read_only_folder(place: Place) -> tuple[Words, str]:
    disk = place.folder / "disk"
    shutil.copytree(place.retriever, disk / "retriever")
    place.refuse_disk(disk, "ro")
    return place.train(disk / "retriever"), f"{disk / 'retriever'}: cannot be written (Read-only file system)"


def a_read_only_cache(place: Place) -> tuple[Words, str]:
    place.cache = place.folder / "disk"
    place.refuse_disk(place.cache, "ro")
    return place.train(), "the hidden-state cache cannot be used (Read-only file system)"


def an_encoder_that_is_not_there(place: Place) -> tuple[Words, str]:
    return place.train(encoder="./no-such-encoder"), "--encoder './no-such-encoder': no such folder"


def an_encoder_that_the_hub_does_not_give(place: Place) -> tuple[Words, str]:
    return place.train(encoder="nobody/no-such-model"), "--encoder 'nobody/no-such-model': neither a folder here nor"


def an_encoder_whose_weights_are_cut_off(place: Place) -> tuple[Words, str]:
    weights = place.encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return place.train(), f"{place.encoder}"


def an_encoder_without_tokenizer(place: Place) -> tuple[Words, str]:
    (place.encoder / "tokenizer.json").unlink()
    return place.train(), f"{place.encoder}: no tokenizer"


def an_encoder_whose_configuration_is_broken(place: Place) -> tuple[Words, str]:
    (place.encoder / "config.json").write_text("{")
    return place.train(), f"{place.encoder / 'config.json'}: not valid JSON"


def an_encoder_of_pickles(place: Place) -> tuple[Words, str]:
    (place.encoder / "model.safetensors").unlink()
    (place.encoder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    return place.train(), f"{place.encoder / 'pytorch_model.bin'}: a pickle"


class Bomb:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def a_pickle_under_the_name_of_safetensors(place: Place) -> tuple[Words, str]:
    (place.encoder / "model.safetensors").write_bytes(pickle.dumps(Bomb(place.folder / "exploded")))
    return place.train(), f"{place.encoder}"


def a_pickle_in_a_retriever(place: Place) -> tuple[Words, str]:
    """Sealed like a true one: the hashes say nothing against it."""
    from fedcar.storage import write_folder

    def write(folder: Path) -> None:
        for file in place.retriever.iterdir():
            if not file.name.startswith("manifest"):
                shutil.copy(file, folder)
        (folder / "head.safetensors").write_bytes(pickle.dumps(Bomb(place.folder / "exploded")))

    write_folder(place.retriever, "retriever", write)
    return place.search(), "head.safetensors"


def a_retriever_with_one_byte_changed(place: Place) -> tuple[Words, str]:
    file = place.retriever / "head.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    return place.search(), f"{file}: does not match its sha256"


def a_changed_retriever_is_not_evaluated(place: Place) -> tuple[Words, str]:
    (place.retriever / "documents.jsonl").write_text("")
    return place.evaluate(), f"{place.retriever / 'documents.jsonl'}: does not match its sha256"


def a_retriever_of_another_encoder(place: Place) -> tuple[Words, str]:
    with (place.encoder / "config.json").open("a") as stream:
        stream.write("\n")
    return place.search(), f"{place.retriever}: trained with an encoder of fingerprint"


def a_retriever_that_is_not_there(place: Place) -> tuple[Words, str]:
    return ["search", place.folder / "nowhere", "fan"], f"{place.folder / 'nowhere'}: no such folder"


def a_folder_that_is_no_retriever(place: Place) -> tuple[Words, str]:
    return ["search", place.collection, "fan"], f"{place.collection}: not a fedcar retriever"


def an_output_folder_that_is_not_a_retriever(place: Place) -> tuple[Words, str]:
    return place.train(place.collection), f"{place.collection}: exists and is not a fedcar retriever"


def an_output_folder_that_is_a_file(place: Place) -> tuple[Words, str]:
    file = place.collection / "corpus.jsonl"
    return place.train(file), f"{file}: a file stands there"


def an_output_folder_below_a_file(place: Place) -> tuple[Words, str]:
    out = place.collection / "corpus.jsonl" / "retriever"
    return place.train(out), f"{out}: cannot be "


def an_output_folder_with_other_files_in_it(place: Place) -> tuple[Words, str]:
    (place.retriever / "notes.txt").write_text("mine")
    return place.train(place.retriever), f"{place.retriever / 'notes.txt'}: not written by fedcar"


def an_output_folder_of_import_that_exists(place: Place) -> tuple[Words, str]:
    return ["import", place.collection, "--out", place.retriever], f"{place.retriever}: exists"


def a_broken_collection_and_new_parents(place: Place) -> tuple[Words, str]:
    (place.collection / "corpus.jsonl").write_text("")
    return place.train(
        place.folder / "new" / "deep" / "retriever"
    ), f"{place.collection / 'corpus.jsonl'}:1: no document"


def an_empty_question(place: Place) -> tuple[Words, str]:
    return place.search("  "), "the question is empty"


def k_of_zero(place: Place) -> tuple[Words, str]:
    return place.search("fan", "-k", 0), "k is 0"


def a_split_without_queries(place: Place) -> tuple[Words, str]:
    (place.collection / "qrels" / "dev.tsv").write_text(HEADER)
    return place.evaluate("--split", "dev"), "no judged query in the split dev to evaluate"


def no_epoch(place: Place) -> tuple[Words, str]:
    return [*place.train(), "--epochs", 0], "--epochs 0"


REFUSED: list[Callable[[Place], tuple[Words, str]]] = [
    no_corpus,
    broken_json,
    missing_id,
    duplicate_id,
    duplicate_query_id,
    a_judgement_for_an_unknown_query,
    a_judgement_for_an_unknown_document,
    a_score_that_is_no_integer,
    an_empty_query,
    invalid_utf8,
    nul_bytes,
    a_line_over_the_limit,
    a_full_disk_under_the_checkpoint,
    a_full_disk_under_the_old_retriever,
    a_full_disk_under_the_cache,
    a_full_disk_under_the_run,
    a_full_disk_under_an_import,
    a_read_only_folder,
    a_retriever_in_a_read_only_folder,
    a_read_only_cache,
    an_encoder_that_is_not_there,
    an_encoder_that_the_hub_does_not_give,
    an_encoder_whose_weights_are_cut_off,
    an_encoder_without_tokenizer,
    an_encoder_whose_configuration_is_broken,
    an_encoder_of_pickles,
    a_pickle_under_the_name_of_safetensors,
    a_pickle_in_a_retriever,
    a_retriever_with_one_byte_changed,
    a_changed_retriever_is_not_evaluated,
    a_retriever_of_another_encoder,
    a_retriever_that_is_not_there,
    a_folder_that_is_no_retriever,
    an_output_folder_that_is_not_a_retriever,
    an_output_folder_that_is_a_file,
    an_output_folder_below_a_file,
    an_output_folder_with_other_files_in_it,
    an_output_folder_of_import_that_exists,
    a_broken_collection_and_new_parents,
    an_empty_question,
    k_of_zero,
    a_split_without_queries,
    no_epoch,
]


def last_line(result: Result) -> str:
    """The error: one line, with a way out behind the semicolon; before it only progress."""
    assert (result.code, result.out) == (1, ""), result
    assert "Traceback" not in result.err
    *_, last = result.err.splitlines()
    assert last.startswith("error: ") and sum(line.startswith("error: ") for line in result.err.splitlines()) == 1
    assert "; " in last or "must be" in last, f"no way out: {last}"
    return last


@pytest.mark.parametrize("arrange", REFUSED, ids=lambda value: value.__name__)
def test_refused_with_one_line(
    place: Place, arrange: Callable[[Place], tuple[Words, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAXIMUM_LINE_BYTES", 100_000)
    arguments, words = arrange(place)
    before = tree(place.folder)
    result = fedcar(*arguments, cwd=place.folder)
    assert words in last_line(result)
    after = tree(place.folder)
    if place.cache.is_relative_to(place.folder):  # the cache keeps what it could take
        before, after = ({k: v for k, v in one.items() if not k.startswith("disk")} for one in (before, after))
    assert after == before


def test_the_full_disk_keeps_finished_epochs(place: Place) -> None:
    """Where the checkpoint fits and the retriever does not, the way out continues from the checkpoint."""
    disk = place.folder / "disk"
    place.refuse_disk(disk, "8192")
    room = 0
    while room < 128 * 1024:  # until the checkpoint fits
        result = fedcar(*place.train(disk / "new"))
        if result.code == 0:
            pytest.fail("the retriever fits as soon as the checkpoint does")
        if (disk / ".new.training").exists():
            break
        room += 4096
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 4096)
    line = last_line(result)
    assert "the finished epochs are kept, to go on: fedcar train " in line and line.endswith(" --resume")
    os.truncate(disk / "filler", 0)
    assert fedcar(*place.train(disk / "new"), "--resume").code == 0
    assert sorted(os.listdir(disk)) == ["filler", "new"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_without_the_right_to_write(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions stop everybody but root."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        assert fedcar(*place.train(folder / "new"), "--dry-run").code == 0  # nobody may not read our modules
        monkeypatch.chdir(folder)  # nor, perhaps, the folder we are in
        os.seteuid(65534)
        try:
            result = fedcar(*place.train(folder / "new"))
        finally:
            os.seteuid(0)
            monkeypatch.undo()
    assert f"{folder / 'new'}: cannot be written (Permission denied)" in last_line(result)
