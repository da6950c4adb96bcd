"""Batches read ahead of the device."""

import queue
import threading
from typing import Any

import numpy as np
from jax.sharding import Mesh

from musicjax.errors import TrainingError
from musicjax.train.mesh import put_batch


class Prefetch:
    """A thread that reads batches ahead and puts them on the mesh.

    Each batch comes with the iterator's state just after it, so that a checkpoint never counts a
    batch that was read but not yet trained on.
    """

    def __init__(self, batches: Any, mesh: Mesh, step: int, steps: int, depth: int = 2) -> None:
        self._batches, self._mesh, self._count = batches, mesh, steps - step
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="batches", daemon=True)

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)

    def _fill(self) -> None:
        try:
            for _ in range(self._count):
                batch = {k: np.asarray(v) for k, v in next(self._batches).items()}
                if self._stop.is_set():
                    return
                self._queue.put((put_batch(batch, self._mesh), self._batches.get_state()))
        except StopIteration:
            self._queue.put(
                TrainingError(
                    "the training data ended before the last step: make the iterator endless, or "
                    "lower --steps."
                )
            )
        except Exception as error:
            self._queue.put(error)

    def take(self, *, block: bool) -> Any:
        """The next (batch, iterator state); None if not blocking and none is ready."""
        try:
            item = self._queue.get(block)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item
