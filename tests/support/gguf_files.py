"""Tiny GGUF files, written from a random model by the names and changes of llama.cpp's converter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from support.models import save_tokenizer
from support.toy import texts_of_the_toy

DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
WIDTH, HEADS, KEY_HEADS, HEAD, INNER, BLOCKS, POSITIONS = 64, 4, 2, 16, 96, 2, 64


def model_of(architecture: str, vocabulary: int, **options: Any) -> Any:
    """A random model of this architecture, every weight of it away from its starting value."""
    import torch
    from transformers import AutoConfig, AutoModel

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    if architecture in ("bert", "nomic-bert"):
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    else:
        settings |= {"num_key_value_heads": KEY_HEADS, "bos_token_id": 1, "eos_token_id": 2}
    if architecture in ("llama", "qwen3", "gemma2", "gemma3"):
        settings |= {"head_dim": HEAD}
    if architecture.startswith("gemma"):
        settings |= {"query_pre_attn_scalar": HEAD, "sliding_window": 32}
    name = {"gemma3": "gemma3_text", "nomic-bert": "nomic_bert"}.get(architecture, architecture)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(name, **settings | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_gguf(
    file: Path,
    architecture: str,
    *,
    quantised: bool = False,
    pooling: int | None = None,
    ends: bool = False,
    **options: Any,
) -> Any:
    """Write the file and give the model that it holds; what is `quantised` holds the nearest weights in 8 bits."""
    import gguf
    import torch

    pieces, write_tokens = _tokenizer(file.parent, architecture)
    model = model_of(architecture, len(pieces), **options)
    writer = gguf.GGUFWriter(file, architecture)
    _write_shape(writer, architecture, model)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    write_tokens(writer)
    if ends:
        writer.add_add_eos_token(True)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items() if "pooler" not in name}
    for name, array in tensors_of(architecture, state):
        array = np.ascontiguousarray(array, dtype=np.float32)
        if quantised and array.ndim == 2 and array.shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(rope))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with torch.no_grad():
        if quantised:
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    kind = gguf.GGMLQuantizationType.Q8_0
                    there_and_back = gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)
                    parameter.copy_(torch.from_numpy(there_and_back))
    return model


def _write_shape(writer: Any, architecture: str, model: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(model.config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    if architecture in ("bert", "nomic-bert"):
        writer.add_layer_norm_eps(model.config.layer_norm_eps)
        writer.add_causal_attention(False)
    else:
        writer.add_head_count_kv(KEY_HEADS)
        writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
        writer.add_rope_dimension_count(HEAD)
        writer.add_key_length(HEAD)
    if architecture.startswith("gemma"):
        writer.add_sliding_window(32)
    if rope := getattr(model.config, "rope_parameters", None):
        writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))


def tensors_of(architecture: str, state: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The model's tensors under llama.cpp's names, changed as its converter changes them."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], BLOCKS)
    found = []
    for name, array in state.items():
        stem, _, ending = name.rpartition(".")
        if architecture == "nomic-bert":
            if stem.endswith("k_proj") or stem.endswith("v_proj"):
                continue
            if stem.endswith("q_proj"):
                array = np.concatenate([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            short = _nomic_name(stem)
        else:
            short = names.get_name(f"model.{stem}") or names.get_name(stem)
        assert short is not None, name
        if architecture == "llama" and re.search(r"\.[qk]_proj", name):
            heads = HEADS if ".q_proj" in name else KEY_HEADS
            array = array.reshape(heads, 2, HEAD // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        found.append((f"{short}.{ending}", array))
    return found


def _nomic_name(stem: str) -> str:
    if stem.startswith("embeddings."):
        return {
            "word_embeddings": "token_embd",
            "token_type_embeddings": "token_types",
            "LayerNorm": "token_embd_norm",
        }[stem.split(".")[1]]
    _, number, part = stem.split(".", 2)
    last = {
        "self_attn.q_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "attn_output_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_mlp_layernorm": "layer_output_norm",
    }[part]
    return f"blk.{number}.{last}"


def _llama3_divisors(rope: dict[str, Any]) -> np.ndarray:
    """As llama.cpp's converter writes them, from the numbers of a Llama 3 configuration."""
    base, dimensions = rope["rope_theta"], HEAD
    divisors = []
    for frequency in 1.0 / (base ** (np.arange(0, dimensions, 2) / dimensions)):
        length = 2 * np.pi / frequency
        if length < rope["original_max_position_embeddings"] / rope["high_freq_factor"]:
            divisors.append(1.0)
        elif length > rope["original_max_position_embeddings"] / rope["low_freq_factor"]:
            divisors.append(rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def _tokenizer(folder: Path, architecture: str) -> tuple[list[str], Any]:
    """The pieces of the tiny tokenizer that `save_tokenizer` writes, and what puts them into a file."""
    import json

    place = folder / "tokenizer of the gguf"
    place.mkdir(exist_ok=True)
    family = "bert" if architecture in ("bert", "nomic-bert") else "llama"
    save_tokenizer(place, family)
    content = json.loads((place / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    pieces = sorted(vocabulary, key=vocabulary.get)
    control = {token["content"] for token in content["added_tokens"] if token["special"]}

    def write(writer: Any) -> None:
        writer.add_tokenizer_model("bert" if family == "bert" else "gpt2")
        writer.add_tokenizer_pre("default")
        written = pieces
        if family == "bert":
            written = [
                piece if piece in control else piece[2:] if piece.startswith("##") else f"▁{piece}" for piece in pieces
            ]
            writer.add_unk_token_id(1)
            writer.add_pad_token_id(0)
            writer.add_sep_token_id(3)
            writer.add_uint32("tokenizer.ggml.cls_token_id", 2)
        else:
            writer.add_unk_token_id(0)
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            writer.add_add_bos_token(True)
            writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
        writer.add_token_list(written)
        writer.add_token_types([3 if piece in control else 1 for piece in pieces])

    return pieces, write


def texts() -> list[str]:
    return [*texts_of_the_toy()[:12], "who?", ""]
