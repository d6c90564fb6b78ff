"""Replies that are changed at random, in every way a device can: each is as it has to be, or marks its device."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.wire import over_wire

from fedcar.collection.collection import Collection
from fedcar.encoder.encoder import Encoder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate.federate import federate
from fedcar.federation.simulate.noised import federate_under_epsilon
from fedcar.federation.sums.forms import check_client, sums_from
from fedcar.federation.wire import parts
from fedcar.federation.wire.parts import REPLY_PARTS, conversation, split
from fedcar.federation.wire.payload import DTYPES, REPLIES, Payload, ReplyError, checked, refusal
from fedcar.federation.wire.schema import REFUSED, Schema
from fedcar.training.target import Target

Honest = tuple[Schema, Payload]
NASTY: list[Any] = [
    0, -1, 1, 2**31, 2**63, 10**400, True, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", "x" * 100_000, "\n\x1b[2J", "budget", None, [], {}, b"x", [[[]]],
]  # fmt: skip
TEXTS = [
    "[" * 5000,
    '{"' * 5000,
    "1e999",
    "NaN",
    "9" * 5000,
    '"\\ud800"',
    ": null",
    ",",
    "}",
    "[4294967296, 4294967296]",
]


@pytest.fixture(scope="module")
def honest(
    collection: Collection, encoder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Honest]:
    """One reply of every kind with what was expected of it, as three runs have them."""
    found: dict[str, Honest] = {}
    parsed, folder = Schema.parsed, tmp_path_factory.mktemp("honest")

    def noted(schema: Schema, reply: Payload) -> Payload:
        found.setdefault(reply.kind, (schema, reply))
        return parsed(schema, reply)

    plain: dict[str, Any] = {"clients": 2, "encoder": encoder, "compare": False, "cache": cache}
    with patch.object(Schema, "parsed", noted):
        for method in ("head", "ridge"):
            with over_wire(folder / method, encoder, cache) as over:
                rounds = RoundSettings(rounds=1)
                federate(collection, run=folder / f"{method}.run", method=method, rounds=rounds, over=over, **plain)
        over.network.held_out_by([over.network.retriever.weights])
        target, model = Target(8.0, against_advice=True), Encoder.load(encoder)
        with over_wire(folder / "noised", encoder, cache) as over:
            federate_under_epsilon(
                collection, target, run=folder / "noised.run", clients=2, encoder=model, cache=cache, over=over,
                rounds=RoundSettings(rounds=1),
            )  # fmt: skip
    found["refused"] = (REFUSED, refusal("memory"))
    assert set(found) == set(REPLIES) - {"clipped"}
    return list(found.values())


def changed(honest: Payload, dice: random.Random) -> Payload:
    """One thing about the reply is another one, or two are."""
    reply = Payload(honest.kind, dict(honest.values), {name: one.clone() for name, one in honest.tensors.items()})
    values, tensors = dict(reply.values), dict(reply.tensors)
    for _ in range(dice.choice([1, 1, 2])):
        how = dice.randrange(6)
        if how == 0:
            reply = replace(reply, kind=dice.choice([*REPLIES, "", "x" * 10_000]))
        elif how == 1 and values:
            values[dice.choice(list(values))] = dice.choice(NASTY)
        elif how == 2:
            values.pop(next(iter(values), ""), None) if dice.random() < 0.5 else values.update(more=1)
        elif how == 3 and tensors:
            one = tensors.pop(dice.choice(list(tensors)))
            tensors.update({} if dice.random() < 0.5 else {dice.choice(["", "x", "update/x", "rows\n"]): one})
        elif tensors:
            name = dice.choice(list(tensors))
            tensors[name] = spoiled(tensors[name], dice)
    return replace(reply, values=values, tensors=tensors)


def spoiled(tensor: torch.Tensor, dice: random.Random) -> torch.Tensor:
    how = dice.randrange(7)
    if how == 0:
        return tensor.to(DTYPES[dice.choice(sorted(DTYPES))])
    if how == 1:
        return tensor.flatten()[: dice.randrange(3)]
    if how == 2:
        return tensor[None] if dice.random() < 0.5 else torch.cat([tensor.flatten()] * 2)
    if how == 3:
        return torch.tensor(dice.choice([0.0, math.nan, 7.0])).to(tensor.dtype)
    if how == 4:
        return -tensor if tensor.dtype not in (torch.bool, torch.uint8) else tensor
    if tensor.numel():
        flat = tensor.reshape(-1)
        place = dice.randrange(len(flat))
        if tensor.is_floating_point():
            wrong = [math.nan, math.inf, -math.inf, torch.finfo(tensor.dtype).min, 1e4, -1.0, 0.0]
        else:
            most = 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
            wrong = [most, 0 if tensor.dtype in (torch.bool, torch.uint8) else -7]
        flat[place if how == 5 else slice(None)] = dice.choice(wrong)
    return tensor


def messages(reply: Payload, dice: random.Random) -> list[Payload]:
    """The reply in one message or in parts, the parts changed too."""
    if dice.random() < 0.4 or not any(len(one.reshape(-1)) for one in reply.tensors.values()):
        return [reply]
    try:
        sent = list(split(reply))
    except (TypeError, ValueError):  # what json cannot say, a device cannot send in parts
        return [reply]
    first = sent[0]
    how, head = dice.randrange(6), str(first.values["head"])
    if how < 2:
        start, text = dice.randrange(len(head)), dice.choice(TEXTS) if how else chr(dice.randrange(1, 300))
        sent[0] = replace(first, values={**first.values, "head": head[:start] + text + head[start + how :]})
    elif how == 2:
        sent[0] = replace(first, values={**first.values, dice.choice(["number", "count"]): dice.choice([-1, 7, 2**40])})
    elif how == 3:
        announced = json.loads(head)
        for name in announced["tensors"]:
            announced["tensors"][name][1] = dice.choice(
                [[2**32, 2**32], [-1], [10**30], [1 << 30], "8", [1.5], [True], 3]
            )
        sent[0] = replace(first, values={**first.values, "head": json.dumps(announced)})
    elif how == 4:
        place = dice.randrange(len(sent))
        pieces = {name: one[: dice.randrange(len(one) + 1)] for name, one in sent[place].tensors.items()}
        sent[place] = replace(sent[place], tensors=pieces)
    else:
        dice.shuffle(sent)
    return sent


def outcome(schema: Schema, sent: list[Payload]) -> Payload | str:
    """What the server makes of these messages; a device that has no more to say is silent."""
    talk = conversation(Payload("greet", {"setup": ""}), REPLIES, schema)
    next(talk)
    try:
        for message in sent:
            talk.send(message)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    return "no answer"


@pytest.mark.parametrize(
    "number", [1500, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.ci])], ids=["some", "many"]
)
def test_a_reply_that_is_changed_at_random_is_sound_or_marks_its_device(
    honest: list[Honest], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else comes of it: no other exception, and no room for more bytes than the schema allows."""
    dice, made, accepted, reasons = random.Random(17), [0], 0, set()
    zeros = torch.zeros
    monkeypatch.setattr(parts, "LIMIT", 5000)

    def counted(*size: int, **options: Any) -> torch.Tensor:
        made[0] += math.prod(size)
        return zeros(*size, **options)

    with patch.object(parts.torch, "zeros", counted):
        for schema, reply in (honest[dice.randrange(len(honest))] for _ in range(number)):
            made[0] = 0
            found = outcome(schema, messages(changed(reply, dice), dice))
            assert made[0] <= schema.bytes, found
            if isinstance(found, str):
                assert len(found) <= 200 and found.isprintable()
                reasons.add(found)
                continue
            accepted += 1
            assert checked(found, REPLIES) is found and found.kind in (schema.kind, "refused")
            for tensor in found.tensors.values():
                assert bool(torch.isfinite(tensor).all())
            if found.kind == "statistics":
                sound_sums(schema, found)
    assert accepted > number / 50 and len(reasons) > 100, "both happen, for many reasons"
    assert all(reason.startswith("sent rubbish: ") or reason == "no answer" for reason in reasons)


def sound_sums(schema: Schema, reply: Payload) -> None:
    """What is left to say of ridge's sums is said by the same kind of error."""
    questions, counts = int(reply.values["questions"]), reply.tensors["counts"]
    dimension = reply.tensors["cross"].shape[0]
    try:
        check_client(sums_from(reply.tensors, questions, len(counts), dimension), questions, counts)
    except ValueError as error:
        assert len(str(error)) < 200


def test_an_honest_reply_of_every_kind_is_taken_as_it_is(honest: list[Honest], monkeypatch: pytest.MonkeyPatch) -> None:
    """In one message and in parts: bit by bit, with the room it needs and no more."""
    monkeypatch.setattr(parts, "LIMIT", 5000)
    for schema, reply in honest:
        for sent in (
            [reply],
            list(split(reply)) if reply.tensors and any(map(len, reply.tensors.values())) else [reply],
        ):
            found = outcome(schema, sent)
            assert isinstance(found, Payload), found
            assert all(checked(one, {**REPLIES, **REPLY_PARTS}) for one in sent)
            assert found.values == reply.values and found.tensors.keys() == reply.tensors.keys()
            assert all(torch.equal(one, reply.tensors[name]) for name, one in found.tensors.items())


def broken(content: dict[str, bytes], dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """The objects of a message, one of them changed: bytes turned, cut, or another text in its json."""
    which = dice.choice(list(content))
    for name, whole in content.items():
        if name == which:
            start = dice.randrange(len(whole))
            inside = dice.choice(
                [b"", b"\0", bytes([dice.randrange(256)]), dice.choice(TEXTS).encode("utf-8", "replace")]
            )
            whole = whole[:start] + inside + whole[start + dice.randrange(9) :]
            if dice.random() < 0.1:
                whole = whole.replace(b'"arraychunk_ids": [0]', b'"arraychunk_ids": [' + b"0, " * 5000 + b"0]")
        yield name, whole


@pytest.mark.parametrize(
    "number", [500, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.ci])], ids=["some", "many"]
)
def test_a_message_whose_bytes_are_changed_at_random_is_a_payload_or_a_line(honest: list[Honest], number: int) -> None:
    pytest.importorskip("flwr")
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from fedcar.federation.wire import flower

    flower.TaskIdentity.run_id, flower.TaskIdentity.node_id, flower.TaskIdentity.task_id = 7, 1, 1
    dice, lines, sent = random.Random(17), set(), []
    for _, reply in honest:
        message = flower.Message(flower.records(reply), 3, "query")
        found = get_all_nested_objects(message).items()
        sent.append((message.object_id, {name: one.deflate() for name, one in found}))
    for _ in range(number):
        name, content = dice.choice(sent)
        found = flower._reply(flower.Coming(name, [], dict(broken(content, dice))))
        assert isinstance(found, Payload) or (found.startswith("sent rubbish: ") and found.isprintable())
        lines.add(str(found)[:60])
    assert len(lines) > 20


def test_what_no_honest_message_has_is_refused_before_it_is_made() -> None:
    """A piece that is repeated, names without end, an object of 200 MB, more of them than a message has."""
    from fedcar.federation.wire.objects import MOST_BYTES, MOST_OBJECT, Coming, check_object

    ids = ",".join(["a" * 64] * 5000)
    names = json.dumps({f"rows#{number}": "a" * 64 for number in range(3000)})
    for content, says in (
        (b'Array a 9\0{"arraychunk_ids": [0, 0]}', "many pieces"),
        (f"ArrayRecord a 9\0{names}".encode(), "more than"),
        (f"RecordDict {ids} 9\0{{}}".encode(), "bytes of"),
        (b"ConfigRecord  9\0" + b"x" * (2 << 20), "bytes of"),
        (b"Array a 9\0" + b"[" * 100_000, "without end"),
    ):
        with pytest.raises(ReplyError, match=says):
            check_object(content)
    with pytest.raises(ReplyError, match="in one message"):
        Coming("id", ["a"]).take(b"x" * (MOST_OBJECT + 1))
    coming = Coming("id", [str(number) for number in range(99)])
    with pytest.raises(ReplyError, match=f"more than {MOST_BYTES} bytes"):
        for _ in range(99):
            coming.take(b"x" * (1 << 20))
    assert sum(map(len, coming.parts.values())) <= MOST_BYTES + (1 << 20)
