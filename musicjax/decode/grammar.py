"""Only what may follow: masks over the vocabulary that depend on the tokens so far.

A grammar is given as tables over classes of tokens (all pitches are one class, say), which keeps
them small: `next_state` (S, C) and `allowed` (S, C) over states and classes, and `token_class`
(V,). `TableGrammar` runs them as a finite automaton inside the decoding loop. Decoding without a
mask is what published systems do, and is the default everywhere.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from musicjax.errors import ConfigError


@runtime_checkable
class GrammarMask(Protocol):
    """Which tokens are legal next. The state is any pytree whose leaves lead with the row axis."""

    def initial(self, batch: int) -> Any:
        """The state of `batch` rows before their first token."""
        ...

    def allowed(self, state: Any) -> Bool[Array, "B V"]:
        """Which tokens may come next; at least one in every row."""
        ...

    def advance(self, state: Any, tokens: Int[Array, "B"]) -> Any:
        """The state after these tokens, legal or not (a prompt is not checked)."""
        ...


@dataclass(frozen=True, eq=False)
class TableGrammar:
    """A finite automaton over token classes.

    next_state       (S, C) int: state after a token of that class.
    allowed_classes  (S, C) bool: whether a token of that class may come.
    token_class      (V,) int: the class of each token.
    start            the state before the first token.
    rising           (V,) int: tokens that count upwards, such as times within a segment, have a
                     value of 0 or more, which must be larger than the largest of them so far (0 at
                     the beginning); all others -1. None: no such rule.

    A state that allows no class at all is refused with a ConfigError: a row could not go on. With
    `rising`, each state must allow something else than rising tokens, which may all be used up.
    """

    next_state: np.ndarray
    allowed_classes: np.ndarray
    token_class: np.ndarray
    start: int = 0
    rising: np.ndarray | None = None

    def __post_init__(self) -> None:
        states, classes = self.next_state.shape
        if self.allowed_classes.shape != (states, classes):
            raise ConfigError(
                f"allowed_classes has shape {self.allowed_classes.shape}, next_state "
                f"{self.next_state.shape}; both must be (states, classes)."
            )
        for name, table, end in (
            ("next_state", self.next_state, states),
            ("token_class", self.token_class, classes),
        ):
            if table.size and not 0 <= table.min() <= table.max() < end:
                raise ConfigError(
                    f"{name} holds {table.min()} to {table.max()}; it must stay within 0 to "
                    f"{end - 1}."
                )
        open_tokens = self.allowed_classes[:, self.token_class]
        if self.rising is not None:
            open_tokens = open_tokens[:, self.rising < 0]
        stuck = np.flatnonzero(~open_tokens.any(axis=1))
        if len(stuck):
            raise ConfigError(
                f"states {stuck.tolist()} of the grammar allow no token; give each state at least "
                "one, the end token say."
            )

    def initial(self, batch: int) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        """(state of the automaton, largest rising value so far), a row."""
        return jnp.full(batch, self.start, jnp.int32), jnp.zeros(batch, jnp.int32)

    def allowed(self, state: tuple[Int[Array, "B"], Int[Array, "B"]]) -> Bool[Array, "B V"]:
        """The automaton's row of the table, less what lies behind."""
        automaton, largest = state
        table = jnp.asarray(self.allowed_classes[:, self.token_class])  # (S, V)
        legal = table[automaton]
        if self.rising is None:
            return legal
        rising = jnp.asarray(self.rising, jnp.int32)
        return legal & ((rising < 0) | (rising > largest[:, None]))

    def advance(
        self, state: tuple[Int[Array, "B"], Int[Array, "B"]], tokens: Int[Array, "B"]
    ) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        """Where the automaton goes, and how far the rising values have come."""
        automaton, largest = state
        classes = jnp.asarray(self.token_class, jnp.int32)[tokens]
        automaton = jnp.asarray(self.next_state, jnp.int32)[automaton, classes]
        if self.rising is not None:
            largest = jnp.maximum(largest, jnp.asarray(self.rising, jnp.int32)[tokens])
        return automaton, largest
