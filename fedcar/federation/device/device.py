"""The device's side of a federation over a network: a warm worker that answers the server's requests.

Encoder, documents and questions are loaded and prepared once, before the device says that it is there; a round then
costs its training alone. What leaves is a reply of the allow-list (see `payload`), whatever goes wrong.
"""

from __future__ import annotations

import errno
import hashlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedcar.collection.collection import Collection
from fedcar.collection.persons import persons_of
from fedcar.collection.splits import unknown
from fedcar.common.files import written_whole
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import first_line, quoted
from fedcar.federation.device.noised import PrivateSide
from fedcar.federation.device.ridge import RidgeSide, right_by
from fedcar.federation.ledgers import Ledgers
from fedcar.federation.rounds.aggregate import FIXED
from fedcar.federation.rounds.client import Client, first_moments
from fedcar.federation.rounds.compress import decode
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.sums.mixture import MixtureTerms, Spread, SumsAt
from fedcar.federation.wire.payload import REQUESTS, STATE, UPDATE, Payload, named, refusal, with_prefix
from fedcar.federation.wire.setup import Setup
from fedcar.privacy.errors import BudgetError, LedgerError
from fedcar.retriever.prepare import prepare
from fedcar.retriever.retriever import Retriever
from fedcar.training.gradient import prepared, with_learned
from fedcar.training.job import prepare_privately
from fedcar.training.settings import Settings
from fedcar.version import __version__

BEFORE, NOW = "before/", "now/"
PROTECTED = ("greet", "noised")  # requests whose reply holds nothing of a question, or is noised and charged


def documents_fingerprint(collection: Collection) -> str:
    """sha256 over the documents alone: what server and devices must have in common."""
    return Collection("", collection.documents, {}, {}).fingerprint


class Device:
    """A device's questions, prepared, and the client that trains on them.

    Without a training question it has nothing to teach, and takes part under epsilon alone: whether it has any is then
    nobody else's business, and what it gives out is noise.

    Formal guarantees:
        A round asked for twice gives the same reply, also after kill -9: what a client keeps from round to round is on
        the disk, in `folder`, before its reply leaves.
        nothing_but_the_reply_leaves: errors become one of the fixed reasons; the text stays in this device's log.
    """

    def __init__(
        self,
        collection: Collection,
        folder: Path,
        model: Encoder,
        cache: FeatureCache,
        report: Silent | None = None,
        ledgers: Ledgers | None = None,
    ) -> None:
        report = report or Silent()
        training, held_out = collection.judged("train"), unknown(collection)
        self.folder, self.model = folder, model
        self.documents = documents_fingerprint(collection)
        self.untrained = Retriever.untrained(collection.documents, model, cache, report)
        self.training = prepare(self.untrained, training, cache, report, "training questions")
        self.held_out = prepare(self.untrained, held_out, cache, report, "held-out questions")
        self.ledgers = ledgers or Ledgers(folder / "ledgers")
        every = partial(prepare_privately, self.untrained, collection.judged("dev"), cache)
        persons = partial(persons_of, training, unnamed="")
        self.private = PrivateSide(self.untrained, self.training, every, self.ledgers, report, persons)
        self.ridge = RidgeSide(self.untrained, self.training, self.held_out, cache)
        self.evidence: MixtureTerms | None = None
        self.evidence_key = ""
        self.client: Client | None = None
        self.key = ""

    def answer(self, request: Payload) -> Payload:
        """The reply to any request; it never raises."""
        try:
            return self._answered(request)
        except BudgetError:
            self._log()
            return refusal("budget")
        except LedgerError:
            self._log()
            return refusal("ledger")
        except (ValueError, TypeError, KeyError) as error:
            print(f"{quoted(request.kind)} was not understood: {first_line(error)}", file=sys.stderr)  # noqa: T201
            return refusal("request")
        except MemoryError:
            return refusal("memory")
        except OSError as error:
            self._log()
            return refusal("disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed")
        except Exception as error:  # whatever goes wrong stays here, and the server hears that something did
            self._log()
            return refusal("memory" if "alloc" in str(error) else "failed")

    def _answered(self, request: Payload) -> Payload:
        if request.kind not in REQUESTS:
            return refusal("request")
        setup = Setup.parse(request.values["setup"])
        for name, ours, theirs in (
            ("version", __version__, setup.version),
            ("encoder", self.model.state_fingerprint, setup.encoder),
            ("documents", self.documents, setup.documents),
        ):
            if ours != theirs:
                return refusal(name, ours)
        if request.kind not in PROTECTED and self.ledgers.budget is not None:
            return refusal("un-noised")
        if request.kind not in (*PROTECTED, "clipped") and not len(self.training):
            return refusal("questions")
        reply: Payload = getattr(self, f"_{request.kind}")(setup, request)
        return reply

    def _log(self) -> None:
        traceback.print_exc(file=sys.stderr)

    # ---------------------------------------------------------------- one method a kind of request

    def _greet(self, setup: Setup, request: Payload) -> Payload:
        return Payload("greet")

    def _noised(self, setup: Setup, request: Payload) -> Payload:
        return self.private.noised(setup, request)

    def _clipped(self, setup: Setup, request: Payload) -> Payload:
        return self.private.clipped(setup, request)

    def _enrol(self, setup: Setup, request: Payload) -> Payload:
        rows = {document.id: row for row, document in enumerate(self.untrained.documents)}
        counts = torch.from_numpy(self.training.counts(rows))
        values = {"questions": len(self.training), "held_out": len(self.held_out)}
        return Payload("enrol", values, {"row_questions": counts})

    def _statistics(self, setup: Setup, request: Payload) -> Payload:
        return self.ridge.statistics(setup)

    def _taught(self, setup: Setup, request: Payload) -> Payload:
        self.evidence = None
        return self.ridge.hear(setup, request)

    def _unseen(self, setup: Setup, request: Payload) -> Payload:
        return self.ridge.unseen(setup, request)

    def _spread(self, setup: Setup, request: Payload) -> Payload:
        evidence = self._evidence(setup, request)
        if evidence is None:
            return refusal("taught")
        spread = Spread().answered_by(evidence)
        values = {"speaking": spread.speaking, "counted": spread.counted}
        return Payload("spread", values, {"spread": spread.spread})

    def _sums(self, setup: Setup, request: Payload) -> Payload:
        evidence = self._evidence(setup, request)
        if evidence is None:
            return refusal("taught")
        sums = SumsAt(request.tensors["weights"]).answered_by(evidence)
        return Payload("sums", {"loss": sums.loss}, {"gradient": sums.gradient, "hessian": sums.hessian})

    def _train(self, setup: Setup, request: Payload) -> Payload:
        client, rounds, state, number = self._ready(setup, request)
        counts = self._counts(client, state, rounds)
        update = client.train(state, rounds, number)
        self._keep(setup.run, client)
        values = {"questions": update.questions, "loss": update.metrics["loss"], "seconds": update.seconds, **counts}
        return Payload("train", values, with_prefix(update.tensors, UPDATE))

    def _count(self, setup: Setup, request: Payload) -> Payload:
        right = right_by(self.untrained, self.held_out, request.tensors["among"].numpy())
        trained = 0
        if len(self.held_out) and named(request.tensors, STATE):
            client, rounds, state, _ = self._ready(setup, request)
            trained = client.evaluate(state, rounds, self.held_out)
        values = {"held_out": len(self.held_out), "trained": trained}
        return Payload("count", values, {"right": torch.tensor(right, dtype=torch.int64)})

    def _counts(self, client: Client, state: Mapping[str, Tensor], rounds: RoundSettings) -> dict[str, int]:
        """Of the held-out questions how many there are and how many the received state gets right."""
        return {"held_out": len(self.held_out), "right": client.evaluate(state, rounds, self.held_out)}

    # ---------------------------------------------------------------- the client, and what it keeps on the disk

    def _evidence(self, setup: Setup, request: Payload) -> MixtureTerms | None:
        """What the mixture is learned on: as search sees the questions, or as ridge of this strength without them."""
        strength, share = float(request.values["strength"]), float(request.values["share"])
        key = f"{setup.json} {strength} {share}" if strength else ""
        if self.evidence is None or key != self.evidence_key:
            if strength:
                self.evidence = self.ridge.evidence(setup, strength, share)
            else:
                self.evidence = MixtureTerms.of(self.untrained.features(self.training), self.training.relevance)
            self.evidence_key = key
        return self.evidence

    def _ready(self, setup: Setup, request: Payload) -> tuple[Client, RoundSettings, dict[str, Tensor], int]:
        """The run's client, the settings of its rounds, the server's state and the round's number."""
        rounds, number = RoundSettings(**setup.rounds), int(request.values["round"])
        weights = request.tensors["weights"]
        key = hashlib.sha256(setup.json.encode() + weights.numpy().tobytes()).hexdigest()
        if self.client is None or key != self.key:
            self.client, self.key = self._made(setup, weights), key
        wire = named(request.tensors, STATE)
        fixed = {name: wire.pop(name) for name in FIXED if name in wire}
        return self.client, rounds, {**decode(wire, known(self.client.initial, rounds)), **fixed}, number

    def _made(self, setup: Setup, weights: Tensor) -> Client:
        settings = Settings(**setup.settings)
        retriever = replace(
            self.untrained, weights=with_learned(weights.numpy()), head=prepared(self.untrained.head, settings)
        )
        client = Client("", retriever, self.training, settings)
        if (file := self._file(setup.run)).exists():
            stored = load_file(file)
            client.load_kept(named(stored, NOW), int(stored["round"]))
            client.before_round = named(stored, BEFORE)
        return client

    def _keep(self, run: str, client: Client) -> None:
        """Write what the client keeps, in one step; nothing where it keeps nothing."""
        before, now = with_prefix(client.before_round, BEFORE), with_prefix(client.kept(), NOW)
        if not before and not now:
            return
        file = self._file(run)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with written_whole(file) as new:
            save_file({**before, **now, "round": torch.tensor(client.round_done)}, new)

    def _file(self, run: str) -> Path:
        return self.folder / "kept" / f"{hashlib.sha256(run.encode()).hexdigest()[:24]}.safetensors"


def known(tensors: Mapping[str, Tensor], rounds: RoundSettings) -> dict[str, Tensor]:
    """What a device is known to have of a state before it comes: zeros, so that rows nobody has trained need not."""
    shared = {
        name: tensor for name, tensor in tensors.items() if rounds.share != "adapter" or name.startswith("adapter.")
    }
    if rounds.local_optimizer == "shared":
        shared.update(first_moments(shared))
    return {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
