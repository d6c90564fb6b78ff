"""How often a device asks the server whether a message is there."""

from __future__ import annotations

import time

NODE_POLL = 0.5  # seconds between two questions of a SuperNode for messages; Flower's own are 3
NODE_REST = 4.0  # the most, where nothing has come for long; from 5 on each question would need TLS anew
PATIENCE = 0.05  # of the time that nothing has come, until the next question
TASK_POLL = 0.1  # between two looks for what is on this machine: a task, a reply


class Rest:
    """Stands for the module `time` in a SuperNode: the longer no message came, the later the next question for one."""

    def __init__(self) -> None:
        self.quiet = 0.0

    def sleep(self, seconds: float) -> None:
        """As long as is good here; Flower sleeps above a second where no message was there."""
        wait = TASK_POLL
        if seconds > 1:
            wait = min(NODE_REST, max(NODE_POLL, PATIENCE * self.quiet))
            self.quiet += wait
        time.sleep(wait)
