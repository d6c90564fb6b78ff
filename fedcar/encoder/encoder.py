"""The frozen language model: loading, tokens, pooling, and the place where the adapter goes in and is folded."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedcar.encoder.adapter import Adapter, SoftEmbedding
from fedcar.encoder.model import pool, states_of, switch_off_dropout
from fedcar.encoder.model_files import (
    DEFAULT_ENCODER,
    TOKENIZER_SETTINGS,
    TOKENIZER_VOCABULARIES,
    default_pooling,
    find,
    first_line,
    is_decoder,
    read_json,
    sha256,
    tokenizer_files,
    weight_files,
)
from fedcar.encoder.runtimes import choice
from fedcar.encoder.runtimes.protocol import (
    Progress,
    States,
    Tokens,
    ahead,
    encoded,
    encoded_tokens,
    padded,
    state_type,
)
from fedcar.errors import FedcarError, FedcarWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.runtimes.protocol import Runtime, TokenStates

POOLINGS = ("mean", "last", "cls")
MAX_TOKENS = 256
LAYERS_KEPT = 6
POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "longformer")
TOKENIZING = threading.Lock()  # for all: a tokenizer's cut is a setting of its own, and a lock cannot be copied


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
        self.config = read_json(folder / "config.json")
        if pooling is not None and pooling not in POOLINGS:
            raise FedcarError(f'--pooling "{pooling}": not known; give one of {", ".join(POOLINGS)}')
        self.pooling = pooling or default_pooling(folder)
        if self.pooling == "cls" and is_decoder(self.config):
            message = f"--pooling cls: the first token of {name} knows nothing of the text; give last or mean"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        self.adapter: Adapter | None = None
        self.texts_cut = 0
        self._runtime_name: str | None = None
        self._runtime: Runtime | None = None
        self._folded: str | None = None
        self._half: Any = None

    @classmethod
    def load(cls, name: str | Path = DEFAULT_ENCODER, pooling: str | None = None, *, offline: bool = False) -> Encoder:
        """An encoder from a local folder, the packaged default, or the Hugging Face hub by name.

        `offline` looks on this machine only. Raises FedcarError where there is no such encoder, or where its weights
        are a pickle.
        """
        folder, revision = find(str(name), offline)
        if not (folder / "config.json").is_file():
            raise FedcarError(f"{folder}: no config.json, so this is not a Hugging Face model folder; name one that is")
        weight_files(folder)
        if not tokenizer_files(folder, TOKENIZER_VOCABULARIES):  # some tokenizer classes then make an empty vocabulary
            raise FedcarError(f"{folder}: no tokenizer.json, so no text can be read; fetch the encoder again")
        return cls(folder, str(name), pooling, revision)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the weights, the configuration and the tokenizer files: equal encoders, equal fingerprints."""
        tokenizer = tokenizer_files(self.folder, (*TOKENIZER_VOCABULARIES, *TOKENIZER_SETTINGS))
        digest = hashlib.sha256()
        for file in [*weight_files(self.folder), *tokenizer, self.folder / "config.json"]:
            digest.update(f"{file.name}\0{sha256(file)}\0".encode())
        return digest.hexdigest()

    @cached_property
    def weight_hash(self) -> str:
        """sha256 of the weight file; of the listed hashes where the weights lie in several files."""
        hashes = [sha256(file) for file in weight_files(self.folder)]
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
        switch_off_dropout(model)
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
            message = f"the {what} cannot be read ({first_line(error)}); check the folder"
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
        room = self.max_tokens - (end is not None and not self.adds_end)
        readable = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        with TOKENIZING:
            found = self.tokenizer(readable, truncation=True, max_length=room, return_attention_mask=False)
        ids: list[list[int]] = [list(map(int, row)) for row in found["input_ids"]]
        self._warn_of_cut(found, len(texts))
        if end is not None:
            ids = [row if row and row[-1] == end else [*row, end] for row in ids]
        self._check_known(ids)
        return [row or [self.padding_id] for row in ids]

    def _warn_of_cut(self, found: Any, texts: int) -> None:  # noqa: ANN401 - a tokenizer's answer
        cut = sum(bool(encoding.overflowing) for encoding in found.encodings or [])
        if cut and not self.texts_cut:
            message = f"{cut} of {texts} texts are longer than {self.max_tokens} tokens and were cut"
            warnings.warn(message, FedcarWarning, stacklevel=3)
        self.texts_cut += cut

    def _check_known(self, ids: Sequence[Sequence[int]]) -> None:
        known = self.model_config.vocab_size
        if (highest := max(map(max, filter(None, ids)), default=0)) >= known:
            raise FedcarError(
                f"{self.folder}: the tokenizer makes token {highest}, but the model has {known} tokens; "
                "they do not belong together: fetch the encoder again"
            )

    @cached_property
    def adds_end(self) -> bool:
        """Whether the tokenizer puts EOS behind a text by itself."""
        return list(self.tokenizer("")["input_ids"][-1:]) == [self.tokenizer.eos_token_id]

    def hidden_states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One batch of token id lists -> pooled hidden states (n, d); differentiable in the adapter."""
        output, mask = self._forward(token_ids)
        last = output.last_hidden_state
        return pool(last.float() if last.dtype == torch.bfloat16 else last, mask, self.pooling)

    def _forward(self, token_ids: Sequence[Sequence[int]]) -> tuple[Any, Tensor]:
        """One padded pass through the model: its output and the mask (n, t)."""
        batch, mask = (torch.from_numpy(array).to(self.device) for array in padded(token_ids, self.padding_id))
        return self.blocks(input_ids=batch, attention_mask=mask), mask

    @property
    def blocks(self) -> Any:  # noqa: ANN401 - any AutoModel
        """What a batch goes through: the model, or for gradients of a halved adapter its copy in bfloat16."""
        if self._half is None or self.adapter is None or not self.adapter.halved or not torch.is_grad_enabled():
            return self.model
        if self._half.get_input_embeddings().adapter is not self.adapter:
            self._half.set_input_embeddings(SoftEmbedding(self.embedding, self.adapter, torch.bfloat16))
        return self._half

    def runtime(self, texts: Sequence[str]) -> Runtime:
        """What runs the encoder on these texts: with an adapter torch in float32, otherwise what `choice` says."""
        name = self.runtime_name(texts)
        if self.adapter is not None:
            return self
        if self._runtime is None:
            self._runtime = choice.built(self, name)
        return self._runtime

    def runtime_name(self, texts: Sequence[str]) -> str:
        """Its name, chosen when it is first asked for."""
        if self.adapter is not None:
            return choice.EXACT
        if self._runtime_name is None:
            self._runtime_name = choice.chosen(self, texts)
        return self._runtime_name

    @torch.inference_mode()
    def run(self, token_ids: NDArray[np.int64], mask: NDArray[np.int64]) -> States:
        """One batch in float32 through torch, the reference; see `runtime.protocol.Runtime`."""
        kept = torch.from_numpy(mask).to(self.device)
        found = states_of(self.model, torch.from_numpy(token_ids).to(self.device), kept, self.layers, self.pooling)
        return States(*(tensor.float().cpu().numpy() for tensor in found))

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Texts -> hidden states (n, d), float32, not normalised, in the order given."""
        hidden_states: NDArray[np.float32] = self.encode_states(texts, progress)["pooled"]
        return hidden_states

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.void]:
        """Texts -> records (n,) of `state_type`, in the order given."""
        return self._encoded(texts, self.tokenize(texts), progress)

    def encode_parts(
        self, parts: Iterable[Sequence[str]], progress: Progress | None = None
    ) -> Iterator[NDArray[np.void]]:
        """What `encode_states` gives of each part; the next part's texts are tokenised while the model runs."""
        for texts, token_ids in ahead(lambda texts: (texts, self.tokenize(texts)), parts):
            yield self._encoded(texts, token_ids, progress)

    def _encoded(
        self, texts: Sequence[str], token_ids: Sequence[Sequence[int]], progress: Progress | None
    ) -> NDArray[np.void]:
        result = np.empty(len(texts), dtype=self.state_type)
        return encoded(self.runtime(texts), token_ids, result, self.padding_id, progress)

    def token_states(self, texts: Sequence[str], progress: Progress | None = None) -> list[TokenStates]:
        """Texts -> the last hidden states of their tokens, of unit length, float16; cut at `max_tokens` like a text.

        All of it is held in memory: 2 d bytes a token. Offsets count characters.
        """
        return encoded_tokens(self.runtime(texts), self._tokens(texts), self.padding_id, progress)

    def read_parts(
        self, parts: Iterable[Sequence[str]], progress: Progress | None = None
    ) -> Iterator[tuple[NDArray[np.void], list[TokenStates]]]:
        """What `encode_states` and what `token_states` give of each part, from one pass; tokenised ahead too.

        From two passes with pooling `last`, which reads the end of a text in another way.
        """
        if self.pooling == "last":
            for texts in parts:
                yield self.encode_states(texts), self.token_states(texts, progress)
            return
        for texts, tokens in ahead(lambda texts: (texts, self._tokens(texts, checked=True)), parts):
            records = np.empty(len(texts), dtype=self.state_type)
            yield records, encoded_tokens(self.runtime(texts), tokens, self.padding_id, progress, records=records)

    def _tokens(self, texts: Sequence[str], checked: bool = False) -> list[Tokens]:
        if not texts:
            return []
        with TOKENIZING:
            found = self.tokenizer(
                [text.encode("utf-8", "replace").decode() for text in texts],
                truncation=True,
                max_length=self.max_tokens,
                return_attention_mask=False,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
        if checked:
            self._warn_of_cut(found, len(texts))
            self._check_known(found["input_ids"])
        rows = zip(found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True)
        return [Tokens(*row) for row in rows]

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers below the last are kept of a text: up to six, evenly spaced from the embeddings up."""
        blocks = int(self.config.get("num_hidden_layers") or self.model_config.num_hidden_layers)
        return tuple(sorted({round(place) for place in np.linspace(0, blocks - 1, LAYERS_KEPT)}))

    @property
    def state_type(self) -> np.dtype[np.void]:
        """What is kept of a text: h (d,) in float32 and the mean states of `layers` (k, d) in float16."""
        return state_type(len(self.layers), self.dimension)

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
        self._runtime = None  # it ran the encoder as it was

    def halve(self) -> None:
        """From here on gradients of the inserted adapter go through a copy of the frozen blocks in bfloat16.

        Embedding table and adapter stay in float32, and so does everything without gradients. Twice as fast where the
        processor multiplies bfloat16, and half of the activations' memory. Attention is written out: the backward pass
        of torch's fused one takes five times as long in bfloat16 on a CPU.
        """
        if self.adapter is None:
            raise ValueError("there is no adapter whose gradients could go through the blocks")
        self.adapter.halved = True
        if self._half is not None:
            return
        table = self.embedding
        self.model.set_input_embeddings(torch.nn.Embedding(1, 1))  # the table is not copied
        try:
            self._half = copy.deepcopy(self.model).to(torch.bfloat16)
        finally:
            self.model.set_input_embeddings(SoftEmbedding(table, self.adapter))
        if self.device.type == "cpu":
            self._half.set_attn_implementation("eager")
        self._half.set_input_embeddings(SoftEmbedding(table, self.adapter, torch.bfloat16))

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass: less memory, about one more forward pass a step."""
        self._checkpoint(self.model)
        if self._half is not None:
            self._checkpoint(self._half)

    def _checkpoint(self, model: Any) -> None:  # noqa: ANN401 - any AutoModel
        name = "activation_checkpointing_enable"  # as transformers calls it of late
        enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise FedcarError(f"{self.name}: this model has no gradient checkpointing; train without it") from error
        for module in model.modules():  # it works in training mode only; everything else stays as in evaluation
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
