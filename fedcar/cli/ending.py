"""How a command ends that does not come to its end: one line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import NoReturn

import click

from fedcar.cli.output import INPUT_MISTAKE, leave
from fedcar.errors import FedcarError
from fedcar.privacy.errors import PrivacyError

TRAINING_MODULES = ("torch", "transformers", "huggingface_hub", "tokenizers", "filelock", "httpx")


def leave_after(error: BaseException) -> NoReturn:
    """Say what was wrong and end; an error of fedcar's own is raised again, for its traceback."""
    if isinstance(error, FedcarError):
        leave(f"error: {error}", INPUT_MISTAKE)
    if isinstance(error, PrivacyError):
        leave(f"error: {error}", error.exit_code)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, click.ClickException):
        leave(f"error: {_refused(error)}", error.exit_code)
    if isinstance(error, ModuleNotFoundError):
        leave(f"error: {_to_install(error)}", INPUT_MISTAKE)
    if isinstance(error, OSError):  # what no part of fedcar saw coming: a full disk behind stdout, a file gone away
        _abandon_stdout()
        leave(f"error: {_of_the_system(error)}", INPUT_MISTAKE)
    if isinstance(error, MemoryError | RuntimeError):
        leave(f"error: {_too_large(error)}", INPUT_MISTAKE)
    raise error


def _refused(error: click.ClickException) -> str:
    """What click says, with the help to look at, and how to give words that begin as an option does."""
    command = getattr(getattr(error, "ctx", None), "command_path", "fedcar")
    way_out = f"see {command} --help"
    if isinstance(error, click.NoSuchOption):
        way_out += '; words that begin with "-" and are no option go last, behind " -- "'
    return f"{error.format_message()} ({way_out})"


def _to_install(error: ModuleNotFoundError) -> str:
    """What to install for a module that is not there; an error of fedcar's own is one all the same."""
    name = (error.name or "").partition(".")[0]
    if name not in TRAINING_MODULES:
        raise error
    return f"{name} is not installed; pip install fedcar brings it"


def _of_the_system(error: OSError) -> str:
    if error.errno == errno.EPIPE and not error.filename:
        return "standard output: its reader went away before the end"
    way_out = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
    return f"{error.filename or 'standard output or a file'}: {error.strerror or error}; {way_out}"


def _too_large(error: MemoryError | RuntimeError) -> str:
    """What to do where memory ran out; torch has a RuntimeError for that, and any other one is fedcar's own."""
    said = str(error)
    if not isinstance(error, MemoryError) and "allocate memory" not in said and "out of memory" not in said:
        raise error
    return "out of memory; give smaller numbers, a smaller encoder or fewer documents"


def _abandon_stdout() -> None:
    """Drop what could not be written, so that the interpreter does not try it again on its way out."""
    with suppress(OSError, ValueError):  # it may be closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
