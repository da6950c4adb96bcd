"""How tokens are chosen, and when a row of tokens ends: frozen values, static under `jax.jit`."""

from dataclasses import dataclass

from musicjax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What `generate`, `beam_search` and `SlotDecoder` keep to.

    Lengths count all tokens that a row holds: its prompt and its end token, but not the start
    token. (In transformers' `generate` the start token counts: its `max_length` and `min_length`
    are ours plus one.)

    Tokens
      max_length          most tokens in a row.
      start_token         fed before the first token, never part of the result.
      end_tokens          any of them ends its row; the first one is forced by `end_at_limit`.
      pad_token           what stands after the end of a row.
    Choice
      temperature         0: the likeliest token (greedy). Above 0: drawn from the distribution of
                          logits / temperature.
      top_k               draw among the k likeliest tokens only.
      top_p               draw among the fewest likeliest tokens that together hold probability p,
                          after `temperature` and `top_k` (nucleus sampling, Holtzman et al. 2020).
    Rules, in the order and with the arithmetic of transformers' `generate`; all off by default
      repetition_penalty  divides positive and multiplies negative logits of tokens that the row
                          already holds, start token included (CTRL, Keskar et al. 2019). Beam
                          search applies it to log-probabilities.
      no_repeat_ngram     no n tokens in a row come twice, start token included; 0: off.
      min_length          fewest tokens before an end token, prompt included.
      first_token         the first token of every row without a prompt.
      end_at_limit        the token at the limit is `end_tokens[0]`; the row still counts as cut.
    """

    max_length: int
    start_token: int = 0
    end_tokens: tuple[int, ...] = (1,)
    pad_token: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    min_length: int = 0
    first_token: int | None = None
    end_at_limit: bool = False

    def __post_init__(self) -> None:
        _require(self.max_length >= 1, "max_length", self.max_length, "at least 1")
        _require(self.temperature >= 0, "temperature", self.temperature, "0 (greedy) or above")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None")
        _require(
            self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1"
        )
        _require(
            self.temperature > 0 or (self.top_k is None and self.top_p is None),
            "temperature",
            self.temperature,
            "above 0 when top_k or top_p is given (1.0 leaves the model's distribution as it is)",
        )
        _require(
            self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0"
        )
        _require(
            self.no_repeat_ngram >= 0, "no_repeat_ngram", self.no_repeat_ngram, "0 (off) or above"
        )
        _require(
            0 <= self.min_length <= self.max_length,
            "min_length",
            self.min_length,
            f"between 0 and max_length={self.max_length}",
        )
        _require(
            bool(self.end_tokens) or not self.end_at_limit,
            "end_tokens",
            self.end_tokens,
            "at least one token when end_at_limit is set",
        )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random, so that a key is needed."""
        return self.temperature > 0


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How `beam_search` keeps and ranks hypotheses; the meaning is that of transformers' generate.

    num_beams       hypotheses that run side by side; 1 is greedy.
    length_penalty  exponent: a finished hypothesis of n tokens (prompt not counted, end token
                    counted) with summed log-probability s scores s / n ** length_penalty. As s is
                    negative, values above 0 favour long answers, below 0 short ones.
    early_stopping  True: an item is done as soon as `num_beams` hypotheses have finished. False:
                    it is done when the best running hypothesis, scored at its present length, can
                    no longer enter the finished ones. "never": the same, but scored at the
                    longest length when `length_penalty` is above 0, so that none is missed.
    """

    num_beams: int = 5
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "at least 1")
        _require(
            self.early_stopping in (True, False, "never"),
            "early_stopping",
            self.early_stopping,
            'True, False or "never"',
        )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; it must be {expected}.")
