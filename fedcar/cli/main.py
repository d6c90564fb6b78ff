"""Where the program begins: signals are heard before anything else is imported, and every end passes through here."""

from __future__ import annotations

import os
import signal
import sys

AGAIN_SECONDS = 0.01


def main() -> None:
    """Run the command line; a mistake in the input is one line and exit code 1, an interruption 130."""
    signals = _Signals()
    try:
        from fedcar.cli.commands import run

        run()
    except SystemExit:
        raise
    except BaseException as error:
        signals.over = True
        if signals.heard or isinstance(error, KeyboardInterrupt):  # of which a library may have made another error
            from fedcar.cli.output import INTERRUPTED, leave

            leave("interrupted", INTERRUPTED)
        from fedcar.cli.ending import leave_after

        leave_after(error)
    finally:
        signals.over = True


class _Signals:
    """Ctrl-C and a request to terminate (SIGTERM) are a KeyboardInterrupt, until all is `over`; then they end it.

    One that an import or a callback swallows is raised again. What the process was told to ignore it goes on ignoring.
    """

    def __init__(self) -> None:
        self.heard, self.over = 0, False
        usual = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
        for number, handler in usual:
            if signal.getsignal(number) == handler:
                try:
                    signal.signal(number, self._interrupt)
                except ValueError:  # not the main thread: its signals are a matter of whoever runs that
                    return
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._again

    def _interrupt(self, number: int, _: object) -> None:
        if self.over:  # threads may keep the process, and this one has said all that it has to say
            os._exit(130)
        self.heard = number
        raise KeyboardInterrupt

    def _again(self, what: sys.UnraisableHookArgs) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            self._unraisable(what)
            return
        from threading import Timer, main_thread

        # once the callback is done
        again = Timer(AGAIN_SECONDS, signal.pthread_kill, (main_thread().ident, self.heard))
        again.daemon = True
        again.start()
