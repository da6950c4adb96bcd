"""Which processors multiply matrices of bfloat16 several times faster than those of float32."""

import functools
import os
from pathlib import Path

_PROCESSOR = Path("/proc/cpuinfo")  # there on Linux only


@functools.cache
def has_bfloat16_units() -> bool:
    """Whether this machine's processor has matrix units for bfloat16 that XLA makes use of (AMX).

    Without them such products are no faster than in float32, or slower. False where the system
    does not tell, and where XLA_FLAGS holds XLA to an older set of instructions.
    """
    if "xla_cpu_max_isa" in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        lines = _PROCESSOR.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()
