"""A round over Flower on this machine: seconds, bytes, start and memory; beside the stock way and in process.

python benchmarks/federation_flower.py COLLECTION [--method head] [--questions N] [--rounds 6] [--cache DIR]
python benchmarks/federation_flower.py --large 100000        (memory when a head of so many documents travels)

The stock way is Flower's own: the SuperNode asks every 3 s and starts a process a message, which loads the encoder,
reads the collection and trains, with the same code, and with the same carrier on the server's side. Both ways train the
same rounds one after the other in this run; a round's overhead is its seconds by the server's clock without the longest
training.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from fedcar.collection.collection import Collection
from fedcar.common.progress import Console
from fedcar.federation.deploy import keys
from fedcar.federation.deploy import server as deploy
from fedcar.federation.deploy.enroll import enroll
from fedcar.federation.deploy.folder import ServerFolder, ServerSettings
from fedcar.federation.deploy.link import link_of, register
from fedcar.federation.deploy.processes import Child, free_port
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.simulate import over_flower as loopback
from fedcar.federation.simulate.federate import Federation, federate
from fedcar.federation.wire import flower
from fedcar.federation.wire.exchange import Exchange
from fedcar.federation.wire.payload import Payload
from fedcar.retriever.retriever import Retriever

DEVICES = 2
DEV = 20  # questions to choose by, where the training questions are cut too: through an adapter all are encoded anew
STOCK_APP = """
from pathlib import Path
from flwr.app import Message
from flwr.clientapp import ClientApp
app = ClientApp()

def answer(message, context):
    from fedcar.collection.collection import Collection
    from fedcar.encoder.encoder import Encoder
    from fedcar.encoder.cache import FeatureCache
    from fedcar.federation.device.device import Device
    from fedcar.federation.wire import flower
    from fedcar.federation.wire.payload import REQUESTS
    told = context.node_config
    device = Device(Collection.read(told["collection"]), Path(told["folder"]), Encoder.load(told["encoder"]),
                    FeatureCache(Path(told["cache"])))
    return Message(flower.records(device.answer(flower.payload_of(message.content, REQUESTS))), reply_to=message)

app.query()(answer)
app.train()(answer)
"""


class StockNode(Child):
    """A SuperNode as Flower's own command line starts it."""

    def __init__(self, place: ServerFolder, name: str, folder: Path, told: dict[str, str]) -> None:
        settings = place.settings()
        words = " ".join(f'{key}="{value}"' for key, value in told.items())
        command = [
            str(Path(sys.executable).with_name("flower-supernode")), "--superlink", f"127.0.0.1:{settings.link_port}",
            "--root-certificates", str(place.ca), "--auth-supernode-private-key", str(folder / f"{name}.key"),
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", words,
        ]  # fmt: skip
        environment = flower.environment(folder / "flower")
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        super().__init__(command, folder / "stock.log", environment)


def peak(process: int) -> float:
    """A process's highest resident memory in MB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def family(process: int) -> list[int]:
    found = [process]
    for one in found:
        children = Path(f"/proc/{one}/task/{one}/children")
        found += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found


def rounds_of(result: Federation) -> dict[str, Any]:
    """Medians over the rounds after the first."""
    records = result.rounds[1:] or result.rounds
    training = [max(record.client_seconds.values()) for record in records]
    whole = [record.clock_seconds for record in records]
    return {
        "seconds a round": round(median(whole), 2),
        "training": round(median(training), 2),
        "overhead": round(median(all_ - own for all_, own in zip(whole, training, strict=True)), 2),
        "first round": round(result.rounds[0].clock_seconds, 2),
        "kB a round": round(result.bytes_per_round / 1000),
    }


@contextmanager
def stock(cache: Path, deadline: float | None, report: Console, notes: dict[str, Any]) -> Iterator[Any]:
    """Like `loopback.over_flower`, with SuperNodes that start a process a message."""
    nodes: list[StockNode] = []
    with tempfile.TemporaryDirectory(prefix="fedcar-") as folder:
        running = loopback.Deployment(Path(folder), report)

        def over(untrained: Retriever, shares: Mapping[str, Collection]) -> RemoteNetwork:
            start = time.monotonic()
            for name, share in shares.items():
                share.write(running.folder / "collections" / name)
            running.serve(running.folder / "collections" / min(shares), str(untrained.encoder.folder))
            place, enrolled = running.place, {}
            for name in sorted(shares):
                own = running.folder / "devices" / name
                _, public = keys.keygen(own, name)
                enroll(place, public, None, None, register)
                enrolled[name] = int(place.nodes()[name]["node"])
                told = {
                    "collection": str(running.folder / "collections" / name), "folder": str(own / "state"),
                    "encoder": str(untrained.encoder.folder), "cache": str(cache),
                }  # fmt: skip
                nodes.append(StockNode(place, name, own, told))
                nodes[-1].start()
            while not all(link_of(place).nodes()[node].online for node in enrolled.values()):
                time.sleep(0.2)
            link = link_of(place)
            network = RemoteNetwork(
                lambda: link.session({"stock.py": STOCK_APP.encode()}, "stock:app"), enrolled, untrained,
                place.settings().documents, "stock", deadline=deadline, say=report.say,
            )  # fmt: skip
            network.greet(1.0)
            notes["start to first round, without the mixture"] = round(time.monotonic() - start, 1)
            return network

        try:
            yield over
        finally:
            for node in nodes:
                node.stop()
            running.stop()


@contextmanager
def ours(cache: Path, deadline: float | None, report: Console, notes: dict[str, Any]) -> Iterator[Any]:
    """`loopback.over_flower`, watched."""
    found: list[loopback.Deployment] = []
    made = loopback.Deployment

    class Watched(made):  # type: ignore[misg,valid-type]
        def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
            super().__init__(*arguments)
            found.append(self)

    loopback.Deployment = Watched  # type: ignore[misc]
    try:
        with loopback.over_flower(cache, deadline, report) as over:

            def timed(untrained: Retriever, shares: Mapping[str, Collection]) -> RemoteNetwork:
                start = time.monotonic()
                network = over(untrained, shares)
                network.greet(1.0)
                notes["start to first round, without the mixture"] = round(time.monotonic() - start, 1)
                return network

            yield timed
            (running,) = found
            processes = {"serve": running.server, **running.devices}
            notes["peak MB"] = {
                name: [round(peak(one)) for one in family(child.process.pid)]
                for name, child in processes.items()
                if child is not None and child.process is not None
            }
    finally:
        loopback.Deployment = made  # type: ignore[misc]


def compare(options: argparse.Namespace) -> None:
    report = Console()
    loaded = Collection.read(options.collection)
    if options.questions:
        chosen = np.random.default_rng(0).permutation(len(loaded.judged("train")))[: options.questions]
        ids = {loaded.judged("train").queries[row].id for row in chosen}
        training = {query: judged for query, judged in loaded.judgements["train"].items() if query in ids}
        dev = dict(list(loaded.judgements["dev"].items())[:DEV])
        loaded = replace(loaded, judgements={"train": training, "dev": dev})
    rounds = RoundSettings(rounds=options.rounds)
    common = {
        "clients": DEVICES, "method": options.method, "rounds": rounds, "compare": False, "cache": options.cache,
        "report": report,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = federate(loaded, run=Path(folder) / "local", **common)
        show("in process", options.method, rounds_of(result))
        ways: list[tuple[str, Any]] = [("fedcar over Flower", ours), ("stock Flower", stock)]
        for name, way in ways[: 1 if options.no_stock else 2]:
            notes: dict[str, Any] = {}
            start = time.monotonic()
            with way(options.cache, None, report, notes) as over:
                result = federate(loaded, run=Path(folder) / name, over=over, **common)
            lap = result.seconds
            row = {**rounds_of(result), **notes, "all": round(time.monotonic() - start, 1), "laps": lap}
            show(name, options.method, row)


def show(way: str, method: str, row: dict[str, Any]) -> None:
    print(json.dumps({"way": way, "method": method, **row}), flush=True)


def large(documents: int) -> None:
    """Send a head of so many rows to a device and back, and print what each process needed beyond its rest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = ServerFolder(folder / "server")
        place.folder.mkdir()
        keys.make_authority(place.folder)
        keys.make_certificate(place.folder, "link", deploy.LOOPBACK)
        keys.write_private(place.secret, secrets.token_hex(32).encode())
        port, own = free_port(), free_port()
        settings = ServerSettings("127.0.0.1", "127.0.0.1", 1, port, "", "", "", None, "")
        link_process = deploy.superlink(place, settings)
        link_process.start()
        link = flower.Link(f"127.0.0.1:{port}", place.ca.read_bytes(), place.secret.read_bytes())
        deploy.wait_for(link, link_process)
        keys.keygen(folder, "device")
        node = link.register(keys.read_public(folder / "device.pub")[1], "device")
        command = flower.supernode_command(own, f"127.0.0.1:{port}", place.ca, folder / "device.key", place.secret)
        supernode = Child(command, folder / "node.log", flower.environment(folder / "home"))
        supernode.start()
        echo = subprocess.Popen([sys.executable, __file__, "--echo", f"127.0.0.1:{own}", str(place.secret)])
        try:
            while not link.nodes()[node].online:
                time.sleep(0.2)
            session = link.session()
            processes = {
                "server": os.getpid(), "SuperLink": link_process.process.pid, "SuperNode": supernode.process.pid,
                "worker": echo.pid,
            }  # type: ignore[union-attr]  # fmt: skip
            rows = torch.randn(documents, 384)  # what the server has anyway
            size = rows.nbytes / 2**20
            time.sleep(5)
            rest = {what: peak(process) for what, process in processes.items()}
            start = time.monotonic()
            payload = Payload("train", {"setup": "", "round": 1}, {"weights": torch.zeros(1), "state/head.rows": rows})
            replies = Exchange(session, {"device": node}, 600.0, 1, most=2 * rows.nbytes).run({"device": payload})
            reply = replies.payloads["device"]
            assert torch.equal(reply.tensors["update/head.rows"], rows)
            spikes = {what: round((peak(one) - rest[what]) / size, 2) for what, one in processes.items()}
            seconds = round(time.monotonic() - start, 1)
            print(json.dumps({"documents": documents, "MB": round(size), "there and back": seconds, "peak": spikes}))
            session.close()
        finally:
            echo.terminate()
            supernode.stop()
            link_process.stop()


def echo(address: str, secret: Path) -> None:
    """A device that sends the state back as its update."""

    def answer(request: Payload) -> Payload:
        values = {"questions": 1, "loss": 0.0, "seconds": 0.0, "held_out": 0, "right": 0}
        return Payload("train", values, {"update/head.rows": request.tensors["state/head.rows"]})

    flower.work(address, secret.read_bytes(), answer, threading.Event())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("collection", nargs="?", type=Path)
    parser.add_argument("--method", default="head")
    parser.add_argument("--questions", type=int)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--large", type=int)
    parser.add_argument("--echo", nargs=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.echo:
        echo(options.echo[0], Path(options.echo[1]))
    elif options.large:
        large(options.large)
    else:
        compare(options)


if __name__ == "__main__":
    main()
