"""A run of a real federation: the rounds, on the server."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from fedcar.collection.collection import Collection
from fedcar.common.files import replace_json, written_whole
from fedcar.common.progress import Silent
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.federation.deploy.folder import ServerFolder
from fedcar.federation.deploy.link import link_of, reached
from fedcar.federation.deploy.options import DEVICES, ENROLMENT, RETRIEVER, RunOptions, ServedRun
from fedcar.federation.deploy.run_noised import train_privately_over
from fedcar.federation.deploy.runs import check_serving
from fedcar.federation.job.job import (
    FederatedJob,
    baselines,
    bytes_per_round,
    fitted,
    learn,
    matched,
    selected,
)
from fedcar.federation.remote import held_out
from fedcar.federation.remote.mixture import RemoteMixture
from fedcar.federation.remote.network import RemoteNetwork
from fedcar.federation.rounds.aggregate import counted
from fedcar.federation.rounds.record import Watch
from fedcar.federation.rounds.run_folder import RunFolder
from fedcar.federation.rounds.settings import RoundSettings
from fedcar.federation.rounds.update import Enrolled
from fedcar.federation.sums.mixture import federated_mixture
from fedcar.retriever.record import TrainingRecord
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.clients import MANY, MOST_COUNTED
from fedcar.training.job import Splits, conclude, prepare
from fedcar.version import __version__

NO_SPACE = 1 << 20  # bytes free


def train_over(network: RemoteNetwork, untrained: Retriever, run: ServedRun) -> dict[str, Any]:
    """Enrol the devices, learn the mixture, run the rounds, keep the best candidate as RUN/retriever."""
    options, report, collection = run.options, run.report, run.collection
    start, features = time.monotonic(), FeatureCache(Path(options.cache) if options.cache else None)
    job = prepare(collection, untrained, features, report, Splits.on_clients(collection))
    rounds = RoundSettings(**options.rounds)
    new = not (run.folder / ENROLMENT).exists()
    members = kept_enrolment(run.folder, network, rounds.quorum, report)
    if new and not len(job.selection):
        held_out.check_held_out(network, collection.name)
    questions = sum(members.values())
    report.say(f"{len(members)} devices with {questions} training questions")
    settings = fitted(options.method, options.adapter, rounds.seed, untrained.encoder, untrained.evidence.deep)
    settings, rounds = matched(settings, rounds, questions_that_count(members), len(members))
    together = {**asdict(rounds), **asdict(settings), "devices": sorted(members)}
    folder = RunFolder(run.folder)
    folder.belongs_to = {
        "collection": collection.fingerprint, "encoder": untrained.encoder.state_fingerprint, "settings": together,
    }  # fmt: skip
    weights, exchanges = kept_mixture(run.folder, network)
    mixed = replace(untrained, weights=weights_of(weights[:LEARNED]))
    report.say(f"{time.monotonic() - start:.0f} s to the first round, {exchanges} small exchanges for the mixture")
    shares = {} if len(job.selection) else held_out.shares_before(network, untrained, mixed)
    search = held_out.shown(shares) if shares else baselines(untrained, job.selection)
    shown = {**search, "central": None}
    federated = FederatedJob(
        job, options.method, settings, rounds, folder, network=network, resume=run.resume, watch=run.watch
    )
    learned = learn(federated, mixed, shown)
    if options.method == "ridge":
        run.watch(learned.records[-1], shown)
    chosen = selected(job, mixed, learned, shares)
    told = {**asdict(rounds), "clients": len(members), "mixture_rounds": exchanges, "run": run.folder.name}
    told |= {"marked": network.marked} if network.marked else {}
    retriever = conclude(job, chosen, TrainingRecord(asdict(settings), learned.history, questions, federation=told))
    retriever.save(run.folder / RETRIEVER)
    return {
        "run": str(run.folder), "retriever": str(run.folder / RETRIEVER), "rounds": learned.history,
        "selection": chosen.score.success, "bytes_per_round": bytes_per_round(learned.records),
        "seconds": {"all": round(time.monotonic() - start, 1)}, "privacy": None,
    }  # fmt: skip


def kept_enrolment(run: Path, network: RemoteNetwork, quorum: float, report: Silent) -> dict[str, int]:
    """Who takes part, with n_i: asked once a run and kept beside it, so that a device that is gone does not end it."""
    file = run / ENROLMENT
    if file.exists():
        with safe_open(file, framework="pt") as content:
            held_out_of = json.loads(content.metadata()["held_out"])
            for key in content.keys():  # noqa: SIM118 - no mapping
                questions, name = key.split("@", 1)
                counts = content.get_tensor(key)
                network.clients[name].enrolled = Enrolled(name, int(questions), counts, held_out_of[name])
        network.clients = {name: client for name, client in network.clients.items() if client.enrolled is not None}
    else:
        for name, reason in network.enrol(quorum).items():
            report.say(f"{name} takes no part: {reason}")
        enrolled = [client.enrol() for client in network.clients.values()]
        told = {"held_out": json.dumps({member.client: member.held_out for member in enrolled})}
        with written_whole(file) as new:
            save_file({f"{member.questions}@{member.client}": member.row_questions for member in enrolled}, new, told)
    return {name: client.enrol().questions for name, client in network.clients.items()}


def questions_that_count(members: Mapping[str, int]) -> int:
    """The federation's n, by which everybody's penalty is scaled: from five devices on by n_i as it counts."""
    if len(members) < MANY:
        return sum(members.values())
    return round(sum(counted(list(members.values()), MOST_COUNTED)))


def kept_mixture(run: Path, network: RemoteNetwork) -> tuple[Any, int]:
    """The mixture's weights: learned once a run and kept beside it, since the rounds build on them bit by bit."""
    file = run / "mixture.json"
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8"))
        return np.array(content["weights"], dtype=np.float32), content["exchanges"]
    weights, exchanges = federated_mixture(RemoteMixture(network), network.retriever.weights, say=network.say)
    replace_json(file, {"weights": [float(weight) for weight in weights], "exchanges": exchanges})
    return weights, exchanges


def start(place: ServerFolder, run: Path, *, resume: bool, report: Silent, watch: Watch) -> dict[str, Any]:
    """Train over the devices of a served folder; goes on with a run where it stands."""
    options, served = RunOptions.read(run), place.settings()
    if options.version != __version__:
        raise FedcarError(
            f"{run.name}: was started by fedcar {options.version}, this is {__version__}; give that, or start a new run"
        )
    check_serving(place)
    nodes = {name: int(node["node"]) for name, node in place.nodes().items()}
    if not nodes:
        raise FedcarError(f"{place.folder}: no device is enrolled; fedcar keygen there, then fedcar enroll here")
    collection = Collection.read(served.collection, part=True)
    model = Encoder.load(
        served.encoder, served.pooling, query_prompt=served.query_prompt, document_prompt=served.document_prompt
    )
    rounds = RoundSettings(**options.rounds)
    if not (run / ENROLMENT).exists() and not (run / DEVICES).exists():
        nodes = online(place, nodes, report)
    cache = FeatureCache(Path(options.cache) if options.cache else None)
    untrained = Retriever.untrained(collection.documents, model, cache, report)
    network = RemoteNetwork(
        lambda: link_of(place).session(), nodes, untrained, served.documents, run.name,
        deadline=rounds.deadline, over_selection=options.over_selection, say=report.say,
    )  # fmt: skip
    under_way = ServedRun(run, options, collection, resume, report, watch)
    try:
        if options.target is not None:
            return train_privately_over(network, untrained, under_way)
        return train_over(network, untrained, under_way)
    finally:
        network.close()


def online(place: ServerFolder, nodes: Mapping[str, int], report: Silent, seconds: float = 20.0) -> dict[str, int]:
    """The devices that are there now; waits a little for all of them."""
    link = reached(place)
    end = time.monotonic() + seconds
    while True:
        known = link.nodes()
        there = {name: node for name, node in nodes.items() if node in known and known[node].online}
        if len(there) == len(nodes) or time.monotonic() > end:
            break
        time.sleep(0.5)
    if not there:
        raise FedcarError("no enrolled device is online; start fedcar join on them, and see fedcar status")
    for name in sorted(set(nodes) - set(there)):
        report.say(f"{name} is not online and takes no part")
    return there


def is_full(folder: Path, error: Exception) -> bool:
    """Whether this error is a full disk's: safetensors says so in words, and a SuperLink there only stops answering."""
    if getattr(error, "errno", 0) == errno.ENOSPC or "No space left" in str(error):
        return True
    return isinstance(error, FedcarError) and shutil.disk_usage(folder).free < NO_SPACE
