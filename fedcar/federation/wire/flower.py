"""Flower carries the messages: the one module that imports it (flwr 1.41).

The server's side is a `Link` to a SuperLink on loopback, the device's side `Tasks` of its SuperNode. Both claim their
tasks themselves, with the executor's secret: no code travels, no process is started for a message, and what Flower
calls an app is an empty one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto import control_pb2, fleet_pb2, runtime_pb2
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedcar.errors import FedcarError, quoted
from fedcar.federation.wire.exchange import Away
from fedcar.federation.wire.objects import (
    MOST_ARRAYS,
    MOST_BYTES,
    MOST_OBJECTS,
    Coming,
    check_object,
    refuse_what_is_too_large,
)
from fedcar.federation.wire.parts import REPLY_PARTS, REQUEST_PARTS, InParts, rubbish
from fedcar.federation.wire.payload import REPLIES, REQUESTS, Form, Payload, ReplyError, checked, joined, parts
from fedcar.federation.wire.rest import TASK_POLL, Rest

ASKED, ANSWERED = {**REQUESTS, **REQUEST_PARTS}, {**REPLIES, **REPLY_PARTS}
SIGNED_BY = {"key": FLEET_HTTP_PUBLIC_KEY_HEADER, "time": TIMESTAMP_HEADER, "signature": FLEET_HTTP_SIGNATURE_HEADER}
CLOCK_AHEAD, CLOCK_BEHIND = float(SYSTEM_TIME_TOLERANCE), float(TIMESTAMP_TOLERANCE)  # seconds a device's clock may be
CLOCK_LINE = "this device's clock is"  # how the front's answer begins to a device that knows the time otherwise
OBJECT_POLL = 0.05
TASK_HEARTBEAT = 10.0
ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
APP = b"""[project]
name = "fedcar"
version = "1"
description = "Carries no code: both sides run the fedcar that is installed there"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "fedcar"
[tool.flwr.app.components]
serverapp = "none:app"
clientapp = "fedcar:none"
"""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


# -------------------------------------------------------------------- processes


def environment(home: Path) -> dict[str, str]:
    """The environment of a process of Flower: an own home, and no word to the outside."""
    return {**os.environ, **QUIET, "FLWR_HOME": str(home)}


def superlink_command(port: int, database: Path, secret: Path, tls: Mapping[str, Path]) -> list[str]:
    """A SuperLink on loopback, with node authentication and nothing run on its own; `tls`: ca, certificate, key."""
    return [
        sys.executable, "-c", "from flwr.superlink.cli.flower_superlink import flower_superlink; flower_superlink()",
        "--host", "127.0.0.1", "--port", str(port), "--database", str(database), "--enable-supernode-auth",
        "--isolation", "process", "--superexec-auth-secret-file", str(secret),
        "--disable-runtime-dependency-installation",
        "--ssl-ca-certfile", str(tls["ca"]), "--ssl-certfile", str(tls["certificate"]),
        "--ssl-keyfile", str(tls["key"]),
    ]  # fmt: skip


def supernode_command(port: int, address: str, ca: Path, key: Path, secret: Path) -> list[str]:
    """A SuperNode whose own interface is on loopback at `port`, connected to the server at `address`."""
    return [
        sys.executable, "-c", "from fedcar.federation.wire.flower import supernode; supernode()",
        "--host", "127.0.0.1", "--port", str(port), "--superlink", address, "--root-certificates", str(ca),
        "--auth-supernode-private-key", str(key),
        "--isolation", "process", "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def supernode() -> None:
    """Flower's SuperNode, which asks the server for messages as often as `Rest` says."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    made_ready(start_client_internal)
    flower_supernode()


def made_ready(module: ModuleType) -> None:
    """Flower's module of a SuperNode's work, with our waits, and with `pull_objects` of our own."""
    rest = Rest()

    def pulled(*arguments: Any, **options: Any) -> dict[str, bytes]:  # noqa: ANN401 - as Flower's own
        rest.quiet = 0.0
        return pull_objects(*arguments, **options)

    vars(module).update(time=rest, pull_objects=pulled)
    look_again_sooner()


def pull_objects(*arguments: Any, **options: Any) -> dict[str, bytes]:  # noqa: ANN401 - as Flower's own
    """The parts of a message; where its run ended meanwhile, an error by which the SuperNode forgets the message.

    By Flower's own RunNotRunningException the message and its task would stay, and the worker, which takes the task,
    would wait PULL_MAX_TIME (two hours) for parts that never come.
    """
    try:
        return inflatable_utils.pull_objects(*arguments, **options)
    except RunNotRunningException as error:
        raise RuntimeError("its run has ended") from error


def look_again_sooner() -> None:
    """A message is announced before its parts are there: look for them after OBJECT_POLL; Flower does after 1 s."""
    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), "initial_backoff": OBJECT_POLL}


# -------------------------------------------------------------------- payloads as messages


def records(payload: Payload) -> RecordDict:
    """A payload as Flower's records: every tensor in parts of a few megabytes."""
    arrays: OrderedDict[str, Array] = OrderedDict()
    for name, tensor in payload.tensors.items():
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        for number, part in enumerate(parts(tensor)):
            arrays[f"{name}#{number}"] = Array(dtype, shape, "fedcar", part)
    content = RecordDict({"values": ConfigRecord({"kind": payload.kind, **payload.values})})
    if arrays:
        content["tensors"] = ArrayRecord(arrays)
    return content


def payload_of(content: RecordDict, forms: Mapping[str, Form]) -> Payload:
    """What `records` was given, checked against the allow-list; ValueError, with the reason, for anything else."""
    if not set(content) <= {"values", "tensors"} or "values" not in content.config_records:
        raise ValueError(f"records {sorted(map(str, content))[:5]}")
    values: dict[str, Any] = dict(content.config_records["values"])
    kind = str(values.pop("kind", ""))
    pieces: dict[str, list[Array]] = {}
    if "tensors" in content:
        arrays = content.array_records["tensors"]
        size = sum(len(array.data) for array in arrays.values())
        if len(arrays) > MOST_ARRAYS or size > MOST_BYTES:
            raise ReplyError(f"{len(arrays)} arrays of {size} bytes in one message")
        for key, array in content.array_records["tensors"].items():
            name, _, number = key.rpartition("#")
            if number != str(len(pieces.setdefault(name, []))):
                raise ReplyError(f"part {quoted(key)} out of turn")
            pieces[name].append(array)
    checked(Payload(kind, values, dict.fromkeys(pieces)), forms)  # type: ignore[arg-type] # names before content
    tensors = {}
    for name, found in pieces.items():
        first = found[0]
        if any((array.dtype, array.shape) != (first.dtype, first.shape) for array in found):
            raise ReplyError(f"the parts of {quoted(name)} do not agree")
        tensors[name] = joined([array.data for array in found], first.dtype, tuple(first.shape))
    return Payload(kind, values, tensors)


# -------------------------------------------------------------------- the server's side


@dataclass(frozen=True)
class Node:
    """A device as the SuperLink knows it."""

    id: int
    online: bool
    since: str


class Link:
    """The server's connection to its SuperLink: devices, and one session at a time."""

    def __init__(self, address: str, ca: bytes, secret: bytes) -> None:
        self.address, self.ca, self.secret = address, ca, secret
        self.control = ControlHttpClient.from_server_address(
            address, False, ca, [RuntimeVersionHttpInterceptor(component_name="fedcar")]
        )

    def register(self, public_key: bytes, name: str) -> int:
        """Let a device in by its public key (PEM); its node id."""
        request = control_pb2.RegisterNodeRequest(public_key=public_key, name=name)
        return int(self.control.RegisterNode(request).node_id)

    def nodes(self) -> dict[int, Node]:
        nodes = self.control.ListNodes(control_pb2.ListNodesRequest()).nodes_info
        return {node.node_id: Node(node.node_id, node.status == "online", node.last_activated_at) for node in nodes}

    def session(self, files: Mapping[str, bytes] | None = None, client: str = "fedcar:none") -> Session:
        """A run of Flower's, whose server task is this process itself; `files` and `client` for a stock SuperNode."""
        app = APP.replace(b'fedcar:none"\n', client.encode() + b'"\n')
        fab = build_fab_from_files({"pyproject.toml": app, "README.md": b"empty\n", **(files or {})})[0]
        request = control_pb2.StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})))
        run = self.control.StartRun(request).run_id
        if not run:
            raise FedcarError("the SuperLink started no run; its log in the server's folder says why")
        with executor(self.address, False, self.ca, self.secret) as runtime:
            token = claim(runtime, TaskType.SERVER_APP, run)
        return Session(self, run, token)


class Session:
    """Sends payloads to nodes and collects what they reply, until it is closed.

    Formal guarantees:
        nobody_answers_for_another: a message has a secret that its receiver alone is told, and a reply without it is
            none. Flower believes what a reply says of its sender.
    """

    def __init__(self, link: Link, run: int, token: str) -> None:
        self.link, self.run = link, run
        self.coming: dict[str, Coming] = {}
        self.secrets: dict[str, str] = {}  # of messages that are on their way
        self.grid = HttpGrid(link.address, False, link.ca, token=token)
        self.grid._runtime_client._client.event_hooks["response"].append(refuse_what_is_too_large)
        self.grid._retry_invoker.max_tries = 3
        self.grid._retry_invoker.should_giveup = is_final
        task_input = self.grid._runtime_client.PullTaskInput(runtime_pb2.PullTaskInputRequest())
        self.grid.set_run(run_from_proto(task_input.run))
        self.task, self.node = task_input.task_id, task_input.context.node_id
        self.heartbeat = Heartbeat(self.grid._runtime_client)

    def send(self, node: int, payload: Payload, seconds: float) -> str:
        """Send one payload, which is void after `seconds`; the message's id."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, self.node, self.task
        kind = "train" if payload.kind == "train" else "query"
        secret = secrets.token_hex(16)
        message = Message(records(checked(payload, ASKED)), node, kind, ttl=max(seconds, 10.0), group_id=secret)
        (message_id,) = self.grid.push_messages([message])
        if not message_id:
            raise ValueError("not connected")
        self.secrets[str(message_id)] = secret
        return str(message_id)

    def collect(self, ids: Iterable[str]) -> list[tuple[str, Payload | str]]:
        """What has come back so far: message id and the reply, or why there is none.

        Nothing is waited for: a reply is announced before its parts are there, and a device that is killed in between
        would otherwise keep all others waiting for three minutes, past any deadline.
        """
        message_ids = set(ids)
        self.coming = {name: coming for name, coming in self.coming.items() if name in message_ids}
        self.secrets = {name: secret for name, secret in self.secrets.items() if name in message_ids}
        client = self.grid._runtime_client
        replies: list[tuple[str, Payload | str]] = []
        if wanted := message_ids - set(self.coming):
            pulled = client.PullMessages(runtime_pb2.PullAppMessagesRequest(message_ids=wanted))
            for message, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
                name, metadata = message.metadata.reply_to_message_id, message.metadata
                nodes = islice(iterate_object_tree(tree), MOST_OBJECTS + 1)
                pieces = list(dict.fromkeys(one.object_id for one in nodes))
                coming = Coming(metadata.message_id, pieces)
                if not hmac.compare_digest(metadata.group_id.encode(), self.secrets.get(name, "").encode()):
                    self._let_go(coming)
                    replies.append((name, Away("somebody else answered in its place")))
                elif len(pieces) > MOST_OBJECTS:
                    self._let_go(coming)
                    replies.append((name, rubbish(ReplyError(f"more than {MOST_OBJECTS} parts in one message"))))
                else:
                    self.coming[name] = coming
        for name, coming in list(self.coming.items()):
            try:
                if not self._whole(coming):
                    continue
                replies.append((name, _reply(coming)))
            except inflatable_utils.ObjectPullError:
                replies.append((name, Away("its answer was lost on the way")))
            except ReplyError as error:
                self._let_go(coming)
                replies.append((name, rubbish(error)))
            del self.coming[name]
        return replies

    def _whole(self, coming: Coming) -> bool:
        """Pull the parts that are there; whether that is all of them."""
        pull = make_pull_object_fn_protobuf(self.grid._runtime_client.PullObject, self.grid.node, self.run)
        while coming.missing:
            try:
                coming.take(pull(coming.missing[0]))
            except inflatable_utils.ObjectUnavailableError:
                return False
        self._let_go(coming)
        return True

    def _let_go(self, coming: Coming) -> None:
        """The SuperLink need not keep this reply any longer."""
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.run, message_object_id=coming.message)
        )

    def there(self) -> dict[int, str]:
        """The nodes that are online, each with the time since when."""
        return {node.id: node.since for node in self.link.nodes().values() if node.online}

    def close(self) -> None:
        self.heartbeat.stop()
        with suppress(httpx.HTTPError):
            request = runtime_pb2.PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details="")
            self.grid._runtime_client.PushTaskOutput(request)
        with suppress(httpx.HTTPError):
            self.link.control.StopRun(control_pb2.StopRunRequest(run_id=self.run))
        self.grid.close()


def is_final(error: Exception) -> bool:
    """Whether trying again makes no difference: any answer but that of a server which is starting.

    Flower's own ends the whole process (SIGINT) where a token is no longer known, as after a minute without a
    heartbeat; by this the error arrives, and a new session is opened.
    """
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in (502, 503, 504)


def _reply(coming: Coming) -> Payload | str:
    """What came, as a payload of the allow-list or why it is none: no device can send what ends the run."""
    try:
        for content in coming.parts.values():
            check_object(content)
        message = cast(Message, inflatable_utils.inflate_object_from_contents(coming.message, coming.parts))
        if message.has_error():
            return Away(f"no answer (Flower's error {message.error.code})")
        return payload_of(message.content, ANSWERED)
    except Exception as error:  # whatever these parts are
        return rubbish(error)


# -------------------------------------------------------------------- the device's side


def knows(address: str, ca: bytes, key: EllipticCurvePrivateKey, node: int, *, make_room: bool = False) -> None:
    """Ask the server whether it knows this device's key; FedcarError, with the way out, if not.

    `make_room` takes a former SuperNode of this device for gone, where it was killed a moment ago.
    """
    signs = NodeAuthHttpInterceptor(key, key.public_key())
    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="fedcar"), signs]
    with FleetHttpClient.from_server_address(address, False, ca, interceptors) as client:
        try:
            client.GetRun(GetRunRequest(node=FlowerNode(node_id=node), run_id=0))  # no such run: only the key matters
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (502, 503, 504):
                raise FedcarError(f"{address}: the server is starting; try again in a few seconds") from error
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                if error.response.text.startswith(CLOCK_LINE):
                    raise FedcarError(f"{address}: {error.response.text[:200].strip()}; set both by NTP") from error
                raise FedcarError(
                    f"{address}: does not know this device's key; have its .pub file enrolled there"
                ) from error
        except (httpx.HTTPError, ValueError) as error:
            raise FedcarError(f"{address}: does not answer ({error}); is fedcar serve running there?") from error
        if make_room:
            with suppress(httpx.HTTPError):
                client.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=node))


Answer = Callable[[Payload], Payload]


def work(address: str, secret: bytes, answer: Answer, stopped: threading.Event) -> None:
    """Answer the messages that a SuperNode at `address` receives, one at a time, until stopped.

    `answer` gives a payload to every request and does not raise; nothing else is ever sent.
    """
    look_again_sooner()
    answer = InParts(answer, REQUESTS)
    with executor(address, True, None, secret) as client:
        while not stopped.wait(TASK_POLL):
            try:
                acquired = client.AcquireTask(
                    runtime_pb2.AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP.value])
                )
                if acquired.HasField("task") and acquired.token:
                    _work_once(address, acquired.token, answer)
            except httpx.HTTPError:  # the SuperNode is not there yet, or is coming back
                stopped.wait(1.0)
            except Exception:  # whatever it was, the next message is answered; the server hears that this one was not
                traceback.print_exc(file=sys.stderr)
                stopped.wait(1.0)


def _work_once(address: str, token: str, answer: Answer) -> None:
    with _client(address, True, None, [RuntimeTokenHttpInterceptor(token)]) as client:
        heartbeat = Heartbeat(client)
        try:
            try:
                message, context, _, _ = pull_task_input(client)
            except (inflatable_utils.ObjectPullError, RuntimeError):
                return  # its run ended, and the SuperNode has forgotten the message
            try:
                request = payload_of(message.content, ASKED)
            except Exception as error:  # whatever the server sent, it hears that it was not understood
                print(f"a message that was not understood: {rubbish(error)}", file=sys.stderr)  # noqa: T201 - its log
                request = Payload("unknown")
            reply = Message(records(checked(answer(request), ANSWERED)), reply_to=message)
            del message, request
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        finally:
            heartbeat.stop()


class Heartbeat:
    """Tells every TASK_HEARTBEAT seconds that a claimed task is alive."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self.client, self.stopped = client, threading.Event()
        self._beat()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        with suppress(httpx.HTTPError):
            self.client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())

    def _run(self) -> None:
        while not self.stopped.wait(TASK_HEARTBEAT):
            self._beat()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


def claim(client: RuntimeHttpClient, kind: TaskType, run: int, seconds: float = 20.0) -> str:
    """The token of the run's task; what is left over of other runs is claimed on the way and dies out."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        acquired = client.AcquireTask(runtime_pb2.AcquireTaskRequest(supported_task_types=[kind.value]))
        if acquired.HasField("task") and acquired.token and acquired.task.run_id == run:
            return str(acquired.token)
        time.sleep(TASK_POLL)
    raise FedcarError("the SuperLink gave out no task; restart fedcar serve")


@contextmanager
def executor(address: str, insecure: bool, ca: bytes | None, secret: bytes) -> Iterator[RuntimeHttpClient]:
    """A client that may claim tasks, by the executor's secret."""
    with _client(
        address, insecure, ca, [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=ACQUIRE)]
    ) as client:
        yield client


@contextmanager
def _client(address: str, insecure: bool, ca: bytes | None, more: list[Any]) -> Iterator[RuntimeHttpClient]:
    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="fedcar"), *more]
    client = RuntimeHttpClient.from_server_address(address, insecure, ca, interceptors)
    try:
        yield client
    finally:
        client.close()
