"""The TLS front: what passes it, what ends at it, and what it holds meanwhile. Every socket here is a real one."""

from __future__ import annotations

import os
import random
import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator

import pytest

pytest.importorskip("flwr")

import httpx  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from support import strangers  # noqa: E402
from support.served import Upstream, let_in, signed  # noqa: E402

from fedcar.common.files import replace_json  # noqa: E402
from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation.deploy import front as deploy_front  # noqa: E402
from fedcar.federation.deploy import listener, places  # noqa: E402
from fedcar.federation.deploy.folder import ServerFolder  # noqa: E402
from fedcar.federation.deploy.processes import free_port  # noqa: E402
from fedcar.federation.wire import flower  # noqa: E402

pytest_plugins = ("support.served",)

PUSH, PULL, BEAT = (f"/v1/fleet/{name}" for name in ("push-object", "pull-messages", "send-node-heartbeat"))


@pytest.fixture
def key(place: ServerFolder) -> ec.EllipticCurvePrivateKey:
    """That of an enrolled device."""
    return let_in(place, "a")


@pytest.fixture
def client(place: ServerFolder, front: str) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cadata=place.ca.read_text())
    with httpx.Client(verify=context, base_url=front) as opened:
        yield opened


def connected(front: str, place: ServerFolder) -> ssl.SSLSocket:
    host, _, port = front.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cadata=place.ca.read_text())
    return context.wrap_socket(socket.create_connection((host, int(port)), 20), server_hostname=host)


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends it while we wait."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# -------------------------------------------------------------------- what passes


def test_the_front_passes_only_the_fleet_prefix(
    client: httpx.Client, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(1 << 20)
    answer = client.post(PUSH, content=content, headers={**signed(key), "content-type": "x/y", "cookie": "no"})
    assert answer.status_code == 200 and answer.content == content[::-1]
    path, came, headers = Upstream.asked[0]
    assert (path, came) == (PUSH, content)
    names = {name.lower() for name in headers}
    assert names == {
        "host", "content-length", "content-type", "accept", "accept-encoding", "connection", "user-agent",
        "flwr-public-key", "flwr-timestamp", "flwr-signature",
    }  # fmt: skip
    for path in (
        "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/docs", "/",
        "/v1/fleet/", "/v1/fleet/a/b", "/v1/fleet/register-node", "/v1/fleet/pull-messages?run=1",
        "/v1/fleet/%2e%2e/control/list-nodes",
    ):  # fmt: skip
        assert client.post(path, content=b"x", headers=signed(key)).status_code == 404, path
    assert client.get(PULL, headers=signed(key)).status_code == 405
    assert client.post(PUSH, content=iter([b"x"]), headers=signed(key)).status_code == 413
    monkeypatch.setattr(deploy_front, "LARGEST_REQUEST", 100)
    assert client.post(PUSH, content=b"x" * 101, headers=signed(key)).status_code == 413
    assert len(Upstream.asked) == 1, "nothing else reached the SuperLink"


def test_the_front_speaks_tls_alone_and_says_when_the_superlink_is_away(place: ServerFolder) -> None:
    port, key = free_port(), let_in(place, "a")
    certificate, own = place.folder / "front.pem", place.folder / "front.key"
    server = deploy_front.start(f"127.0.0.1:{free_port()}", place, "127.0.0.1", port, certificate, own)
    try:
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{port}{PULL}", content=b"x")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.post(f"https://127.0.0.1:{port}{PULL}", content=b"x")
        context = ssl.create_default_context(cadata=place.ca.read_text())
        answer = httpx.post(f"https://127.0.0.1:{port}{PULL}", content=b"x", verify=context, headers=signed(key))
        assert answer.status_code == 503
        with pytest.raises(FedcarError, match="cannot listen on 127.0.0.1 port"):
            deploy_front.start(f"127.0.0.1:{free_port()}", place, "127.0.0.1", port, certificate, own)
    finally:
        server.should_exit = True


def test_a_heartbeat_that_fails_is_tried_again(client: httpx.Client, key: ec.EllipticCurvePrivateKey) -> None:
    """Flower's device never sends one again after a 500, as of a full disk; other answers pass as they are."""
    Upstream.status = 500
    assert client.post(BEAT, content=b"x", headers=signed(key)).status_code == 503
    assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 500


# -------------------------------------------------------------------- whose request it is


def test_only_an_enrolled_devices_signature_of_now_passes(
    client: httpx.Client, key: ec.EllipticCurvePrivateKey
) -> None:
    good, stranger = signed(key), ec.generate_private_key(ec.SECP384R1())
    junk = b64encode(b"x" * 90).decode()
    for headers, says in (
        ({}, "not signed by an enrolled device"),
        ({**good, "flwr-public-key": "%"}, "not signed by an enrolled device"),
        ({**good, "flwr-public-key": junk}, "no enrolled device has this key"),
        (signed(stranger), "no enrolled device has this key"),
        ({**good, "flwr-signature": signed(stranger)["flwr-signature"]}, "the signature is not of this key"),
        ({**good, "flwr-signature": junk}, "the signature is not of this key"),
        ({**good, "flwr-timestamp": "2026-01-01T00:00:00+00:00"}, "the signature is not of this key"),
        (signed(key, 7.0), r"this device's clock is [67] s ahead of the server's; at most 5 s ahead and 300 s behind"),
        (signed(key, -302.0), r"this device's clock is 30\d s behind the server's"),
    ):
        answer = client.post(PULL, content=b"x", headers=headers)
        assert answer.status_code == 401 and re.match(says, answer.text), (answer.text, says)
        assert answer.headers["connection"] == "close"
    assert not Upstream.asked
    for ahead in (4.0, -280.0):
        assert client.post(PULL, content=b"x", headers=signed(key, ahead)).status_code == 200


def test_a_device_that_is_enrolled_or_taken_out_counts_at_once(client: httpx.Client, place: ServerFolder) -> None:
    def asks(key: ec.EllipticCurvePrivateKey) -> int:
        return client.post(PULL, content=b"x", headers=signed(key)).status_code

    one = let_in(place, "a")
    assert asks(one) == 200
    two = let_in(place, "b")
    assert (asks(one), asks(two)) == (200, 200)
    replace_json(place.nodes_file, {name: node for name, node in place.nodes().items() if name != "a"})
    assert (asks(one), asks(two)) == (401, 200)
    place.nodes_file.write_text("{")
    assert (asks(one), asks(two)) == (401, 200), "a file that cannot be read now takes nobody out"
    place.nodes_file.unlink()
    assert asks(two) == 401


def test_flowers_own_device_is_let_in_and_told_of_its_clock(
    front: str, place: ServerFolder, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own headers, names and forms, as Flower makes them."""
    address, ca = front.removeprefix("https://"), place.ca.read_bytes()
    monkeypatch.setattr(Upstream, "empty", True)
    flower.knows(address, ca, key, 1)
    assert len(Upstream.asked) == 1
    with pytest.raises(FedcarError, match="does not know this device's key; have its .pub file enrolled there"):
        flower.knows(address, ca, ec.generate_private_key(ec.SECP384R1()), 1)
    import datetime

    monkeypatch.setattr(
        "flwr.supernode.node_auth_http_interceptor.now",
        lambda: datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=7),
    )
    with pytest.raises(FedcarError, match=r"this device's clock is [67] s ahead of the server's; .*; set both by NTP"):
        flower.knows(address, ca, key, 1)
    assert len(Upstream.asked) == 1


# -------------------------------------------------------------------- strangers


def test_nothing_of_a_strangers_body_is_read(client: httpx.Client, front: str, place: ServerFolder) -> None:
    """It is refused by its head alone, and the connection ends."""
    with connected(front, place) as connection:
        connection.sendall(strangers.head(60 << 20))
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        assert ended(connection)
    assert not Upstream.asked


def test_slow_strangers_end_in_seconds_and_hold_up_no_device(
    client: httpx.Client,
    front: str,
    place: ServerFolder,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them than there are connections to the SuperLink; they announce, and send nothing, or byte by byte."""
    for module, name, most in ((listener, "STRANGER_SECONDS", 2.0), (places, "OF_ONE_ADDRESS", 30)):
        monkeypatch.setattr(module, name, most)
    host, _, port = front.removeprefix("https://").rpartition(":")
    held = []
    for first, _ in strangers.SLOW[:4] * 20:
        opened = connected(front, place) if first else socket.create_connection((host, int(port)), 20)
        opened.sendall(first)
        held.append(opened)
        if len(held) % 10 == 0:
            assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    assert all(map(ended, held))
    assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 200


def test_a_devices_body_that_does_not_come_in_time_takes_no_connection_to_the_superlink(
    client: httpx.Client,
    front: str,
    place: ServerFolder,
    key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deploy_front, "SECONDS", 1.0)
    more = "".join(f"{name}: {value}\r\n" for name, value in signed(key).items())
    with connected(front, place) as connection:
        connection.sendall(strangers.head(1000, PUSH, more) + b"abc")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        assert ended(connection)
    with connected(front, place) as connection:  # and one that leaves in the middle is no traceback
        connection.sendall(strangers.head(1000, PUSH, more) + b"abc")
    assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    assert [path for path, _, _ in Upstream.asked] == [PULL]


def test_a_body_above_the_small_ones_lies_in_a_file_without_a_name(
    client: httpx.Client, place: ServerFolder, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, content = set(place.folder.iterdir()), os.urandom(3 << 20)
    rolled = []
    real = deploy_front.SpooledTemporaryFile.rollover
    monkeypatch.setattr(deploy_front.SpooledTemporaryFile, "rollover", lambda spool: rolled.append(real(spool)))
    assert client.post(PUSH, content=content, headers=signed(key)).content == content[::-1]
    assert client.post(PUSH, content=content[:1000], headers=signed(key)).content == content[:1000][::-1]
    assert len(rolled) == 2 and set(place.folder.iterdir()) == before, "the body and its answer"

    def full(spool: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy_front.SpooledTemporaryFile, "rollover", full)
    assert client.post(PUSH, content=content, headers=signed(key)).status_code == 503
    assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 200, "a small one needs no room"


def test_rubbish_is_refused_without_a_word_in_the_log(
    client: httpx.Client,
    front: str,
    place: ServerFolder,
    key: ec.EllipticCurvePrivateKey,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes above 127, broken chunks, thousands of headers, what is not HTTP: 400 to 431, or the connection ends."""
    monkeypatch.setattr(listener, "STRANGER_SECONDS", 1.0)
    monkeypatch.setattr(deploy_front, "SECONDS", 1.0)
    dice, seen = random.Random(5), []
    for number in range(120):
        with connected(front, place) as connection:
            connection.settimeout(20)
            try:
                request = strangers.rubbish(dice)
                if number % 3 == 0:  # behind a signature, rubbish is refused too
                    more = "".join(f"{name}: {value}\r\n" for name, value in signed(key).items())
                    request = request.replace(b"host: x\r\n", b"host: x\r\n" + more.encode())
                connection.sendall(request + b"\r\n\r\n")
                answer = connection.recv(4096)
            except OSError:
                answer = b""
            seen.append(answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else "ended")
            assert seen[-1] in {"ended", "100", "200", "400", "401", "404", "405", "408", "411", "413"}, (
                request,
                answer,
            )
    assert {"200", "400", "401", "404", "405"} <= set(seen), seen
    assert client.post(PULL, content=b"x", headers=signed(key)).status_code == 200
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and "Invalid HTTP" not in out + err and "never" not in out + err


def test_an_address_is_what_the_socket_says_whatever_a_header_does(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    real = places.Places.take
    monkeypatch.setattr(places.Places, "take", lambda self, host, close: taken.append(host) or real(self, host, close))
    client.post("/", headers={"x-forwarded-for": "192.0.2.9", "forwarded": "for=192.0.2.9"})
    assert taken == ["127.0.0.1"]
