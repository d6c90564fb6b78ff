"""What a DP step costs against a plain one, ratios of paired runs: `python benchmarks/privacy_step_cost.py [--runs N]`.

Head: full-batch rows on cached hidden states (random ones: the arithmetic does not mind). Adapter: through the default
encoder, questions of a ragged length, rows and full adapter together. Opacus in the same run, where it is installed:
`hooks` (per-example gradients) and `ghost` (two backward passes), on the same frozen model and the same loss. CPU
seconds of one thread; each step is a forward pass, a backward pass and, for the private ones, clipping and noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from fedcar.collection.collection import Document
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.encoder import Encoder
from fedcar.head.head import Head
from fedcar.head.losses import candidate_losses
from fedcar.retriever.evidence import Evidence
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.retriever.weights import LEARNED, weights_of
from fedcar.training.noised.clients import NoisedClient, NoisedRequest
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.sums import ROWS, ClippedSums, row_scores
from fedcar.training.noised.whitening import usual_vectors
from fedcar.training.target import Target

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", choices=["head", "adapter"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = Encoder.load()
    for n, documents in ((256, 77), (9003, 77), (2048, 300)) if chosen.only != "adapter" else ():
        asked = questions_of(encoder, n, documents, words=1)
        report(f"head, {n} questions, {documents} documents", head_steps(asked), chosen.runs)
    for n, words in ((32, 20), (16, 110)) if chosen.only != "head" else ():
        asked = questions_of(encoder, n, 77, words, Adapter("full", encoder.embedding_width))
        report(f"adapter, {n} questions of about {words} words", adapter_steps(asked), max(3, chosen.runs // 2))


def report(what: str, steps: dict[str, Step], runs: int) -> None:
    """Every step `runs` times, in turn; the median of each one's ratio to the plain step of the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(runs + 1):
        for name in list(steps) if run % 2 else list(reversed(steps)):
            start = time.process_time()
            steps[name]()
            if run:
                seconds[name].append(time.process_time() - start)
    ratios = {
        name: round(statistics.median(np.array(found) / np.array(seconds["plain"])), 3)
        for name, found in seconds.items()
        if name != "plain"
    }
    plain = round(1e3 * statistics.median(seconds["plain"]), 2)
    print(json.dumps({"step": what, "plain_ms": plain, "runs": runs, **ratios}), flush=True)


def questions_of(encoder: Encoder, n: int, documents: int, words: int, adapter: Adapter | None = None) -> ClippedSums:
    generator = np.random.default_rng(0)
    names = tuple(Document(f"d{number}", f"d{number}", "") for number in range(documents))
    embeddings = functional.normalize(torch.randn(documents, encoder.dimension), dim=1).numpy()
    retriever = Retriever(
        encoder, names, Evidence.build(names, encoder, embeddings), Head(embeddings), weights_of(np.ones(LEARNED) * 1.0)
    )
    vocabulary = "card money transfer account pay bank why does my not work please help with the new old fee".split()
    lengths = generator.integers(max(1, words // 2), words + 1, n)
    texts = tuple(" ".join(generator.choice(vocabulary, size)) for size in lengths)
    states = np.zeros(n, dtype=np.dtype([("pooled", np.float32, (encoder.dimension,)), ("layers", np.float16, (1, 1))]))
    states["pooled"] = generator.normal(size=(n, encoder.dimension))
    about = generator.integers(0, documents, n)
    candidates = np.tile(np.arange(documents), (n, 1))
    relevance = (candidates == about[:, None]).astype(np.float32)
    evidence = generator.normal(size=(n, documents, LEARNED)).astype(np.float32)
    relevant = tuple({f"d{document}": 1} for document in about)
    return ClippedSums(retriever, Questions(texts, states, candidates, evidence, relevance, relevant), adapter)


def head_steps(asked: ClippedSums) -> dict[str, Step]:
    rows = torch.zeros(asked.documents, asked.x.shape[1], requires_grad=True)
    release = make_plan(Target(1.0), "head", asked.documents).step
    assert release is not None
    device = NoisedClient("one", asked)

    def plain() -> None:
        rows.grad = None
        logits = asked.offset + row_scores(asked.x, rows, asked.candidates)
        candidate_losses(logits, asked.relevance).mean().backward()
        with torch.no_grad():
            rows.sub_(rows.grad * 1e-6)

    def private() -> None:
        sums = device.answer(NoisedRequest(2, release, {ROWS: rows.detach()}))
        with torch.no_grad():
            rows.sub_(sums[ROWS] * 1e-9)

    def forward(module: torch.nn.Module) -> torch.Tensor:
        return asked.offset + module(asked.x)

    linear = torch.nn.Linear(asked.x.shape[1], asked.documents, bias=False)
    return {"plain": plain, "fedcar": private, **opacus_steps(linear, forward, asked)}


def adapter_steps(asked: ClippedSums) -> dict[str, Step]:
    adapter, encoder = asked.adapter, asked.encoder
    assert adapter is not None
    rows = torch.zeros(asked.documents, asked.x.shape[1], requires_grad=True)
    release = make_plan(Target(1.0), "adapter", asked.documents, sampling_rate=1.0).step
    assert release is not None
    device = NoisedClient("one", asked)
    state = {ROWS: rows.detach(), "difference": torch.zeros_like(adapter.difference)}

    def plain() -> None:
        rows.grad = adapter.difference.grad = None
        x = usual_vectors(encoder.hidden_states(asked.token_ids), asked.head.centre) @ asked.whitening
        logits = asked.offset + row_scores(x, rows, asked.candidates)
        candidate_losses(logits, asked.relevance).mean().backward()

    def private() -> None:
        device.answer(NoisedRequest(2, release, state))

    class Whole(torch.nn.Module):
        """The same frozen model with the adapter as a Linear, which is what Opacus knows."""

        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.nn.Linear(encoder.embedding_width, encoder.embedding_width, bias=False)
            self.rows = torch.nn.Linear(encoder.dimension, asked.documents, bias=False)
            torch.nn.init.eye_(self.matrix.weight)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            soft = self.matrix(encoder.model.embedding(ids))
            last = encoder.model.transformer(inputs_embeds=soft, attention_mask=mask).last_hidden_state
            hidden = (last * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
            return asked.offset + self.rows(usual_vectors(hidden, asked.head.centre) @ asked.whitening)

    longest = max(map(len, asked.token_ids))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in asked.token_ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in asked.token_ids])

    def forward(module: torch.nn.Module) -> torch.Tensor:
        return module(ids, mask)

    return {"plain": plain, "fedcar": private, **opacus_steps(Whole(), forward, asked)}


def opacus_steps(
    module: torch.nn.Module, forward: Callable[[torch.nn.Module], torch.Tensor], asked: ClippedSums
) -> dict[str, Step]:
    """Opacus' hooks and ghost clipping on a module of Linear layers; nothing where it is not installed."""
    try:
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    except ImportError:
        return {}
    import copy

    n = len(asked)
    options = {"noise_multiplier": 1.0, "max_grad_norm": 0.5, "expected_batch_size": n}
    hooked = GradSampleModule(copy.deepcopy(module))
    optimizer = DPOptimizer(torch.optim.SGD(hooked.parameters(), lr=1e-6), **options)

    def hooks() -> None:
        optimizer.zero_grad()
        candidate_losses(forward(hooked), asked.relevance).mean().backward()
        optimizer.step()

    fast = GradSampleModuleFastGradientClipping(copy.deepcopy(module), max_grad_norm=0.5, use_ghost_clipping=True)
    fast_optimizer = DPOptimizerFastGradientClipping(torch.optim.SGD(fast.parameters(), lr=1e-6), **options)

    class Criterion:
        reduction = "mean"

        def __call__(self, logits: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
            losses = candidate_losses(logits, relevance)
            return losses if self.reduction == "none" else losses.mean()

    loss = DPLossFastGradientClipping(fast, fast_optimizer, Criterion())

    def ghost() -> None:
        fast_optimizer.zero_grad()
        loss(forward(fast), asked.relevance).backward()
        fast_optimizer.step()

    return {"opacus_hooks": hooks, "opacus_ghost": ghost}


if __name__ == "__main__":
    main()
