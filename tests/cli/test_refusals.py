"""How it must hold up, line by line: what is refused with one line, and leaves nothing half-written.

Worked off through the command line, as a user would meet it; what is accepted stands in test_accepted.py.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.command import fedcar, tree
from support.places import HEADER, Place, Words, last_line

from fedcar.collection import lines

pytest_plugins = ("support.places",)


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
    from fedcar.common.folders import write_folder

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


@pytest.mark.parametrize("arrange", REFUSED, ids=lambda value: value.__name__)
def test_refused_with_one_line(
    home: Place, arrange: Callable[[Place], tuple[Words, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAXIMUM_LINE_BYTES", 100_000)
    arguments, words = arrange(home)
    before = tree(home.folder)
    result = fedcar(*arguments, cwd=home.folder)
    assert words in last_line(result)
    after = tree(home.folder)
    if home.cache.is_relative_to(home.folder):  # the cache keeps what it could take
        before, after = ({k: v for k, v in one.items() if not k.startswith("disk")} for one in (before, after))
    assert after == before


def test_the_full_disk_keeps_finished_epochs(home: Place) -> None:
    """Where the checkpoint fits and the retriever does not, the way out continues from the checkpoint."""
    disk = home.folder / "disk"
    home.refuse_disk(disk, "8192")
    room = 0
    while room < 128 * 1024:  # until the checkpoint fits
        result = fedcar(*home.train(disk / "new"))
        if result.code == 0:
            pytest.fail("the retriever fits as soon as the checkpoint does")
        if (disk / ".new.training").exists():
            break
        room += 4096
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 4096)
    line = last_line(result)
    assert "the finished epochs are kept, to go on: fedcar train " in line and line.endswith(" --resume")
    os.truncate(disk / "filler", 0)
    assert fedcar(*home.train(disk / "new"), "--resume").code == 0
    assert sorted(os.listdir(disk)) == ["filler", "new"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_folder_without_the_right_to_write(home: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions stop everybody but root."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        assert fedcar(*home.train(folder / "new"), "--dry-run").code == 0  # nobody may not read our modules
        monkeypatch.chdir(folder)  # nor, perhaps, the folder we are in
        os.seteuid(65534)
        try:
            result = fedcar(*home.train(folder / "new"))
        finally:
            os.seteuid(0)
            monkeypatch.undo()
    assert f"{folder / 'new'}: cannot be written (Permission denied)" in last_line(result)
