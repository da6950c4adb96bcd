"""One of two processes that train the little system together: `two_processes.py OUTPUT`."""

import sys

import jax
from little_system import SYSTEM, Batches, run_config

from musicjax.train import train
from musicjax.train.launch import connect


class Half(Batches):
    """This process's examples of every batch."""

    def __next__(self):
        here, count = jax.process_index(), jax.process_count()
        return {k: v[here::count] for k, v in super().__next__().items()}


def evaluate(model):
    return {"score": 1.0}


if __name__ == "__main__":
    assert connect() == 2
    for steps in (3, 6):  # the second call continues the first
        config = run_config(sys.argv[1], steps=steps, model={"noise": 0.0}, eval_every=3)
        train(config, SYSTEM, evaluate, batches=Half(), show=False)
    print("DONE", len(jax.devices()), jax.process_index())
