"""One Transformer: encoder, decoder or both, over tokens or continuous inputs.

A. Vaswani et al., "Attention Is All You Need" (2017), in the forms that music models are built
on, which differ in `TransformerConfig` only: T5 1.0 and 1.1 (C. Raffel et al., JMLR 2020, and its
T5X code), MT3 and the piano model before it (spectrogram frames in, T5 1.1 with sinusoids instead
of relative bias), BART (M. Lewis et al., 2020) and the encoders BERT and RoBERTa. `form("bart",
...)` gives the config of one of them.

>>> config = form("mt3", vocab_size=1536, input_dim=512)
>>> model = Transformer(config, rngs=nnx.Rngs(0))
>>> encoded = model.encode(frames)                                     # (B, S, 512)
>>> logits = model.decode(shift_right(targets, config.start_id), encoded)  # (B, T, 1536)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.errors import ConfigError
from musicjax.nn.attention import Attention, Cache, LayerCache
from musicjax.nn.axes import axes, constrain, linear
from musicjax.nn.embed import RelativeBias, sinusoids
from musicjax.nn.forms import TransformerConfig
from musicjax.types import Key


def shift_right(tokens: Int[Array, "B T"], start_id: int) -> Int[Array, "B T"]:
    """What a decoder reads to predict `tokens`: `start_id`, then all of them but the last."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def _init(config: TransformerConfig) -> nnx.Initializer:
    if config.init_std is not None:
        return nnx.initializers.normal(config.init_std)
    return nnx.initializers.variance_scaling(1.0, "fan_in", "normal")


def _embedding(rows: int, name: str | None, config: TransformerConfig, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        rows,
        config.d_model,
        embedding_init=nnx.initializers.normal(config.init_std or 1.0),
        param_dtype=config.policy.param,
        embedding_metadata=axes(name, "embed"),
        rngs=rngs,
    )


def _look_up(
    embedder: Any, ids: Int[Array, "#B T"], rows: str | None = None
) -> Float[Array, "#B T D"]:
    """Rows of a table, of which a mesh may cut only the axis `rows`.

    Rows that were cut along their width as the table is could only be laid out along the batch by
    gathering all of them on every device; gathering the table is cheaper, as for any weight.
    """
    return jnp.take(constrain(embedder.embedding[...], rows, None), ids, axis=0)


def _norm(config: TransformerConfig, rngs: nnx.Rngs) -> nnx.Module:
    """RMS or layer norm with float32 statistics."""
    fields: dict[str, Any] = {
        "epsilon": config.norm_epsilon,
        "dtype": config.policy.compute,
        "param_dtype": config.policy.param,
        "use_fast_variance": False,
        "scale_metadata": axes("embed"),
        "rngs": rngs,
    }
    if config.norm == "rms":
        return nnx.RMSNorm(config.d_model, **fields)
    return nnx.LayerNorm(config.d_model, bias_metadata=axes("embed"), **fields)


def _drop(x: Float[Array, "B T D"], rate: float, key: Key | None) -> Float[Array, "B T D"]:
    """Dropout as in T5: the same entries at all positions of a sequence. Only with `key`."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, x.shape[2]))
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), 0)


def _split(key: Key | None, count: int) -> list[Key | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))


class MLP(nnx.Module):
    """Two dense layers with an activation between, gated or not. (B, T, D) to (B, T, D)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        make = partial(
            linear, bias=config.bias, init=_init(config), policy=config.policy, rngs=rngs
        )
        widen = partial(make, config.d_model, config.mlp_dim, ("embed", "mlp"))
        if config.gated:
            self.wi_0, self.wi_1 = widen(), widen()
        else:
            self.wi = widen()
        self.wo = make(config.mlp_dim, config.d_model, ("mlp", "embed"))
        self.config = config

    def __call__(self, x: Float[Array, "B T D"], key: Key | None = None) -> Float[Array, "B T D"]:
        activate = _ACTIVATIONS[self.config.activation]
        x = activate(self.wi_0(x)) * self.wi_1(x) if self.config.gated else activate(self.wi(x))
        x = constrain(x, "batch", "length", "mlp")
        return self.wo(_drop(x, self.config.dropout, key))


class Layer(nnx.Module):
    """Self-attention, in a decoder with an encoder cross-attention, and an MLP; each is added."""

    def __init__(self, config: TransformerConfig, *, cross: bool, rngs: nnx.Rngs):
        make = partial(
            Attention,
            config.d_model,
            config.num_heads,
            config.head_dim,
            scaled=config.scaled_attention,
            dropout=config.dropout,
            bias=config.bias,
            init=_init(config),
            policy=config.policy,
            rngs=rngs,
        )
        self.attention_norm = _norm(config, rngs)
        self.attention = make()
        self.cross_attention_norm = _norm(config, rngs) if cross else None
        self.cross_attention = make() if cross else None
        self.mlp_norm = _norm(config, rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        key: Key | None = None,
        cache: LayerCache | None = None,
        *,
        bias: Float[Array, "#B H T L"] | None = None,
        mask: Bool[Array, "#B 1 #T L"] | None = None,
        causal: bool = False,
        positions: Int[Array, "B T"] | None = None,
        encoded: Any = None,
        encoded_mask: Bool[Array, "B 1 1 S"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """One layer. With a cache, `x` stands at `positions` and `encoded` is in the cache."""
        keys = _split(key, 6)
        k: Any
        v: Any
        y = self._before(self.attention_norm, x)
        k, v = self.attention.keys_values(y)
        if cache is not None:
            cache = cache.extended(k, v, positions)  # type: ignore[arg-type]
            k, v = cache.own
        y = self.attention(y, k, v, bias=bias, mask=mask, causal=causal, key=keys[0])
        x = self._after(self.attention_norm, x, y, keys[1])

        if self.cross_attention is not None:
            y = self._before(self.cross_attention_norm, x)
            crossed: Any = cache.crossed if cache else self.cross_attention.keys_values(encoded)
            k, v = crossed
            y = self.cross_attention(y, k, v, mask=encoded_mask, key=keys[2])
            x = self._after(self.cross_attention_norm, x, y, keys[3])

        y = self.mlp(self._before(self.mlp_norm, x), keys[4])
        return self._after(self.mlp_norm, x, y, keys[5]), cache

    def _before(self, norm: Any, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return norm(x) if self.config.norm_position == "before" else x

    def _after(
        self, norm: Any, x: Float[Array, "B T D"], y: Float[Array, "B T D"], key: Key | None
    ) -> Float[Array, "B T D"]:
        x = x + _drop(y, self.config.dropout, key)
        x = norm(x) if self.config.norm_position == "after" else x
        return constrain(x, "batch", "length", "embed")


class Stack(nnx.Module):
    """One side of the Transformer: positions, layers, and the norm that ends a pre-norm stack."""

    def __init__(self, config: TransformerConfig, *, decoder: bool, rngs: nnx.Rngs):
        count = config.num_decoder_layers if decoder else config.num_encoder_layers
        cross = decoder and config.num_encoder_layers > 0
        positions = config.max_positions + config.position_offset
        types = 0 if decoder else config.token_types
        learned = config.positions == "learned"
        self.position_embedder = _embedding(positions, None, config, rngs) if learned else None
        self.type_embedder = _embedding(types, None, config, rngs) if types else None
        relative = partial(
            RelativeBias,
            config.num_heads,
            config.relative_buckets,
            config.relative_distance,
            bidirectional=not decoder,
            policy=config.policy,
        )
        self.relative_bias = relative(rngs=rngs) if config.positions == "relative" else None
        self.embedding_norm = _norm(config, rngs) if config.embedding_norm else None
        self.layers = nnx.List([Layer(config, cross=cross, rngs=rngs) for _ in range(count)])
        self.norm = _norm(config, rngs) if config.norm_position == "before" else None
        self.config = config

    def embed(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "#B T"],
        limit: int,
        *,
        token_types: Int[Array, "B T"] | None = None,
        key: Key | None = None,
    ) -> Float[Array, "B T D"]:
        """What the first layer reads: `x` with its positions (all below `limit`) added."""
        if self.position_embedder is not None:
            x = x + _look_up(self.position_embedder, positions + self.config.position_offset)
        if self.config.positions == "sinusoid":
            x = x + jnp.asarray(sinusoids(limit, self.config.d_model))[positions]
        if self.type_embedder is not None:
            types = jnp.zeros(x.shape[:2], int) if token_types is None else token_types
            x = x + _look_up(self.type_embedder, types)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = _drop(x, self.config.dropout, key).astype(self.config.policy.compute)
        return constrain(x, "batch", "length", "embed")

    def bias(
        self, queries: Int[Array, "B T"], keys: Int[Array, "S"]
    ) -> Float[Array, "B H T S"] | None:
        """The relative bias between positions, the same in all layers; None in other forms."""
        return None if self.relative_bias is None else self.relative_bias(queries, keys)

    def __call__(
        self, x: Float[Array, "B T D"], *, key: Key | None = None, **around: Any
    ) -> Float[Array, "B T D"]:
        """All layers on what `embed` gave. `around` is what `Layer` takes beside it."""

        def run(x: jax.Array, inputs: tuple[Layer, Key | None]) -> tuple[jax.Array, None]:
            layer, key = inputs
            return layer(x, key, **around)[0], None

        if self.config.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if self.config.remat == "dots" else None
            run = jax.checkpoint(run, policy=policy, prevent_cse=not self.config.scan_layers)
        keys = _split(key, len(self.layers) + 1)
        if self.config.scan_layers:
            # Stacked here rather than stored stacked: one copy of the weights a call buys that
            # a checkpoint and an optimizer need not know how its layers are run.
            layers = jax.tree.map(lambda *parts: jnp.stack(parts), *self.layers)
            each = None if key is None else jax.random.split(key, len(keys))[:-1]
            x, _ = jax.lax.scan(run, x, (layers, each))
        else:
            for pair in zip(self.layers, keys, strict=False):
                x, _ = run(x, pair)
        return self._end(x, keys[-1])

    def continued(
        self, x: Float[Array, "B T D"], caches: tuple[LayerCache, ...], **around: Any
    ) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...]]:
        """All layers on new tokens after those in the caches."""
        # Never scanned: stacking the weights at every token would cost more than the token.
        after: list[Any] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, extended = layer(x, None, cache, **around)
            after.append(extended)
        return self._end(x, None), tuple(after)

    def _end(self, x: Float[Array, "B T D"], key: Key | None) -> Float[Array, "B T D"]:
        if self.norm is None:
            return x
        return _drop(self.norm(x), self.config.dropout, key)


class Transformer(nnx.Module):
    """The model. Masks are True at positions that exist; padding stands at the end of a row.

    Parameters are kept layer by layer (`decoder.layers.0.attention.query.kernel`) whether layers
    are scanned or not, so one checkpoint serves both. Dropout is active with `train` and a key;
    it follows T5 in every form (one draw for all positions of a sequence), where BART and BERT
    draw for each position. Methods compute in `config.policy`; logits are float32.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        vocabulary, frame = config.vocab_size, config.input_dim
        encoder, decoder = config.num_encoder_layers > 0, config.num_decoder_layers > 0
        init, policy = _init(config), config.policy
        self.token_embedder = _embedding(vocabulary, "vocab", config, rngs) if vocabulary else None
        project = partial(linear, names=("freq", "embed"), bias=False, init=init, policy=policy)
        self.input_projection = project(frame, config.d_model, rngs=rngs) if frame else None
        self.encoder = Stack(config, decoder=False, rngs=rngs) if encoder else None
        self.decoder = Stack(config, decoder=True, rngs=rngs) if decoder else None
        self.head = self.logit_bias = nnx.data(None)
        if decoder and not config.tied_head:
            value = init(rngs.params(), (config.d_model, vocabulary), policy.param)
            self.head = nnx.Param(value, **axes("embed", "vocab"))
        if decoder and config.logit_bias:
            self.logit_bias = nnx.Param(jnp.zeros((vocabulary,), policy.param), **axes("vocab"))
        self.config = config

    def encode(
        self,
        inputs: Int[Array, "B S"] | Float[Array, "B S F"],
        mask: Bool[Array, "B S"] | None = None,
        *,
        token_types: Int[Array, "B S"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B S D"]:
        """The encoder's last hidden state, of tokens or of frames.

        Frames have `input_dim` values, or are d_model wide where there is no projection (BART's
        `inputs_embeds`). What stands at masked positions changes nothing at the others.
        """
        config, length = self.config, inputs.shape[1]
        if self.encoder is None:
            raise ConfigError("this Transformer has no encoder: num_encoder_layers is 0.")
        self._check_length("inputs", length)
        first, rest = _split(key if train else None, 2)
        positions = jnp.arange(length)[None]
        if config.positions_skip_padding and mask is not None:
            positions = jnp.where(mask, jnp.cumsum(mask, axis=1), 0) - 1
        with self._precision():
            x = self.encoder.embed(
                self._inputs(inputs), positions, length, token_types=token_types, key=first
            )
            return self.encoder(
                x,
                key=rest,
                bias=self.encoder.bias(jnp.arange(length)[None], jnp.arange(length)),
                mask=None if mask is None else mask[:, None, None],
            )

    def decode(
        self,
        tokens: Int[Array, "B T"],
        encoded: Float[Array, "B S D"] | None = None,
        encoded_mask: Bool[Array, "B S"] | None = None,
        *,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each of `tokens` (see `shift_right`), float32."""
        decoder, length = self._decoder(encoded), tokens.shape[1]
        self._check_length("tokens", length)
        first, rest = _split(key if train else None, 2)
        positions = jnp.arange(length)[None]
        with self._precision():
            x = decoder.embed(self._embedded(tokens), positions, length, key=first)
            x = decoder(
                x,
                key=rest,
                bias=decoder.bias(positions, positions[0]),
                causal=True,
                encoded=encoded,
                encoded_mask=None if encoded_mask is None else encoded_mask[:, None, None],
            )
            return self.logits(x)

    def init_cache(
        self,
        encoded: Float[Array, "B S D"] | None = None,
        encoded_mask: Bool[Array, "B S"] | None = None,
        *,
        batch: int | None = None,
        max_length: int,
    ) -> Cache:
        """A cache for rows of at most `max_length` tokens; keys of the encoder are made once.

        `batch` is needed only where there is no `encoded`.
        """
        decoder, config = self._decoder(encoded), self.config
        self._check_length("max_length", max_length)
        if encoded is not None:
            batch = encoded.shape[0]
        elif batch is None:
            raise ConfigError("init_cache needs batch, the number of rows, without an encoder.")
        make = partial(LayerCache.empty, batch, max_length, dtype=config.policy.compute)
        layers = []
        with self._precision():
            for layer in decoder.layers:
                cross = layer.cross_attention
                crossed = None
                if cross is not None and encoded is not None:
                    crossed = cross.keys_values(encoded)
                layers.append(make(layer.attention, crossed=crossed))
        return Cache(tuple(layers), encoded_mask, jnp.zeros((batch,), jnp.int32))

    def step(self, tokens: Int[Array, "B"], cache: Cache) -> tuple[Float[Array, "B V"], Cache]:
        """Read one token a row, each row at its own position: logits of the next, and the cache."""
        logits, cache = self.extend(tokens[:, None], cache)
        return logits[:, 0], cache

    def extend(
        self, tokens: Int[Array, "B T"], cache: Cache, lengths: Int[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B T V"], Cache]:
        """Read T tokens a row at once, a prompt for instance.

        lengths (B,): how many of a row's tokens exist, all if None; the logits after the others
        mean nothing, and the next tokens take their places.
        """
        decoder, room, count = self._decoder(None, cached=True), cache.max_length, tokens.shape[1]
        positions = cache.position[:, None] + jnp.arange(count)
        crossed = cache.encoded_mask
        with self._precision():
            x = decoder.embed(self._embedded(tokens), jnp.minimum(positions, room - 1), room)
            x, layers = decoder.continued(
                x,
                cache.layers,
                bias=decoder.bias(positions, jnp.arange(room)),
                mask=(jnp.arange(room) <= positions[..., None])[:, None],
                positions=positions,
                encoded_mask=None if crossed is None else crossed[:, None, None],
            )
            logits = self.logits(x)
        position = cache.position + (count if lengths is None else lengths)
        return logits, Cache(layers, crossed, position)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The head on the decoder's hidden state, in float32 as in T5X."""
        embedder: Any = self.token_embedder
        table = embedder.embedding[...].T if self.head is None else self.head[...]
        y = (x.astype(jnp.float32) * self.config.logit_scale) @ table.astype(jnp.float32)
        if self.logit_bias is not None:
            y = y + self.logit_bias[...].astype(jnp.float32)
        return constrain(y, "batch", "length", "vocab")

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return _look_up(self.token_embedder, tokens, "vocab") * self.config.embedding_scale

    def _inputs(self, inputs: Int[Array, "B S"] | Float[Array, "B S F"]) -> Float[Array, "B S D"]:
        config = self.config
        if inputs.ndim == 2:
            if self.token_embedder is None:
                raise ConfigError("inputs are tokens, but vocab_size is 0; give frames (B, S, F).")
            return self._embedded(inputs)
        width = config.d_model if config.input_dim is None else config.input_dim
        if inputs.shape[2] != width:
            raise ConfigError(
                f"inputs have {inputs.shape[2]} values a frame; this Transformer reads {width}."
            )
        return inputs if self.input_projection is None else self.input_projection(inputs)

    def _decoder(self, encoded: Array | None, cached: bool = False) -> Stack:
        if self.decoder is None:
            raise ConfigError("this Transformer has no decoder: num_decoder_layers is 0.")
        if not cached and (encoded is None) == (self.encoder is not None):
            wanted = "needs the output of encode" if encoded is None else "has no encoder to read"
            raise ConfigError(f"encoded is {type(encoded).__name__}, but the decoder {wanted}.")
        return self.decoder

    def _check_length(self, name: str, length: int) -> None:
        config = self.config
        if config.positions == "learned" and length > config.max_positions:
            raise ConfigError(
                f"{name}: {length} positions, but only {config.max_positions} were learned; cut "
                "the input, or decode with a smaller max_length."
            )

    @contextmanager
    def _precision(self) -> Iterator[None]:
        precision = self.config.policy.matmul_precision
        with jax.default_matmul_precision(None if precision == "default" else precision):
            yield
