"""The frozen model: loading, tokens, pooling. It never changes; what learns stands beside it, in an `Encoder`."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import chain
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcar.encoder.manner import Manner, check_pooling, declared, in_lower_case
from fedcar.encoder.model_files import (
    DEFAULT_ENCODER,
    MAX_TOKENS,
    TOKENIZER_VOCABULARIES,
    find,
    fingerprint,
    is_decoder,
    named,
    read_json,
    sha256,
    tokenizer_files,
    weight_files,
)
from fedcar.encoder.pooling import Pooling, pooling_of, width_behind
from fedcar.encoder.reading import TOKENS_PER_BATCH, Tokens, all_unknown, behind_prompt, state_type
from fedcar.encoder.sixteen_bits import (
    TOKENS_OF_A_LARGE_MODEL,
    computing_in_float32,
    in_bfloat16,
    in_sixteen_bits,
    is_large,
)
from fedcar.errors import FedcarError, FedcarWarning, first_line, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

LAYERS_KEPT = 6
TEXTS_AT_ONCE = 1024  # that are tokenised to see how long they are; others wait for the tokenizer meanwhile
POSITIONS_START_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "longformer")
LOADING = threading.RLock()  # for all, as the library that reads models is not made for several at a time
TOKENIZING = threading.Lock()  # for all: a tokenizer's cut is a setting of its own, and a lock cannot be copied


if hasattr(os, "register_at_fork"):  # threads of OpenMP stay behind in a fork, and who waits for them waits for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class FrozenModel:
    """A Hugging Face model in a folder; any number of encoders and threads share one.

    The weights are read from disk at the first encoding: a run whose hidden states are all cached never loads them.
    Batches are padded on the right whatever the tokenizer prefers: positions are then right for every model, and a
    causal decoder never sees the padding.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        pooling: str | None = None,
        revision: str | None = None,
        manner: Manner | None = None,
        prompts: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.folder = folder
        self.name = name
        self.revision = revision
        self.config = read_json(folder / "config.json")
        self.pooling, self.manner = pooling or "mean", manner or Manner()
        if pooling is not None:
            check_pooling(pooling)
        if pooling is None or manner is None:
            own, of_folder = declared(folder)
            if pooling in (None, own):
                self.pooling = own
                self.manner = manner or of_folder
            elif manner is None:  # what follows another pooling was not trained on this one
                self.manner = replace(of_folder, modules=(), ends=True)
        self.manner = self.manner.with_prompts(*prompts)
        if self.pooling == "cls" and is_decoder(self.config):
            message = f"--pooling cls: the first token of {name} knows nothing of the text; give last or mean"
            warnings.warn(message, FedcarWarning, stacklevel=2)
        self.texts_cut = 0  # for the warning, which is said once
        self._loaded: dict[str, Any] = {}
        self._folded: str | None = None

    @classmethod
    def load(
        cls,
        name: str | Path = DEFAULT_ENCODER,
        pooling: str | None = None,
        *,
        offline: bool = False,
        manner: Manner | None = None,
        prompts: tuple[str | None, str | None] = (None, None),
    ) -> FrozenModel:
        """See `Encoder.load`."""
        folder, revision = find(str(name), offline)
        if not (folder / "config.json").is_file():
            raise FedcarError(f"{folder}: no config.json, so this is not a Hugging Face model folder; name one that is")
        weight_files(folder)
        if not tokenizer_files(folder, TOKENIZER_VOCABULARIES):  # some tokenizer classes then make an empty vocabulary
            raise FedcarError(f"{folder}: no tokenizer.json, so no text can be read; fetch the encoder again")
        model = cls(folder, named(str(name)), pooling, revision, manner, prompts)
        model.check_prompts()
        return model

    def once(self, what: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - what is kept of each kind
        """What was made of the model before, or now; by one thread at a time."""
        if what not in self._loaded:
            with LOADING:
                if what not in self._loaded:
                    self._loaded[what] = make()
        return self._loaded[what]

    def __deepcopy__(self, memo: dict[int, object]) -> FrozenModel:
        """Return itself: it never changes."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: it reads tokenizer and weights anew, unless they were changed here."""
        kept = {"transformer": self._loaded["transformer"]} if self._folded else {}
        return {**vars(self), "_loaded": kept}

    @cached_property
    def fingerprint(self) -> str:
        """See `model_files.fingerprint`."""
        return fingerprint(self.folder)

    @cached_property
    def own_fingerprint(self) -> str:
        """The fingerprint with the manner of reading, where that is not the plain one."""
        if self.manner == Manner():
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint}\0{self.manner.fingerprint(self.folder)}".encode()).hexdigest()

    @cached_property
    def weight_hash(self) -> str:
        """sha256 of the weight file; of the listed hashes where the weights lie in several files."""
        hashes = [sha256(file) for file in weight_files(self.folder)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def is_large(self) -> bool:
        """Whether its weights are kept in 16 bits, see `sixteen_bits`."""
        return is_large(self.folder)

    @property
    def transformer(self) -> Any:  # noqa: ANN401 - any AutoModel
        """The frozen transformer, in evaluation mode and without dropout.

        It computes in float32. A large one's weights are kept in 16 bits (`sixteen_bits`).
        """
        return self.once("transformer", self._read_transformer)

    @torch.inference_mode(False)  # weights that are first read while encoding must serve training too
    def _read_transformer(self) -> Any:  # noqa: ANN401 - any AutoModel
        from transformers import AutoModel
        from transformers.utils import logging as transformers_logging

        if self.model_config.is_encoder_decoder:
            raise FedcarError(f"{self.folder}: the encoder has a decoder behind it; give an encoder or a decoder alone")
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
        if self.is_large:
            folder, precision = in_sixteen_bits(self.folder)
            model, report = self._read(AutoModel, "encoder", folder, dtype=precision, **options)
            model = computing_in_float32(model)
        else:
            model, report = self._read(AutoModel, "encoder", dtype=torch.float32, **options)
        # the library fills in missing weights with random numbers; only the pooler's are never used here
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            message = f"{len(missing)} weights are missing, {missing[0]} the first; fetch the encoder again"
            raise FedcarError(f"{self.folder}: {message}")
        switch_off_dropout(model)
        return model.requires_grad_(False).eval().to(self.device)

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - any fast tokenizer
        from transformers import AutoTokenizer

        def read() -> Any:  # noqa: ANN401
            tokenizer = self._read(AutoTokenizer, "tokenizer")
            return in_lower_case(tokenizer) if self.manner.lower_case else tokenizer

        return self.once("tokenizer", read)

    @cached_property
    def model_config(self) -> Any:  # noqa: ANN401 - any PreTrainedConfig
        """The text model's configuration, with the defaults of its class filled in."""
        from transformers import AutoConfig

        return self._read(AutoConfig, "configuration").get_text_config()

    def _read(self, kind: Any, what: str, folder: Path | None = None, **options: object) -> Any:  # noqa: ANN401
        try:
            found = str(folder or self.folder)
            return kind.from_pretrained(found, local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # the library raises many kinds; each means that the folder holds nothing usable
            message = f"the {what} cannot be read ({first_line(error)}); check the folder"
            raise FedcarError(f"{self.folder}: {message}") from error

    @property
    def pooler(self) -> Pooling:
        """What makes one vector of a text's token states."""
        found: Pooling = self.once("pooler", lambda: pooling_of(self.folder, self.pooling, self.manner).to(self.device))
        return found

    @cached_property
    def dimension(self) -> int:
        """The width of a text's vector: that of a hidden state, unless what follows the pooling makes another."""
        return width_behind(self.folder, self.pooling, self.manner, self.width)

    @property
    def width(self) -> int:
        """The width d of a token's hidden state."""
        width = self.config.get("hidden_size") or self.config.get("dim")  # known without reading the weights
        return width if isinstance(width, int) else int(self.model_config.hidden_size)

    @property
    def embedding(self) -> Any:  # noqa: ANN401 - torch.nn.Embedding or a subclass
        """The model's own embedding module, never a soft one."""
        return self.transformer.get_input_embeddings()

    @property
    def embedding_width(self) -> int:
        """The width of the embedding table, which is the adapter's (in ALBERT and ELECTRA not the hidden size)."""
        return int(self.embedding.weight.shape[1])

    @property
    def state_fingerprint(self) -> str:
        """The fingerprint, or for a folded model that of the encoder it was: equal ones, equal hidden states."""
        return self._folded or self.own_fingerprint

    # ---------------------------------------------------------------- the same weights behind another embedding

    def behind(self, embedding: nn.Module) -> Any:  # noqa: ANN401 - any AutoModel
        """The transformer with another embedding in front: modules of its own, all weights shared."""
        return shared(self.transformer, embedding)

    def in_bfloat16_behind(self, embedding: nn.Module) -> Any:  # noqa: ANN401 - any AutoModel
        """The same with blocks in bfloat16, which all that ask share; attention is written out.

        The backward pass of torch's fused one takes five times as long in bfloat16 on a CPU.
        """
        return shared(self.once("bfloat16", self._halved), embedding)

    def _halved(self) -> Any:  # noqa: ANN401 - any AutoModel
        model = in_bfloat16(self.behind(torch.nn.Embedding(1, 1)))  # the table is not copied
        if self.device.type == "cpu":
            model.set_attn_implementation("eager")
        return model

    @torch.no_grad()
    def folded(self, adapter: nn.Module, state_fingerprint: str) -> FrozenModel:
        """A model of its own with the adapter in the embedding table (E' = E A^T); `state_fingerprint` names it."""
        result = copy.copy(self)
        table = copy.deepcopy(self.embedding).float()
        table.weight.copy_(adapter(table.weight))
        result._loaded = {"transformer": self.behind(table)}
        result._folded = state_fingerprint
        return result

    # ---------------------------------------------------------------- tokens

    @cached_property
    def max_tokens(self) -> int:
        """Tokens kept of a text: 256, or the encoder's limit where that is lower."""
        limit = int(getattr(self.model_config, "max_position_embeddings", None) or MAX_TOKENS)
        if self.model_config.model_type == "mpnet":
            limit -= 2  # its padding row is 1, whatever the configuration says
        elif self.model_config.model_type.startswith(POSITIONS_START_AFTER_PADDING):
            limit -= int(getattr(self.model_config, "pad_token_id", None) or 0) + 1
        own = self.manner.max_tokens or MAX_TOKENS
        return max(2, min(MAX_TOKENS, own, limit, int(self.tokenizer.model_max_length)))

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

    @property
    def end(self) -> int | None:
        """The token that is put behind every text that does not end in it."""
        return self.tokenizer.eos_token_id if self.manner.ends and self.pooling == "last" else None

    def _tokenized(self, texts: str | list[str], **options: object) -> Any:  # noqa: ANN401 - a tokenizer's answer
        """What the tokenizer makes of them, for one thread at a time.

        It is read before the lock is taken: who reads a model may hold another lock and wait for this one.
        """
        tokenizer = self.tokenizer
        with TOKENIZING:
            return tokenizer(texts, **options)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they stand: nothing is cut and nothing added."""
        ids: list[list[int]] = self._tokenized(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens of a text with this prompt are read and not pooled."""
        if self.manner.include_prompt or not prompt:
            return 0
        ids = self._tokenized(prompt)["input_ids"]
        return len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        """Token ids with the model's special tokens, cut at `max_tokens`; with pooling `last` they end in EOS.

        The prompt stands in front of each text.
        """
        if not texts:
            return []
        end = self.end
        room = self.max_tokens - (end is not None and not self.adds_end)
        readable = [prompt + text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        found = self._tokenized(readable, truncation=True, max_length=room, return_attention_mask=False)
        ids: list[list[int]] = [list(map(int, row)) for row in found["input_ids"]]
        self._warn_of_cut(found, len(texts))
        if end is not None:
            ids = [row if row and row[-1] == end else [*row, end] for row in ids]
        self._check_known(ids)
        return [row or [self.padding_id] for row in ids]

    def room(self, prompt: str = "") -> int:
        """Tokens of its own that a text may have, beside those of the prompt before it and the special ones."""
        special = int(self.tokenizer.num_special_tokens_to_add(pair=False))
        others = special + (self.pooling == "last" and not self.adds_end) + len(self.places(prompt))
        return max(1, self.max_tokens - others)

    def check_prompts(self) -> None:
        """Refuse a prompt that leaves less than half of the tokens to the text behind it."""
        for what, prompt in (("query", self.manner.query_prompt), ("document", self.manner.document_prompt)):
            if prompt and self.tokenizer.is_fast and self.room(prompt) < self.max_tokens // 2:
                tokens = len(self.places(prompt))
                message = f"the prompt is {tokens} tokens long, and the encoder takes {self.max_tokens}"
                raise FedcarError(f"--{what}-prompt {quoted(prompt)}: {message}; shorten it")

    def too_long(self, texts: Sequence[str], prompt: str = "") -> NDArray[np.bool_]:
        """Which texts have more tokens than there is room for (n,); none where the tokenizer knows no places."""
        if not texts or not self.tokenizer.is_fast:
            return np.zeros(len(texts), dtype=bool)
        room, cut = self.room(prompt), list[bool]()
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = [text.encode("utf-8", "replace").decode() for text in texts[start : start + TEXTS_AT_ONCE]]
            found = self._tokenized(part, add_special_tokens=False, truncation=True, max_length=room)
            cut += [bool(encoding.overflowing) for encoding in found.encodings]
        return np.array(cut, dtype=bool)

    def places(self, text: str) -> NDArray[np.int64]:
        """Where all tokens of a text begin and end (t, 2), in characters; nothing is cut and nothing added."""
        readable = text.encode("utf-8", "replace").decode()
        found = self._tokenized(readable, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)

    def unknown(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts hold nothing that the tokenizer knows (n,), so that their states are alike."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return np.zeros(len(texts), dtype=bool)
        readable = [text.encode("utf-8", "replace").decode() for text in texts]
        found = self._tokenized(readable, add_special_tokens=False, truncation=True, max_length=self.max_tokens)
        return all_unknown(found["input_ids"], unknown)

    def _warn_of_cut(self, found: Any, texts: int) -> None:  # noqa: ANN401 - a tokenizer's answer
        cut = sum(bool(encoding.overflowing) for encoding in found.encodings or [])
        if cut and not self.texts_cut:
            message = f"{cut} of {texts} texts are longer than {self.max_tokens} tokens and were cut"
            warnings.warn(message, FedcarWarning, stacklevel=3)
        self.texts_cut += cut

    @contextmanager
    def without_remarks(self) -> Iterator[None]:
        """Nothing is said of texts that are read in here, and what is said later is as if they had not been read."""
        cut = self.texts_cut
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FedcarWarning)
                yield
        finally:
            self.texts_cut = cut

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Nothing is said of texts that are cut in here: who reads them reads the rest of them too."""
        cut = self.texts_cut
        try:
            with warnings.catch_warnings():
                if self.tokenizer.is_fast:
                    warnings.filterwarnings("ignore", ".* tokens and were cut", FedcarWarning)
                yield
        finally:
            self.texts_cut = cut

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
        return list(self._tokenized("")["input_ids"][-1:]) == [self.tokenizer.eos_token_id]

    def tokens(self, texts: Sequence[str], whole: bool = False, prompt: str = "") -> list[Tokens]:
        """Texts -> their tokens with the places in the text, cut at `max_tokens`; those of the prompt count as special.

        `whole` makes them what `tokenize` gives: ended with EOS where pooling is `last`, with a warning of texts cut.
        The states of the other tokens are then those of a text with EOS behind it, which a decoder's do not see.
        """
        if not texts:
            return []
        end = self.end if whole else None
        found = self._tokenized(
            [prompt + text.encode("utf-8", "replace").decode() for text in texts],
            truncation=True,
            max_length=self.max_tokens - (end is not None and not self.adds_end),
            return_attention_mask=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        if whole:
            self._warn_of_cut(found, len(texts))
            self._check_known(found["input_ids"])
        parts = zip(found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True)
        rows = [behind_prompt(Tokens(*part), len(prompt)) for part in parts]
        if end is None:
            return rows
        behind = Tokens([end], [(0, 0)], [1])
        return [row if list(row.ids[-1:]) == [end] else Tokens(*map(add, row, behind)) for row in rows]

    @property
    def tokens_per_batch(self) -> int:
        """Tokens that go through the model at once; of a large one few, as the states of all its layers are held."""
        return TOKENS_OF_A_LARGE_MODEL if self.is_large else TOKENS_PER_BATCH

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers below the last are kept of a text: up to six, evenly spaced from the embeddings up."""
        blocks = int(self.config.get("num_hidden_layers") or self.model_config.num_hidden_layers)
        return tuple(sorted({round(place) for place in np.linspace(0, blocks - 1, LAYERS_KEPT)}))

    @property
    def state_type(self) -> np.dtype[np.void]:
        """See `reading.state_type`."""
        return state_type(len(self.layers), self.dimension, self.width)


def shared(model: Any, embedding: nn.Module) -> Any:  # noqa: ANN401 - any AutoModel
    """The model with this embedding: a copy of its modules that holds the very same tensors."""
    same = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    result = copy.deepcopy(model, same)
    result.set_input_embeddings(embedding)
    return result


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Frozen blocks are deterministic, in training mode too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
