"""fedcar trains a retriever on private questions without moving them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcar.collection import Collection
    from fedcar.encoder import Encoder
    from fedcar.errors import FedcarError, FedcarWarning
    from fedcar.evaluate import evaluate
    from fedcar.retriever import Retriever
    from fedcar.train import train

__version__ = "0.1.0"
__all__ = ["Collection", "Encoder", "FedcarError", "FedcarWarning", "Retriever", "evaluate", "train"]

_HOMES = {
    "Collection": "collection",
    "Encoder": "encoder",
    "FedcarError": "errors",
    "FedcarWarning": "errors",
    "Retriever": "retriever",
    "evaluate": "evaluate",
    "train": "train",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the public names, whatever they are
    """Import a public name when it is first used, so that `fedcar --help` never waits for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcar' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedcar.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """Keeps the functions `train` and `evaluate`: the import of a module of that name would otherwise take the name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
