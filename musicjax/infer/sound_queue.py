"""Sound on its way from the thread that brings it to the model: bounded, in order, gaps counted."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from musicjax.errors import ConfigError

_POLL_S = 0.02  # how soon one who waits in here notices that listening has stopped


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples without a gap, (N,) float32 at the queue's rate.

    start      place of the first one in the stream, those that were lost counted
    arrived_s  when the last one came, on the queue's clock
    """

    samples: Float[np.ndarray, " N"]
    start: int
    arrived_s: float

    @property
    def end(self) -> int:
        """Place after the last sample."""
        return self.start + len(self.samples)


class SoundQueue:
    """A queue of blocks of any length between one thread that puts and one that gets.

    When more than `capacity_s` seconds wait, the one who puts either waits, or all that waits is
    dropped so that the model is back at what sounds now: places go on counting, so that whoever
    gets can tell how much was lost. A block longer than the queue is let in once nothing more than
    `capacity_s` stands before it.
    """

    def __init__(
        self, capacity_s: float = 1.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not capacity_s > 0:
            raise ConfigError(f"a buffer of {capacity_s} s holds nothing; give seconds above 0.")
        self.capacity_s, self.clock = capacity_s, clock
        self.sample_rate = 0  # known once `begin` was called
        self.overruns = 0  # times that sound was lost because it came faster than it was heard
        self.underruns = 0  # times that the device had no sound in time
        self.lost = 0  # samples
        self.error: Exception | None = None
        self._blocks: deque[tuple[np.ndarray, int, float]] = deque()
        self._waiting, self._next = 0, 0
        self._ended = self._stopped = False
        self._changed = threading.Condition()

    def begin(self, sample_rate: int) -> None:
        """Tell the rate of the blocks, before the first one."""
        self.sample_rate = sample_rate

    def put(
        self,
        samples: Float[np.ndarray, " N"],
        *,
        may_wait: bool = False,
        let_in: bool = False,
        lost: int = 0,
    ) -> bool:
        """Add a block; `lost` samples went missing before it. False when nobody listens any more.

        `may_wait`: wait for room rather than drop. `let_in`: do neither, though there is no room.
        """
        with self._changed:
            most = self.capacity_s * self.sample_rate
            while may_wait and self._waiting > most and not self._stopped:
                self._changed.wait(_POLL_S)
            if self._stopped:
                return False
            if self._waiting > most and not let_in:
                lost_here, self._waiting = self._waiting, 0
                self._blocks.clear()
                self.overruns += 1
                self.lost += lost_here
            if lost:
                self.overruns += 1
                self.lost += lost
                self._next += lost
            if len(samples):
                self._blocks.append((samples, self._next, self.clock()))
                self._waiting += len(samples)
                self._next += len(samples)
                self._changed.notify_all()
        return True

    def get(self, most: int, timeout_s: float) -> Piece | None:
        """Up to `most` samples as soon as there are any; None when none came in time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._blocks and not self._ended and not self._stopped:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, _POLL_S))
            return self._taken(most) if self._blocks else None

    def _taken(self, most: int) -> Piece:
        parts: list[np.ndarray] = []
        first = self._blocks[0][1]
        place, arrived_s = first, 0.0
        while self._blocks and self._blocks[0][1] == place and place - first < most:
            samples, start, arrived_s = self._blocks.popleft()
            room = most - (place - first)
            if len(samples) > room:
                self._blocks.appendleft((samples[room:], start + room, arrived_s))
                samples = samples[:room]
            parts.append(samples)
            place += len(samples)
        self._waiting -= place - first
        self._changed.notify_all()
        return Piece(parts[0] if len(parts) == 1 else np.concatenate(parts), first, arrived_s)

    def end(self, error: Exception | None = None) -> None:
        """No more will come, because the sound has ended or because of an error."""
        with self._changed:
            self.error = self.error or error
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody listens any more. Takes no lock, so that a signal handler may call it."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether nobody listens any more."""
        return self._stopped

    @property
    def finished(self) -> bool:
        """Whether nothing is left and nothing will come."""
        return self._stopped or (self._ended and not self._blocks)

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that wait to be heard."""
        return self._waiting / self.sample_rate if self.sample_rate else 0.0
