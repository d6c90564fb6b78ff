"""The hidden-state cache: encoded once, right after a crash at any byte, private."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes import PROCESSES

from fedcar.common.files import default_cache
from fedcar.encoder import cache as features
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import KEY_BYTES, SUM_BYTES, FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError

TEXTS = ["my pump is broken", "fan", "", "who looks after the display", "a dark display"]


class Counting(Encoder):
    """An encoder that knows what it was asked."""

    asked: list[str]

    def encode_parts(self, parts: Iterable[Sequence[str]], progress: object = None) -> Iterator[np.ndarray]:
        for texts in parts:
            self.asked = [*getattr(self, "asked", []), *texts]
            yield self.encode_states(texts, progress)  # type: ignore[arg-type]

    def taken(self) -> list[str]:
        """What it was asked since the last call, sorted."""
        asked, self.asked = sorted(getattr(self, "asked", [])), []
        return asked


@pytest.fixture
def encoder(encoder_folder: Path) -> Counting:
    return Counting.load(encoder_folder, "mean")  # type: ignore[return-value]


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def place(cache: FeatureCache) -> Path:
    (found,) = cache.folder.iterdir()
    return found


def check(cache: FeatureCache, encoder: Encoder, texts: list[str]) -> None:
    expected = Encoder.encode_states(encoder, texts)["pooled"]
    np.testing.assert_allclose(cache.hidden_states(encoder, texts), expected, atol=1e-5)


def test_cached_equals_encoded_and_is_reused(cache: FeatureCache, encoder: Counting, encoder_folder: Path) -> None:
    encoded = Encoder.load(encoder_folder, "mean").encode(TEXTS)
    first = cache.hidden_states(encoder, TEXTS)
    assert encoder.taken() == sorted(TEXTS)
    np.testing.assert_allclose(first, encoded, atol=1e-5)
    second = FeatureCache(cache.folder).hidden_states(encoder, TEXTS)
    assert encoder.taken() == []
    np.testing.assert_array_equal(first, second)
    assert type(second) is np.ndarray and second.flags.writeable and second.dtype == np.float32
    second[:] = 0  # the caller's own
    np.testing.assert_array_equal(cache.hidden_states(encoder, TEXTS[::-1]), first[::-1])


def test_cached_states_need_no_weights(cache: FeatureCache, encoder: Counting, encoder_folder: Path) -> None:
    cache.hidden_states(encoder, TEXTS)
    fresh = Encoder.load(encoder_folder, "mean")
    cache.hidden_states(fresh, TEXTS)
    assert not fresh.model._loaded, "neither weights nor tokenizer"


def test_it_is_extended_when_texts_are_added(cache: FeatureCache, encoder: Counting) -> None:
    cache.hidden_states(encoder, TEXTS[:3])
    encoder.taken()
    check(cache, encoder, TEXTS)
    assert encoder.taken() == sorted(TEXTS[3:])


def test_repeated_texts_are_encoded_once_and_progress_counts_each(cache: FeatureCache, encoder: Counting) -> None:
    for texts, asked in ((["fan", "fan", "pump", "fan"], ["fan", "pump"]), (["fan", "hose", "hose"], ["hose"])):
        steps: list[int] = []
        found = cache.hidden_states(encoder, texts, steps.append)
        assert encoder.taken() == asked
        assert sum(steps) == len(texts)
        np.testing.assert_array_equal(found[[text == texts[1] for text in texts]][0], found[1])


def test_no_text(cache: FeatureCache, encoder: Counting) -> None:
    assert cache.hidden_states(encoder, []).shape == (0, 32)
    assert cache.hidden_states(encoder, ["lone surrogate \ud800"]).shape == (1, 32)


def test_pooling_encoder_and_adapter_are_kept_apart(cache: FeatureCache, encoder_folder: Path) -> None:
    for pooling in ("mean", "last", "cls"):
        check(cache, Encoder.load(encoder_folder, pooling), TEXTS)
    adapted = Encoder.load(encoder_folder, "mean")
    adapter = Adapter("full", adapted.embedding_width)
    adapter.difference.data.normal_()
    adapted = adapted.with_adapter(adapter)
    check(cache, adapted, TEXTS)
    assert len(list(cache.folder.iterdir())) == 4


def test_more_texts_than_a_chunk(cache: FeatureCache, encoder: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "CHUNK", 2)
    check(cache, encoder, TEXTS)


def test_an_interrupted_encoding_goes_on_where_it_stopped(
    cache: FeatureCache, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "CHUNK", 2)

    def interrupt(_: int) -> None:
        if len(encoder.asked) > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.hidden_states(encoder, TEXTS, interrupt)
    encoder.taken()
    check(cache, encoder, TEXTS)
    assert len(encoder.taken()) == 3


@pytest.mark.parametrize("file", ["states.bin", "sums.crc32", "keys.sha256"])
def test_it_survives_a_file_cut_at_any_row(cache: FeatureCache, encoder: Counting, file: str) -> None:
    """Cut before, at and after every border between rows, and away."""
    rows = {"states.bin": encoder.model.state_type.itemsize, "sums.crc32": SUM_BYTES, "keys.sha256": KEY_BYTES}
    row = rows[file]
    expected = Encoder.encode_states(encoder, TEXTS)["pooled"]
    cache.hidden_states(encoder, TEXTS)
    path = place(cache) / file
    whole = {name: (place(cache) / name).read_bytes() for name in rows}
    cuts = sorted(
        {border + by for border in range(0, row * len(TEXTS), row) for by in (-1, 0, 1, row // 2) if border + by >= 0}
    )
    for cut in cuts:
        for name, content in whole.items():
            (place(cache) / name).write_bytes(content)
        path.write_bytes(whole[file][:cut])
        encoder.taken()
        np.testing.assert_allclose(cache.hidden_states(encoder, TEXTS), expected, atol=1e-5, err_msg=f"cut at {cut}")
        assert len(encoder.taken()) == len(TEXTS) - cut // row
        cache.hidden_states(encoder, TEXTS)
        assert encoder.taken() == []
    path.unlink()
    np.testing.assert_allclose(cache.hidden_states(encoder, TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("write", [1, 2, 3, 4])
def test_a_crash_after_any_write_gives_no_text_the_vector_of_another(
    cache: FeatureCache, encoder: Counting, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """The keys reach further than the vectors, and the repair is cut off too."""
    cache.hidden_states(encoder, TEXTS)
    vectors = place(cache) / "states.bin"
    vectors.write_bytes(vectors.read_bytes()[: encoder.model.state_type.itemsize])
    done = 0
    fsync = os.fsync

    def crash(descriptor: int) -> None:
        nonlocal done
        fsync(descriptor)
        done += 1
        if done == write:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", crash)
        cache.hidden_states(encoder, ["Hose", "tube", "Tighten the clamp", "makes trouble"])
    assert done == write
    check(cache, encoder, [*TEXTS, "Hose", "tube"])


@pytest.mark.parametrize("place_in_row", [0, -1])
def test_a_record_that_is_not_what_was_written_is_refused(
    cache: FeatureCache, encoder: Counting, place_in_row: int
) -> None:
    """One bit of the second text's record, in its pooled state or in its last layer mean; the others can be had."""
    cache.hidden_states(encoder, TEXTS)
    ordered = (place(cache) / "keys.sha256").read_bytes()
    keys = [ordered[start : start + KEY_BYTES] for start in range(0, len(ordered), KEY_BYTES)]
    row, size = keys.index(features._key(TEXTS[1])), encoder.model.state_type.itemsize
    content = bytearray((place(cache) / "states.bin").read_bytes())
    content[row * size + place_in_row % size] ^= 1
    (place(cache) / "states.bin").write_bytes(content)
    for take in (cache.hidden_states, cache.states):
        with pytest.raises(FedcarError, match=r"1 of 5 hidden states are not what was written; remove it, .*: rm -r "):
            take(encoder, TEXTS)
    assert len(cache.states(encoder, [TEXTS[0], *TEXTS[2:]])) == 4


def test_states_that_are_not_finite_are_refused(
    cache: FeatureCache, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that overflow give nan, and every document would score alike."""
    run = type(encoder.runtime(TEXTS)).run

    def overflowed(self: object, *batch: np.ndarray) -> object:
        states = run(self, *batch)  # type: ignore[arg-type]
        states.pooled[0, 0] = np.nan
        return states

    monkeypatch.setattr(type(encoder.runtime(TEXTS)), "run", overflowed)
    with pytest.raises(FedcarError, match="hidden states that are not finite"):
        cache.hidden_states(encoder, TEXTS)


def test_a_full_disk_is_said_and_repaired(
    cache: FeatureCache, encoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FedcarError, match="No space left on device.*--cache") as error:
        patch.setattr(os, "fsync", full)
        cache.hidden_states(encoder, TEXTS)
    assert "\n" not in str(error.value)
    check(cache, encoder, TEXTS)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, encoder: Counting) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(FedcarError, match="the hidden-state cache cannot be used .*; .* --cache") as error:
            FeatureCache(folder).hidden_states(encoder, TEXTS)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path, encoder: Counting) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FedcarError, match="Permission denied"):
        FeatureCache(tmp_path / "cache").hidden_states(encoder, TEXTS)


def test_nothing_of_the_text_is_on_disk(cache: FeatureCache, encoder: Counting) -> None:
    secret = "Mrs Winterbottom has tuberculosis"
    cache.hidden_states(encoder, [secret])
    files = [file for file in cache.folder.rglob("*") if file.is_file()]
    assert len(files) == 4
    for file in files:
        content = str(file).encode() + file.read_bytes()
        assert not any(word.encode() in content for word in secret.split())


def test_the_owner_alone_may_read_it(cache: FeatureCache, encoder: Counting) -> None:
    before = os.umask(0)
    try:
        cache.hidden_states(encoder, TEXTS)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [cache.folder, *cache.folder.rglob("*")]}
    assert {mode & 0o077 for mode in modes.values()} == {0}, modes


class Quick(Encoder):
    """Vectors that only numpy is needed for, so that they are made fast; each encoding takes a moment."""

    def encode_parts(self, parts: Iterable[Sequence[str]], progress: object = None) -> Iterator[np.ndarray]:
        return map(self.encode_states, parts)

    def encode_states(self, texts: Sequence[str], progress: object = None) -> np.ndarray:
        time.sleep(0.005)
        states = np.zeros(len(texts), self.model.state_type)
        for row, text in enumerate(texts):
            states["pooled"][row] = np.random.default_rng(list(text.encode())).random(self.dimension, np.float32)
        return states


def write_questions(folder: Path, encoder: Quick, start: int, together: Any) -> None:
    features.CHUNK = 3
    together.wait()
    FeatureCache(folder).hidden_states(encoder, [f"question {number}" for number in range(start, start + 40)])


def test_two_processes_may_write_at_once(cache: FeatureCache, encoder_folder: Path) -> None:
    """The questions of the two overlap by half."""
    encoder = Quick.load(encoder_folder, "mean")
    together = PROCESSES.Barrier(2)
    writers = [
        PROCESSES.Process(target=write_questions, args=(cache.folder, encoder, start, together)) for start in (0, 20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert (place(cache) / "keys.sha256").stat().st_size == 60 * KEY_BYTES
    texts = [f"question {number}" for number in range(60)]
    np.testing.assert_array_equal(cache.hidden_states(encoder, texts), encoder.encode(texts))
    assert (place(cache) / "keys.sha256").stat().st_size == 60 * KEY_BYTES


class Interrupting(Encoder):
    """While it encodes, another process takes what it needs from the same cache."""

    cache: FeatureCache

    def encode_parts(self, parts: Iterable[Sequence[str]], progress: object = None) -> Iterator[np.ndarray]:
        for texts in parts:
            if len(texts) > 1:
                FeatureCache(self.cache.folder).hidden_states(self, ["fan"])
            yield self.encode_states(texts, progress)  # type: ignore[arg-type]


def test_a_long_encoding_keeps_nobody_waiting(cache: FeatureCache, encoder_folder: Path) -> None:
    """What the other has written meanwhile is not written twice."""
    encoder = Interrupting.load(encoder_folder, "mean")
    encoder.cache = cache  # type: ignore[attr-defined]
    check(cache, encoder, TEXTS)
    assert (place(cache) / "keys.sha256").stat().st_size == len(TEXTS) * KEY_BYTES


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fedcar"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == Path.home() / ".cache" / "fedcar"


def test_public_states_tell_of_no_question(tmp_path: Path, encoder_folder: Path) -> None:
    """By an encoder whose states depend visibly on what is encoded beside them; two pasts, the same public texts."""
    from support.neighbours import ByBatch

    public = ["fan", "pump", "who looks after the hose"]
    found = []
    for place, questions in (("one", ["fan", "screen"]), ("other", ["who looks after the hose", "pump", "tube"])):
        encoder, shared = ByBatch.load(encoder_folder, "mean"), FeatureCache(tmp_path / place)
        shared.states(encoder, questions)
        found.append(shared.public.states(encoder, public).tobytes())
        shared.states(encoder, [*questions, "blower"])
        assert FeatureCache(tmp_path / place).public.states(encoder, public).tobytes() == found[-1]
        assert shared.states(encoder, public).tobytes() != found[-1], "questions have their own"
    assert found[0] == found[1]


def test_the_public_part_is_made_for_the_owner_alone(tmp_path: Path, encoder: Counting) -> None:
    before = os.umask(0)
    try:
        FeatureCache(tmp_path / "cache").public.hidden_states(encoder, TEXTS)
    finally:
        os.umask(before)
    folders = [tmp_path / "cache", *(path for path in (tmp_path / "cache").rglob("*") if path.is_dir())]
    assert len(folders) == 3 and {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
