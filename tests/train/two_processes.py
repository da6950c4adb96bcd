"""One of two processes that train the little system together: `two_processes.py OUTPUT`."""

import contextlib
import sys

import jax
from little_system import SYSTEM, Batches, run_config

from musicjax.errors import TrainingError
from musicjax.train import train
from musicjax.train.launch import connect


class Half(Batches):
    """This process's examples of every batch; the data ends after `end` batches."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.end = end

    def __next__(self):
        if self.next == self.end:
            raise StopIteration
        half = self.size // 2
        start = jax.process_index() * half
        return {k: v[start : start + half] for k, v in super().__next__().items()}


def evaluate(model):
    return {"score": 1.0}


if __name__ == "__main__":
    assert connect() == 2
    config = run_config(sys.argv[1], steps=6, eval_every=3)
    with contextlib.suppress(TrainingError):
        train(config, SYSTEM, evaluate, batches=Half(4), show=False)
    train(config, SYSTEM, evaluate, batches=Half(6), show=False)
    print("DONE", len(jax.devices()), jax.process_index())
