"""The server's side of the method `ridge` over a network: devices behind the interface of `RidgeClients`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fedcar.errors import FedcarError
from fedcar.federation.remote.mixture import RemoteMixture
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.sums.forms import PSEUDO, check_client, sums_from, tensors_of, words_of
from fedcar.federation.sums.ridge import share_of_right
from fedcar.federation.wire.exchange import MOST
from fedcar.federation.wire.payload import REASONS, Payload, Value
from fedcar.head.closed_form import Ridge, solve
from fedcar.retriever.retriever import Retriever
from fedcar.training.ridge import STRENGTHS, RidgeSums, Taught

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RemoteRidge:
    """Devices behind a network in the round of `ridge`; see `RidgeClients`.

    `held_out` keeps what share of the devices' held-out questions each weighting got right, to choose by where the
    server has none. A device that fails before its sums came is left out of everything, later only of what is still
    learned.
    """

    def __init__(self, network: RemoteNetwork, retriever: Retriever, dimension: int, seed: int) -> None:
        self.network, self.retriever, self.dimension = network, retriever, dimension
        network.setup = replace(network.setup, settings={"seed": seed})
        self.failed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.parts: dict[str, RidgeSums] = {}
        self.names: list[str] = []
        self.told: Callable[[], Payload] = lambda: Payload("greet")
        self.strength = 0.0
        self.held_out: dict[bytes, float] = {}

    def sums(self) -> dict[str, RidgeSums]:
        """Asked for once, and kept for the second candidate."""
        if not self.parts:
            missing = sorted(self.network.clients)
            for _ in range(2):
                replies = self._ask({name: Payload("statistics", self._setup()) for name in missing})
                missing = [name for name in missing if name not in replies]
                self.parts |= {name: found for name, one in replies.items() if (found := self._sound(name, one))}
                if not missing:
                    break
        if not self.parts:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.failed.items())[:5])
            raise FedcarError(f"no device gave any sums ({reasons}); see fedcar doctor on them, then fedcar resume")
        self.names = sorted(self.parts)
        return dict(sorted(self.parts.items()))

    def choose(self, taught: Taught) -> Ridge:
        tensors = {
            **tensors_of(RidgeSums(taught.statistics, taught.sums.words)),
            **words_of(taught.pseudo.words, PSEUDO),
        }
        tensors["pseudo_counts"] = torch.from_numpy(taught.pseudo.counts)
        self.told = lambda: Payload("taught", {**self._setup(), "questions": taught.statistics.questions}, tensors)
        replies = self._all(self.told)
        right = [replies[name].tensors["right"] for name in sorted(replies)]
        good = [one for one in right if one.shape == (len(STRENGTHS),) and bool(torch.isfinite(one).all())]
        counts = [sum(float(one[place]) for one in good) for place in range(len(STRENGTHS))]
        self.strength = STRENGTHS[counts.index(max(counts))]
        return solve(taught.statistics, self.strength)

    def mixing(self, share: float) -> RemoteMixture:
        return RemoteMixture(self.network, self.names, {"strength": self.strength, "share": share}, self._tell)

    def unseen_success(self, weights: NDArray[np.float32]) -> float:
        values: dict[str, Value] = {**self._setup(), "strength": self.strength}
        replies = self._all(lambda: Payload("unseen", values, {"weights": torch.from_numpy(weights)}))
        found = [(float(one.values["right"]), int(one.values["questions"])) for _, one in sorted(replies.items())]
        held = [(float(one.values["held_out_right"]), int(one.values["held_out"])) for one in replies.values()]
        self.held_out[weights.tobytes()] = share_of_right(held)
        return share_of_right(found)

    def held_out_share(self, weights: NDArray[np.float32]) -> float:
        """As it came with what was asked about document folds."""
        return self.held_out[weights.tobytes()]

    # ---------------------------------------------------------------- asking

    def _setup(self) -> dict[str, Value]:
        return {"setup": self.network.setup.json}

    def _ask(self, payloads: Mapping[str, Payload]) -> dict[str, Payload]:
        words = 1 << 28  # bytes of words and cross terms; the gram is known
        replies = self.network.ask(payloads, None, None, MOST + words + 4 * self.dimension**2)
        self.failed = {name: why for name, why in self.failed.items() if name not in replies.payloads} | replies.failed
        return replies.payloads

    def _all(self, payload: Callable[[], Payload]) -> dict[str, Payload]:
        """The replies of those that gave sums; one that was restarted meanwhile hears everybody's again."""
        found: dict[str, Payload] = {}
        for _ in range(3):
            found |= self._ask({name: payload() for name in self.names if name not in found})
            if len(found) == len(self.names):
                break
            self._tell([name for name in self.names if self.failed.get(name) == REASONS["taught"]])
        if not found:
            raise FedcarError("no device answers any more; see fedcar status, then fedcar resume")
        return found

    def _tell(self, names: Sequence[str]) -> None:
        if names:
            self._ask({name: self.told() for name in names})

    def _sound(self, name: str, payload: Payload) -> RidgeSums | None:
        known = self.network.clients[name].enrol()
        try:
            questions = int(payload.values["questions"])
            found = sums_from(payload.tensors, questions, len(self.retriever.documents), self.dimension)
            check_client(found.statistics, known.questions, known.row_questions)
        except ValueError as error:
            self.failed[name] = f"sent rubbish: {error}"
            return None
        return found
