"""What a retriever tells of its training: which keys, in which order."""

from __future__ import annotations

from dataclasses import replace

from fedcar.retriever.record import TrainingRecord
from fedcar.training.noised.record import ExchangeRecord

HERE = TrainingRecord({"method": "head"}, [{"epoch": 1}], 7, collection={"name": "toy"}, method="head")


def test_the_keys_are_those_of_the_kind_of_training_in_their_order() -> None:
    start, end = ["method", "settings"], ["collection", "questions", "selection_questions"]
    assert list(HERE.to_json()) == [*start, *end, "history"]
    whole = replace(HERE, selection={"ridge": 0.5}, seconds={"train": 1.0}, privacy={"epsilon": None})
    more = ["selection", "history", "seconds", "peak_memory_mb", "privacy"]
    assert list(whole.to_json()) == [*start, *end, *more]
    assert list(replace(HERE, federation={"clients": 2}).to_json()) == [*start, "federation", *end, "history"]


def test_under_epsilon_nobody_is_told_how_many_questions_there_are() -> None:
    noised = replace(HERE, questions=None, privacy={"epsilon": 1.0}, federation={"clients": 2}).to_json()
    assert noised["questions"] is None and list(noised)[-2:] == ["privacy", "federation"]


def test_an_exchange_tells_what_there_is_to_tell() -> None:
    record = ExchangeRecord(round=2, clients=["a"], refused={}, failed={}, bytes_up=4, bytes_down=4)
    keys = ["round", "clients", "refused", "failed", "bytes_up", "bytes_down"]
    assert list(record.to_json()) == keys
    told = replace(record, what="head, step 1", clip_norm=0.5)
    assert list(told.to_json()) == [*keys, "clip_norm", "what"]
    assert ExchangeRecord(**told.to_json()) == told
