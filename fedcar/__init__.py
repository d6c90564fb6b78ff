"""fedcar trains a retriever on private questions without moving them.

What other folders take:
    errors.FedcarError: A mistake in the input or a refusal: one line that says what, where and the way out.
    errors.FedcarWarning: Something accepted that the user should know of: one line, with a count.
    errors.first_line: Return the first line of what an error says, short enough for a message.
    errors.quoted: Return the value as one short line, fit for a message.
    errors.typed_path: Return the path as it is typed in a shell: blanks, quotes and a leading "-" are taken for a part
        of it.
    version.__version__: the version of this fedcar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedcar.version import __version__ as __version__

if TYPE_CHECKING:
    from fedcar.collection.collection import Collection
    from fedcar.encoder.encoder import Encoder
    from fedcar.errors import FedcarError, FedcarWarning
    from fedcar.evaluation.evaluate import evaluate
    from fedcar.retriever.retriever import Retriever
    from fedcar.training.train import train

__all__ = ["Collection", "Encoder", "FedcarError", "FedcarWarning", "Retriever", "evaluate", "train"]

_HOMES = {
    "Collection": "collection.collection",
    "Encoder": "encoder.encoder",
    "FedcarError": "errors",
    "FedcarWarning": "errors",
    "Retriever": "retriever.retriever",
    "evaluate": "evaluation.evaluate",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the public names, whatever they are
    """Import a public name when it is first used, so that `fedcar --help` never waits for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcar' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedcar.{_HOMES[name]}"), name)
