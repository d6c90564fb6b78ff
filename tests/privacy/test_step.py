"""The parts together, as a client's run uses them: charge, sample, clip, noise, store, state."""

import secrets

import torch

from fedcar.privacy.accountant import epsilon_of, noise_multiplier
from fedcar.privacy.clip import clip, linear_head
from fedcar.privacy.ledger import Budget, Ledger
from fedcar.privacy.noise import NoiseSource, add_noise
from fedcar.privacy.release import Release
from fedcar.privacy.statement import plain_words, state

QUESTIONS, DOCUMENTS, WIDTH, CLIP_NORM = 40, 5, 8, 0.5


def poisson_batch(rate):
    """Each question by its own coin, from the operating system."""
    return torch.tensor([i for i in range(QUESTIONS) if secrets.randbelow(10**9) < rate * 10**9], dtype=torch.long)


def step(rows, hidden, labels, batch, deviation, source):
    logits = hidden[batch] @ rows.T
    gradients = logits.softmax(1) - torch.nn.functional.one_hot(labels[batch], DOCUMENTS)
    clipped = clip([linear_head(gradients, hidden[batch])], CLIP_NORM)
    return add_noise(clipped.sums, deviation, source)


def test_empty_batch_is_noised_and_charged(tmp_path):
    torch.manual_seed(0)
    hidden, labels = torch.randn(QUESTIONS, WIDTH), torch.randint(0, DOCUMENTS, (QUESTIONS,))
    rate, rounds, budget = 0.1, 6, Budget(3.0, 1e-3)
    plan = dict(name="head", sensitivity=CLIP_NORM, sampler="poisson", sampling_rate=rate, unit="example")
    plan |= dict(adjacency="add-or-remove-one")
    multiplier = noise_multiplier(Release(noise_multiplier=1.0, steps=rounds, **plan), budget.epsilon, budget.delta)
    release = Release(noise_multiplier=multiplier, **plan)
    ledger, source, rows = Ledger(tmp_path / "ledger.jsonl"), NoiseSource(), torch.zeros(DOCUMENTS, WIDTH)
    ledger.create(budget, count=QUESTIONS)
    for number in range(rounds):
        batch = torch.tensor([], dtype=torch.long) if number == 2 else poisson_batch(rate)
        receipt = ledger.charge("run", number, release)
        noised = step(rows, hidden, labels, batch, release.standard_deviation, source)
        assert noised.values["rows"].shape == (DOCUMENTS, WIDTH) and (noised.values["rows"] != 0).all()
        ledger.store_update(receipt, noised.values["rows"].tobytes())
        # the expected batch size, never the actual one
        rows -= torch.tensor(noised.values["rows"]).float() / (rate * QUESTIONS)
    assert source.draws == rounds == len(ledger.releases())
    assert ledger.spent() == epsilon_of([Release(noise_multiplier=multiplier, steps=rounds, **plan)], budget.delta)
    assert 2.99 < ledger.spent() <= 3.0
    statement = state(ledger.releases(), budget.delta, method="head", clip_norm=CLIP_NORM, released=["noised rows"])
    assert len(statement.releases) == 1 and statement.releases[0].steps == rounds
    assert statement.epsilon == ledger.spent() and "Every single question" in plain_words(statement)
