"""Bytes of one update: fedcar's adapters and rows against LoRA (peft, rank 8 on the query and value projections).

python benchmarks/federation_bytes.py [--documents 77]

The LoRA modules are peft's own, put on the model's real architecture without its weights (meta tensors); fedcar's bytes
are those of `fedcar.federation.rounds.compress.encode`, header included, of an update in which every value has changed.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertConfig, LlamaConfig, PretrainedConfig

from fedcar.encoder.adapter import Adapter
from fedcar.federation.rounds.client import first_moments
from fedcar.federation.rounds.compress import encode, wire_bytes

MODELS: dict[str, PretrainedConfig] = {
    "all-MiniLM-L6-v2": BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "TinyLlama-1.1B": LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=5632,
    ),
    "Llama-3.2-3B": LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=8192,
    ),
}
VARIANTS = ("full", "lowrank:64", "lowrank:32", "lowrank:8", "diagonal")


def lora_parameters(config: PretrainedConfig) -> int:
    """What peft trains at rank 8 on the query and value projections."""
    targets = ["query", "value"] if isinstance(config, BertConfig) else ["q_proj", "v_proj"]
    with torch.device("meta"):
        model = get_peft_model(AutoModel.from_config(config), LoraConfig(r=8, target_modules=targets))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def update_bytes(tensors: dict[str, torch.Tensor], kind: str, moments: bool) -> int:
    generator = torch.Generator().manual_seed(0)
    everything = {**tensors, **first_moments(tensors)} if moments else tensors
    values = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in everything.items()}
    return wire_bytes(encode(values, {name: torch.zeros_like(tensor) for name, tensor in values.items()}, kind)[0])


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=77, help="rows of the head")
    arguments = parser.parse_args()
    print("| model | update | parameters | float32 | bfloat16 | int8 | float32 against LoRA |")
    print("|---|---|---|---|---|---|---|")
    for name, config in MODELS.items():
        lora = lora_parameters(config)
        print(f"| {name} | LoRA rank 8, query and value (peft) | {lora:,} | {lora * 4 / 1e6:.2f} MB | | | 1 |")
        for variant in VARIANTS:
            adapter = dict(Adapter(variant, config.hidden_size).named_parameters())
            show(f"| {name} | adapter {variant}", adapter, lora, False)
        rows = {"head.rows": torch.zeros(arguments.documents, config.hidden_size)}
        show(f"| {name} | {arguments.documents} rows", rows, lora, False)
        show(f"| {name} | {arguments.documents} rows, moments shared", rows, lora, True)


def show(what: str, tensors: dict[str, torch.Tensor], lora: int, moments: bool) -> None:
    count = sum(tensor.numel() for tensor in tensors.values())
    sizes = [update_bytes(tensors, kind, moments) for kind in ("none", "bfloat16", "int8")]
    cells = " | ".join(f"{size / 1e6:.2f} MB" if size > 1e4 else f"{size / 1e3:.1f} kB" for size in sizes)
    print(f"{what} | {count:,} | {cells} | {sizes[0] / (4 * lora):.2f} |", flush=True)


if __name__ == "__main__":
    main()
