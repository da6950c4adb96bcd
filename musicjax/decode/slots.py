"""Slot refilling: any number of segments flow through a fixed number of decoding slots.

A segment of music may need ten tokens or a thousand. Decoded as a fixed batch, all wait for the
longest; here a slot whose segment has ended takes the next one at once.

The work goes in rounds. The host encodes a queue of segments in one batch, ahead of need; then one
compiled loop decodes, hands out ended rows, and refills their slots from the queue on the device,
until the queue is used up. So the host is asked only once a queue, however many segments end in it,
and while the device decodes, the host prepares the next queue. The last round runs until all slots
have ended. Every round has the same shapes: nothing is compiled anew for another number of
segments, or another length.

Self-attention reads all the room that the cache has, so the cache starts small and grows when the
longest running row needs it, and shrinks when that row has gone: a few sizes, one program each.

A segment's tokens depend on the segment, its number and the key alone: not on the slot, the
number of slots or the other segments.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from musicjax.decode.config import GenerateConfig
from musicjax.decode.grammar import GrammarMask
from musicjax.decode.loop import DecodeState, advance, longest, room_sizes, start
from musicjax.decode.protocol import Prefill, WeightedStep
from musicjax.errors import ConfigError, DataError

NOBODY = -1  # the number of a segment that is not there
_WHOLE = PartitionSpec()


@dataclass(frozen=True)
class Segment:
    """One thing to decode.

    inputs      what `prefill` reads, without the batch axis: an array or a pytree of arrays, of
                the same shapes and dtypes for all segments.
    prompt      (P,) tokens that the answer must begin with, such as notes still sounding.
    max_length  most tokens of this segment, prompt included; None: the config's.
    bias        (V,) added to the logits of all its tokens; the decoder must be told to take it.
    """

    inputs: Any
    prompt: Int[np.ndarray, "P"] | None = None
    max_length: int | None = None
    bias: Float[np.ndarray, "V"] | None = None


@dataclass(frozen=True)
class Decoded:
    """What came of one segment.

    index      the segment's number in the order in which it came.
    tokens     (L,) int32: its prompt, then what was decoded, with the end token.
    score      summed log-probability of the decoded tokens in the network's own distribution.
    truncated  whether it was cut at its most number of tokens instead of ending by itself.
    """

    index: int
    tokens: Int[np.ndarray, "L"]
    score: float
    truncated: bool


@dataclass
class Tally:
    """What a run has done so far; complete when its segments are all out.

    segments   segments that have come out.
    tokens     tokens of all of them, prompts and end tokens included.
    truncated  segments cut at their most number of tokens.
    slot_steps steps taken, times slots: what would have been decoded had no slot ever been idle.
    """

    segments: int = 0
    tokens: int = 0
    truncated: int = 0
    slot_steps: int = 0

    @property
    def occupancy(self) -> float:
        """Share of slot steps that gave a token."""
        return self.tokens / self.slot_steps if self.slot_steps else 0.0


@partial(jax.tree_util.register_dataclass, data_fields=["rows", "segment"], meta_fields=[])
@dataclass(frozen=True)
class _Rows:
    """Rows and the number of the segment in each, NOBODY where there is none.

    As slots: a row with a segment that is not running has ended and waits to be handed out. As a
    queue: rows with a segment wait, at position 0, to be taken.
    """

    rows: DecodeState
    segment: Int[Array, "B"]

    @property
    def ended(self) -> Bool[Array, "B"]:
        return (self.segment != NOBODY) & ~self.rows.running


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Results:
    """Rows that were handed out in one round; NOBODY where there is none."""

    tokens: Int[Array, "N L"]
    lengths: Int[Array, "N"]
    scores: Float[Array, "N"]
    finished: Bool[Array, "N"]
    segment: Int[Array, "N"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Status:
    """What the host must know after a round, one entry a device."""

    waiting: Int[Array, "M"]  # segments still in the queue
    running: Int[Array, "M"]  # slots still at work
    longest: Int[Array, "M"]  # tokens in the longest running row
    steps: Int[Array, "M"]  # steps taken in this round


class SlotDecoder:
    """Decodes any number of segments in a fixed number of slots, and yields them in order.

    prefill   `prefill(weights, inputs, max_length) -> cache`: encodes a batch of segments.
    step      `step(weights, tokens (B,), cache) -> (logits (B, V) float32, cache)`.
    config    how tokens are chosen and when a row ends.
    slots     rows that are decoded at once.
    queue     segments that are encoded at once, ahead of need; as many as slots when not given.
    release   a slot is refilled when so many are free: 1 keeps slots busiest, more copies less
              often.
    grammar   which tokens may follow which; None, the default, leaves the choice to the network.
    biased    width of the bias that segments may bring, the network's vocabulary; None: they may
              not, and nothing is spent on it.
    mesh      devices over whose axis `axis` the slots are divided: each decodes its own share
              without waiting for others, weights are whole on each. `slots`, `queue` and `release`
              count all devices together.

    >>> decoder = SlotDecoder(prefill, step, GenerateConfig(max_length=1024), slots=32)
    >>> for decoded in decoder.decode(weights, (Segment(frames) for frames in cut(recording))):
    ...     use(decoded.tokens)

    Raises ConfigError for numbers that do not fit each other.
    """

    def __init__(
        self,
        prefill: Prefill,
        step: WeightedStep,
        config: GenerateConfig,
        *,
        slots: int = 32,
        queue: int | None = None,
        release: int = 1,
        grammar: GrammarMask | None = None,
        biased: int | None = None,
        mesh: Mesh | None = None,
        axis: str = "data",
    ):
        self.prefill, self.step, self.config, self.grammar = prefill, step, config, grammar
        self.slots, self.queue, self.release = slots, slots if queue is None else queue, release
        self.biased, self.mesh, self.axis = biased, mesh, axis
        self.shares = 1 if mesh is None else mesh.shape[axis]
        for name in ("slots", "queue", "release"):
            number = getattr(self, name)
            if number < 1 or (name != "release" and number % self.shares):
                raise ConfigError(
                    f"{name} is {number}; it must be a multiple of {self.shares}, the devices."
                )
        if release > slots:
            raise ConfigError(f"release is {release}, but there are {slots} slots; give fewer.")
        self.rooms = room_sizes(config.max_length)
        self._encode = jax.jit(self._encode_rows, static_argnames=("room", "blank"))
        self._round = jax.jit(self._decode_round, donate_argnums=(1, 2))

    def decode(
        self, weights: Any, segments: Iterable[Segment], *, key: jax.Array | None = None
    ) -> "Run":
        """Decode `segments`, which may be endless; see `Run`.

        Two queues of segments are read before the first one comes out, and no more than that ahead
        later. `key` is needed when the config samples; segment i draws with `fold_in(key, i)`.

        Raises ConfigError without a needed key. While running, DataError for a segment whose
        prompt leaves no room or whose inputs differ in shape from those of the first.
        """
        if self.config.samples and key is None:
            raise ConfigError(
                f"temperature={self.config.temperature} draws tokens at random; give "
                "key=jax.random.key(...)."
            )
        return Run(self, weights, iter(segments), key)

    @property
    def compiled(self) -> int:
        """Programs compiled so far: two, and one for each size of cache that was needed."""
        jitted: tuple[Any, ...] = (self._encode, self._round)
        return sum(function._cache_size() for function in jitted)

    # Compiled parts ---------------------------------------------------------------------------

    def _encode_rows(
        self, weights: Any, batch: dict[str, Any], key: jax.Array | None, room: int, blank: bool
    ) -> _Rows:
        """Rows at position 0, one a segment of the batch; `blank`: with nothing encoded."""

        def encode(weights: Any, batch: dict[str, Any], key: jax.Array | None) -> _Rows:
            def prefill(weights: Any, inputs: Any) -> Any:
                return self.prefill(weights, inputs, room)

            if blank:
                shapes = jax.eval_shape(prefill, weights, batch["inputs"])
                cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            else:
                cache = prefill(weights, batch["inputs"])
            segment = batch["segment"]
            keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, segment)
            rows = start(
                cache,
                self.config,
                key=keys,
                prompt=batch["prompt"],
                prompt_lengths=batch["prompt_lengths"],
                limits=jnp.where(segment == NOBODY, 0, batch["limits"]),
                bias=batch["bias"],
                grammar=self.grammar,
            )
            return _Rows(rows, segment)

        if self.mesh is None:
            return encode(weights, batch, key)
        each, whole = PartitionSpec(self.axis), PartitionSpec()
        rows = _row_specs(jax.eval_shape(encode, weights, batch, key), self.axis)
        return self._on_each(encode, (whole, each, whole), rows)(weights, batch, key)

    def _decode_round(
        self, weights: Any, slots: _Rows, queue: _Rows, drain: Bool[Array, ""]
    ) -> tuple[_Rows, _Rows, _Results, _Status]:
        """Decode until the queue is used up and a slot is free; with `drain`, until all have ended.

        Stops early when a running row needs more room than the cache has.
        """
        if self.mesh is None:
            return self._decode_share(weights, slots, queue, drain)
        each, whole = PartitionSpec(self.axis), PartitionSpec()
        rows, waiting = (_row_specs(r, self.axis) for r in (slots, queue))
        share = self._on_each(
            self._decode_share, (whole, rows, waiting, whole), (rows, waiting, each, each)
        )
        return share(weights, slots, queue, drain)

    def _on_each(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """The function on every device's share of the rows; what it does there is its own."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names={self.axis},
            check_vma=False,
        )

    def _decode_share(
        self, weights: Any, slots: _Rows, queue: _Rows, drain: Bool[Array, ""]
    ) -> tuple[_Rows, _Rows, _Results, _Status]:
        """A round of one device."""
        room = slots.rows.cache.max_length
        step, release = partial(self.step, weights), max(1, self.release // self.shares)

        def decode(rows: DecodeState, hurry: jax.Array, steps: jax.Array) -> tuple:
            """Until enough slots are free or, in a hurry to end, until all are."""

            def busy(carry: tuple) -> jax.Array:
                running = carry[0].running
                few_free = jnp.sum(~running) < release
                return jnp.any(running) & (few_free | hurry) & (longest(carry[0]) < room)

            def body(carry: tuple) -> tuple:
                return advance(step, carry[0], self.config, self.grammar), carry[1] + 1

            return jax.lax.while_loop(busy, body, (rows, steps))

        # The queue's rows stay outside of what the loop carries: only who waits changes.
        def go_on(carry: tuple) -> jax.Array:
            slots, waiting, _, _ = carry
            running = slots.rows.running
            more = jnp.any(waiting != NOBODY) | jnp.any(slots.ended)
            more |= jnp.any(running) & (drain | (jnp.sum(~running) < release))
            return more & (longest(slots.rows) < room)

        def body(carry: tuple) -> tuple:
            slots, waiting, results, steps = carry
            slots, results = _hand_out(slots, results, release)
            slots, waiting = _refill(slots, replace(queue, segment=waiting), release)
            hurry = drain & jnp.all(waiting == NOBODY)
            rows, steps = decode(slots.rows, hurry, steps)
            return _Rows(rows, slots.segment), waiting, results, steps

        carry = (slots, queue.segment, _no_results(slots, queue), jnp.zeros((), jnp.int32))
        slots, waiting, results, steps = jax.lax.while_loop(go_on, body, carry)
        counts = jnp.sum(waiting != NOBODY), jnp.sum(slots.rows.running), longest(slots.rows), steps
        status = _Status(*(jnp.asarray(n, jnp.int32)[None] for n in counts))
        return slots, replace(queue, segment=waiting), results, status


def _row_specs(rows: _Rows, axis: str) -> Any:
    """Which axis of each leaf counts rows, as partition specs: the one that `take` changes."""

    def taken(count: int) -> _Rows:
        numbers = jnp.zeros(count, jnp.int32)
        return jax.eval_shape(lambda r: _Rows(r.rows.take(numbers), r.segment[numbers]), rows)

    def spec(one: Any, two: Any) -> PartitionSpec:
        return PartitionSpec(
            *(axis if a != b else None for a, b in zip(one.shape, two.shape, strict=True))
        )

    return jax.tree.map(spec, taken(1), taken(2))


def _no_results(slots: _Rows, queue: _Rows) -> _Results:
    """Room for all that can come out of one round: every slot, and every segment of the queue."""
    count = len(slots.segment) + len(queue.segment)
    none = jnp.zeros(count, jnp.int32)
    tokens = jnp.zeros((count, slots.rows.tokens.shape[1]), jnp.int32)
    return _Results(tokens, none, none.astype(jnp.float32), none.astype(bool), none + NOBODY)


def _hand_out(slots: _Rows, results: _Results, most: int) -> tuple[_Rows, _Results]:
    """Copy up to `most` ended rows to the results, and leave their slots empty."""
    (rows,) = jnp.nonzero(slots.ended, size=most, fill_value=len(slots.segment))
    here = rows < len(slots.segment)
    places = jnp.sum(results.segment != NOBODY) + jnp.arange(most)
    places = jnp.where(here, places, len(results.segment))
    state = slots.rows
    ended = _Results(state.tokens, state.lengths, state.scores, state.finished, slots.segment)
    results = jax.tree.map(lambda out, x: out.at[places].set(x[rows], mode="drop"), results, ended)
    return _Rows(state, slots.segment.at[rows].set(NOBODY, mode="drop")), results


def _refill(slots: _Rows, queue: _Rows, most: int) -> tuple[_Rows, Int[Array, "E"]]:
    """Put up to `most` waiting segments into empty slots. Returns those still waiting, too."""
    (rows,) = jnp.nonzero(slots.segment == NOBODY, size=most, fill_value=len(slots.segment))
    (nexts,) = jnp.nonzero(queue.segment != NOBODY, size=most, fill_value=len(queue.segment))
    pairs = (rows < len(slots.segment)) & (nexts < len(queue.segment))
    rows = jnp.where(pairs, rows, len(slots.segment))
    nexts = jnp.where(pairs, nexts, len(queue.segment))
    within = jnp.minimum(nexts, len(queue.segment) - 1)
    segment = slots.segment.at[rows].set(queue.segment[within], mode="drop")
    filled = _Rows(slots.rows.put(rows, queue.rows.take(within)), segment)
    return filled, queue.segment.at[nexts].set(NOBODY, mode="drop")


class Run(Iterator[Decoded]):
    """The segments of one call of `SlotDecoder.decode`, in order; `tally` counts as they come."""

    def __init__(
        self,
        decoder: SlotDecoder,
        weights: Any,
        segments: Iterator[Segment],
        key: jax.Array | None,
    ):
        self.tally = Tally()
        if decoder.mesh is not None:  # once, where the compiled parts expect them
            weights, key = jax.device_put((weights, key), NamedSharding(decoder.mesh, _WHOLE))
        self._decoder, self._weights, self._key = decoder, weights, key
        self._source = enumerate(segments)
        self._like: Any = None  # shapes and dtypes of the first segment's inputs
        self._early: list[tuple[int, Decoded]] = []  # decoded before those in front of them
        self._rounds = self._decode()

    def __next__(self) -> Decoded:
        return next(self._rounds)

    def _decode(self) -> Iterator[Decoded]:
        decoder = self._decoder
        queue = self._next_queue()
        if queue is None:
            return
        slots = self._encoded([], decoder.slots, room=decoder.rooms[0], blank=True)
        wait, drain = np.array(False), np.array(True)
        while queue is not None:
            slots, queue, out, status = self._round(slots, queue, wait)
            following = self._next_queue()  # while the device decodes
            yield from self._read(out, status)
            while status.waiting.any() or (following is None and status.running.any()):
                slots = self._with_room(slots, status)
                last = drain if following is None else wait
                slots, queue, out, status = self._round(slots, queue, last)
                yield from self._read(out, status)
            slots, queue = self._with_room(slots, status), following

    def _round(
        self, slots: _Rows, queue: _Rows, drain: np.ndarray
    ) -> tuple[_Rows, _Rows, _Results, _Status]:
        slots, queue, out, status = self._decoder._round(self._weights, slots, queue, drain)
        return self._placed(slots), self._placed(queue), out, status

    def _placed(self, rows: _Rows) -> _Rows:
        """On a mesh: keys with the sharding that a round was compiled for.

        Other arrays come out of a compiled part with it. Keys come out with the same one in another
        form, for which the round would be compiled anew.
        """
        mesh, keys = self._decoder.mesh, rows.rows.keys
        if mesh is None or keys is None:
            return rows
        there = NamedSharding(mesh, PartitionSpec(self._decoder.axis))
        bits = jax.device_put(jax.random.key_data(keys), there)
        keys = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(keys))
        return replace(rows, rows=replace(rows.rows, keys=keys))

    def _read(self, out: _Results, status: _Status) -> Iterator[Decoded]:
        """What can go out now that these have come in."""
        got = jax.device_get(out)
        slots = self._decoder.slots // self._decoder.shares
        self.tally.slot_steps += slots * int(np.sum(jax.device_get(status.steps)))
        for row in np.flatnonzero(got.segment != NOBODY).tolist():
            index, length = int(got.segment[row]), int(got.lengths[row])
            tokens = got.tokens[row, :length].copy()
            cut = not got.finished[row]
            heapq.heappush(
                self._early, (index, Decoded(index, tokens, float(got.scores[row]), cut))
            )
        while self._early and self._early[0][0] == self.tally.segments:
            decoded = heapq.heappop(self._early)[1]
            self.tally.segments += 1
            self.tally.tokens += len(decoded.tokens)
            self.tally.truncated += decoded.truncated
            yield decoded

    def _with_room(self, slots: _Rows, status: _Status) -> _Rows:
        """The slots with the smallest cache that the longest running row can go on in for a while.

        A quarter is left free, so that a cache which has just shrunk does not grow at once.
        """
        rooms, longest = self._decoder.rooms, int(np.max(jax.device_get(status.longest)))
        room = next((r for r in rooms if 4 * longest < 3 * r), rooms[-1])
        if room == slots.rows.cache.max_length:
            return slots
        cache = slots.rows.cache.resized(room)
        return replace(slots, rows=replace(slots.rows, cache=cache))

    def _next_queue(self) -> _Rows | None:
        """The next segments, encoded; None when there are no more."""
        segments = []
        for index, segment in self._source:
            segments.append((index, self._checked(index, segment)))
            if len(segments) == self._decoder.queue:
                break
        return self._encoded(segments, self._decoder.queue, room=1) if segments else None

    def _checked(self, index: int, segment: Segment) -> Segment:
        most, limit = self._decoder.config.max_length, segment.max_length
        if limit is not None and not 1 <= limit <= most:
            raise DataError(
                f"segment {index} has max_length={limit}; it must be from 1 to the config's {most}."
            )
        length = 0 if segment.prompt is None else len(segment.prompt)
        if length >= (limit or most):
            raise DataError(
                f"the prompt of segment {index} has {length} tokens, which leaves no room within "
                f"its max_length of {limit or most}; shorten the one or raise the other."
            )
        if segment.bias is not None and segment.bias.shape != (self._decoder.biased,):
            raise DataError(
                f"segment {index} has a bias of shape {segment.bias.shape}, and the decoder was "
                f"made with biased={self._decoder.biased}; they must agree."
            )
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), segment.inputs)
        if self._like is None:
            self._like = like
        if like != self._like:
            raise DataError(
                f"inputs of segment {index} are {like}; the first segment's were {self._like}. Pad "
                "all segments to one shape."
            )
        return segment

    def _encoded(
        self, segments: list[tuple[int, Segment]], count: int, *, room: int, blank: bool = False
    ) -> _Rows:
        """`count` rows with these segments in them, dealt out to the devices in turn."""
        decoder = self._decoder
        most, share = decoder.config.max_length, count // decoder.shares
        batch = {
            "inputs": jax.tree.map(lambda x: np.zeros((count, *x.shape), x.dtype), self._like),
            "prompt": np.zeros((count, most), np.int32),
            "prompt_lengths": np.zeros(count, np.int32),
            "limits": np.full(count, most, np.int32),
            "segment": np.full(count, NOBODY, np.int32),
            "bias": np.zeros((count, decoder.biased), np.float32) if decoder.biased else None,
        }
        for i, (index, segment) in enumerate(segments):
            row = i % decoder.shares * share + i // decoder.shares
            jax.tree.map(
                lambda rows, x, row=row: rows.__setitem__(row, x), batch["inputs"], segment.inputs
            )
            if segment.prompt is not None:
                batch["prompt"][row, : len(segment.prompt)] = segment.prompt
                batch["prompt_lengths"][row] = len(segment.prompt)
            if segment.bias is not None:
                batch["bias"][row] = segment.bias
            batch["limits"][row] = segment.max_length or most
            batch["segment"][row] = index
        if decoder.mesh is not None:
            share_out = NamedSharding(decoder.mesh, PartitionSpec(decoder.axis))
            batch = jax.device_put(batch, share_out)
        key = self._key if decoder.config.samples else None
        return self._placed(decoder._encode(self._weights, batch, key, room=room, blank=blank))
