"""The command line. Results go to stdout, progress and warnings to stderr; heavy imports wait until they are needed."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from contextlib import suppress

import click

from fedcar.cli import bench, contents, demo, deploy, documents, federate, privacy, search, train
from fedcar.cli.output import INPUT_MISTAKE, INTERRUPTED, leave
from fedcar.errors import FedcarError, FedcarWarning
from fedcar.privacy.errors import PrivacyError
from fedcar.version import __version__

TRAINING_MODULES = ("torch", "transformers", "huggingface_hub", "tokenizers", "filelock", "httpx")


def main() -> None:
    """Run the command line; a mistake in the input is one line and exit code 1, an interruption 130."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("default", FedcarWarning)
    try:
        commands(prog_name="fedcar", standalone_mode=False)
        sys.stdout.flush()
    except FedcarError as error:
        leave(f"error: {error}", INPUT_MISTAKE)
    except PrivacyError as error:
        leave(f"error: {error}", error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        leave("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "fedcar")
        leave(f"error: {error.format_message()} (see {command} --help)", error.exit_code)
    except ModuleNotFoundError as error:
        leave(f"error: {_to_install(error)}", INPUT_MISTAKE)
    except OSError as error:  # what no part of fedcar saw coming: a full disk behind stdout, a file that went away
        _abandon_stdout()
        where = error.filename or "standard output or a file"
        way_out = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path and its permissions"
        leave(f"error: {where}: {error.strerror or error}; {way_out}", INPUT_MISTAKE)
    except (MemoryError, RuntimeError) as error:
        leave(f"error: {_too_large(error)}", INPUT_MISTAKE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fedcar")
def commands() -> None:
    """Train a retriever on private questions without moving them."""


for _module in (bench, contents, demo, deploy, documents, federate, privacy, search, train):
    for _command in _module.COMMANDS:
        commands.add_command(_command)


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, FedcarWarning):
        click.echo(f"warning: {message}", err=True)


def _to_install(error: ModuleNotFoundError) -> str:
    """What to install for a module that is not there; an error of fedcar's own is one all the same."""
    name = (error.name or "").partition(".")[0]
    if name not in TRAINING_MODULES:
        raise error
    return f"{name} is not installed; pip install fedcar brings it"


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
