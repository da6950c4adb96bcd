"""The acoustic model under many transcribers: three convolutions over a spectrogram and a layer.

R. Kelz et al., "On the Potential of Simple Framewise Approaches to Piano Transcription", ISMIR
2016, as Onsets and Frames (Hawthorne et al., ISMIR 2018) uses it: 3x3 convolutions with batch
normalisation and ReLU, frequency halved after the second and the third, then one dense layer for
all that is left of a frame.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.nn.conv import Conv2D, dropout, mask_frames, max_pool_frequency
from musicjax.nn.norm import BatchNormReLU
from musicjax.types import Key, Policy

Tails = tuple[Array, ...]  # of each convolution (B, 2, F, C): its last two input frames

_LECUN = nnx.initializers.lecun_normal()


class ConvStack(nnx.Module):
    """Spectrogram frames to `units` values each; a frame hears three frames to either side, or
    fewer ahead and more behind.

    Args:
      bins: of a frame of the spectrogram; those left over by the two halvings are dropped.
      channels: of the three convolutions.
      units: of the dense layer.
      relu: whether a ReLU follows the dense layer.
      ahead: frames, 0 or 1, that each convolution hears ahead; the others of its three lie behind.
      conv_bias, norm_scale: whether convolutions have a bias and normalisations a scale.
      norm_momentum, norm_epsilon: of the running statistics.
      dropout: after the first halving, the second, and the dense layer.
    """

    def __init__(
        self,
        bins: int,
        channels: tuple[int, int, int],
        units: int,
        *,
        relu: bool = False,
        ahead: tuple[int, int, int] = (1, 1, 1),
        conv_bias: bool = True,
        norm_scale: bool = True,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-5,
        dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
        initializer: nnx.Initializer = _LECUN,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        widths = (1, *channels)
        conv = partial(Conv2D, bias=conv_bias, initializer=initializer, policy=policy, rngs=rngs)
        norm = partial(
            BatchNormReLU, momentum=norm_momentum, epsilon=norm_epsilon, use_scale=norm_scale
        )
        self.conv1, self.conv2, self.conv3 = (conv(a, b) for a, b in pairwise(widths))
        self.norm1, self.norm2, self.norm3 = (norm(c, rngs=rngs) for c in channels)
        self.fc = nnx.Linear(
            channels[-1] * (bins // 4),
            units,
            kernel_init=initializer,
            dtype=policy.compute,
            param_dtype=policy.param,
            rngs=rngs,
        )
        self.bins = bins
        self.relu, self.ahead, self.dropout = relu, ahead, dropout

    def __call__(
        self,
        features: Float[Array, "B T F"],
        *,
        mask: Bool[Array, "B T"] | None = None,
        train: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T D"]:
        """With `train`, statistics of the batch are used and kept; dropout is active with `key`."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)

        def block(x: jax.Array, conv: Conv2D, norm: BatchNormReLU, ahead: int) -> jax.Array:
            bias = None if conv.bias is None else conv.bias[...]
            if not ahead:  # what was heard one frame later is heard as of this one
                x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
            y = conv(x, add_bias=False)
            y = y if ahead else y[:, :-1]
            return norm(y, train=train, mask=mask, offset=bias)

        ahead = self.ahead
        x = mask_frames(features, mask)[..., None]  # (B, T, F, 1)
        x = block(x, self.conv1, self.norm1, ahead[0])
        x = max_pool_frequency(block(x, self.conv2, self.norm2, ahead[1]), 2)
        x = dropout(x, self.dropout[0], keys[0])
        x = max_pool_frequency(block(x, self.conv3, self.norm3, ahead[2]), 2)
        x = dropout(x, self.dropout[1], keys[1])
        return dropout(self._dense(x), self.dropout[2], keys[2])

    def _dense(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T D"]:
        x = self.fc(x.reshape(*x.shape[:2], -1))
        return jax.nn.relu(x) if self.relu else x

    def start(self, batch: int) -> Tails:
        """What each convolution has heard before the first frame: two frames that do not exist."""
        first, second = (conv.kernel.shape[-1] for conv in (self.conv1, self.conv2))
        shapes = [(self.bins, 1), (self.bins, first), (self.bins // 2, second)]
        return tuple(jnp.zeros((batch, 2, *shape), self.conv1.dtype) for shape in shapes)

    def step(
        self,
        tails: Tails,
        features: Float[Array, "B 1 F"],
        frame: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[Tails, Float[Array, "B 1 D"]]:
        """One frame more of a stream: the new tails, and what frame `frame - sum(ahead)` gives.

        `frame` is the number of the frame whose features come, `count` that of all frames of the
        sound. What lies before the first or after the last is zero, as it is for a whole recording;
        what such a frame itself would give means nothing.
        """
        layers = ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3))
        kept = []
        x = features[..., None].astype(self.conv1.dtype)
        for layer, (tail, ahead, (conv, norm)) in enumerate(
            zip(tails, self.ahead, layers, strict=True)
        ):
            exists = (frame >= 0) & (frame < count)
            x = jnp.concatenate([tail, jnp.where(exists, x, 0)], axis=1)
            kept.append(x[:, 1:])
            bias = None if conv.bias is None else conv.bias[...]
            x = norm(conv.next_frame(x), train=False, offset=bias)
            x = max_pool_frequency(x, 2) if layer else x
            frame = frame - ahead
        return tuple(kept), self._dense(x)
