"""What travels, what it costs: the form of an update on the wire, and the virtual clock."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.federation.rounds.clock import VirtualClock, parse_clock
from fedcar.federation.rounds.compress import decode, encode, wire_bytes


def tensors(seed: int = 0, rows: int = 20) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and the reference they differ from: a third of the rows, a vector and a number."""
    generator = torch.Generator().manual_seed(seed)
    reference = {
        "rows": torch.randn(rows, 64, generator=generator),
        "vector": torch.randn(7, generator=generator),
        "number": torch.tensor(3.0),
    }
    values = {name: tensor.clone() for name, tensor in reference.items()}
    values["rows"][::3] += torch.randn(len(values["rows"][::3]), 64, generator=generator)
    values["vector"] += 0.01 * torch.randn(7, generator=generator)
    values["number"] += 0.1
    return values, reference


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_lossless_is_bit_by_bit(seed: int, rows: int) -> None:
    values, reference = tensors(seed, rows)
    wire, residual = encode(values, reference)
    assert residual == {}
    assert all(torch.equal(tensor, values[name]) for name, tensor in decode(wire, reference).items())


def test_only_rows_that_changed_travel() -> None:
    values, reference = tensors(rows=3000)
    wire, _ = encode(values, reference)
    assert wire["rows|rows"].tolist() == list(range(0, 3000, 3))
    assert wire_bytes(wire) < 0.36 * wire_bytes(values)
    untouched, _ = encode(reference, reference)
    assert wire_bytes(untouched) < 500


@pytest.mark.parametrize(("kind", "error", "part"), [("bfloat16", 2**-8, 0.55), ("int8", 1 / 127, 0.35)])
def test_compression_is_close_and_small(kind: str, error: float, part: float) -> None:
    values, reference = tensors(rows=3000)
    wire, residual = encode(values, reference, kind)
    whole = decode(wire, reference, kind)
    assert wire_bytes(wire) < part * wire_bytes(encode(values, reference)[0])
    for name, tensor in whole.items():
        difference = (values[name] - reference[name]).abs()
        assert float((tensor - values[name]).abs().max()) <= error * float(difference.max()) + 1e-6
        if tensor.dim():
            torch.testing.assert_close(tensor + residual[name], values[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_error_feedback_carries_over_what_was_lost(kind: str) -> None:
    """Sent fifty times, the sum of what arrives is the sum of what was meant, up to one step's error."""
    generator = torch.Generator().manual_seed(0)
    reference = {"rows": torch.zeros(4, 8)}
    meant, arrived, residual = torch.zeros(4, 8), torch.zeros(4, 8), {}
    for _ in range(50):
        step = torch.randn(4, 8, generator=generator) * torch.tensor([[1e-3], [1.0], [1.0], [1.0]])
        meant += step
        wire, residual = encode({"rows": step}, reference, kind, residual)
        arrived += decode(wire, reference, kind)["rows"]
    torch.testing.assert_close(arrived + residual["rows"], meant, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"other": torch.zeros(1)}, "unknown tensor 'other'"),
        ({"vector": None}, "no tensor 'vector'"),
        ({"vector": torch.zeros(8)}, r"'vector' is float32 \(8,\), not float32 \(7,\)"),
        ({"vector": torch.zeros(7, dtype=torch.float64)}, r"'vector' is float64 \(7,\)"),
        ({"rows|rows": torch.tensor([-1], dtype=torch.int32)}, "not ascending within 0 to 19"),
        ({"rows|rows": torch.tensor([20], dtype=torch.int32)}, "not ascending within 0 to 19"),
        ({"rows|rows": torch.tensor([1, 1], dtype=torch.int32)}, "not ascending within 0 to 19"),
        ({"rows|rows": torch.zeros(0, dtype=torch.int64)}, r"row numbers of 'rows' are int64 \(0,\)"),
        ({"rows|rows": torch.tensor([[1]], dtype=torch.int32)}, r"row numbers of 'rows' are int32 \(1, 1\)"),
        ({"rows|values": torch.zeros(1, 9)}, r"'rows' is float32 \(1, 9\), not float32 \(7, 64\)"),
    ],
)
def test_malformed_is_refused_with_the_reason(spoil: dict[str, Tensor | None], message: str) -> None:
    values, reference = tensors()
    wire: dict[str, Tensor | None] = {**encode(values, reference)[0], **spoil}
    with pytest.raises(ValueError, match=message):
        decode({name: tensor for name, tensor in wire.items() if tensor is not None}, reference)


def test_int8_without_its_scale_is_refused() -> None:
    values, reference = tensors()
    wire, _ = encode(values, reference, "int8")
    del wire["vector|scale"]
    with pytest.raises(ValueError, match="the scale of 'vector' is missing"):
        decode(wire, reference, "int8")


# -------------------------------------------------------------------- the clock


def test_seconds_of_a_round_by_hand() -> None:
    """8 Mb down and up at 16 Mb/s are one second; two latencies; at half the speed training takes twice as long."""
    clock = parse_clock("bandwidth=16mbps,latency=50ms,speed=1/0.5")
    assert clock.client_seconds(0, 3.0, 1_000_000, 1_000_000) == pytest.approx(1.0 + 0.1 + 3.0)
    assert clock.client_seconds(1, 3.0, 1_000_000, 1_000_000) == pytest.approx(1.0 + 0.1 + 6.0)
    assert clock.round_seconds([4.1, 7.1], 4_000_000) == pytest.approx(7.1)
    assert clock.round_seconds([4.1, 7.1], 4_000_000, deadline=5.0) == 5.0
    shared = parse_clock("bandwidth=1gbps,server=8mbps")
    assert shared.round_seconds([1.0] * 100, 10_000_000) == pytest.approx(10.0)


def test_a_fixed_cost_a_question_replaces_measured_seconds() -> None:
    assert parse_clock("question=2ms").training_seconds(99.0, 500, 3) == pytest.approx(3.0)
    assert parse_clock(None) == VirtualClock() == parse_clock("")
    assert VirtualClock().training_seconds(99.0, 500, 3) == 99.0


def test_drop_outs_are_seeded_and_as_frequent_as_asked() -> None:
    clock = parse_clock("dropout=0.25")
    gone = [clock.drops_out("a", number, 1, 7) for number in range(2000)]
    assert gone == [clock.drops_out("a", number, 1, 7) for number in range(2000)]
    assert 0.21 < sum(gone) / len(gone) < 0.29


@pytest.mark.parametrize(
    "text",
    ["bandwith=20mbps", "bandwidth=20", "bandwidth=fast", "latency=50", "latency=-1ms", "speed=0", "speed=1/0",
     "dropout=1", "bandwidth=1mbps/2mbps", "speed", ","],
)  # fmt: skip
def test_a_clock_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(FedcarError, match="--clock") as error:
        parse_clock(text)
    assert "\n" not in str(error.value)
