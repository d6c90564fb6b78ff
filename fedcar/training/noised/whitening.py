"""The space in which noised sums are taken: directions that public texts fill are shortened, the others stretched.

Noise is as loud in every direction, and what tells questions apart lies mostly where the encoder's states vary little.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as functional
from torch import Tensor

from fedcar.encoder.reference import reference_texts
from fedcar.head.head import Head
from fedcar.retriever.retriever import Retriever

POWER = 0.25  # of the covariance, whose half would whiten all the way; measured on parts of training splits
SHRINKAGE = 1.0  # mean variances that are added to the variance in every direction

_known: WeakKeyDictionary[Head, Tensor] = WeakKeyDictionary()


def whitening(untrained: Retriever) -> Tensor:
    """W (d, d), symmetric: x is measured as W x. From the packaged reference texts and the documents alone.

    W = c (C + m I)^(-1/4), C the covariance of their x around the encoder's usual direction, m its mean variance, c so
    that W x has length 1 for the reference texts on average. Being linear it goes into the rows in the end.
    """
    head = untrained.head
    if head not in _known:
        encoder = untrained.encoder.untrained
        with encoder.model.without_remarks():
            states = torch.from_numpy(encoder.encode(reference_texts()))
        reference = usual_vectors(states, head.centre)
        empty = torch.from_numpy(untrained.empty)
        documents = functional.normalize(head.embeddings[~empty] - head.centre, dim=1)
        _known[head] = _whitening(reference, documents)
    return _known[head]


def _whitening(reference: Tensor, documents: Tensor) -> Tensor:
    public = torch.cat([reference, documents]).double()
    variances, directions = torch.linalg.eigh(public.T @ public / len(public))
    factors = (variances.clamp(min=0.0) + SHRINKAGE * variances.mean()) ** -POWER
    stretched: Tensor = (directions * factors) @ directions.T
    stretched /= (reference.double() @ stretched).norm(dim=1).mean().clamp(min=1e-12)
    return stretched.float()


def usual_vectors(hidden_states: Tensor, centre: Tensor) -> Tensor:
    """Hidden states (n, d) of unit length less the encoder's usual direction, of unit length: what rows multiply."""
    return functional.normalize(functional.normalize(hidden_states, dim=1) - centre, dim=1)
