"""A whole deployment on this machine: server and devices as real processes, for simulation and for tests."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedcar.collection.collection import Collection
from fedcar.common.progress import Silent
from fedcar.errors import FedcarError
from fedcar.federation.deploy import keys
from fedcar.federation.deploy.enroll import enroll
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.link import START_SECONDS, link_of, register
from fedcar.federation.deploy.processes import Child, fedcar_command, free_port
from fedcar.federation.ledgers import file_name
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.simulate.settings import Over
from fedcar.retriever.retriever import Retriever

MOST_DEVICES = 16
DEVICE_SECONDS = 300.0


class Deployment:
    """SERVER and DEVICES below one folder; `serve` and every `join` is a process of its own."""

    def __init__(self, folder: Path, report: Silent | None = None) -> None:
        self.folder, self.report = folder, report or Silent()
        self.place = ServerFolder(folder / "server")
        self.server: Child | None = None
        self.devices: dict[str, Child] = {}
        self.threads = os.cpu_count() or 1  # of each device; more of them than cores wait for each other

    def serve(
        self,
        collection: Path,
        encoder: str,
        pooling: str | None = None,
        port: int | None = None,
        prompts: tuple[str, str] | None = None,
    ) -> None:
        """Start the server on loopback and wait until it lets devices in."""
        words = ["serve", "--data-dir", self.place.folder, "--host", "127.0.0.1", "--port", port or free_port()]
        words += ["--collection", collection, "--encoder", encoder, *(("--pooling", pooling) if pooling else ())]
        if prompts is not None:
            words += ["--query-prompt", prompts[0], "--document-prompt", prompts[1]]
        self.server = Child(fedcar_command(*words), self.folder / "serve.log")
        self.server.start()
        self.wait(self.ready, START_SECONDS, self.server, "the server")

    def ready(self) -> bool:
        log = self.folder / "serve.log"
        return log.exists() and "serving on" in log.read_text(encoding="utf-8", errors="replace")

    def join(
        self, name: str, collection: Path, encoder: str, cache: Path | None = None, ledger: Path | None = None
    ) -> None:
        """Make a device's keys, let it in and start it."""
        device = self.folder / "devices" / name
        if name not in self.devices:
            _, public = keys.keygen(device, name)
            enroll(self.place, public, None, None, register)
        words = ["join", "--file", device / f"{name}.join", "--collection", collection, "--encoder", encoder]
        words += ["--data-dir", device / "state", *(("--cache", cache) if cache else ())]
        words += ("--ledger", ledger) if ledger else ()
        # their collections are copies for this run alone, which the user's own ledgers do not know of
        threads = {"OMP_NUM_THREADS": str(self.threads), **os.environ, "XDG_STATE_HOME": str(self.folder / "state")}
        self.devices[name] = Child(fedcar_command(*words), self.folder / f"{name}.log", threads)
        self.devices[name].start()

    def wait_for_devices(self) -> None:
        """Until every device is online."""
        for name, child in self.devices.items():
            node = int(self.place.nodes()[name]["node"])
            self.wait(lambda node=node: link_of(self.place).nodes()[node].online, DEVICE_SECONDS, child, name)  # type: ignore[misc]

    def wait(self, done: Callable[[], bool], seconds: float, child: Child, what: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            if not child.alive:
                raise FedcarError(f"{what} did not start: {child.last_line()}")
            if time.monotonic() > end:
                raise FedcarError(f"{what} did not start within {seconds:.0f} s; {child.log} says why")
            time.sleep(0.2)

    def stop(self) -> None:
        for child in (*self.devices.values(), self.server):
            if child is not None and child.process is not None:
                child.process.terminate()
        for child in (*self.devices.values(), self.server):
            if child is not None:
                child.stop()


@contextmanager
def over_flower(cache: Path | None, deadline: float | None, report: Silent) -> Iterator[Over]:
    """What `federate` puts its clients behind: a deployment in a temporary folder, which is gone afterwards."""
    with ExitStack() as stack:

        def over(untrained: Retriever, shares: Mapping[str, Collection], ledgers: Path | None = None) -> RemoteNetwork:
            if len(shares) > MOST_DEVICES:
                raise FedcarError(
                    f"--engine flower: {len(shares)} clients would be as many processes, each with an encoder; give at "
                    f"most {MOST_DEVICES}, or --engine local"
                )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedcar-")))
            deployment = Deployment(folder, report)
            stack.callback(deployment.stop)
            encoder, pooling = str(untrained.encoder.folder), untrained.encoder.pooling
            nodes = {f"device-{number:03}": name for number, name in enumerate(sorted(shares), 1)}
            for name, client in nodes.items():
                shares[client].write(folder / "collections" / name)
            manner = untrained.encoder.model.manner
            prompts = manner.query_prompt, manner.document_prompt
            deployment.serve(folder / "collections" / "device-001", encoder, pooling, prompts=prompts)
            deployment.threads = max(1, deployment.threads // len(nodes))
            for name, client in nodes.items():
                ledger = None if ledgers is None else ledgers.resolve() / file_name(client)
                deployment.join(name, folder / "collections" / name, encoder, cache, ledger)
            deployment.wait_for_devices()
            place = deployment.place
            enrolled = {client: int(place.nodes()[name]["node"]) for name, client in nodes.items()}
            network = RemoteNetwork(
                lambda: link_of(place).session(), enrolled, untrained, place.settings().documents, folder.name,
                deadline=deadline, say=report.say,
            )  # fmt: skip
            stack.callback(network.close)
            return network

        yield over
