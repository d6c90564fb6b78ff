"""What fedcar says when something is wrong: one error, one warning, each of a single line."""

import shlex
from pathlib import Path


class FedcarError(Exception):
    """A mistake in the input or a refusal: one line that says what, where and the way out."""


class FedcarWarning(UserWarning):
    """Something accepted that the user should know of: one line, with a count."""


def typed_path(path: Path | str) -> str:
    """Return the path as it is typed in a shell: blanks, quotes and a leading "-" are taken for a part of it."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def quoted(value: object, limit: int = 60) -> str:
    """Return the value as one short line, fit for a message."""
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() and '"' not in value else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, short enough for a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
