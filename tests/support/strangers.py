"""What strangers do at an open port: slow connections, bodies that nobody signed, and rubbish; a process of its own.

python strangers.py slow|bodies|fuzz HOST PORT NUMBER SECONDS. It prints one JSON object, after SECONDS or, for `fuzz`,
once NUMBER requests are answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

BODY = 60 << 20
PATH = "/v1/fleet/push-object"
STEPS = 0.5  # seconds between two bytes of a slow one


TLS = ssl.create_default_context()
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE


def head(length: int | str, path: str = PATH, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{more}\r\n".encode("latin-1")


SLOW: tuple[tuple[bytes, bytes], ...] = (  # what is sent first, and then again and again
    (b"", b""),  # nothing, not even TLS
    (head(1000), b""),  # a body is announced, and none comes
    (b"POST / HTTP/1.1\r\nx: ", b"a"),  # a head that never ends
    (head(1 << 20), b"a"),  # a body byte by byte
    (head(5).replace(b"content-length: 5", b"transfer-encoding: chunked") + b"5\r\nab", b""),
    (b"", b""),  # TLS, and nothing behind it
)


async def slow(host: str, port: int, number: int, end: float, seen: Counter[str]) -> None:
    """One of the six ways to be slow; who is closed comes again."""
    first, then = SLOW[number % len(SLOW)]
    while time.monotonic() < end:
        seen["connections"] += 1
        writer = None
        try:
            connecting = asyncio.open_connection(host, port, ssl=TLS if number % len(SLOW) else None)
            reader, writer = await asyncio.wait_for(connecting, 60)
            writer.write(first)
            while time.monotonic() < end:
                writer.write(then)
                await writer.drain()
                with suppress(asyncio.TimeoutError):
                    if not await asyncio.wait_for(reader.read(4096), STEPS):
                        break
        except (OSError, asyncio.TimeoutError) as error:
            seen[type(error).__name__] += 1
            await asyncio.sleep(0.1)
        finally:
            if writer is not None:
                writer.transport.abort()


async def bodies(host: str, port: int, number: int, end: float, seen: Counter[str]) -> None:
    """A body of 60 MB that nobody signed, again and again."""
    part = b"\0" * (64 << 10)
    while time.monotonic() < end:
        writer = None
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=TLS)
            writer.write(head(BODY, more="content-type: application/x-protobuf\r\n"))
            for _ in range(BODY // len(part)):
                writer.write(part)
                seen["bytes"] += len(part)
                await writer.drain()
            answer = await asyncio.wait_for(reader.read(4096), 60)
            seen[answer[9:12].decode("latin-1")] += 1
        except (OSError, asyncio.TimeoutError) as error:
            seen[type(error).__name__] += 1
            await asyncio.sleep(0.05)
        finally:
            if writer is not None:
                writer.transport.abort()


def rubbish(dice: random.Random) -> bytes:
    """One request that may be anything."""
    anything = dice.randbytes(dice.choice([1, 10, 100, 1000]))
    printable = "".join(dice.choice("abcXYZ019%/?:;,=\"'{}[]()<>@ \t") for _ in range(dice.randrange(1, 60)))
    path = dice.choice(
        [*[PATH] * 5, "/", "/v1/fleet/pull-messages", "//", "*", "/" + printable.replace(" ", ""), "http://[/"]
    )
    good, length = head(4, path) + b"abcd", b"content-length: 4"
    chunked = head(4, path).replace(length, b"transfer-encoding: chunked")
    signed = "".join(f"{name}: {dice.choice([printable, 'QQ==', '====', 'A' * 3000])}\r\n" for name in SIGNING)
    lengths = ["-1", "4, 4", "9" * 40, "x", "\xb2", "+4", "0x4", "", "4\r\ncontent-length: 5"]
    chunks = [b"zz\r\nabc", b"ffffffffffffffff\r\n", b"4\r\nabcdef\r\n0\r\n\r\n", b"-1\r\n", anything]
    methods = [b"GET", b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE", b"P\xf6ST", b""]
    versions = [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"http/1.1"]
    hosts = [b"host: [", b"host: a:b:c", b"host: \xff", b"host: ", b"host: x\r\nhost: y", b"x: y"]
    spoilt = bytearray(good)
    for _ in range(dice.randrange(1, 6)):
        spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
    return dice.choice(
        [
            anything,
            bytes(spoilt),
            good[: dice.randrange(len(good))],
            head(4, path, f"flwr-signature: {anything.decode('latin-1')}\xe4\xff\r\n") + b"abcd",
            head(4, path, "x: \xe4\xff\r\n") + b"abcd",
            head(4, path, "".join(f"x-{n}: {n}\r\n" for n in range(dice.choice([100, 3000])))) + b"abcd",
            head(4, path, f"x: {'a' * dice.choice([8000, 20000, 70000])}\r\n") + b"abcd",
            head(4, path, signed) + b"abcd",
            head(4, path, f"{printable}\r\n") + b"abcd",
            head(4, path, f"x: {printable}\x00\x01\x7f\r\n folded\r\n") + b"abcd",
            head(4, path, f"expect: {dice.choice(['100-continue', 'x'])}\r\n") + b"abcd",
            head(4, path, f"connection: upgrade\r\nupgrade: {dice.choice(['websocket', 'h2c', 'x'])}\r\n") + b"abcd",
            head(dice.choice(lengths), path) + b"abcd",
            chunked + dice.choice(chunks),
            good.replace(length, b"transfer-encoding: gzip, chunked, " + anything[:20]),
            good.replace(b"POST", dice.choice(methods)),
            good.replace(b"HTTP/1.1", dice.choice(versions)),
            good.replace(b"host: x", dice.choice(hosts)),
            good.replace(b"\r\n", b"\n"),
            good + good + anything,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + anything,
        ]
    )


SIGNING = ("flwr-public-key", "flwr-timestamp", "flwr-signature")


async def fuzz(host: str, port: int, number: int, requests: int, seen: Counter[str]) -> None:
    """Requests from `rubbish`, each on a connection of its own, and what came back."""
    dice = random.Random(number)
    for _ in range(requests):
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=TLS)
            writer.write(rubbish(dice))
            if dice.random() < 0.9:  # what is left waits for the server to end it
                writer.write(b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(4096), 30)
            seen[answer[9:12].decode("latin-1") if answer else "closed"] += 1
            writer.transport.abort()
        except (OSError, asyncio.TimeoutError) as error:
            seen[type(error).__name__] += 1


async def attack(kind: str, host: str, port: int, number: int, seconds: float) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    if kind == "fuzz":
        share = [number // 20 + (one < number % 20) for one in range(20)]
        await asyncio.gather(*(fuzz(host, port, one, count, seen) for one, count in enumerate(share)))
    else:
        one = {"slow": slow, "bodies": bodies}[kind]
        await asyncio.gather(*(one(host, port, n, time.monotonic() + seconds, seen) for n in range(number)))
    return dict(seen)


if __name__ == "__main__":
    _, KIND, HOST, PORT, NUMBER, SECONDS = sys.argv
    print(json.dumps(asyncio.run(attack(KIND, HOST, int(PORT), int(NUMBER), float(SECONDS)))))
