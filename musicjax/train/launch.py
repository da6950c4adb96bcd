"""Joining the processes of a cluster job before the first device is touched.

`srun`, Open MPI's `mpirun` and anything that sets the three variables below start one process per
machine or device with the same command; each calls `connect` and sees the devices of all.
"""

import os
from collections.abc import Mapping

import jax

from musicjax.errors import ConfigError

COORDINATOR = "MUSICJAX_COORDINATOR"  # host:port of process 0
PROCESSES = "MUSICJAX_PROCESSES"
PROCESS = "MUSICJAX_PROCESS"

# Set by launchers that jax.distributed recognises; above 1 when there is something to join.
_LAUNCHERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def connect(environment: Mapping[str, str] = os.environ) -> int:
    """Join the job's other processes, if there are any; returns how many there are.

    Raises ConfigError if some, but not all, of MUSICJAX_COORDINATOR, MUSICJAX_PROCESSES and
    MUSICJAX_PROCESS are set, or if a number is not one.
    """
    if jax.distributed.is_initialized():
        return jax.process_count()
    given = [name for name in (COORDINATOR, PROCESSES, PROCESS) if environment.get(name)]
    if given:
        if len(given) < 3:
            raise ConfigError(
                f"of the variables {COORDINATOR} (host:port), {PROCESSES} (how many) and {PROCESS} "
                f"(which, from 0), only {', '.join(given)} is set: set all three, or none."
            )
        jax.distributed.initialize(
            environment[COORDINATOR], _count(environment, PROCESSES), _count(environment, PROCESS)
        )
    elif any(_count(environment, name) > 1 for name in _LAUNCHERS):
        jax.distributed.initialize()
    return jax.process_count()


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "0")
    if not text.isdigit():
        raise ConfigError(f"the environment variable {name} is {text!r}; expected a whole number.")
    return int(text)
