"""How a task is run: recordings of any length, many files, devices and the compile cache."""

from musicjax.infer.devices import cores_as_devices, find_device, keep_compiled, spread
from musicjax.infer.long import (
    CarryingRunner,
    FixedLayout,
    Layout,
    Runner,
    Window,
    layout,
    stitch,
    windows,
)
from musicjax.infer.recordings import (
    DRAWN_S,
    Collector,
    Heard,
    Recording,
    as_recording,
    attempt,
    hear,
    part_of,
    sample_blocks,
)
from musicjax.infer.segments import SegmentRunner
from musicjax.infer.sequences import AgreeingRunner, SequenceRunner

__all__ = [
    "DRAWN_S",
    "AgreeingRunner",
    "CarryingRunner",
    "Collector",
    "FixedLayout",
    "Heard",
    "Layout",
    "Recording",
    "Runner",
    "SegmentRunner",
    "SequenceRunner",
    "Window",
    "as_recording",
    "attempt",
    "cores_as_devices",
    "find_device",
    "hear",
    "keep_compiled",
    "layout",
    "part_of",
    "sample_blocks",
    "spread",
    "stitch",
    "windows",
]
