"""What an update gives away, shown on real questions: the attacks of `privacy.attack` on fedcar's own training sums."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcar.collection.collection import Collection, Judged
from fedcar.collection.splits import subset
from fedcar.common.progress import Silent
from fedcar.encoder.adapter import Adapter
from fedcar.encoder.cache import FeatureCache
from fedcar.encoder.encoder import Encoder
from fedcar.errors import FedcarError
from fedcar.privacy.attack import Attack, class_sum_questions, nearest_texts, quality, row_labels, row_space_tokens
from fedcar.privacy.membership import CONFIDENCE
from fedcar.retriever.prepare import prepare
from fedcar.retriever.questions import Questions
from fedcar.retriever.retriever import Retriever
from fedcar.training.noised.audit.canaries import attack_by_likelihood_ratio, planted_run
from fedcar.training.noised.clients import InTurn, NoisedClient, NoisedRequest
from fedcar.training.noised.plan import make_plan
from fedcar.training.noised.server import PrivateTraining
from fedcar.training.noised.sums import ADAPTER_SCALE, ROWS, SUMS, ClippedSums
from fedcar.training.target import Target

if TYPE_CHECKING:
    from torch import Tensor

UNCLIPPED = 1e9
SPARE, SPARE_SHARE = 6, 11  # tokens fewer than the table is wide (or an 11th): so the row space tells them apart
QUESTIONS_OF_CLASS_SUMS = 40
WORDS_SHOWN = 20


def attack_collection(
    collection: Collection,
    target: Target,
    *,
    encoder: Encoder,
    features: FeatureCache,
    questions: int = 128,
    seed: int = 0,
    report: Silent | None = None,
) -> dict[str, Any]:
    """Attack an adapter update, a rows update and class sums of real training questions, without noise and with it.

    With noise the attacker sees every step of the default adapter plan, taken at one and the same state, which favours
    it. A failed attack proves nothing: the statement's epsilon is what holds.
    """
    report = report or Silent()
    untrained = Retriever.untrained(collection.documents, encoder, features, report)
    chosen, others = few_words(collection, encoder, questions, seed)
    asked_of = prepare(untrained, chosen, features, report, "questions")
    adapter = Adapter("full", encoder.embedding_width)
    members = ClippedSums(untrained, asked_of, adapter)
    plan = make_plan(replace(target, public_dev=False), "adapter", len(collection.documents))
    device = NoisedClient("victim", members)
    server = PrivateTraining(untrained, InTurn([device]), plan, adapter=adapter)
    state = {ROWS: server.first_rows(torch.zeros(server.untrained.head.rows.shape))} | server.first_adapter()
    report.say(
        f"{len(members)} questions of {collection.name}, one batch: without noise, then {plan.steps} noised steps"
    )
    plain = members.gradients(state, UNCLIPPED)
    assert plan.step is not None
    noised = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for number in range(plan.steps):
        for name, tensor in device.answer(NoisedRequest.of(plan, 2 + number, state)).items():
            noised[name] += tensor
    deviation = plan.step.standard_deviation * plan.steps**0.5
    return {
        "questions": len(members),
        "epsilon": target.epsilon,
        "delta": target.delta,
        "words": words(encoder, members, plain, noised, deviation),
        "documents": labels(untrained, members, plain, noised, deviation),
        "class_sums": class_sums(untrained, collection, chosen, others, target, features, report),
        "membership": {method: membership(untrained, target, method, report) for method in ("head", "adapter")},
        "note": "a failed attack is not privacy: only the statement's epsilon says what no attack can do",
    }


def few_words(collection: Collection, encoder: Encoder, questions: int, seed: int) -> tuple[Judged, Judged]:
    """A random sample of training questions with fewer distinct tokens than the embedding is wide, and all others."""
    train = collection.judged("train")
    tokens = [set(ids) for ids in encoder.tokenize(train.texts)]
    width = encoder.embedding_width
    limit, seen, chosen = width - max(SPARE, width // SPARE_SHARE), set[int](), list[int]()
    for row in np.random.default_rng(seed).permutation(len(train)).tolist():
        if len(chosen) < questions and len(seen | tokens[row]) <= limit:
            seen |= tokens[row]
            chosen.append(row)
    if not chosen:
        raise FedcarError(f"{collection.name}: no training question to attack; give a collection with qrels/train.tsv")
    taken = set(chosen)
    return subset(train, [row in taken for row in range(len(train))]), subset(
        train, [row not in taken for row in range(len(train))]
    )


def words(
    encoder: Encoder, members: ClippedSums, plain: dict[str, Tensor], noised: dict[str, Tensor], deviation: float
) -> dict[str, Any]:
    """The row-space test on the adapter's update: all words, and those that only one question has."""
    table = encoder.model.embedding.weight.detach().float().cpu().numpy()
    counts = Counter(token for ids in members.token_ids for token in set(ids))
    truth, single = set(counts), {token for token, count in counts.items() if count == 1}
    absent = set(range(len(table))) - truth
    before = row_space_tokens((plain["difference"] / ADAPTER_SCALE).numpy(), table)
    after = row_space_tokens(noised["difference"].numpy(), table, deviation)
    names = encoder.tokenizer.convert_ids_to_tokens
    return {
        "distinct": len(truth),
        "without_noise": told(before, truth, set(range(len(table)))),
        "with_noise": told(after, truth, set(range(len(table)))),
        "of_one_question_without_noise": told(before, single, single | absent),
        "of_one_question_with_noise": told(after, single, single | absent),
        "recovered_without_noise": names(sorted(map(int, before.recovered))[-WORDS_SHOWN:]),
        "true": names(sorted(truth)[-WORDS_SHOWN:]),
        "recovered_with_noise": names(sorted(map(int, after.recovered))[-WORDS_SHOWN:]),
    }


def labels(
    untrained: Retriever, members: ClippedSums, plain: dict[str, Tensor], noised: dict[str, Tensor], deviation: float
) -> dict[str, Any]:
    """The direction of each row's update: which documents had questions."""
    truth = set(torch.nonzero(members.targets.any(0)).flatten().tolist())
    everything = set(range(members.documents))
    mean_query = untrained.head.embeddings - untrained.head.centre
    before = row_labels((-plain[ROWS]).numpy(), mean_query.numpy())
    after = row_labels((-noised[ROWS]).numpy(), mean_query.numpy(), deviation)
    return {
        "with_questions": len(truth),
        "without_noise": told(before, truth, everything),
        "with_noise": told(after, truth, everything),
    }


def class_sums(
    untrained: Retriever,
    collection: Collection,
    chosen: Judged,
    others: Judged,
    target: Target,
    features: FeatureCache,
    report: Silent,
) -> dict[str, Any]:
    """Class sums over few questions against candidates, half of which are in them; and what one row is closest to."""
    size = min(QUESTIONS_OF_CLASS_SUMS, len(chosen), len(others))
    few, rest = (subset(judged, [row < size for row in range(len(judged))]) for judged in (chosen, others))
    members, strangers = (
        ClippedSums(untrained, questions(untrained, judged, features, report)) for judged in (few, rest)
    )
    release = make_plan(target, "ridge", len(collection.documents)).sums
    candidates = torch.cat([members.x, strangers.x]).numpy()
    truth = set(range(len(members)))
    plain = members.class_sums()[SUMS].numpy()
    assert release is not None
    noised = NoisedClient("victim", members).answer(NoisedRequest(1, release))[ROWS].numpy()
    row = int(members.targets.sum(0).masked_fill(members.targets.sum(0) == 0, 1e9).argmin())
    texts = [*few.texts, *rest.texts]
    nearest = {
        name: [texts[place] for place in nearest_texts(sums[row], candidates, 1)[0]]
        for name, sums in (("without_noise", plain), ("with_noise", noised))
    }
    told_of_row = [few.texts[place] for place in torch.nonzero(members.targets[:, row]).flatten().tolist()]
    everything = set(range(len(candidates)))
    return {
        "questions": len(members),
        "without_noise": told(class_sum_questions(plain, candidates), truth, everything),
        "with_noise": told(class_sum_questions(noised, candidates), truth, everything),
        "one_row": {"true": told_of_row, **{f"nearest_{name}": texts for name, texts in nearest.items()}},
    }


def membership(untrained: Retriever, target: Target, method: str, report: Silent) -> dict[str, float]:
    """The strongest attack: was a question there, by the likelihood ratio of all that this method's plan gives out?

    Of made-up questions that move every sum by all they may, by one who knows all else. Beside it what the claim
    allows; `mu_at_least` holds with the confidence that is named.
    """
    plan = make_plan(replace(target, public_dev=False, against_advice=True), method, len(untrained.documents))
    module = Adapter("full", untrained.encoder.embedding_width) if method == "adapter" else None
    report.say(f"{method}: canaries in one run of {plan.steps} steps")
    found = attack_by_likelihood_ratio(planted_run(untrained, plan, module, quiet_runs=0))
    return {
        "canaries": found.canaries,
        "auc": found.area,
        "auc_allowed": found.area_allowed,
        "right": found.right / found.canaries,
        "right_allowed": found.right_allowed,
        "mu": found.distance,
        "mu_at_least": found.distance_at_least,
        "mu_allowed": found.distance_allowed,
        "confidence": CONFIDENCE,
    }


def questions(untrained: Retriever, judged: Judged, features: FeatureCache, report: Silent) -> Questions:
    return prepare(untrained, judged, features, report, "questions")


def told(attack: Attack, truth: set[int], candidates: set[int]) -> dict[str, float]:
    """Precision, recall and AUC."""
    reached = quality(attack, truth, candidates)
    return {"precision": reached.precision, "recall": reached.recall, "auc": reached.auc}
