"""What is remembered of runtimes: which were tried with an encoder on this machine, and which was the fastest."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcar.common.files import default_cache, lock_of, whole_file
from fedcar.common.measure import processor
from fedcar.encoder.model import LOADING
from fedcar.encoder.runtimes.names import NAMES
from fedcar.encoder.runtimes.watching import Known
from fedcar.version import __version__

if TYPE_CHECKING:
    from fedcar.encoder.model import FrozenModel

PACKAGES = ("torch", "transformers", "openvino", "onnx", "onnxscript", "onnxruntime")
LOCK_SECONDS = 1800.0  # while another process measures the same
FINAL = ("crash", "numbers")  # faults that no other day makes good


@dataclass(frozen=True)
class Fastest:
    """The fastest runtime, and whether it was measured while others worked, so that it may be another one."""

    name: str
    busy: bool


@dataclass
class Record:
    """What is known of one encoder on this machine with these packages; `fastest` by the agreement asked for."""

    tried: dict[str, Known] = field(default_factory=dict)
    fastest: dict[str, Fastest] = field(default_factory=dict)


def recall(model: FrozenModel) -> Record:
    """What is known by now: what this process found, and what any left in the user's cache."""
    here = _here(model)
    there = _record(_memory().get(_key(model)))
    return Record(there.tried | here.tried, here.fastest | there.fastest)


def remember(model: FrozenModel, tried: Mapping[str, Known], fastest: Mapping[str, Fastest] | None = None) -> None:
    """Kept for the next time where that can be; otherwise it is measured again."""
    here = _here(model)
    here.tried |= tried
    here.fastest |= fastest or {}
    key, memory = _key(model), _memory()
    record = _record(memory.get(key))
    lasting = {name: known for name, known in tried.items() if not known.fault or known.fault in FINAL}
    both = Record(record.tried | lasting, {**record.fastest, **(fastest or {})})
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole_file(_file()) as stream:
            json.dump(memory | {key: asdict(both)}, stream, indent=2)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """So that of several processes that begin together one measures, undisturbed, and the others read what it found."""
    with LOADING, ExitStack() as stack:  # in this order always, as `FrozenModel.once` holds the former
        with suppress(OSError):  # nowhere to write to, so nothing to wait for
            _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(lock_of(_file().with_suffix(".lock"), LOCK_SECONDS))
        yield


def _here(model: FrozenModel) -> Record:
    record: Record = model.once("what is known of runtimes", Record)
    return record


def _key(model: FrozenModel) -> str:
    """The machine, the packages and the encoder that a measurement holds for."""
    parts = [platform.platform(), processor(), str(os.environ.get("OMP_NUM_THREADS")), str(os.cpu_count())]
    parts += [f"fedcar={__version__}", *(f"{package}={_version(package)}" for package in PACKAGES)]
    parts += [model.fingerprint, model.pooling, repr(model.manner.modules), model.device.type]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _file() -> Path:
    return default_cache() / "runtime.json"


def _memory() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(found: Any) -> Record:  # noqa: ANN401 - whatever stands in the file
    """As it was written; what is no record, one of an older version among them, is as good as none."""
    try:
        tried = {name: Known(**known) for name, known in found["tried"].items()}
        fastest = {agreement: Fastest(**one) for agreement, one in found["fastest"].items()}
    except (KeyError, TypeError, AttributeError):
        return Record()
    known = {agreement: one for agreement, one in fastest.items() if one.name in NAMES}
    return Record(tried, known)
