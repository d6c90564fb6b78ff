"""What may travel between server and device: the allow-list, tensors in parts, payloads in parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcar.federation.wire import payload as payloads
from fedcar.federation.wire.parts import InParts, Joiner, split
from fedcar.federation.wire.payload import REASONS, REPLIES, REQUESTS, Payload, checked, joined, parts


@pytest.mark.parametrize("kind", sorted(REPLIES))
def test_a_field_that_is_not_in_the_list_cannot_be_sent(kind: str) -> None:
    form = REPLIES[kind]
    values = {name: type_() if name != "reason" else "failed" for name, type_ in form.values.items()}
    tensors = {name: torch.zeros(1) for name in form.tensors if not name.endswith("/")}
    assert checked(Payload(kind, values, tensors), REPLIES)
    fewer, others = dict(list(values.items())[1:]), dict.fromkeys(values, b"why")
    for wrong in (
        Payload(kind, {**values, "question": "why"}, tensors),
        Payload(kind, values, {**tensors, "question": torch.zeros(1)}),
        Payload("question", values, tensors),
        *((Payload(kind, fewer, tensors), Payload(kind, others, tensors)) if values else ()),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"fields|unknown|not"):
            checked(wrong, REPLIES)
    if kind == "refused":
        with pytest.raises(ValueError, match="unknown reason"):
            checked(Payload(kind, {"reason": "a question", "found": ""}), REPLIES)


@given(
    dtype=st.sampled_from(sorted(payloads.DTYPES)),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    part=st.sampled_from([1, 7, 64, 4 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_a_tensor_in_parts_comes_back_as_it_was(dtype: str, shape: tuple[int, ...], part: int) -> None:
    tensor = torch.randint(0, 2, shape).to(payloads.DTYPES[dtype])
    before, payloads.PART_BYTES = payloads.PART_BYTES, part
    try:
        content = parts(tensor)
    finally:
        payloads.PART_BYTES = before
    assert all(len(one) <= part for one in content)
    found = joined(content, dtype, shape)
    assert found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor)


def test_bytes_that_do_not_fit_are_refused() -> None:
    for content, dtype, shape in (([b"123"], "float32", (1,)), ([b"1234"], "object", (1,)), ([b""], "int8", (-1,))):
        with pytest.raises(ValueError, match=r"bytes|type"):
            joined(content, dtype, shape)


def test_parts_that_do_not_fit_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcar.federation.wire.parts.LIMIT", 100)
    tensors = {"state/rows": torch.randn(30, 3), "weights": torch.randn(7).double(), "state/none": torch.zeros(0, 2)}
    payload = Payload("train", {"setup": "{}", "round": 1}, tensors)
    sent = list(split(payload))
    assert len(sent) == 5 and all(sum(piece.nbytes for piece in one.tensors.values()) <= 100 for one in sent)
    joiner = Joiner(1000)
    assert [joiner.add(one) for one in sent] == [False] * 4 + [True]
    found = joiner.whole(REQUESTS)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
    assert found.tensors.keys() == tensors.keys() and found.values == payload.values

    def wrong(*parts_: Payload, most: int = 1000) -> None:
        joiner = Joiner(most)
        for one in parts_:
            if joiner.add(one):
                joiner.whole(REQUESTS)

    swollen = replace(sent[1], tensors={name: torch.cat([one] * 9) for name, one in sent[1].tensors.items()})
    bad = {
        "out of turn": [(sent[0], sent[2]), (sent[1],), (sent[0], sent[0], sent[2])],
        "above": [sent[:1]],
        "fit": [(sent[0], swollen)],
    }
    for says, cases in bad.items():
        for case in cases:
            with pytest.raises(ValueError, match=says):
                wrong(*case, most=10 if says == "above" else 1000)
    asked = InParts(lambda request: request, REQUESTS)
    assert asked(Payload("more", {"number": 1})).values["reason"] == "request"
    assert asked(sent[3]).values["reason"] == "request"
    stranger = Payload("train", {"setup": "", "round": 1}, {**tensors, "question": torch.zeros(99)})
    replies = [asked(one) for one in split(stranger)]
    assert replies[-1].values["reason"] == "request", "the allow-list holds for what comes in parts"


def test_every_reason_is_one_that_somebody_can_act_on() -> None:
    assert all(line and len(line) < 80 for line in REASONS.values())
    ridge, private = {"statistics", "taught", "unseen"}, {"greet", "noised", "clipped"}
    assert set(REQUESTS) == {"enrol", "spread", "sums", "train", "count"} | ridge | private
