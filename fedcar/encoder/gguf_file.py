"""A GGUF file, as Ollama and LM Studio keep models, converted once into a folder that every part of fedcar reads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcar.common.files import encoders_folder, write_json
from fedcar.common.folders import check_folder, kind_of, write_folder
from fedcar.errors import FedcarError, first_line, typed_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "converted encoder"
FORMAT = 1  # of a converted folder; with the file's sha256 it makes the encoder's fingerprint
SOURCE = "gguf.json"  # in a converted folder: which file it was
INSTALL = "gguf is not installed, which reads such a file; pip install 'fedcar[gguf]'"
POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken"}  # llama.cpp's numbers in the words of sentence-transformers
NOT_OF_THE_BLOCKS = ("output.", "rope_freqs.", "rope_factors_", "cls.")  # heads, and what the configuration says


class Content(NamedTuple):
    """A GGUF file: what it says of the model and its tokenizer, and its tensors by name."""

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"].contents())

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever stands there
        """What stands under `tokenizer.KEY` or under the architecture's own KEY."""
        name = key if key.startswith(("tokenizer.", "general.")) else f"{self.architecture}.{key}"
        return self.fields[name].contents() if name in self.fields else default

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32, its blocks unpacked."""
        from gguf import dequantize

        found = self.tensors[name]
        return np.array(dequantize(found.data, found.tensor_type), dtype=np.float32)


def converted(file: Path, digest: str) -> Path:
    """The folder in the user's cache with the model of this file (`digest`: its sha256), written the first time.

    Weights are unpacked to float32. The folder is one of Hugging Face's, so nothing that reads it knows of GGUF, and
    the file's own package is needed for converting alone. It belongs to the file's content, wherever that lies.

    Raises FedcarError for a file that is none, an architecture that is not known, and where `gguf` is missing.
    """
    place = encoders_folder() / f"gguf-{digest[:24]}-{FORMAT}"
    if kind_of(place) != KIND:
        content = opened(file)
        write = architectures().get(content.architecture)
        if write is None:
            known = ", ".join(sorted(architectures()))
            raise FedcarError(
                f"{file}: GGUF of the architecture {content.architecture!r}, which is not known here; give one of "
                f"{known}, or the model's own folder"
            )
        for folder in (place.parent.parent, place.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

        def fill(folder: Path) -> None:
            try:
                write(content, folder)
            except FedcarError:
                raise
            except Exception as error:  # both libraries raise many kinds; each means that this file cannot be read
                message = f"{file}: cannot be converted ({first_line(error)})"
                raise FedcarError(f"{message}; give the model's own folder") from error
            about = {"sha256": digest, "format": FORMAT, "architecture": content.architecture}
            write_json(folder / SOURCE, about | {"pooling": POOLINGS.get(content.get("pooling_type", 0))})

        write_folder(place, KIND, fill)
    return place


def opened(file: Path) -> Content:
    """What the file says; FedcarError where it is no GGUF file, or broken off."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise FedcarError(f"{file}: {INSTALL}") from error
    try:
        reader = GGUFReader(file)
        content = Content(file, dict(reader.fields), {tensor.name: tensor for tensor in reader.tensors})
        _ = content.architecture
    except Exception as error:  # the library raises many kinds; each means that the file is not what it should be
        reason = f" ({first_line(error)})" if isinstance(error, OSError) else ""
        raise FedcarError(f"{file}: not a whole GGUF file{reason}; fetch it again") from error
    return content


def fingerprint_of_source(folder: Path) -> str | None:
    """The fingerprint of a converted folder, which follows from the GGUF file's sha256; None for any other folder.

    Raises FedcarError where a byte of the folder has changed since it was converted.
    """
    if not (folder / SOURCE).is_file():
        return None
    source = _source(folder)
    _check_once(folder, f"remove it, and it is converted again: rm -r {typed_path(folder)}")
    return hashlib.sha256(f"gguf\0{source['sha256']}\0{source['format']}".encode()).hexdigest()


@lru_cache(maxsize=64)
def _check_once(folder: Path, way_out: str) -> None:
    check_folder(folder, KIND, way_out)


def architectures() -> dict[str, Callable[[Content, Path], None]]:
    """What writes a folder, by the architecture's name in the file."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    no_encoder_alone = ("t5", "umt5", "tokenizer", "general", "mamba")
    decoders = dict.fromkeys(set(GGUF_SUPPORTED_ARCHITECTURES) - set(no_encoder_alone), _write_decoder)
    return {**decoders, "bert": _write_bert, "nomic-bert": _write_bert}


def declared_pooling(folder: Path) -> str | None:
    """The pooling that the GGUF file of a converted folder names, in the words of sentence-transformers."""
    if not (folder / SOURCE).is_file():
        return None
    found: str | None = _source(folder).get("pooling")
    return found


def _source(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedcarError(f"{folder}: {SOURCE} cannot be read; remove the folder, and it is converted again") from error
    return dict(found)


# -------------------------------------------------------------------- decoders, which transformers reads


def _write_decoder(content: Content, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    place: dict[str, Any] = {"gguf_file": content.file.name, "local_files_only": True}
    source = str(content.file.parent)
    quiet = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with quiet:  # a bar is for who waits before it
        config = AutoConfig.from_pretrained(source, **place)
        _complete(config, content)
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **place, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **place)
    whole, report = loaded
    model = whole.base_model  # the names in the file are those of the model with its head
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("lm_head")):
        raise FedcarError(f"{content.file}: {len(missing)} weights are missing, {missing[0]} the first; fetch it again")
    _check_all_read(content, sum(parameter.numel() for parameter in model.parameters()))
    if hasattr(config, "quantization_config"):  # the weights are float32 now
        del config.quantization_config
    config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def _complete(config: Any, content: Content) -> None:  # noqa: ANN401 - any PreTrainedConfig
    """What transformers leaves out of the file, as llama.cpp reads it."""
    config.vocab_size = int(content.tensors["token_embd.weight"].shape[-1])
    config.pad_token_id = content.get("tokenizer.ggml.padding_token_id")  # not the default of the class
    heads, width = config.num_attention_heads, config.hidden_size
    head = int(content.get("attention.key_length", content.get("rope.dimension_count", width // heads)))
    if content.architecture not in ("phi3", "qwen2"):
        config.head_dim = head
    if hasattr(config, "attention_bias"):
        config.attention_bias = "blk.0.attn_q.bias" in content.tensors
    if hasattr(config, "query_pre_attn_scalar"):
        largest = {"gemma2": 46, "gemma3": 62}.get(content.architecture)  # blocks of the one with another scale
        config.query_pre_attn_scalar = width // heads if config.num_hidden_layers == largest else head
    rope = _rope(content, width // heads)
    if rope:
        layers = config.rope_parameters
        (layers["full_attention"] if "full_attention" in layers else layers).update(rope)


def _rope(content: Content, head: int) -> dict[str, Any]:
    """How the file stretches its positions."""
    kind, factor = content.get("rope.scaling.type"), float(content.get("rope.scaling.factor", 1.0))
    context = content.get("rope.scaling.original_context_length")
    if "rope_freqs.weight" in content.tensors:
        return _llama3_rope(content)
    if "rope_factors_short.weight" in content.tensors:
        short, long = (content.tensor(f"rope_factors_{name}.weight").tolist() for name in ("short", "long"))
        whole = int(content.get("context_length"))
        original = int(context or whole)
        scaled: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        scaled |= {"original_max_position_embeddings": original, "factor": whole / original}
        return scaled | _part(content, head)
    if kind in ("linear", "yarn") and factor != 1.0:
        original_length = {"original_max_position_embeddings": int(context)} if kind == "yarn" and context else {}
        return {"rope_type": kind, "factor": factor, **original_length}
    if kind not in (None, "none", "linear", "yarn"):
        raise FedcarError(f"{content.file}: positions are scaled by {kind!r}, not known; give the model's own folder")
    return _part(content, head) if content.architecture == "phi3" else {}


def _part(content: Content, head: int) -> dict[str, Any]:
    """Which part of a head is turned."""
    turned = int(content.get("rope.dimension_count", head))
    return {"partial_rotary_factor": turned / head} if turned != head else {}


def _llama3_rope(content: Content) -> dict[str, Any]:
    """Llama 3's scaling: the file holds its factors, from which the three numbers of the configuration follow."""
    divisors = content.tensor("rope_freqs.weight").astype(np.float64)
    theta, factor = float(content.get("rope.freq_base", 10000.0)), float(divisors.max())
    lengths = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    low, high, original = 1.0, 4.0, 8192
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    if not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise FedcarError(f"{content.file}: its rope factors are not Llama 3's; give the model's own folder")
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3", "factor": factor, **dict(zip(names, (low, high, original), strict=True))}


def _check_all_read(content: Content, parameters: int) -> None:
    """Refuse where a tensor of the file found no place in the model: its states would be others."""
    blocks = {name: one for name, one in content.tensors.items() if not name.startswith(NOT_OF_THE_BLOCKS)}
    held = sum(int(one.n_elements) for one in blocks.values())
    if held != parameters:
        raise FedcarError(
            f"{content.file}: holds {held} weights, but {content.architecture} as it is known here has {parameters}; "
            "give the model's own folder"
        )


# -------------------------------------------------------------------- BERT, which it does not

BERT_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
BERT_BLOCK = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
NOMIC_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_output_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "layer_output_norm": "post_mlp_layernorm",
}


def _write_bert(content: Content, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, NomicBertConfig, NomicBertModel

    nomic = content.architecture == "nomic-bert"
    settings: dict[str, Any] = {
        "vocab_size": int(content.tensors["token_embd.weight"].shape[-1]),
        "hidden_size": int(content.get("embedding_length")),
        "num_hidden_layers": int(content.get("block_count")),
        "num_attention_heads": int(content.get("attention.head_count")),
        "intermediate_size": int(content.get("feed_forward_length")),
        "layer_norm_eps": float(content.get("attention.layer_norm_epsilon")),
        "type_vocab_size": int(content.tensors["token_types.weight"].shape[-1]),
        "pad_token_id": int(content.get("tokenizer.ggml.padding_token_id", 0)),
    }
    model: Any
    if nomic:
        theta = float(content.get("rope.freq_base", 1000.0))
        settings |= {"max_position_embeddings": int(content.get("context_length"))}
        model = NomicBertModel(
            NomicBertConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
        )
    else:
        settings |= {"max_position_embeddings": int(content.tensors["position_embd.weight"].shape[-1])}
        model = BertModel(BertConfig(**settings), add_pooling_layer=False)
    state = {}
    for name in content.tensors:
        for known, array in _apart(name, content):
            if not known.startswith(NOT_OF_THE_BLOCKS):
                state[_bert_name(known, nomic)] = torch.from_numpy(array)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    _bert_tokenizer(content).save_pretrained(folder)


def _apart(name: str, content: Content) -> list[tuple[str, NDArray[np.float32]]]:
    """A tensor by its name; query, key and value apart where the file holds them as one."""
    array = content.tensor(name)
    if ".attn_qkv." not in name:
        return [(name, array)]
    return [
        (name.replace("attn_qkv", f"attn_{part}"), np.ascontiguousarray(rows))
        for part, rows in zip("qkv", np.split(array, 3), strict=True)
    ]


def _bert_name(name: str, nomic: bool) -> str:
    """The name of a tensor in transformers."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{BERT_NAMES[stem]}.{kind}"
    _, number, part = stem.split(".", 2)
    return (
        f"layers.{number}.{NOMIC_BLOCK[part]}.{kind}" if nomic else f"encoder.layer.{number}.{BERT_BLOCK[part]}.{kind}"
    )


def _bert_tokenizer(content: Content) -> Any:  # noqa: ANN401 - a fast tokenizer
    """WordPiece, as BERT has it, or the pieces of XLM-R."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces, kind = content.get("tokenizer.ggml.tokens"), content.get("tokenizer.ggml.model")
    types = content.get("tokenizer.ggml.token_type", [1] * len(pieces))

    def special(key: str, default: int) -> tuple[str, int]:
        number = int(content.get(f"tokenizer.ggml.{key}_token_id", default))
        return pieces[number], number

    if kind == "bert":
        first, last = special("cls", content.get("tokenizer.ggml.bos_token_id", 101)), special("seperator", 102)
        padding, unknown = special("padding", 0), special("unknown", 100)
        whole = {first[0], last[0], padding[0], unknown[0], "[MASK]"}
        ordinary = [token not in whole and types[place] not in (3, 5) for place, token in enumerate(pieces)]
        names = [
            (token[1:] if token.startswith("▁") else f"##{token}") if plain else token
            for token, plain in zip(pieces, ordinary, strict=True)
        ]
        tokenizer = Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}, unk_token=unknown[0]))
        cased = any(
            len(name) > 1 and name != name.lower() for name, plain in zip(names, ordinary, strict=True) if plain
        )
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    elif kind == "t5":
        first, last, padding, unknown = (
            special("bos", 0),
            special("eos", 2),
            special("padding", 1),
            special("unknown", 3),
        )
        scores = content.get("tokenizer.ggml.scores")
        tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown[1]))
        charsmap = bytes(bytearray(content.get("tokenizer.ggml.precompiled_charsmap", [])))
        steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFKC()]
        tokenizer.normalizer = normalizers.Sequence(
            [*steps, normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    else:
        raise FedcarError(f"{content.file}: its tokenizer {kind!r} is not BERT's; give the model's own folder")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A {last[0]}", special_tokens=[first, last]
    )
    names_of = {"cls_token": first[0], "sep_token": last[0], "pad_token": padding[0], "unk_token": unknown[0]}
    ends = {"bos_token": first[0], "eos_token": last[0]} if kind == "t5" else {}
    limit = int(content.get("context_length", 512))
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=tokenizer, model_max_length=limit, **names_of, **ends)
