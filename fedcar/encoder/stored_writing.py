"""An encoder written for `StoredEncoder`, and the checks that what was written must pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.vectors import unit
from fedcar.encoder.encoder import Encoder
from fedcar.encoder.runtimes import onnx_file
from fedcar.encoder.stored import MODEL, TOKENIZER, StoredEncoder
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BESIDE = "beside-"
LEAST_COSINE = {"fp32": 0.999999, "int8": 0.9}


def write_encoder(encoder: Encoder, folder: Path, precision: str = "fp32", prefix: str = "") -> dict[str, Any]:
    """Write model and tokenizer into the folder; gives the settings that `StoredEncoder.of` wants beside them.

    Files of an encoder beside it begin with "beside-".

    Raises FedcarError where ONNX cannot express the encoder, or its tokenizer is not one of the `tokenizers` library.
    """
    model, tokenizer = encoder.model, encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise FedcarError(f"{encoder.folder}: its tokenizer has no tokenizer.json; take --format transformers")
    content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    (folder / f"{prefix}{TOKENIZER}").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    onnx_file.write(model, folder / f"{prefix}{MODEL}", precision, encoder.adapter)
    return {
        "pooling": encoder.pooling,
        "precision": precision,
        "dimension": encoder.dimension,
        "layers": model.layers,
        "max_tokens": model.max_tokens,
        "padding_id": model.padding_id,
        "end": model.end if not model.adds_end else None,
        "adapter": encoder.adapter.variant if encoder.adapter is not None else None,
        "unknown_id": tokenizer.unk_token_id,
        **({"width": encoder.width} if encoder.width != encoder.dimension else {}),
        **({"prompt": encoder.prompt, "left_out": encoder.left_out} if encoder.prompt else {}),
        **({"prefix": prefix} if prefix else {}),
        **({"beside": write_encoder(encoder.beside, folder, precision, BESIDE)} if encoder.beside is not None else {}),
    }


def check_encoder(encoder: Encoder, stored: StoredEncoder, what: str, texts: Sequence[str]) -> None:
    """Refuse a stored encoder that makes other tokens of the texts, or other states; `what` it is a part of."""
    if stored.tokenize(texts) != encoder.tokenize(texts):
        message = "its tokenizer cannot be written so that it makes the same tokens; take --format transformers"
        raise FedcarError(f"{encoder.folder}: {message}")
    check_states(encoder, what, stored.precision, texts, stored.encode(texts))
    if encoder.beside is not None and stored.beside is not None:
        check_encoder(encoder.beside, stored.beside, what, texts)


def check_states(
    encoder: Encoder, exported: str, precision: str, texts: Sequence[str], states: NDArray[np.float32]
) -> None:
    """Refuse hidden states (n, d), made by what was exported, that are not those that the encoder gives."""
    least = float(np.einsum("nd,nd->n", unit(states), unit(encoder.encode(texts))).min())
    if least < LEAST_COSINE[precision]:
        instead = "take --precision fp32" if precision == "int8" else "use the retriever itself"
        raise FedcarError(f"{encoder.folder}: {exported} gives other hidden states (cosine {least:.4f}); {instead}")
