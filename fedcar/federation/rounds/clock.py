"""The virtual clock: measured seconds and a model of devices and network make the wall time of a real federation."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedcar.errors import FedcarError, quoted

UNITS = {"kbps": 1e3, "mbps": 1e6, "gbps": 1e9, "ms": 1e-3, "s": 1.0, "": 1.0}
RATE, TIME, NUMBER = ("kbps", "mbps", "gbps"), ("ms", "s"), ("",)
KEYS = {"bandwidth": RATE, "server": RATE, "latency": TIME, "speed": NUMBER, "question": TIME, "dropout": NUMBER}
EXAMPLE = "bandwidth=20mbps,latency=50ms,speed=1/0.5,dropout=0.1"


@dataclass(frozen=True)
class VirtualClock:
    """What a device and its connection are like; the default is this machine without a network.

    `bandwidth` (bits a second, each direction) of a client, `server` of the server, which all share; `latency` in
    seconds one way; `speed` against this machine, given to the clients in turn; `question` seconds a question and
    epoch instead of the measured ones, so that equal runs have equal times; `dropout` the probability that a client
    does not answer in a round.
    """

    bandwidth: float = float("inf")
    server: float = float("inf")
    latency: float = 0.0
    speed: tuple[float, ...] = (1.0,)
    question: float | None = None
    dropout: float = 0.0

    def client_seconds(self, place: int, measured: float, down: int, up: int) -> float:
        """From the server's sending to its receiving; `place` is the client's number, `down` and `up` are bytes."""
        return 2 * self.latency + 8 * (down + up) / self.bandwidth + measured / self.speed[place % len(self.speed)]

    def training_seconds(self, measured: float, questions: int, epochs: int) -> float:
        return measured if self.question is None else self.question * questions * epochs

    def round_seconds(self, clients: Sequence[float], bytes_all: int, deadline: float | None = None) -> float:
        """The slowest client, or the server's own line where that is busier; no longer than the deadline."""
        slowest = max([*clients, 2 * self.latency + 8 * bytes_all / self.server])
        return min(slowest, deadline) if deadline is not None else slowest

    def drops_out(self, client: str, number: int, attempt: int, seed: int) -> bool:
        """Whether the client does not answer, seeded by seed, round, attempt and client."""
        return self.dropout > 0 and random.Random(f"{seed}/{number}/{attempt}/{client}").random() < self.dropout


def parse_clock(text: str | None) -> VirtualClock:
    """`bandwidth=20mbps,latency=50ms,...` as a clock; refuses unknown keys, units and values."""
    values: dict[str, float | tuple[float, ...]] = {}
    for part in (text or "").split(","):
        key, _, value = (word.strip().lower() for word in part.partition("="))
        if not text:
            break
        if key not in KEYS:
            raise FedcarError(
                f"--clock {quoted(text)}: {quoted(key)} is none of {', '.join(KEYS)}; try {quoted(EXAMPLE)}"
            )
        numbers = tuple(_number(number, key, text) for number in value.split("/"))
        if len(numbers) > 1 and key != "speed":
            raise FedcarError(f"--clock {quoted(text)}: {key} takes one value; try {quoted(EXAMPLE)}")
        values[key] = numbers if key == "speed" else numbers[0]
    return VirtualClock(**_within_range(values, text))  # type: ignore[arg-type]


def _number(value: str, key: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", value)
    if match is None or match[2] not in KEYS[key]:
        unit = f" with one of the units {', '.join(KEYS[key])}" if KEYS[key] != NUMBER else ""
        raise FedcarError(f"--clock {quoted(text)}: {key} {quoted(value)} is not a number{unit}; try {quoted(EXAMPLE)}")
    return float(match[1]) * UNITS[match[2]]


def _within_range(
    values: Mapping[str, float | tuple[float, ...]], text: str | None
) -> Mapping[str, float | tuple[float, ...]]:
    for key, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if key in ("bandwidth", "server", "speed") and min(numbers) <= 0:
            raise FedcarError(f"--clock {quoted(text)}: {key} must be above 0")
        if key == "dropout" and max(numbers) >= 1:
            raise FedcarError(
                f"--clock {quoted(text)}: dropout must be below 1; a client that never answers is no client"
            )
    return values
