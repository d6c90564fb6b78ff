"""Tiny random models of eight families, with tokenizers that know the toy's words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from support.toy import texts_of_the_toy

FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "llama", "gemma")
VOCABULARY = 900
POSITIONS = 40  # what each tiny model takes; roberta and mpnet lose two of them to the padding row


def save_model(folder: Path, family: str, **options: Any) -> None:
    """Two layers, 32 wide, random weights, dropout as high as it could matter."""
    import torch
    from transformers import AutoConfig, AutoModel

    small: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "initializer_range": 0.3}
    if family == "distilbert":
        small |= {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "dropout": 0.3,
            "attention_dropout": 0.3,
            "pad_token_id": 0,
        }
    elif family in ("llama", "gemma"):
        small |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "attention_dropout": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None if family == "llama" else 0,
        }
    else:
        small |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "hidden_dropout_prob": 0.3,
            "attention_probs_dropout_prob": 0.3,
            "pad_token_id": 1 if family in ("roberta", "mpnet") else 0,
        }
    if family == "electra":
        small |= {"embedding_size": 16}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **small | options))
    with torch.no_grad():  # the final norm and the biases too, so that a test sees when one is lost
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


def save_tokenizer(folder: Path, family: str, padding_side: str = "right") -> None:
    """WordPiece or byte-level BPE, a token a word; Llama and Gemma put BOS in front and no EOS behind."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {
        "roberta": ["<s>", "<pad>", "</s>", "<unk>"],
        "mpnet": ["<s>", "<pad>", "</s>", "[UNK]"],
        "llama": ["<unk>", "<s>", "</s>"],
        "gemma": ["<pad>", "<bos>", "<eos>", "<unk>"],
    }.get(family, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    unknown = next(token for token in special if "unk" in token.lower())
    words = sorted({word for text in texts_of_the_toy() for word in re.findall(r"\w+", text)})
    if family in ("roberta", "llama", "gemma"):
        merges = dict.fromkeys(
            (word[:end], word[end]) for word in (f"Ġ{word}" for word in words) for end in range(1, len(word))
        )
        pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        tokenizer = Tokenizer(
            models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=list(merges))
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pieces = list(
            dict.fromkeys(
                [
                    *special,
                    *map(str.lower, words),
                    *map(chr, range(33, 127)),
                    *(f"##{chr(code)}" for code in range(97, 123)),
                ]
            )
        )
        tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert len(pieces) <= VOCABULARY, len(pieces)
    first, last = {"roberta": (0, 2), "mpnet": (0, 2), "llama": (1, None), "gemma": (1, None)}.get(family, (2, 3))
    template = f"{special[first]} $A" + (f" {special[last]}" if last is not None else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(special[place], place) for place in (first, last) if place is not None]
    )
    names = {"unk_token": unknown}
    names |= dict(zip(["pad_token"], [token for token in special if "pad" in token.lower()], strict=False))
    if family in ("roberta", "mpnet", "llama", "gemma"):
        names |= {"bos_token": special[first], "eos_token": special[2]}
    else:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=padding_side, model_max_length=512, **names
    )
    wrapped.save_pretrained(folder)
