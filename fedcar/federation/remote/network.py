"""The server's side of a federation over a network: devices behind the interface that clients in this process have.

The carrier brings messages; quorum, deadlines, repetition and every check are here or in `round`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedcar.errors import FedcarError
from fedcar.federation.rounds.aggregate import FIXED, ROW_TENSORS
from fedcar.federation.rounds.compress import encode
from fedcar.federation.rounds.robust import share_right
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled, ServerState
from fedcar.federation.wire import schema
from fedcar.federation.wire.exchange import Carrier, Exchange, Replies
from fedcar.federation.wire.parts import RUBBISH
from fedcar.federation.wire.payload import STATE, Payload, Value, with_prefix
from fedcar.federation.wire.schema import Schema
from fedcar.federation.wire.setup import Setup
from fedcar.retriever.retriever import Retriever
from fedcar.training.settings import Settings
from fedcar.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedcar.training.noised.settings import PrivateSettings

BREATH = 1.0  # seconds before a connection that broke is opened again
RECONNECT = 120.0  # seconds in which a server that died must be back
DEADLINE = 600.0  # seconds, where none is given: a device that never answers costs that much once, not the run


@dataclass
class RemoteClient:
    """What the server has of a device; what it keeps from round to round stays with it."""

    name: str
    node: int
    enrolled: Enrolled | None = None

    def enrol(self) -> Enrolled:
        assert self.enrolled is not None
        return self.enrolled

    def kept(self) -> dict[str, Tensor]:
        return {}

    def load_kept(self, tensors: Mapping[str, Tensor], round_done: int | None = None) -> None:
        """Nothing: the device goes back by itself where a round is asked for again."""


class RemoteNetwork:
    """Devices behind the interface of a network: state and cohort in, answers out.

    `connect` opens a carrier, and is called again after it broke: a round whose carrier broke counts as not answered
    and is asked for again. `over_selection` asks that many times more devices than a round needs and goes on without
    the slowest.

    Formal guarantees:
        a device that never answers, answers late or sends rubbish costs a line in the history, not the run.
        a_lie_names_its_device_and_ends_nothing: nothing is asked without saying what may come back (see
            `fedcar.federation.wire.schema`); `marked` has who sent what is none of that, and the last reason.
    """

    def __init__(
        self,
        connect: Callable[[], Carrier],
        nodes: Mapping[str, int],
        retriever: Retriever,
        documents: str,
        run: str,
        *,
        deadline: float | None = None,
        over_selection: float = 1.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.connect, self.say = connect, say
        self.carrier: Carrier | None = None
        self.clients = {name: RemoteClient(name, node) for name, node in sorted(nodes.items())}
        self.retriever = retriever
        self.setup = Setup(run, __version__, retriever.encoder.untrained.state_fingerprint, documents, {}, {})
        self.settings = RoundSettings()
        self.deadline = deadline or DEADLINE
        self.over_selection = over_selection
        self.weights = torch.from_numpy(retriever.weights)
        self.documents = len(retriever.documents)
        self.marked: dict[str, str] = {}

    # ---------------------------------------------------------------- one exchange

    def ask(
        self,
        payloads: Mapping[str, Payload],
        expected: Mapping[str, Schema],
        needed: int | None = None,
        enough: int | None = None,
    ) -> Replies:
        """Ask each device its payload (see `Exchange`); all are `needed` where nothing else is said."""
        nodes = {name: self.clients[name].node for name in payloads}
        try:
            self.carrier = self.carrier or self._connected()
            needed = len(nodes) if needed is None else needed
            replies = Exchange(self.carrier, nodes, self.deadline, needed, enough, expected).run(payloads)
            for name, reason in replies.failed.items():
                self.mark(name, reason)
            return replies
        except Exception as error:
            if not _of_the_network(error):
                raise
            reason = f"the connection broke ({type(error).__name__})"
            self.say(f"{reason}; connecting again")
            self.close()
            time.sleep(BREATH)
            return Replies({}, dict.fromkeys(payloads, reason))

    def mark(self, name: str, reason: str) -> None:
        """Note who sent what no honest device sends, and say so where it is news."""
        if reason.startswith(RUBBISH) and self.marked.get(name) != reason:
            self.marked[name] = reason
            self.say(f"{name}: {reason}")

    def _connected(self) -> Carrier:
        """A new carrier; waits while the server is being restarted."""
        end = time.monotonic() + RECONNECT
        while True:
            try:
                return self.connect()
            except Exception as error:
                if not _of_the_network(error) or time.monotonic() > end:
                    raise
                time.sleep(BREATH)

    def close(self) -> None:
        carrier, self.carrier = self.carrier, None
        if carrier is not None:
            carrier.close()

    # ---------------------------------------------------------------- before the rounds

    def enrol(self, share: float, attempts: int = 3) -> dict[str, str]:
        """Ask every device for n_i and n_id; those that cannot take part, with the reason, are left out of the run.

        FedcarError where fewer than this `share` of them can.
        """

        def told(name: str, payload: Payload) -> None:
            values, counts = payload.values, payload.tensors["row_questions"]
            self.clients[name].enrolled = Enrolled(name, int(values["questions"]), counts, int(values["held_out"]))

        return self._taking_part(share, schema.enrol(self.documents), told, attempts)

    def _taking_part(
        self, share: float, expected: Schema, told: Callable[[str, Payload], None], attempts: int = 3
    ) -> dict[str, str]:
        """Leave those out that do not answer as `expected`, and say why; `told` hears what the others answer."""
        taking_part, missing, failed = {}, list(self.clients), {}
        for _ in range(attempts):
            asked = {name: Payload(expected.kind, {"setup": self.setup.json}) for name in missing}
            replies = self.ask(asked, dict.fromkeys(missing, expected))
            failed = dict(replies.failed)
            for name, payload in replies.payloads.items():
                told(name, payload)
                taking_part[name] = self.clients[name]
            missing = [name for name in failed if "broke" in failed[name]]
            if not missing:
                break
        if len(taking_part) < max(1, share * len(self.clients)):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(failed.items())[:5])
            raise FedcarError(
                f"{len(taking_part)} of {len(self.clients)} devices can take part ({reasons}); start fedcar join on "
                "the others, or see fedcar doctor there"
            )
        self.clients = dict(sorted(taking_part.items()))
        return failed

    def greet(self, share: float) -> dict[str, str]:
        """Ask every device whether it can take part, and nothing of its questions; the others are left out."""
        return self._taking_part(share, schema.GREET, lambda name, payload: None)

    def private(self, settings: PrivateSettings, run: str) -> None:
        """What every request of a run under epsilon says; `run` is its name in the devices' ledgers."""
        self.setup = replace(self.setup, run=run, settings=settings.values)

    def begin(self, settings: Settings, rounds: RoundSettings, weights: NDArray[np.float32]) -> None:
        """What every request of the rounds says from now on."""
        self.settings, self.weights = rounds, torch.from_numpy(weights)
        self.setup = replace(self.setup, settings=asdict(settings), rounds=asdict(rounds))

    # ---------------------------------------------------------------- held-out questions

    def held_out(self, state: ServerState) -> dict[str, float]:
        """Of how many held-out questions of all devices the state gets how many right; nothing where there are none."""
        width = len(self.retriever.weights)
        counts = [(by_state, questions) for questions, _, by_state in self._counted(torch.zeros(0, width), state)]
        held_out = sum(questions for _, questions in counts)
        return {"questions": held_out, "right": held_out * share_right(counts, len(self.clients))} if held_out else {}

    def held_out_by(self, among: Sequence[NDArray[np.float32]]) -> list[float]:
        """The share of the devices' held-out questions that search gets right with each of these weights."""
        told = self._counted(torch.stack([torch.from_numpy(weights) for weights in among]), None)
        return [
            share_right([(float(right[place]), questions) for questions, right, _ in told], len(self.clients))
            for place in range(len(among))
        ]

    def _counted(self, among: Tensor, state: ServerState | None) -> list[tuple[int, Tensor, int]]:
        """Of each device that answers: held-out questions, right ones by weights (k,), and by the state.

        A device has no more questions than it enrolled with (see `schema.count`).
        """
        requests, expected = {}, {}
        for name, client in self.clients.items():
            expected[name] = schema.count(len(among), client.enrol().held_out)
            wire = {} if state is None else self.sent_to(client.enrol(), state.tensors)
            tensors = {"weights": self.weights, "among": among, **with_prefix(wire, STATE)}
            values: dict[str, Value] = {"setup": self.setup.json, "round": 0 if state is None else state.round}
            requests[name] = Payload("count", values, tensors)
        replies: dict[str, Payload] = {}
        for _ in range(2):
            missing = {name: request for name, request in requests.items() if name not in replies}
            replies |= self.ask(missing, expected).payloads if missing else {}
        return [
            (int(payload.values["held_out"]), payload.tensors["right"], int(payload.values["trained"]))
            for _, payload in sorted(replies.items())
        ]

    def sent_to(self, device: Enrolled, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a device receives, against zeros: with private documents only the rows of its own."""
        if self.settings.private_documents:
            its_rows = (device.row_questions > 0)[:, None]
            rows = {name: tensors[name] * its_rows for name in ROW_TENSORS if name in tensors}
            tensors = {**tensors, **rows}
        trained = {name: tensor for name, tensor in tensors.items() if name not in FIXED}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
        wire, _ = encode(trained, zeros)
        return {**wire, **{name: tensors[name] for name in FIXED if name in tensors}}


def _of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpcore", "flwr")
