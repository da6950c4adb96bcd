"""The front-end under jit, vmap, grad, scan and sharding, and with arrays given for its parts."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicjax.audio import FrontendConfig, preset, spectrogram
from musicjax.audio.frontend import mel_matrix
from musicjax.audio.stft import window as window_of

SMALL = FrontendConfig(
    sample_rate=8000, window_length=256, fft_length=256, hop_length=64, num_bins=20,
    f_max_hz=4000.0, power=1.0,
)  # fmt: skip
BATCH = 0.3 * np.random.default_rng(0).standard_normal((3, 1500)).astype(np.float32)


@pytest.fixture(scope="module")
def batched() -> np.ndarray:
    return np.asarray(jax.jit(lambda x: spectrogram(x, SMALL))(BATCH))


def test_eager_is_jit(batched):
    np.testing.assert_allclose(spectrogram(BATCH, SMALL), batched, rtol=1e-5, atol=1e-5)


def test_config_can_be_a_static_argument(batched):
    got = jax.jit(spectrogram, static_argnums=1)(BATCH, SMALL)
    np.testing.assert_array_equal(got, batched)


def test_leading_axes_are_free(batched):
    shaped = jax.jit(lambda x: spectrogram(x, SMALL))(BATCH[:2].reshape(2, 1, 1500))
    np.testing.assert_allclose(shaped[:, 0], batched[:2], rtol=1e-5, atol=1e-5)
    one = jax.jit(lambda x: spectrogram(x, SMALL))(BATCH[0])
    np.testing.assert_allclose(one, batched[0], rtol=1e-5, atol=1e-5)


def test_vmap_is_a_batch(batched):
    got = jax.jit(jax.vmap(lambda x: spectrogram(x, SMALL)))(BATCH)
    np.testing.assert_allclose(got, batched, rtol=1e-5, atol=1e-5)


def test_scan_over_clips_is_a_batch(batched):
    _, got = jax.lax.scan(lambda c, x: (c, spectrogram(x, SMALL)), 0, jnp.asarray(BATCH))
    np.testing.assert_allclose(got, batched, rtol=1e-5, atol=1e-5)


def test_sixteen_bit_samples_are_scaled():
    integers = np.round(BATCH * 8000).astype(np.int16)
    function = jax.jit(lambda x: spectrogram(x, SMALL))
    np.testing.assert_allclose(
        function(integers), function(integers.astype(np.float32) / 32768), rtol=1e-6
    )


def test_features_are_float32_whatever_comes_in():
    assert spectrogram(jnp.asarray(BATCH[0], jnp.bfloat16), SMALL).dtype == jnp.float32


@pytest.mark.parametrize("power", [1.0, 2.0, 0.6])
def test_gradient_agrees_with_finite_differences(power):
    config = dataclasses.replace(SMALL, power=power, log_floor_mode="add", log_floor=1e-3)
    x = jnp.asarray(BATCH[0, :700])
    direction = jnp.asarray(BATCH[1, :700])
    loss = jax.jit(lambda x: (spectrogram(x, config) ** 2).mean())
    slope = jnp.vdot(jax.grad(loss)(x), direction)
    step = 1e-3
    measured = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, measured, rtol=2e-2)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.6])
def test_gradient_is_finite_in_silence(power):
    config = dataclasses.replace(SMALL, power=power)
    gradient = jax.jit(jax.grad(lambda x: spectrogram(x, config).sum()))(jnp.zeros(700))
    assert np.isfinite(np.asarray(gradient)).all()


def test_a_bank_given_as_an_array_replaces_the_configured_one(batched):
    given = jax.jit(lambda x, bank: spectrogram(x, SMALL, bank=bank))
    np.testing.assert_allclose(given(BATCH, mel_matrix(SMALL)), batched, rtol=1e-5, atol=1e-5)
    loss = jax.grad(lambda bank: given(BATCH, bank).sum())
    gradient = np.asarray(loss(jnp.asarray(mel_matrix(SMALL))))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_windows_given_as_arrays(batched):
    hann = window_of("hann", 256, 256)
    narrow = hann**3
    given = jax.jit(lambda x, window: spectrogram(x, SMALL, window=window))
    np.testing.assert_allclose(given(BATCH, hann), batched, rtol=1e-5, atol=1e-5)
    several = given(BATCH, np.stack([narrow, hann]))
    assert several.shape == (3, 2, *batched.shape[1:])
    np.testing.assert_allclose(several[:, 1], batched, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(several[:, 0], given(BATCH, narrow), rtol=1e-5, atol=1e-5)


def test_several_windows_with_lengths():
    hann = window_of("hann", 256, 256)
    lengths = np.array([1500, 900, 300])
    both = jax.jit(lambda x, n: spectrogram(x, SMALL, lengths=n, window=np.stack([hann, hann])))
    one = jax.jit(lambda x, n: spectrogram(x, SMALL, lengths=n))(BATCH, lengths)
    np.testing.assert_allclose(both(BATCH, lengths)[:, 1], one, rtol=1e-5, atol=1e-5)


def test_one_compilation_for_equal_configs():
    function = jax.jit(lambda x, config: spectrogram(x, config), static_argnums=1)
    for _ in range(2):
        function(BATCH, dataclasses.replace(SMALL, hop_length=128))
    assert function._cache_size() == 1


def test_precision_does_not_hang_on_the_matmul_default():
    """Mel products are float32 products even where the default is TF32 or bfloat16."""
    config = preset("onsets_frames")
    shape = jax.ShapeDtypeStruct((20_000,), jnp.float32)
    with jax.default_matmul_precision("bfloat16"):
        text = str(jax.make_jaxpr(lambda x: spectrogram(x, config))(shape))
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0


SHARDED = """
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from musicjax.audio import preset, spectrogram
    from musicjax.audio import frontend

    frontend._LEAST_BLOCK = frontend._BLOCK_SAMPLES = 1  # blocks of one frame
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    config = preset("tagging_96")
    audio = np.random.default_rng(0).standard_normal((8, 2000)).astype(np.float32)
    function = lambda x: spectrogram(x, config)
    alone = jax.jit(function)(audio)
    placed = jax.device_put(audio, rows)
    compiled = jax.jit(function).lower(placed).compile()
    spread = compiled(placed)
    assert spread.sharding.is_equivalent_to(rows, spread.ndim), spread.sharding
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-4)
"""


def test_eight_devices_make_the_same_features_without_gathering():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)], env=environment, check=True, timeout=300
    )
