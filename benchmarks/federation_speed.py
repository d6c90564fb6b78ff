"""How much faster a federation trains than one device with all questions: the same epochs in all, one core a device.

python benchmarks/federation_speed.py COLLECTION [--method head|adapter] [--rounds 20] [--local-epochs 1]
    [--questions N] [--cache DIR]

Two clients for real: two processes, each pinned to a core of its own, against one process on one core; beside them what
two pinned copies of a fixed piece of work (one client's own training) reach on this machine, which is the ceiling. Of
every time the least of `--repeat` interleaved runs counts, so that other work on the machine disturbs least. Then the
curve to 32 clients by the virtual clock, from seconds of one core, with three networks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from federation_quality import Bench
from safetensors.torch import load, save

from fedcar.federation.job.job import first_tensors, matched, with_federated_mixture
from fedcar.federation.rounds.aggregate import aggregate, check_updates
from fedcar.federation.rounds.client import Client, Train
from fedcar.federation.rounds.clock import parse_clock
from fedcar.federation.rounds.in_process import LocalNetwork
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState, Update
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.gradient import prepared, with_learned

NETWORKS = {
    "none": None,
    "1 Gbit/s, 1 ms": "bandwidth=1gbps,latency=1ms,server=1gbps",
    "20 Mbit/s, 50 ms": "bandwidth=20mbps,latency=50ms,server=1gbps",
}


class Device(multiprocessing.get_context("fork").Process):  # type: ignore[name-defined,misc]
    """A process pinned to one core that trains a client when it is asked to."""

    def __init__(self, core: int, client: Callable[[], Client], settings: RoundSettings) -> None:
        super().__init__(daemon=True)
        self.core, self.client, self.settings = core, client, settings
        self.here, self.there = multiprocessing.Pipe()

    def run(self) -> None:
        os.sched_setaffinity(0, {self.core})
        torch.set_num_threads(1)
        serve(self.client(), self.settings, self.there)

    def ask(self, state: dict[str, torch.Tensor], number: int) -> None:
        self.here.send_bytes(number.to_bytes(4, "big") + save(state))

    def answer(self) -> dict[str, torch.Tensor]:
        return load(self.here.recv_bytes())


def serve(client: Client, settings: RoundSettings, pipe: Connection) -> None:
    pipe.send_bytes(b"")
    while content := pipe.recv_bytes():
        number = int.from_bytes(content[:4], "big")
        pipe.send_bytes(save(dict(client.train(load(content[4:]), settings, number).tensors)))


class World:
    """What all devices start from; a client is built in its own process."""

    def __init__(
        self, bench: Bench, method: str, adapter: str, rounds: int, local_epochs: int, questions: int | None
    ) -> None:
        self.training = bench.training if questions is None else bench.training.take(np.arange(questions))
        self.base, _ = with_federated_mixture(bench.untrained, {"all": self.training})
        options = RoundSettings(rounds=rounds, local_epochs=local_epochs, seed=bench.seed)
        # of one client: the same local batches however many there are, as rows have them
        self.settings, self.rounds = matched(bench.settings(method, adapter), options, len(self.training), 1)

    def retriever(self) -> Retriever:
        head = prepared(self.base.head, self.settings)
        return Retriever(
            self.base.encoder, self.base.documents, self.base.evidence, head, with_learned(self.base.weights)
        )

    def client(self, name: str, share: Questions, timer: Callable[[], float] = time.perf_counter) -> Client:
        return Client(name, self.retriever(), share, self.settings, timer=timer)

    def shares(self, clients: int) -> list[Questions]:
        order = np.random.default_rng(0).permutation(len(self.training))
        return [self.training.take(rows) for rows in np.array_split(order, clients)]


def two_pinned(world: World, cores: list[int], repeat: int) -> None:
    """Wall seconds of central on one core, of two devices, and of a fixed piece of work alone and twice at once."""
    a, b = world.shares(2)
    whole = Device(cores[0], lambda: world.client("all", world.training), world.rounds)
    first, second = (
        Device(core, lambda name=name, share=share: world.client(name, share), world.rounds)
        for core, name, share in zip(cores, "ab", (a, b), strict=True)
    )
    for device in (whole, first, second):
        device.start()
        device.here.recv_bytes()
    names = {"a": world.client("a", a), "b": world.client("b", b)}
    enrolled = {name: client.enrol() for name, client in names.items()}
    start = first_tensors(names["a"].trainer, enrolled, world.rounds)
    seconds: dict[str, list[float]] = {name: [] for name in ("central", "federated", "alone", "pair")}
    for _ in range(repeat):
        seconds["central"].append(timed(lambda: rounds_of([whole], start, world.rounds)))
        seconds["federated"].append(timed(lambda: federated([first, second], start, enrolled, world.rounds)))
        seconds["alone"].append(timed(lambda: rounds_of([first], start, world.rounds)))
        seconds["pair"].append(timed(lambda: rounds_of([first, second], start, world.rounds)))
    best = {name: min(values) for name, values in seconds.items()}
    speedup, ceiling = best["central"] / best["federated"], 2 * best["alone"] / best["pair"]
    spread = ", ".join(f"{name} {best[name]:.2f} (median {statistics.median(seconds[name]):.2f})" for name in seconds)
    print(f"two pinned processes, {world.rounds.rounds} rounds, least of {repeat}: {spread} s")
    print(f"speed-up {speedup:.2f}; two copies of a fixed piece of work {ceiling:.2f}; {speedup / ceiling:.2f} of it")
    for device in (whole, first, second):
        device.here.send_bytes(b"")
        device.join()


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds_of(devices: list[Device], state: dict[str, torch.Tensor], settings: RoundSettings) -> None:
    """The devices train side by side, each on its own, as long as the rounds last."""
    for number in range(1, settings.rounds + 1):
        for device in devices:
            device.ask(state, number)
        for device in devices:
            device.answer()


def federated(
    devices: list[Device], state: dict[str, torch.Tensor], enrolled: dict[str, Enrolled], settings: RoundSettings
) -> None:
    moments: dict[str, torch.Tensor] = {}
    for number in range(1, settings.rounds + 1):
        for device in devices:
            device.ask(state, number)
        updates = [
            Update(name, device.answer(), enrolled[name].questions, {}, 0.0, 0)
            for name, device in zip(sorted(enrolled), devices, strict=True)
        ]
        checked = check_updates(updates, state, enrolled, settings)
        state, moments = aggregate(state, moments, checked.accepted, enrolled, settings)


def server_seconds(
    updates: Sequence[Update], state: dict[str, torch.Tensor], enrolled: dict[str, Enrolled], settings: RoundSettings
) -> float:
    start = time.process_time()
    checked = check_updates(updates, state, enrolled, settings)
    aggregate(state, {}, checked.accepted, enrolled, settings)
    return time.process_time() - start


def curve(world: World, counts: list[int], repeat: int) -> None:
    """One round by the virtual clock for each number of clients, from CPU seconds of one core, least of a few."""
    print("| clients | " + " | ".join(NETWORKS) + " | Amdahl | slowest client, s | server, s | bytes a client |")
    print("|---|" + "---|" * (len(NETWORKS) + 4))
    alone = 0.0
    for count in [1, *counts]:
        members = {
            f"c{number:02}": world.client(f"c{number:02}", share, time.process_time)
            for number, share in enumerate(world.shares(count))
        }
        enrolled = {name: client.enrol() for name, client in members.items()}
        state = first_tensors(next(iter(members.values())).trainer, enrolled, world.rounds)
        network = LocalNetwork(members, world.rounds, parse_clock(None))
        request = Train(ServerState(0, state), world.rounds, 1)
        runs = [network.ask(request) for _ in range(repeat)]  # the same round each time
        updates = list(runs[-1].given.values())
        local = [min(answers.given[name].seconds for answers in runs) for name in network.names]
        server = min(server_seconds(updates, state, enrolled, world.rounds) for _ in range(repeat))
        if count == 1:
            alone = local[0]
            continue
        cells = []
        checked = check_updates(updates, state, enrolled, world.rounds)
        state, _ = aggregate(state, {}, checked.accepted, enrolled, world.rounds)
        _, down = network.sent_to(next(iter(members.values())), state)
        up = updates[0].bytes
        for text in NETWORKS.values():
            clock = parse_clock(text)
            wall = [clock.client_seconds(place, one, down, up) for place, one in enumerate(local)]
            cells.append(f"{alone / (clock.round_seconds(wall, count * (down + up)) + server):.2f}")
        amdahl = alone / (server + alone / count)
        print(
            f"| {count} | {' | '.join(cells)} | {amdahl:.1f} | {max(local):.3f} | {server:.4f} | {down + up:,} |",
            flush=True,
        )


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--method", default="head")
    parser.add_argument("--adapter", default="full")
    parser.add_argument("--encoder", default="all-MiniLM-L6-v2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--questions", type=int, help="only the first N training questions")
    parser.add_argument("--clients", default="2,3,4,8,16,32")
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-pinned", action="store_true", help="leave the two processes out")
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.collection, arguments.cache, arguments.encoder, 0)
    world = World(
        bench, arguments.method, arguments.adapter, arguments.rounds, arguments.local_epochs, arguments.questions
    )
    print(
        f"{bench.collection.name}, {arguments.method}: {len(world.training)} training questions, "
        f"{arguments.local_epochs} local epochs a round"
    )
    if not arguments.no_pinned:
        two_pinned(world, [int(core) for core in arguments.cores.split(",")], arguments.repeat)
    curve(world, [int(count) for count in arguments.clients.split(",")], arguments.repeat)


if __name__ == "__main__":
    main()
