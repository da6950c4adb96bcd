"""An autoregressive piano transcriber: what each key does follows from what it did before.

T. Kwon, D. Jeong, J. Nam, "Polyphonic Piano Transcription Using Autoregressive Multi-State Note
Model", ISMIR 2020. A convolutional acoustic model hears a few frames; a unidirectional LSTM hears
the past, and is told in which of five states it said each key to be in the frame before. So a
recording can be written down while it is being played (`stream.py`). `card.md` lists where the
forms of this file differ from the paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer

from musicjax.audio.framing import StreamSpec
from musicjax.audio.frontend import spectrogram
from musicjax.errors import AudioError
from musicjax.models.piano_ar import decoding, stream
from musicjax.models.piano_ar.config import PianoARConfig
from musicjax.models.piano_ar.states import (
    code,
    going_on,
    onset_codes,
    sounding_codes,
    usual_transitions,
    weights,
)
from musicjax.nn import LSTM, ConvStack
from musicjax.nn.products import dense_product
from musicjax.types import Key

Carry = dict[str, Array]


@partial(jax.tree_util.register_dataclass, data_fields=["state", "velocity"], meta_fields=[])
@dataclass(frozen=True)
class PianoAROutput:
    """Of every frame and key: logits of its states, and how strong an onset would be. float32.

    velocity is near 0..1 at onsets; None where the form has none.
    """

    state: Float[Array, "B T P C"]
    velocity: Float[Array, "B T P"] | None


class PianoAR(nnx.Module):
    """The network: features to the state of every key in every frame."""

    float32_activations: ClassVar[tuple[str, ...]] = ("state",)  # decoding takes the largest again
    context_s: ClassVar[float] = 0.2  # of the convolutions; the LSTM's memory is carried on

    def __init__(self, config: PianoARConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
        policy = config.policy
        stack = partial(
            ConvStack,
            config.frontend.num_bins,
            config.conv_channels,
            config.fc_units,
            ahead=config.conv_ahead,
            dropout=config.dropout,
            initializer=init,
            policy=policy,
            rngs=rngs,
        )
        self.stack = stack()
        self.frame_stack = stack() if config.two_stacks else None
        shape = (config.num_states, config.embedding)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, policy.param))
        told = config.num_pitches * config.embedding
        widths = (config.acoustic_units + told, *[config.lstm_units] * config.lstm_layers)
        self.lstms = nnx.List(
            [
                LSTM(
                    width,
                    config.lstm_units,
                    two_biases=config.lstm_biases == 2,
                    policy=policy,
                    rngs=rngs,
                )
                for width in widths[: config.lstm_layers]
            ]
        )
        # What the last layer sees of the LSTM, and of the acoustic model: one sum of two products,
        # of which the second can be had for all frames at once.
        linear = partial(
            nnx.Linear,
            kernel_init=init,
            dtype=jnp.float32,
            dot_general=dense_product(policy),
            param_dtype=policy.param,
            rngs=rngs,
        )
        out = config.num_pitches * (config.num_states + config.velocity)
        self.out = linear(config.lstm_units, out)
        self.skip = linear(config.acoustic_units, out, use_bias=False) if config.skip else None
        table = jnp.asarray(usual_transitions(config.states), policy.param)
        table += 0.01 * jax.random.normal(rngs.params(), table.shape, policy.param)
        self.transitions = nnx.Param(table) if config.transitions else None
        sampled = config.forcing == "sampled" and config.forcing_steps
        self.steps = nnx.BatchStat(jnp.zeros((), jnp.float32)) if sampled else None

    # The network of a frame ------------------------------------------------------------------

    def told(self, before: Int[Array, "*B P"]) -> Float[Array, "*B D"]:
        """What the LSTM is told of the states in the frame before: `embedding` numbers a key."""
        # A product, whose gradient is one too; that of a lookup is a scatter, which is slow.
        chosen = jax.nn.one_hot(before, self.config.num_states, dtype=jnp.float32)
        vectors = chosen @ self.embedding[...].astype(jnp.float32)
        return vectors.reshape(*before.shape[:-1], -1)

    def start(self, batch: int) -> Carry:
        """The memory before the first frame: h and c (B, layers, H), and every key off (B, P)."""
        config = self.config
        zeros = jnp.zeros((batch, config.lstm_layers, config.lstm_units), jnp.float32)
        return {"h": zeros, "c": zeros, "before": jnp.zeros((batch, config.num_pitches), jnp.int32)}

    def heard(
        self, acoustic: Float[Array, "*B D"]
    ) -> tuple[Float[Array, "*B G"], Float[Array, "*B P"] | None]:
        """All that depends on the acoustic model alone: a share of the first gates, of the end."""
        acoustic = acoustic.astype(jnp.float32) * self.config.acoustic_gain
        kernel = self.lstms[0].forward.input_kernel[...]
        gates = self.lstms[0].product(acoustic, kernel[: self.config.acoustic_units])
        gates = gates + self.lstms[0].forward.offset()
        return gates, None if self.skip is None else self.skip(acoustic)

    def advance(
        self, carry: Carry, gates: Float[Array, "B G"], skipped: Float[Array, "B P"] | None
    ) -> tuple[Carry, tuple[Array, Array | None]]:
        """One frame on: the new memory, and logits (B, P, C) and velocity (B, P)."""
        told = self.told(carry["before"])
        kernel = self.lstms[0].forward.input_kernel[...]
        x = gates + self.lstms[0].product(told, kernel[self.config.acoustic_units :])
        hs: list[Array] = []
        cs: list[Array] = []
        for layer, lstm in enumerate(self.lstms):
            if layer:
                x = lstm.project(hs[-1])
            h, c = lstm.step(x, carry["h"][:, layer], carry["c"][:, layer])
            hs.append(h)
            cs.append(c)
        logits, velocity = self.ends(hs[-1], skipped, carry["before"], self.config.doubt)
        before = self.choose(jax.nn.softmax(logits))
        return {"h": jnp.stack(hs, 1), "c": jnp.stack(cs, 1), "before": before}, (logits, velocity)

    def ends(
        self,
        h: Float[Array, "*B H"],
        skipped: Float[Array, "*B D"] | None,
        before: Integer[Array, "*B P"],
        doubt: float = 0.0,
    ) -> tuple[Float[Array, "*B P C"], Float[Array, "*B P"] | None]:
        """Logits and velocity from the LSTM's output, what came past it, and the states before."""
        config = self.config
        out = self.out(h.astype(jnp.float32))
        out = out if skipped is None else out + skipped
        split = config.num_pitches * config.num_states
        logits = out[..., :split].reshape(*h.shape[:-1], config.num_pitches, config.num_states)
        if self.transitions is not None:
            chosen = jax.nn.one_hot(before, config.num_states, dtype=jnp.float32)
            table = self.transitions[...].astype(jnp.float32) - doubt * going_on(config.states)
            logits = logits + chosen @ table
        return logits, out[..., split:] if config.velocity else None

    def choose(self, probabilities: Float[Array, "*B P C"]) -> Int[Array, "*B P"]:
        """The state that each key is said to be in."""
        factors = weights(self.config.states, self.config.onset_boost)
        return jnp.argmax(probabilities * factors, axis=-1).astype(jnp.int32)

    # The network of a recording ---------------------------------------------------------------

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
        states: Integer[Array, "B T P"] | None = None,
    ) -> PianoAROutput:
        """Logits for a batch of spectrograms.

        mask is True at frames that exist. With `states`, the true ones, each frame is told the true
        states of the frame before, or what `config.forcing` puts in their place; without, its own.
        With `train`, batch statistics are used and updated, and `key` drives dropout and forcing.
        """
        precision = self.config.policy.matmul_precision
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        with jax.default_matmul_precision(None if precision == "default" else precision):
            acoustic = self.acoustic(features, mask, train, keys[0])
            if states is None:
                return self.follow(self.start(features.shape[0]), acoustic, mask)[1]
            gates, skipped = self.heard(acoustic)
            before = shifted(states.astype(jnp.int32))
            if train and self.config.forcing != "truth" and keys[1] is not None:
                before = self._forced(before, gates, skipped, keys[1])
            told = self.told(before)
            kernel = self.lstms[0].forward.input_kernel[...]
            x = gates + self.lstms[0].product(told, kernel[self.config.acoustic_units :])
            h = self.lstms[0].run(x, mask)
            for lstm in [*self.lstms][1:]:
                h = lstm(h, mask)
            return PianoAROutput(*self.ends(h, skipped, before))

    def _stacks(self) -> list[tuple[str, ConvStack]]:
        pairs = [("stack", self.stack), ("frame_stack", self.frame_stack)]
        return [(name, stack) for name, stack in pairs if stack is not None]

    def acoustic(
        self, features: Float[Array, "B T F"], mask: Array | None, train: bool, key: Key | None
    ) -> Float[Array, "B T D"]:
        """What the acoustic models hear; those that are frozen hear as they do outside training."""
        heard: list[Array] = []
        for name, stack in self._stacks():
            learning = train and name not in self.config.frozen
            own = jax.random.fold_in(key, len(heard)) if learning and key is not None else None
            x = stack(features, mask=mask, train=learning, key=own)
            heard.append(x if learning or not train else jax.lax.stop_gradient(x))
        return jnp.concatenate(heard, axis=-1)

    def follow(
        self, carry: Carry, acoustic: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None
    ) -> tuple[Carry, PianoAROutput]:
        """Frame after frame, each told what was said of the one before: paper, section 3.2."""
        gates, skipped = self.heard(acoustic)

        def frame(carry: Carry, xs: tuple) -> tuple:
            gates, skipped, exists = xs
            after, heard = self.advance(carry, gates, skipped)
            if exists is not None:
                after = {
                    name: jnp.where(exists.reshape(-1, *[1] * (new.ndim - 1)), new, carry[name])
                    for name, new in after.items()
                }
            return after, heard

        xs = (gates, skipped, mask)
        found: tuple[Array, Array | None]
        carry, found = jax.lax.scan(frame, carry, jax.tree.map(lambda x: x.swapaxes(0, 1), xs))
        state, velocity = jax.tree.map(lambda x: x.swapaxes(0, 1), found)
        return carry, PianoAROutput(state, velocity)

    def _forced(
        self, truth: Int[Array, "B T P"], gates: Array, skipped: Array | None, key: Key
    ) -> Int[Array, "B T P"]:
        """The states of the frame before, some of them not the true ones."""
        config = self.config
        which, what = jax.random.split(key)
        if config.forcing == "corrupted":
            other = jax.random.randint(what, truth.shape, 0, config.num_states)
            return jnp.where(
                jax.random.bernoulli(which, config.forcing_rate, truth.shape), other, truth
            )
        rate = jnp.asarray(config.forcing_rate)
        if self.steps is not None:
            rate = rate * sampling_rate(self.steps[...], config.forcing_steps)
            self.steps[...] = self.steps[...] + 1
        own = jax.random.bernoulli(which, rate, truth.shape)

        def frame(carry: Carry, xs: tuple) -> tuple[Carry, Array]:
            gates, skipped, truth, own = xs
            before = jnp.where(own, carry["before"], truth)
            return self.advance({**carry, "before": before}, gates, skipped)[0], before

        # States are whole numbers and carry no gradient: which were used is found without one, and
        # the LSTM runs over all frames once more with them.
        xs = jax.lax.stop_gradient((gates, skipped, truth, own))
        start = self.start(truth.shape[0])
        used = jax.lax.scan(frame, start, jax.tree.map(lambda x: x.swapaxes(0, 1), xs))[1]
        return used.swapaxes(0, 1)

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B T ..."]]:
        """What was heard, from samples at the front-end's rate: the input of `decode`.

        frames: how many frames of each item are sound rather than padding (all if None).
        Returns `state`, the probability of each state (B, T, P, C); of them `onset` and `frame`,
        that a note begins and that it sounds; and `velocity`, 0..1, if the form has it.
        """
        features = spectrogram(audio, self.config.frontend)
        mask = None
        if frames is not None:
            mask = jnp.arange(features.shape[1]) < frames[:, None]
        return self.told_activations(self(features, mask=mask))

    def carried_activations(
        self,
        audio: Float[Array, "B N"],
        frames: Int[Array, "B"],
        carry: Carry,
        first: Int[Array, ""],
        stop: Int[Array, ""],
    ) -> tuple[Carry, dict[str, Float[Array, "B T ..."]]]:
        """`activations` of a window of a longer recording, of its frames from `first` to `stop`.

        `carry` is the memory of the frames before `first`; that of the frames up to `stop` comes
        back. The other frames are only what the convolutions hear of them.
        """
        features = spectrogram(audio, self.config.frontend)
        place = jnp.arange(features.shape[1])
        mask = place < frames[:, None]
        precision = self.config.policy.matmul_precision
        with jax.default_matmul_precision(None if precision == "default" else precision):
            acoustic = self.acoustic(features, mask, False, None)
            kept = mask & (place >= first) & (place < stop)
            carry, out = self.follow(carry, acoustic, kept)
        return carry, self.told_activations(out)

    def told_activations(self, out: PianoAROutput) -> dict[str, Float[Array, "B T ..."]]:
        """Probabilities, from logits."""
        state = jax.nn.softmax(out.state)
        begins = onset_codes(self.config.states) or sounding_codes(self.config.states)
        sounds = sounding_codes(self.config.states)
        found = {
            "state": state,
            "onset": state[..., jnp.array(begins)].sum(-1),
            "frame": state[..., jnp.array(sounds)].sum(-1),
        }
        if out.velocity is not None:
            found["velocity"] = jnp.clip(out.velocity, 0.0, 1.0)
        return found

    # The network of a stream: `musicjax.infer.stream.StreamingModel` -----------------------------

    @property
    def stream_spec(self) -> StreamSpec:
        """Rate, hop and look-ahead of a stream. Raises ConfigError where there cannot be one."""
        return stream.stream_spec(self.config)

    def stream_start(self, batch: int) -> stream.StreamState:
        """The state before the first sample: what `stream.start_signal` keeps, `stack` (and
        `frame_stack`), the two frames that each convolution heard last, and `carry`, see `start`.
        """
        state = stream.start_signal(self.config.frontend, batch)
        state |= {name: s.start(batch) for name, s in self._stacks()}
        return state | {"carry": self.start(batch)}

    def stream_step(
        self, state: stream.StreamState, samples: Float[Array, "B N"]
    ) -> tuple[stream.StreamState, dict[str, Float[Array, "B 1 ..."]]]:
        """A hop of samples more; the activations of one frame, as `activations` gives them."""
        state, features = stream.next_features(state, samples, self.config.frontend)
        frame, count = state["frame"], state["count"]
        heard: list[Array] = []
        for name, stack in self._stacks():
            state[name], x = stack.step(state[name], features, frame, count)
            heard.append(x[:, 0])
        gates, skipped = self.heard(jnp.concatenate(heard, axis=-1))
        after, (logits, velocity) = self.advance(state["carry"], gates, skipped)
        begun = frame >= sum(self.config.conv_ahead)
        carry = jax.tree.map(lambda new, old: jnp.where(begun, new, old), after, state["carry"])
        out = PianoAROutput(logits[:, None], None if velocity is None else velocity[:, None])
        return {**state, "carry": carry}, self.told_activations(out)

    def stream_end(self, state: stream.StreamState) -> stream.StreamState:
        """The sound has ended: no frame after those of its hops exists."""
        count = state["frame"] + 1 + stream.feature_delay(self.config.frontend)
        return {**state, "count": count}

    def stream_reader(self, **options: Any) -> decoding.Reader:
        """A reader of one stream's notes."""
        return decoding.reader(self.config, self.stream_spec, **options)


def shifted(states: Integer[Array, "B T P"]) -> Integer[Array, "B T P"]:
    """The states of the frame before; before the first, all are off."""
    return jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0)))


def sampling_rate(step: Array | float, steps: int) -> Float[Array, ""]:
    """Share of own states after so many steps: 0 at first, 1/2 after `steps` / 2, then nearly 1.

    One less the inverse sigmoid decay k / (k + exp(i / k)) of S. Bengio et al., "Scheduled Sampling
    for Sequence Prediction", 2015, with k such that half is reached there.
    """
    # ln k = i / k at the half, so k ln k = steps / 2; Newton's method finds it.
    k = max(steps / 16, 2.0)
    for _ in range(8):
        k -= (k * math.log(k) - steps / 2) / (math.log(k) + 1)
    return 1 - k / (k + jnp.exp(jnp.minimum(step / k, 80.0)))


# Loss ---------------------------------------------------------------------------------------


def loss(
    model: PianoAR, batch: Mapping[str, Array], *, key: Key | None, train: bool = True
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Negative log-likelihood of the true states, and the error of velocities. float32.

    batch: audio (B, N) float32 in -1..1 or int16, the labels of `targets` stacked (B, T, P), and
    optionally mask (B, T), True at frames that count. state: mean over frames and keys (paper,
    section 3.3), cells in which a note begins weighted by `config.onset_weight`. velocity: squared
    error at onsets over their number, times `config.velocity_weight`.
    """
    config, audio = model.config, batch["audio"]
    if audio.dtype == jnp.int16:
        audio = audio.astype(jnp.float32) / 32768.0
    mask = batch.get("mask")
    features = spectrogram(audio, config.frontend)
    states = batch["state"]
    if states.shape != (*features.shape[:2], config.num_pitches):
        raise AudioError(
            f"labels have shape {states.shape} but {audio.shape[-1]} samples give "
            f"{(*features.shape[:2], config.num_pitches)}; make them with targets(notes, start_s, "
            "num_samples, config)."
        )
    out = model(features, mask=mask, train=train, key=key, states=states)
    chosen = jax.nn.one_hot(states, config.num_states, dtype=jnp.float32)
    cells = -(jax.nn.log_softmax(out.state) * chosen).sum(-1)
    begins = jnp.isin(states, jnp.array(onset_codes(config.states) or (-1,)))
    cells = jnp.where(begins, config.onset_weight * cells, cells)
    seen = jnp.ones(states.shape, bool)
    if mask is not None:
        seen = jnp.broadcast_to(mask[..., None], states.shape)
    if config.transitions:
        # A note that began before the clip: what it follows was cut off, and is not what is told.
        begun = (code("off", config.states), code("onset", config.states))
        seen = seen.at[:, 0].set(seen[:, 0] & jnp.isin(states[:, 0], jnp.array(begun)))
    parts = {"state": jnp.where(seen, cells, 0).sum() / jnp.maximum(seen.sum(), 1)}
    if out.velocity is not None:
        struck = jnp.where(seen, batch["velocity"] > 0, False).astype(jnp.float32)
        squared = struck * (batch["velocity"] - out.velocity) ** 2
        error = squared.sum() / jnp.maximum(struck.sum(), 1)
        parts["velocity"] = config.velocity_weight * error
    return sum(parts.values(), jnp.zeros(())), parts
