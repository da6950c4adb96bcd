"""CREPE as sound comes in: a frame each hop, as soon as the second half of its window is there.

Frames are independent, so all that is kept is the signal: a frame of 64 ms stands in the middle of
its samples and waits for 32 ms of them. What is told of a frame is its own: the highest bin and the
average around it (`decoder="local"` of `decode.py`), for the likeliest path needs the future.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from musicjax.audio.config import FrontendConfig
from musicjax.audio.framing import StreamSpec
from musicjax.errors import ConfigError
from musicjax.notes.contour import Contour
from musicjax.notes.events import Event, PitchFrame

_OPTIONS = ("voicing", "silence_db", "min_hz", "max_hz")


def stream_spec(frontend: FrontendConfig) -> StreamSpec:
    """A step is a hop, a frame waits for the part of its window that lies after it."""
    size = frontend.fft_length
    ahead = size // 2 if frontend.padding == "zeros" else size
    return StreamSpec(frontend.sample_rate, frontend.hop_length, ahead)


def kept_samples(spec: StreamSpec, size: int) -> int:
    """Samples that a stream keeps from one step to the next."""
    return _reach(spec, size) - spec.hop


def _reach(spec: StreamSpec, size: int) -> int:
    """Samples from the beginning of the frame that is heard to the end of the newest hop."""
    return (spec.delay + 1) * spec.hop + size - spec.lookahead


def next_window(
    kept: Float[Array, "B K"], samples: Float[Array, "B N"], spec: StreamSpec, size: int
) -> tuple[Float[Array, "B K"], Float[Array, "B samples"]]:
    """What is kept then, and the window (B, size) of the frame that is `delay` steps old."""
    signal = jnp.concatenate([kept, samples], axis=1)
    return signal[:, spec.hop :], signal[:, :size]


class Reader:
    """Tells each frame's pitch: 0 Hz where it has none, and how sure that is.

    Raises ConfigError for options that `decode` refuses or that need the future.
    """

    def __init__(self, config: object, spec: StreamSpec, options: Mapping[str, object]) -> None:
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ConfigError(
                f"crepe follows a stream without {', '.join(unknown)}; it takes "
                f"{', '.join(_OPTIONS)}."
            )
        from musicjax.models.crepe.model import BINS

        self.config, self.spec, self.options = config, spec, dict(options)
        self._decoded({"pitch": np.zeros((0, BINS)), "level_db": np.zeros(0)})  # the values, too

    def _decoded(self, activations: Mapping[str, np.ndarray]) -> Contour:
        from musicjax.models.crepe.decode import decode

        options: dict = self.options
        return decode(activations, self.config, decoder="local", **options)  # type: ignore[arg-type]

    def read(self, activations: Mapping[str, np.ndarray], first_frame: int) -> list[Event]:
        """A PitchFrame for each frame."""
        found = self._decoded(activations)
        return [
            PitchFrame(self.spec.time_s(first_frame + i), float(hz), float(sure))
            for i, (hz, sure) in enumerate(zip(found.f0_hz, found.confidence, strict=True))
        ]

    def end(self, frame: int) -> list[Event]:
        """Nothing sounds on: a frame has told its own."""
        del frame
        return []
