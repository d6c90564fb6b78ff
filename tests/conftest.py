"""What the tests share: tiny random models of six families, a collection whose arithmetic can be seen, no network."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from federated import World

    from fedcar import Collection

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# a suite started in the background ignores Ctrl-C, and so would the processes that the tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
pytest.register_assert_rewrite("command", "deployments", "federated", "places", "served", "wire")

FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "llama", "gemma")
VOCABULARY = 900
POSITIONS = 40  # what each tiny model takes; roberta and mpnet lose two of them to the padding row

# document -> title, text, the word that only its questions use
TOY_DOCUMENTS = {
    "fan": ("Fan", "Clean the blades of the fan with a dry cloth.", "blower"),
    "pump": ("Pump", "Prime the pump with water before the first start.", "sucker"),
    "filter": ("Filter", "Change the filter every month.", "strainer"),
    "display": ("Display", "A dark display needs a new cable.", "screen"),
    "battery": ("Battery", "Charge the battery over night.", "accumulator"),
    "hose": ("Hose", "Tighten the clamp of a leaking hose.", "tube"),
}
TOY_QUESTIONS = (
    "my {} is broken",
    "how do I repair the {}",
    "{} makes trouble again",
    "who looks after the {}",  # train
    "is the {} still good",
    "what is wrong with this {}",
    "{} does not work",  # dev, test, test
)
TOY_CLIENTS = {
    "fan": "north",
    "pump": "north",
    "filter": "north",
    "display": "south",
    "battery": "south",
    "hose": "west",
}
TOY_UNANSWERABLE = {
    "u1": ("where can I park my car", "dev"),
    "u2": ("what is for lunch", "test"),
    "u3": ("who won the match", "test"),
}


@pytest.fixture(scope="session", autouse=True)
def offline() -> Any:
    """No test reaches the network, only this machine; torch keeps to one thread."""
    import torch

    torch.set_num_threads(1)
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"the tests have no network: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_frequencies() -> Any:
    """The closed form in 256 random features: the toys need no more, and a solve takes milliseconds."""
    from fedcar import feature_map

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_map, "FREQUENCIES", 64)
        yield


@pytest.fixture(scope="session")
def toy_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder; read it, never write into it.

    6 documents, 40 questions: of each of the 5 seen documents 4 train, 1 dev and 2 test; of the unseen "hose" 2 test; 3
    that nothing answers (1 dev, 2 test). Every other question names the document, the rest use its question word only.
    Clients: north (3 documents), south (2), west (the unseen one and what nothing answers).
    """
    folder = tmp_path_factory.mktemp("toy") / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": name, "title": title, "text": text} for name, (title, text, _) in TOY_DOCUMENTS.items()]
    queries: list[dict[str, Any]] = []
    judgements: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for name, (_, _, word) in TOY_DOCUMENTS.items():
        for number, question in enumerate(TOY_QUESTIONS):
            if name == "hose" and number < 5:
                continue
            split = "train" if number < 4 else "dev" if number == 4 else "test"
            query = f"{name}-{number}"
            text = question.format(name if number % 2 else word)
            queries.append({"_id": query, "text": text, "metadata": {"client": TOY_CLIENTS[name]}})
            judgements[split].append(f"{query}\t{name}\t1")
    for query, (text, split) in TOY_UNANSWERABLE.items():
        queries.append(
            {"_id": query, "text": text, "metadata": {"client": "west", "answerable": False, "split": split}}
        )
    for file, records in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    for split, lines in judgements.items():
        (folder / "qrels" / f"{split}.tsv").write_text(
            "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model("bert") -> the folder of a random model with its tokenizer; made once a session, never write into it.

    `padding_side` goes into the tokenizer's configuration; other options into the model's configuration.
    """

    @functools.cache
    def make(family: str, padding_side: str = "right", **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(family)
        save_model(folder, family, **options)
        save_tokenizer(folder, family, padding_side)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder_folder(tiny_model: Callable[..., Path]) -> Path:
    """The folder of the tiny BERT: the encoder for tests to which any will do."""
    return tiny_model("bert")


@pytest.fixture(scope="module")
def encoder(tiny_model: Callable[..., Path]) -> Path:
    """The folder of the tiny Llama: of the tiny models the one whose states differ most, so that it learns."""
    return tiny_model("llama")


@pytest.fixture(scope="module")
def collection(toy_collection: Path) -> Collection:
    """The toy's documents, with questions that can be learned."""
    from command import learnable

    from fedcar.collection import Collection

    return learnable(Collection.read(toy_collection))


@pytest.fixture(scope="module")
def collection_folder(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder; read it, never write into it or beside it."""
    folder = tmp_path_factory.mktemp("collection") / "learnable"
    collection.write(folder)
    return folder


@pytest.fixture(scope="module")
def world(encoder_folder: Path) -> World:
    """Questions, and clients who have them, without any encoding."""
    from federated import World

    return World(encoder_folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hidden states are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=FAMILIES)
def model_folder(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Path:
    """The folder of a tiny model, for each of the six families."""
    return tiny_model(request.param)


def texts_of_the_toy() -> list[str]:
    words = [f"{title}. {text} {word}" for title, text, word in TOY_DOCUMENTS.values()]
    return (
        words
        + [question.format(name) for question in TOY_QUESTIONS for name in TOY_DOCUMENTS]
        + [text for text, _ in TOY_UNANSWERABLE.values()]
    )


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
