"""Train the little system in a process of its own: `run_little.py OUTPUT [KILL_AT_BATCH]`."""

import os
import signal
import sys

from little_system import SYSTEM, Batches, run_config

from musicjax.train import train


class Killing(Batches):
    """Kills its process without warning when a certain batch is asked for."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __next__(self):
        if self.next == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()


if __name__ == "__main__":
    train(run_config(sys.argv[1]), SYSTEM, batches=Killing(int(sys.argv[2])))
