"""What carries messages: payloads as Flower's records, the processes it needs, and how they are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.command import environment

pytest.importorskip("flwr")

from fedcar.errors import FedcarError  # noqa: E402
from fedcar.federation.deploy import keys  # noqa: E402
from fedcar.federation.deploy import server as deploy  # noqa: E402
from fedcar.federation.deploy.folder import ServerFolder  # noqa: E402
from fedcar.federation.deploy.link import link_of  # noqa: E402
from fedcar.federation.deploy.processes import Child, free_port  # noqa: E402
from fedcar.federation.wire import flower, rest  # noqa: E402
from fedcar.federation.wire.exchange import Exchange  # noqa: E402
from fedcar.federation.wire.payload import REPLIES, REQUESTS, Payload  # noqa: E402

pytest_plugins = ("support.served",)


@pytest.mark.slow
def test_a_message_travels_through_superlink_and_supernode(place: ServerFolder, tmp_path: Path) -> None:
    """The real ones, as processes: TLS, the device's key, the executor's secrets, a payload in parts and back."""
    settings = place.settings()
    link_process = deploy.superlink(place, settings)
    keys.keygen(tmp_path, "a")
    secret, stopped, own = tmp_path / "secret", threading.Event(), free_port()
    secret.write_text("s" * 64)

    def answer(request: Payload) -> Payload:
        values = {"questions": 1, "loss": 0.5, "seconds": 0.0, "held_out": 0, "right": 0}
        return Payload("train", values, {"update/head.rows": 2 * request.tensors["state/head.rows"]})

    worker = threading.Thread(target=flower.work, args=(f"127.0.0.1:{own}", secret.read_bytes(), answer, stopped))
    node_process = None
    try:
        link_process.start()
        link = link_of(place)
        deploy.wait_for(link, link_process)
        node = link.register(keys.read_public(tmp_path / "a.pub")[1], "a")
        address = f"127.0.0.1:{settings.link_port}"
        command = flower.supernode_command(own, address, place.ca, tmp_path / "a.key", secret)
        node_process = Child(command, tmp_path / "node.log", flower.environment(tmp_path / "home"))
        node_process.start()
        worker.start()
        deadline = time.monotonic() + 120
        while not link.nodes()[node].online and time.monotonic() < deadline:
            time.sleep(0.1)
        session = link.session()
        rows = torch.arange(3.0 * 2**20).reshape(3, -1)  # 12 MB: three of Flower's arrays
        state = {"weights": torch.zeros(2), "state/head.rows": rows}
        payload = Payload("train", {"setup": "{}", "round": 1}, state)
        replies = Exchange(session, {"a": node}, 60.0, 1).run({"a": payload})
        assert replies.failed == {} and replies.payloads["a"].values["loss"] == 0.5
        assert torch.equal(replies.payloads["a"].tensors["update/head.rows"], 2 * rows)
        flower.knows(address, place.ca.read_bytes(), keys.read_private(tmp_path / "a.key"), node)
        keys.keygen(tmp_path, "stranger")
        with pytest.raises(FedcarError, match="does not know this device's key"):
            flower.knows(address, place.ca.read_bytes(), keys.read_private(tmp_path / "stranger.key"), node)
        session.close()
    finally:
        stopped.set()
        if node_process is not None:
            node_process.stop()
        link_process.stop()
        worker.join(20)


def test_parts_that_are_not_there_yet_are_looked_for_soon() -> None:
    """Flower's own way waits a second, and a round has three such waits."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

    asked: list[str] = []

    def pull(name: str) -> bytes:
        asked.append(name)
        if len(asked) < 3:
            raise ObjectUnavailableError(name)
        return b"there"

    flower.look_again_sooner()
    start = time.monotonic()
    assert pull_objects(["one"], pull) == {"one": b"there"} and time.monotonic() - start < 0.9


def test_a_supernode_forgets_a_message_whose_run_ended_before_its_parts_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Flower message and task stay, and the worker waits two hours for the parts: a server killed in between."""
    from flwr.supercore.inflatable.inflatable_object import get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supercore.run import Run, RunNotRunningException
    from flwr.supernode import start_client_internal
    from flwr.supernode.nodestate import NodeStateFactory

    for name in ("time", "pull_objects"):  # put back afterwards
        monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))
    flower.TaskIdentity.run_id, flower.TaskIdentity.node_id, flower.TaskIdentity.task_id = 7, 1, 1
    stores = ObjectStoreFactory()
    state, store = NodeStateFactory(stores).state(), stores.store()
    state.store_run(Run.create_empty(7))
    message = flower.Message(flower.records(Payload("train", {"setup": "{}", "round": 1})), 3, "train")
    message.metadata.__dict__.update(_run_id=7, _message_id=message.object_id)
    tree = get_object_tree(message)

    def ended(*arguments: object) -> bytes:
        raise RunNotRunningException

    flower.made_ready(start_client_internal)
    found = start_client_internal._pull_and_store_message(
        state, store, {}, lambda: (message, tree), ended, ended, ended, ended, None
    )
    assert found is None and not list(state.get_tasks(statuses=["pending", "starting", "running"]))
    assert not list(state.get_messages_legacy(run_ids=[7], is_reply=False))


def test_a_device_at_rest_asks_less_often_until_a_message_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a twentieth of the time that nothing came, from half a second to four; other waits stay as short."""
    waits: list[float] = []
    monkeypatch.setattr(rest.time, "sleep", waits.append)
    monkeypatch.setattr(flower.inflatable_utils, "pull_objects", lambda: {})
    module = SimpleNamespace()
    flower.made_ready(module)
    for _ in range(120):
        module.time.sleep(3)
    assert waits[:20] == [rest.NODE_POLL] * 20, "ten seconds, in which a run asks the next"
    assert waits == sorted(waits) and waits[-1] == rest.NODE_REST == max(waits)
    assert all(wait <= max(rest.NODE_POLL, rest.PATIENCE * sum(waits[:n])) for n, wait in enumerate(waits))
    module.time.sleep(0.5)
    module.pull_objects()
    module.time.sleep(3)
    assert waits[-2:] == [rest.TASK_POLL, rest.NODE_POLL]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> flower.Session:
    """A session whose SuperLink is played: `HttpGrid._runtime_client`."""
    from flwr.supercore.run import Run

    class Played:
        _client = SimpleNamespace(event_hooks={"response": []})

        def PullTaskInput(self, request: object) -> object:
            state = SimpleNamespace(node_id=1)
            return SimpleNamespace(run=None, task_id=1, context=state)

        def SendTaskHeartbeat(self, request: object) -> None:
            """Nothing."""

    monkeypatch.setattr(flower, "run_from_proto", lambda run: Run.create_empty(7))
    monkeypatch.setattr(flower.HttpGrid, "_runtime_client", Played())
    found = flower.Session(SimpleNamespace(address="127.0.0.1:1", ca=None), 7, "token")
    found.heartbeat.stop()
    flower.TaskIdentity.run_id, flower.TaskIdentity.node_id, flower.TaskIdentity.task_id = 7, 1, 1
    return found


def test_a_reply_whose_parts_are_on_their_way_is_not_waited_for(session: flower.Session) -> None:
    """In Flower the server waits three minutes for the parts of a device that was killed in between."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.proto import message_pb2, runtime_pb2
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    message = flower.Message(flower.records(Payload("taught", {}, {"right": torch.arange(4.0)})), 3, "query")
    message.metadata.__dict__.update(_run_id=7, _reply_to_message_id="asked")
    message.metadata.__dict__["_message_id"] = message.object_id
    content = {name: found.deflate() for name, found in get_all_nested_objects(message).items()}
    there, asked = {message.object_id}, []

    class Link:
        def PullMessages(self, request: object) -> object:
            asked.append(list(request.message_ids))
            if asked[-1] != ["asked"]:
                return runtime_pb2.PullAppMessagesResponse()
            proto = message_to_proto(remove_content_from_message(message))
            return runtime_pb2.PullAppMessagesResponse(
                messages_list=[proto], message_object_trees=[get_object_tree(message)]
            )

        def PullObject(self, request: object) -> object:
            name = request.object_id
            return message_pb2.PullObjectResponse(
                object_found=name in content, object_available=name in there, object_content=content.get(name, b"")
            )

        def ConfirmMessageReceived(self, request: object) -> None:
            assert request.message_object_id == message.object_id

    flower.HttpGrid._runtime_client = Link()
    start = time.monotonic()
    assert session.collect(["asked"]) == session.collect(["asked", "other"]) == []
    assert asked == [["asked"], ["other"]] and time.monotonic() - start < 1
    there.update(content)
    ((name, reply),) = session.collect(["asked"])
    assert name == "asked" and reply.tensors["right"].equal(torch.arange(4.0)) and asked == [["asked"], ["other"]]
    there.clear()
    assert session.collect(["asked"]) == []
    content.clear()  # the SuperLink has given it up
    assert session.collect(["asked"]) == [("asked", flower.Away("its answer was lost on the way"))]
    assert asked[2:] == [["asked"]] and session.coming == {}


def test_nobody_answers_for_another(session: flower.Session) -> None:
    """Who does not know a message's secret is no sender of its reply: its receiver is asked again, nothing is read."""
    from flwr.proto import message_pb2, runtime_pb2

    let_go: list[str] = []

    class Link:
        def PullMessages(self, request: object) -> object:
            metadata = message_pb2.Metadata(message_id="forged", reply_to_message_id="asked", group_id="guessed")
            return runtime_pb2.PullAppMessagesResponse(
                messages_list=[message_pb2.Message(metadata=metadata)],
                message_object_trees=[message_pb2.ObjectTree(object_id="forged")],
            )

        def ConfirmMessageReceived(self, request: object) -> None:
            let_go.append(request.message_object_id)

    flower.HttpGrid._runtime_client = Link()
    session.secrets = {"asked": "secret"}
    assert session.collect(["asked"]) == [("asked", flower.Away("somebody else answered in its place"))]
    assert let_go == ["forged"] and session.coming == {}


def test_parts_that_are_no_reply_are_a_line_not_the_end() -> None:
    """A device chooses what it sends: a record instead of a message, children that are not there, a kind unheard of."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    records = flower.records(Payload("taught", {}, {"right": torch.arange(4.0)}))
    content = {name: found.deflate() for name, found in get_all_nested_objects(records).items()}
    message = flower.Message(records, 3, "query")
    alone = {message.object_id: message.deflate()}
    for name, parts in ((records.object_id, content), (message.object_id, alone), ("x", {"x": b"Nothing \x00"})):
        reply = flower._reply(flower.Coming(name, [], dict(parts)))
        assert isinstance(reply, str) and reply.startswith("sent rubbish: "), reply


def test_a_message_that_cannot_be_answered_does_not_end_the_worker(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where a reply could not be handed to the SuperNode: the device goes on with the next message."""
    stopped, answered = threading.Event(), []

    def once(*_: object) -> None:
        answered.append(1)
        if len(answered) == 1:
            raise RuntimeError("Failed to push object")
        stopped.set()

    task = SimpleNamespace(HasField=lambda name: True, token="token")
    link = SimpleNamespace(AcquireTask=lambda request: task)
    monkeypatch.setattr(flower, "executor", lambda *_: nullcontext(link))
    monkeypatch.setattr(flower, "_work_once", once)
    monkeypatch.setattr(stopped, "wait", lambda seconds: stopped.is_set())
    flower.work("127.0.0.1:1", b"", lambda request: request, stopped)
    assert len(answered) == 2 and "Failed to push object" in capfd.readouterr().err


def test_a_token_that_is_no_longer_known_does_not_end_the_process(session: flower.Session) -> None:
    """Flower's own sends SIGINT to the process; here the error arrives, and `RemoteNetwork` connects again."""
    import httpx

    tried: list[int] = []

    def refused(status: int) -> None:
        tried.append(status)
        request = httpx.Request("POST", "https://127.0.0.1:1/")
        raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))

    session.grid._retry_invoker.wait_function = lambda seconds: None
    for status in (401, 403, 503):
        with pytest.raises(httpx.HTTPStatusError):
            session.grid._retry_invoker.invoke(refused, status)
    assert tried[:2] == [401, 403] and tried[2:] == [503] * 3, "a server that is starting is asked again"


def test_a_payload_goes_through_flowers_records_unchanged() -> None:
    tensors = {
        "weights": torch.randn(5).double(),
        "state/head.rows": torch.randn(3000, 500),  # 6 MB: two parts
        "state/empty": torch.zeros(0, 4),
        "state/steps": torch.tensor(7),
        "state/half": torch.randn(3).to(torch.bfloat16),
        "state/head.active": torch.tensor([True, False]),
    }
    payload = Payload("train", {"setup": "{}", "round": 3}, tensors)
    content = flower.records(payload)
    found = flower.payload_of(content, REQUESTS)
    assert found.kind == "train" and dict(found.values) == dict(payload.values)
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor), name
    with pytest.raises(ValueError, match="unknown kind"):
        flower.payload_of(flower.records(Payload("question", {})), REPLIES)
    with pytest.raises(ValueError, match="fields"):
        flower.payload_of(flower.records(Payload("enrol", {"questions": 1, "why": "x"})), REPLIES)
    content["more"] = content["values"]
    with pytest.raises(ValueError, match="records"):
        flower.payload_of(content, REQUESTS)


def test_what_flower_is_started_with_keeps_it_quiet_and_fenced(tmp_path: Path) -> None:
    tls = {"ca": tmp_path, "certificate": tmp_path, "key": tmp_path}
    command = flower.superlink_command(1234, tmp_path / "db", tmp_path / "secret", tls)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    for option in ("--enable-supernode-auth", "--database", "--disable-runtime-dependency-installation"):
        assert option in command
    assert command[command.index("--isolation") + 1] == "process" and "--superexec-auth-secret-file" in command
    assert "--insecure" not in command
    quiet = flower.environment(tmp_path)
    assert quiet["FLWR_TELEMETRY_ENABLED"] == "0" and quiet["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert quiet["FLWR_HOME"] == str(tmp_path) and quiet["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent ended")
def test_a_child_ends_with_its_parent_even_by_kill_9(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from fedcar.federation.deploy.processes import Child
child = Child([sys.executable, "-c", "import time; time.sleep(100)"], Path(sys.argv[1]))
child.start()
print(child.process.pid, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_that_dies_is_started_again_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("fedcar.federation.deploy.processes.time.monotonic", lambda: now[0])
    child = Child([sys.executable, "-c", "print('out of luck')"], tmp_path / "log")
    child.start()
    started = []
    for _ in range(200):
        assert child.process is not None
        child.process.wait()
        if child.keep_alive():
            started.append(now[0] - 100)
        now[0] += 0.5
    waits = [after - before for before, after in zip([0.0, *started], started, strict=False)]
    assert waits[:5] == pytest.approx([1, 2, 4, 8, 16], abs=1.1) and max(waits) <= 31
    assert child.last_line() == "out of luck"
