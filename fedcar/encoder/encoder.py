"""The encoder: a frozen model and, where there is one, an adapter. It is a value; `with_adapter` makes another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedcar.encoder.adapter import Adapter, BothEmbeddings, SoftEmbedding
from fedcar.encoder.manner import Manner
from fedcar.encoder.model import FrozenModel
from fedcar.encoder.model_files import DEFAULT_ENCODER, fingerprint_with
from fedcar.encoder.reading import (
    Progress,
    Reading,
    Tokens,
    ahead,
    encoded,
    padded,
    read,
)
from fedcar.encoder.runtimes import choice
from fedcar.encoder.runtimes.names import EXACT
from fedcar.encoder.runtimes.torch_float32 import TorchFloat32
from fedcar.errors import FedcarError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedcar.encoder.reading import Runtime, TokenStates


class Encoder:
    """Turns a text into one hidden state h of shape (d,), through a frozen model and an adapter if it has one.

    Nothing of it changes after it is made, so any number of threads may use one; only who trains an adapter writes into
    that. `untrained` is the same without the adapter. With `halved` the gradients of the adapter go through a copy of
    the frozen blocks in bfloat16, which all encoders of the model share: twice as fast where the processor multiplies
    bfloat16, and half of the activations' memory; table and adapter stay in float32, and so does everything without
    gradients. With `recomputed` activations are made again in the backward pass: less memory, about one more forward
    pass a step. `runtime` names what an encoder without adapter runs in; by default `choice` says it.

    Texts are read as questions, with the question's prompt where the model has one; `for_documents` reads documents.

    Formal guarantees:
        vectors_equal_those_of_sentence_transformers: its `encode_query` and `encode_document`, up to the length.
    """

    def __init__(
        self,
        model: FrozenModel,
        adapter: Adapter | None = None,
        *,
        untrained: Encoder | None = None,
        runtime: str | None = None,
        halved: bool = False,
        recomputed: bool = False,
        documents: bool = False,
    ) -> None:
        self.model = model
        self.alone: Encoder = self  # without a second one
        self.beside: Encoder | None = None  # the second one, see `both`
        self.adapter = adapter
        self.untrained: Encoder = untrained or (self if adapter is None else Encoder(model, documents=documents))
        self.halved = halved
        self.recomputed = recomputed
        self._runtime_name = runtime
        self._documents = documents

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process needs; what was made of it here is made there anew."""
        kind = type(self)
        return {
            name: at for name, at in vars(self).items() if not isinstance(getattr(kind, name, None), cached_property)
        }

    @classmethod
    def load(
        cls,
        name: str | Path = DEFAULT_ENCODER,
        pooling: str | None = None,
        *,
        offline: bool = False,
        manner: Manner | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> Encoder:
        """An encoder from a local folder or GGUF file, the packaged default, or the Hugging Face hub by name.

        `offline` looks on this machine only. How it reads texts is what the folder says to sentence-transformers, or
        `manner`; the prompts are those given, where they are. Another pooling than the folder's leaves out what the
        folder puts behind its own. Raises FedcarError where there is no such encoder, or where its weights are a
        pickle.
        """
        prompts = query_prompt, document_prompt
        return cls(FrozenModel.load(name, pooling, offline=offline, manner=manner, prompts=prompts))

    @cached_property
    def for_documents(self) -> Encoder:
        """The same encoder as it reads documents: itself, unless they have another prompt than questions."""
        if self._documents or self.model.manner.query_prompt == self.model.manner.document_prompt:
            return self
        options: dict[str, Any] = {"halved": self.halved, "recomputed": self.recomputed, "runtime": self._runtime_name}
        return Encoder(self.model, self.adapter, documents=True, **options)

    @property
    def prompt(self) -> str:
        """What stands in front of every text."""
        manner = self.model.manner
        return manner.document_prompt if self._documents else manner.query_prompt

    @property
    def reads(self) -> str:
        """Which of a model's two kinds of states these are: "documents" where they have a prompt of their own."""
        return "documents" if self._documents else ""

    @property
    def left_out(self) -> int:
        """How many tokens of the prompt are read and not pooled."""
        return self.model.prompt_tokens(self.prompt)

    def with_adapter(self, adapter: Adapter | None, *, halved: bool = False, recomputed: bool = False) -> Encoder:
        """The same frozen model with this adapter between token embeddings and blocks; without any for None."""
        if adapter is None:
            return self.untrained
        if adapter.width != self.embedding_width:
            raise FedcarError(
                f"the adapter has width {adapter.width}, the embedding table of {self.name} "
                f"{self.embedding_width}; they must be equal: use the encoder that the adapter was trained with"
            )
        adapter = adapter.to(self.model.device)
        options: dict[str, Any] = {"halved": halved, "recomputed": recomputed, "documents": self._documents}
        return Encoder(self.model, adapter, untrained=self.untrained, **options)

    def folded(self) -> Encoder:
        """The adapter written into the embedding table (E' = E A^T): the same hidden states from a stock model.

        Bit for bit, but for models that scale the embeddings (Gemma), where the last digits differ.
        """
        return self if self.adapter is None else Encoder(self.model.folded(self.adapter, self.state_fingerprint))

    # ---------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def folder(self) -> Path:
        return self.model.folder

    @property
    def in_words(self) -> str:
        """What it is, in a line, for who is told what a run would do."""
        manner, about = self.model.manner, f"{self.dimension} wide, pooling {self.pooling}"
        for what, prompt in (("questions", manner.query_prompt), ("documents", manner.document_prompt)):
            about += f", {prompt!r} before {what}" if prompt else ""
        return f"{self.name} ({about}, {self.state_fingerprint[:12]})"

    @property
    def pooling(self) -> str:
        return self.model.pooling

    @property
    def fingerprint(self) -> str:
        """That of the frozen model's files; `state_fingerprint` tells also how they are used."""
        return self.model.fingerprint

    @property
    def dimension(self) -> int:
        """See `FrozenModel.dimension`."""
        return self.model.dimension

    @property
    def width(self) -> int:
        """The width d of a token's hidden state."""
        return self.model.width

    @property
    def embedding_width(self) -> int:
        """The width of the embedding table, which is the adapter's."""
        return self.model.embedding_width

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401 - any fast tokenizer
        return self.model.tokenizer

    @property
    def state_fingerprint(self) -> str:
        """The fingerprint with the values of the adapter, beside the table or folded in: equal ones, equal states."""
        if self.adapter is None:
            return self.model.state_fingerprint
        values = {name: tensor.detach().cpu().numpy() for name, tensor in self.adapter.state_dict().items()}
        return fingerprint_with(self.model.state_fingerprint, values)

    # ---------------------------------------------------------------- the blocks

    @cached_property
    def transformer(self) -> Any:  # noqa: ANN401 - any AutoModel
        """The frozen transformer; with an adapter one that shares its weights behind a soft embedding."""
        if self.adapter is None:
            return self.model.transformer
        return self.model.behind(SoftEmbedding(self.model.embedding, self.adapter))

    @cached_property
    def _with_gradients(self) -> Any:  # noqa: ANN401 - any AutoModel
        """What gradients go through."""
        if self.adapter is None or not (self.halved or self.recomputed):
            return self.transformer
        precision = torch.bfloat16 if self.halved else None
        embedding = SoftEmbedding(self.model.embedding, self.adapter, precision)
        model = self.model.in_bfloat16_behind(embedding) if self.halved else self.model.behind(embedding)
        if self.recomputed:
            name = "activation_checkpointing_enable"  # as transformers calls it of late
            enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
            try:
                enable({"use_reentrant": False})
            except ValueError as error:
                raise FedcarError(f"{self.name}: this model has no gradient checkpointing; train without it") from error
            for module in model.modules():  # it works in training mode only; everything else stays as in evaluation
                if getattr(module, "gradient_checkpointing", False):
                    module.training = True
        return model

    def hidden_states(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One batch of token id lists -> pooled hidden states (n, d); differentiable in the adapter."""
        arrays = padded(token_ids, self.model.padding_id, self.left_out)
        batch, mask = (torch.from_numpy(array).to(self.model.device) for array in arrays)
        blocks = self._with_gradients if torch.is_grad_enabled() else self.transformer
        pooler = self.model.pooler
        last = blocks(input_ids=batch, attention_mask=pooler.read(mask)).last_hidden_state
        pooled: Tensor = pooler(last.float() if last.dtype == torch.bfloat16 else last, mask)
        return pooled

    # ---------------------------------------------------------------- texts

    def runtime(self, texts: Sequence[str]) -> Runtime:
        """What runs the encoder on these texts: with an adapter torch in float32, otherwise what `choice` says."""
        return self._exact if self.adapter is not None else choice.runtime(self.model, self.runtime_name(texts))

    def runtime_name(self, texts: Sequence[str]) -> str:
        """Its name, chosen when it is first asked for."""
        if self.adapter is not None:
            return EXACT
        if self._runtime_name is None:
            self._runtime_name = choice.chosen(self.model, texts)
        return self._runtime_name

    @cached_property
    def _exact(self) -> TorchFloat32:
        return TorchFloat32(self.transformer, self.model)

    @cached_property
    def _both(self) -> TorchFloat32:
        """A batch twice: for its first half without the adapter, for its second with it."""
        assert self.adapter is not None
        transformer = self.model.behind(BothEmbeddings(self.model.embedding, self.adapter))
        return TorchFloat32(transformer, self.model, twice=True)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `FrozenModel.tokenize`."""
        return self.model.tokenize(texts, self.prompt)

    def unknown(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """See `FrozenModel.unknown`."""
        return self.model.unknown(texts)

    def read(self, texts: Sequence[str], tokens: bool = True) -> Reading:
        """Everything that searching asks of questions, by one pass; with an adapter of a batch twice as large."""
        rows = self._rows(texts, tokens)
        runtime = self.runtime(texts) if self.adapter is None else self._both
        return self._read(runtime, rows, tokens=tokens)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Texts -> hidden states (n, d), float32, not normalised, in the order given."""
        hidden_states: NDArray[np.float32] = self.encode_states(texts, progress)["pooled"]
        return hidden_states

    def encode_states(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.void]:
        """Texts -> records (n,) of `FrozenModel.state_type`, in the order given."""
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
        result = np.empty(len(texts), dtype=self.model.state_type)
        model = self.model
        size, left_out = model.tokens_per_batch, self.left_out
        return encoded(self.runtime(texts), token_ids, result, model.padding_id, progress, size, left_out=left_out)

    def token_states(self, texts: Sequence[str], progress: Progress | None = None) -> Sequence[TokenStates]:
        """Texts -> the last hidden states of their tokens, of unit length, float16; cut at `max_tokens` like a text.

        All of it is held in memory: 2 d bytes a token. Offsets count characters.
        """
        rows = self.model.tokens(texts, prompt=self.prompt)
        return self._read(self.runtime(texts), rows, progress).tokens

    def read_parts(
        self, parts: Iterable[Sequence[str]], progress: Progress | None = None
    ) -> Iterator[tuple[NDArray[np.void], Sequence[TokenStates]]]:
        """What `encode_states` and what `token_states` give of each part, from one pass; tokenised ahead too."""
        for texts, rows in ahead(lambda texts: (texts, self._rows(texts, True)), parts):
            reading = self._read(self.runtime(texts), rows, progress)
            yield reading.states, reading.tokens

    def _read(
        self, runtime: Runtime, rows: Sequence[Tokens], progress: Progress | None = None, *, tokens: bool = True
    ) -> Reading:
        model = self.model
        size, left_out = model.tokens_per_batch, self.left_out
        return read(runtime, rows, model.state_type, model.padding_id, progress, size, tokens=tokens, left_out=left_out)

    def _rows(self, texts: Sequence[str], tokens: bool) -> Sequence[Tokens]:
        """The texts' tokens as the pooled state wants them, with the places of each where `tokens` are asked for."""
        if tokens:
            return self.model.tokens(texts, whole=True, prompt=self.prompt)
        return [Tokens(ids, (), ()) for ids in self.tokenize(texts)]
