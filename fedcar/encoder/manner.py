"""How an encoder reads texts, beyond its weights: what sentence-transformers keeps in a model's folder. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedcar.encoder.gguf_file import declared_pooling
from fedcar.encoder.model_files import MAX_TOKENS, read_json, sha256
from fedcar.errors import FedcarError, quoted

POOLINGS = ("mean", "last", "cls", "max", "mean_sqrt_len_tokens", "weightedmean")
FLAGS = {  # a folder from before sentence-transformers 6 has a flag for each; where several are set, in this order
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
BEHIND = ("Dense", "LayerNorm", "Normalize")  # what may follow the pooling; dropout does nothing here


@dataclass(frozen=True)
class Manner:
    """Prompts, what follows the pooling, and limits; by default a text is pooled as it stands.

    `include_prompt` says whether the prompt's own tokens are pooled. `modules` are the folders of what follows the
    pooling; a last normalisation is left out, since vectors are compared by cosine. `max_tokens` is a limit below
    fedcar's own. With `ends` pooling `last` puts EOS behind a text whose tokenizer does not.
    """

    query_prompt: str = ""
    document_prompt: str = ""
    include_prompt: bool = True
    modules: tuple[str, ...] = ()
    max_tokens: int | None = None
    lower_case: bool = False
    ends: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Manner:
        """From what `to_json` gave; the default for what was kept before there was any."""
        found = dict(settings or {})
        return cls(**found | {"modules": tuple(found.get("modules", ()))})

    def to_json(self) -> dict[str, Any] | None:
        """Plain values; None for the default."""
        return None if self == Manner() else asdict(self)

    def fingerprint(self, folder: Path) -> str:
        """sha256 over all of it and over the files of the modules, whatever these are called."""
        digest = hashlib.sha256(json.dumps({**asdict(self), "modules": len(self.modules)}, sort_keys=True).encode())
        for name in self.modules:
            if not (folder / name).is_dir():
                raise FedcarError(f"{folder}: no module {quoted(name)}; give the original encoder's folder")
            for file in sorted((folder / name).iterdir()):
                if file.suffix in (".json", ".safetensors"):
                    digest.update(f"{file.name}\0{sha256(file)}\0".encode())
        return digest.hexdigest()

    def with_prompts(self, query: str | None, document: str | None) -> Manner:
        """The same with these prompts, where they are given."""
        return replace(
            self,
            query_prompt=self.query_prompt if query is None else query,
            document_prompt=self.document_prompt if document is None else document,
        )


def declared(folder: Path) -> tuple[str, Manner]:
    """The pooling and the manner that a folder names, as `SentenceTransformer(folder)` reads them; otherwise mean.

    Mean for decoders too: a raw language model's last token knows little of the text before it is trained
    (stories260K on BANKING77: a linear head reaches .65 on the mean, .23 on the last token).

    Raises FedcarError for a module that is not known here.
    """
    if (of_gguf := declared_pooling(folder)) is not None:
        return _in_own_words(of_gguf), Manner(ends=False)
    modules = modules_of(folder)
    place = next((path for path, kind in modules if kind == "Pooling"), "1_Pooling")
    pooling, include = "mean", True
    if (file := folder / place / "config.json").is_file():
        settings = read_json(file)
        pooling, include = _pooling(settings, file), bool(settings.get("include_prompt", True))
    kinds = [kind for _, kind in modules]
    behind = modules[kinds.index("Pooling") + 1 :] if "Pooling" in kinds else []
    while behind and behind[-1][1] in ("Normalize", "Dropout"):
        behind.pop()
    for path, kind in behind:
        if kind not in (*BEHIND, "Dropout"):
            raise FedcarError(f"{folder}: its module {quoted(path)} is a {kind}, not known here; take another encoder")
    prompts, transformer = _prompts(folder), _optional(folder / "sentence_bert_config.json")
    limit = transformer.get("max_seq_length")
    return pooling, Manner(
        prompts.get("query") or "",
        prompts.get("document") or "",
        include,
        tuple(path for path, kind in behind if kind != "Dropout"),
        limit if isinstance(limit, int) and limit < MAX_TOKENS else None,
        bool(transformer.get("do_lower_case", False)),
        ends="last" not in pooling.split("+"),
    )


def check_pooling(pooling: str) -> None:
    """Refuse a pooling that is not known; several, joined by "+", stand side by side."""
    if unknown := [name for name in pooling.split("+") if name not in POOLINGS]:
        raise FedcarError(f'--pooling "{unknown[0]}": not known; give one of {", ".join(POOLINGS)}')


def in_lower_case(tokenizer: Any) -> Any:  # noqa: ANN401 - any fast tokenizer
    """The tokenizer, which makes every text lower case before all else."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer is not None else [])]
    backend.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _in_own_words(pooling: str) -> str:
    return "last" if pooling == "lasttoken" else pooling


def _pooling(settings: Mapping[str, Any], file: Path) -> str:
    found = settings.get("pooling_mode") or [mode for flag, mode in FLAGS.items() if settings.get(flag)] or "mean"
    names = [_in_own_words(str(name)) for name in ([found] if isinstance(found, str) else found)]
    if unknown := [name for name in names if name not in POOLINGS]:
        raise FedcarError(f"{file}: the pooling {quoted(unknown[0])} is not known; give --pooling {POOLINGS[0]}")
    return "+".join(names)


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """The folders and kinds of the modules, in order; nothing where the folder names none."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [(str(one["path"]), str(one["type"]).rpartition(".")[2]) for one in content]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FedcarError(f"{file}: not a list of modules; fetch the encoder again") from error


def _prompts(folder: Path) -> dict[str, str]:
    found = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
    if not isinstance(found, dict) or any(not isinstance(prompt, str | None) for prompt in found.values()):
        raise FedcarError(f"{folder}: the prompts in config_sentence_transformers.json are no texts; fetch it again")
    return found


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
