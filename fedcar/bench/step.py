"""`fedcar bench step`: the steps of training beside the products and passes they consist of, and what they hold."""

# mypy: disable-error-code="import-untyped,import-not-found"

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcar.bench.encode import in_turns, texts_of
from fedcar.bench.jobs import environment, machine, row
from fedcar.bench.one_contestant import own_peak_memory_mb
from fedcar.collection.collection import Collection, Document
from fedcar.common.measure import CLOCKS, multiplies_bfloat16
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.model_files import DEFAULT_ENCODER
from fedcar.encoder.reading import padded
from fedcar.errors import FedcarError
from fedcar.head.closed_form import Statistics, solve
from fedcar.head.feature_map import FeatureMap
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED
from fedcar.training.adam import Adam, Group
from fedcar.training.gradient import Trainer
from fedcar.training.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

PRODUCTS, FORWARD = "its matrix products", "forward pass"
FULL, LORA = "full fine-tuning", "peft LoRA, rank 8"
MANY_DOCUMENTS = 1000
STEPS = 3  # of an update that is watched for memory; the first one warms up
Jobs = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Steps:
    """What is timed: steps on so many questions, batches and paragraphs; with `memory` what an update holds too."""

    encoder: str = DEFAULT_ENCODER
    questions: int = 2048
    batch: int = 64
    paragraphs: int = 16
    runs: int = 5
    clock: str = "wall"
    memory: bool = True


def bench_step(folder: str | Path, steps: Steps | None = None, report: Silent | None = None) -> dict[str, Any]:
    """Time `head`, `ridge` and the adapter's step in turns with what they consist of; medians over the runs.

    Head and ridge on made-up states, as many documents as the collection's and for the head 1,000 too, beside bare
    products of the same matrices; the adapter's step on a batch of the collection's questions and one of paragraphs
    beside a forward pass of the same batch, in float32 and where the processor has it in bfloat16. With `memory` an
    update of the adapter is compared with full fine-tuning and LoRA on the batch of paragraphs, each in
    processes of its own. The contract's shape: a ratio above 1 means that fedcar is faster or smaller, so that a share
    of its products is at most about 1.

    Raises FedcarError where the collection has no text.
    """
    report, steps = report or Silent(), steps or Steps()
    encoder, questions, batch, paragraphs, runs = (
        steps.encoder, steps.questions, steps.batch, steps.paragraphs, steps.runs,
    )  # fmt: skip
    if min(runs, questions, batch, paragraphs) < 1:
        raise FedcarError("--runs, --questions, --batch and --paragraphs: must each be 1 or more")
    collection, model = Collection.read(folder), Encoder.load(encoder)
    jobs = {}
    for documents in dict.fromkeys([len(collection.documents), MANY_DOCUMENTS]):
        made = made_up(model, documents, questions)
        jobs[f"head, {documents} documents"] = PRODUCTS, head_jobs(*made)
        if documents == len(collection.documents):
            jobs[f"ridge, {documents} documents"] = PRODUCTS, ridge_jobs(*made)
    texts = texts_of(collection, batch, paragraphs)
    for kind, chosen in texts.items():
        for precision in ("float32", "bfloat16") if multiplies_bfloat16() else ("float32",):
            jobs[f"adapter, {kind}, {precision}"] = FORWARD, adapter_jobs(encoder, chosen, precision == "bfloat16")
    rows = []
    for name, (peer, job) in jobs.items():
        report.say(f"{name}: {runs} runs")
        seconds, ratios = in_turns(job, runs, CLOCKS[steps.clock])
        measured = row(name, seconds["ours"], seconds["peer"], peer, "s", runs)
        rows.append({**measured, "ratio": round(ratios["ours"], 4)})
    if steps.memory:
        rows += memory_rows(UpdateTask("", str(model.folder), texts["paragraph"]), runs, report)
    about = {**machine(), "clock": steps.clock, "device": str(model.model.device), "encoder": str(encoder)}
    return {"machine": about, "rows": rows, "speedup": None}


# ---------------------------------------------------------------- seconds


def made_up(encoder: Encoder, documents: int, questions: int) -> tuple[Retriever, Questions]:
    """So many labels, and questions with random states: what a step takes does not depend on the numbers."""
    generator, ids = np.random.default_rng(0), [str(row) for row in range(documents)]
    with tempfile.TemporaryDirectory(prefix="fedcar-bench-") as cache:
        retriever = Retriever.untrained([Document(name, name) for name in ids], encoder, FeatureCache(Path(cache)))
    states = np.empty(questions, dtype=encoder.model.state_type)
    for name in ("pooled", "layers"):
        states[name] = generator.standard_normal(states[name].shape, dtype=np.float32)
    answers = generator.integers(documents, size=questions)
    relevance = (np.arange(documents) == answers[:, None]).astype(np.float32)
    candidates = np.tile(np.arange(documents), (questions, 1))
    evidence = np.zeros((questions, documents, LEARNED), dtype=np.float32)
    relevant = tuple({ids[row]: 1} for row in answers)
    return retriever, Questions(("",) * questions, states, candidates, evidence, relevance, relevant)


def head_jobs(retriever: Retriever, training: Questions) -> Jobs:
    """An epoch of `head`, and two products a batch, into memory that is there already as in `head`."""
    trainer = Trainer(retriever, training, Settings())
    rows = trainer.head.rows.detach()
    sizes = [len(part) for part in trainer.batches(np.random.default_rng(0))]
    batches = [(trainer.hidden_states[:size].clone(), torch.ones(size, len(rows))) for size in sizes]
    scores, gradient = torch.empty(max(sizes), len(rows)), torch.empty_like(rows)

    def products() -> None:
        for hidden, slopes in batches:
            torch.mm(hidden, rows.T, out=scores[: len(hidden)])
            torch.mm(slopes.T, hidden, out=gradient)

    return {"peer": products, "ours": lambda: sum(trainer.epoch(1, lambda done: None))}


def ridge_jobs(retriever: Retriever, training: Questions) -> Jobs:
    """From states to rows and to what they say of each question left out, at one strength; and the products in it.

    With the factorisation and the two triangular solutions, which are products in all but name.
    """
    states, targets = training.states, training.relevance
    fixed = FeatureMap.of_reference(states)
    features, everyone = fixed(states), np.arange(len(states))
    hidden, layers = states["pooled"].copy(), states["layers"].reshape(len(states), -1).astype(np.float32)
    of_hidden, of_layers = fixed.frequencies

    def ridge() -> None:
        features = fixed(states)
        solve(Statistics.of(features, targets)).left_out(features, targets).predict(everyone)

    def products() -> None:
        hidden @ of_hidden.T
        layers @ of_layers.T
        gram = torch.from_numpy(features.T @ features)
        gram.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(gram)
        weights = torch.cholesky_solve(torch.from_numpy(features.T @ targets), factor)
        features @ weights.numpy()
        torch.linalg.solve_triangular(factor, torch.from_numpy(features.T), upper=False)

    return {"peer": products, "ours": ridge}


def adapter_jobs(name: str | Path, texts: Sequence[str], half: bool = False) -> Jobs:
    """One update of a full adapter on a batch, and a forward pass of that batch without gradients."""
    frozen = Encoder.load(name)
    adapter = Adapter("full", frozen.embedding_width)
    encoder = frozen.with_adapter(adapter, halved=half)
    optimiser = Adam([Group(list(adapter.parameters()), 1e-3)])
    token_ids = encoder.tokenize(texts)
    model = encoder.model
    ids, mask = (torch.from_numpy(array).to(model.device) for array in padded(token_ids, model.padding_id))
    blocks = encoder.transformer

    def forward() -> None:
        with torch.inference_mode():
            blocks(input_ids=ids, attention_mask=mask)

    def step() -> None:
        optimiser.zero_grad()
        encoder.hidden_states(token_ids).square().mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return {"peer": forward, "ours": step}


# ---------------------------------------------------------------- memory


@dataclass(frozen=True)
class UpdateTask:
    """What one process does: `who` updates what it trains on these texts, on the encoder in this folder."""

    who: str
    encoder: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Held:
    """The largest memory of a process, that beyond what the loaded encoder takes, and the seconds of an update."""

    peak_mb: float
    beyond_mb: float
    seconds: float


def memory_rows(update: UpdateTask, runs: int, report: Silent) -> list[dict[str, Any]]:
    """The adapter as it is trained here beside full fine-tuning, LoRA, and itself with gradient checkpointing."""
    peers = [FULL, LORA] if find_spec("peft") else [FULL]
    wanted = ["adapter", "adapter, checkpointing", *peers]
    measured: dict[str, list[Held]] = {name: [] for name in wanted}
    for run in range(runs):
        for name in wanted:
            report.say(f"memory of {name}: run {run + 1} of {runs}")
            measured[name].append(in_its_own_process(replace(update, who=name)))
    middle = {
        name: Held(*(median(getattr(one, part) for one in held) for part in ("peak_mb", "beyond_mb", "seconds")))
        for name, held in measured.items()
    }
    rows = []
    for ours, peer in [*(("adapter", peer) for peer in peers), ("adapter, checkpointing", "adapter")]:
        mine, theirs = middle[ours], middle[peer]
        rows.append(row(f"{ours}: peak memory", mine.peak_mb, theirs.peak_mb, peer, "MB", runs))
        rows.append(row(f"{ours}: beyond the encoder", mine.beyond_mb, theirs.beyond_mb, peer, "MB", runs))
        rows.append(row(f"{ours}: an update", mine.seconds, theirs.seconds, peer, "s", runs))
    return rows


def in_its_own_process(update: UpdateTask) -> Held:
    with tempfile.TemporaryDirectory(prefix="fedcar-bench-") as folder:
        task = Path(folder) / "task.json"
        task.write_text(json.dumps(vars(update)), encoding="utf-8")
        command = [sys.executable, "-m", "fedcar.bench.step", str(task)]
        ended = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FedcarError(f"{update.who} cannot be measured: {last[:200]}; leave it out by --no-memory")
    return Held(**json.loads(ended.stdout.splitlines()[-1]))


def held(update: UpdateTask) -> Held:
    """Do the updates in this process."""
    encoder = Encoder.load(update.encoder)
    token_ids = encoder.tokenize(update.texts)
    _ = encoder.model.transformer  # read before memory is measured
    before = _resident_mb()
    step = updates(update.who, encoder, token_ids)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = own_peak_memory_mb() or math.nan
    return Held(peak, round(peak - before, 1), round(min(seconds[1:]), 4))


def updates(who: str, encoder: Encoder, token_ids: Sequence[Sequence[int]]) -> Callable[[], None]:
    """One forward and backward pass and an update of what `who` trains, as often as it is called."""
    if who.startswith("adapter"):
        adapter = Adapter("full", encoder.embedding_width)
        recomputed = who.endswith("checkpointing")
        adapted = encoder.with_adapter(adapter, halved=multiplies_bfloat16(), recomputed=recomputed)
        ours = Adam([Group(list(adapter.parameters()), 1e-3)])
        return partial(_update, lambda: adapted.hidden_states(token_ids), ours)
    frozen = encoder.model
    ids, mask = (torch.from_numpy(array).to(frozen.device) for array in padded(token_ids, frozen.padding_id))
    model = frozen.transformer
    if who == LORA:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
    else:
        model.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = torch.optim.AdamW(trained, lr=2e-5)
    output = partial(model, input_ids=ids, attention_mask=mask)
    return partial(_update, lambda: frozen.pooler(output().last_hidden_state, mask), theirs)


def _update(states: Callable[[], Tensor], optimiser: Any) -> None:  # noqa: ANN401 - Adam, ours or torch's
    optimiser.zero_grad()
    states().square().mean().backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _resident_mb() -> float:
    """The memory of this process now, in MB; nan where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return math.nan


if __name__ == "__main__":
    print(json.dumps(vars(held(UpdateTask(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))))  # noqa: T201
