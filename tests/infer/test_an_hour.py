"""An hour of sound, heard in one piece and cut into pieces: the same notes, in bounded memory."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import musicjax
from musicjax.audio import load_audio, save_audio

RATE, HOP, LOWEST = 16000, 512, 21
HOUR_FRAMES = 3600 * RATE // HOP
MARGIN = 4 * RATE // HOP  # frames: what the network may hear of a seam, and a window's own context
# Activations are kept as float16, and a frame is computed in another row of another batch: what is
# this near to a threshold may fall on either side of it.
NEAR = 2e-3

# The kernel's account of a child begins with its parent's size; the high-water mark of VmHWM begins
# anew with the program. Where there is no /proc, the account has to do.
CHILD = """
import resource, sys
from pathlib import Path
import numpy as np
import musicjax
weights, recording, out = sys.argv[1:]
heard = musicjax.load(weights).transcribe(recording)
status = Path("/proc/self/status")
if status.exists():
    (mark,) = [x.split()[1] for x in status.read_text().splitlines() if x.startswith("VmHWM")]
    peak = int(mark) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
notes = {name: getattr(heard.notes, name) for name in ("onset_s", "offset_s", "pitch")}
near = {name: heard.activations[name] for name in ("onset", "frame")}
np.savez(out, peak=peak, duration_s=heard.duration_s, **notes, **near)
"""


@pytest.fixture(scope="module")
def hour(root, tmp_path_factory):
    """The shipped prelude again and again, each time at another loudness and with other noise."""
    piece = load_audio(root / "examples" / "bach_prelude.flac", RATE).samples.reshape(-1)
    rng = np.random.default_rng(0)
    audio = np.resize(piece, HOUR_FRAMES * HOP).astype(np.float32)
    for start in range(0, len(audio), len(piece)):
        part = audio[start : start + len(piece)]
        part *= rng.uniform(0.2, 1.0)
        part += rng.normal(0, rng.uniform(1e-4, 1e-2), len(part)).astype(np.float32)
    path = tmp_path_factory.mktemp("hour") / "hour.wav"
    save_audio(path, audio, RATE)
    return path


@pytest.fixture(scope="module")
def whole(root, hour, tiny_weights):
    """What a process of its own hears in the hour, and the most memory that it took."""
    out = hour.with_name("heard.npz")
    paths = os.pathsep.join(filter(None, [str(root), os.getenv("PYTHONPATH")]))
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_weights), str(hour), str(out)],
        # An hour of sound takes longer than compiling code that runs fast.
        env={**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": ""},
        check=True,
    )
    with np.load(out) as file:
        return dict(file)


def spans(onset_s, offset_s, pitch, first_frame=0):
    """(first frame, frame after the last, pitch) of every note."""
    on, off = np.rint(np.stack([onset_s, offset_s]) * RATE / HOP).astype(int) + first_frame
    return set(zip(on.tolist(), off.tolist(), pitch.tolist(), strict=True))


@pytest.mark.slow
def test_an_hour_needs_no_more_memory_than_its_activations(whole):
    assert whole["duration_s"] == HOUR_FRAMES * HOP / RATE
    assert whole["peak"] < 1.5e9


@pytest.mark.slow
def test_an_hour_is_heard_as_its_pieces_are(whole, hour, tiny_weights):
    model, audio = musicjax.load(tiny_weights), load_audio(hour, RATE).samples.reshape(-1)
    rng = np.random.default_rng(1)
    cuts = [0, *np.sort(rng.choice(HOUR_FRAMES - 1, 9, replace=False) + 1).tolist(), HOUR_FRAMES]
    pieces = set()
    for first, last in pairwise(cuts):
        notes = model.transcribe((audio[first * HOP : last * HOP], RATE)).notes
        pieces |= spans(notes.onset_s, notes.offset_s, notes.pitch, first)

    def away(found):
        """Notes that neither sound near a seam nor touch one."""
        seams, found = np.array(cuts[1:-1]), sorted(found)
        on, off = np.array(found)[:, :2].T[..., None]
        touched = ((on - MARGIN < seams) & (seams < off + MARGIN)).any(axis=1)
        return {span for span, t in zip(found, touched, strict=True) if not t}

    one = away(spans(whole["onset_s"], whole["offset_s"], whole["pitch"]))
    many = away(pieces)
    assert len(one) > 10_000

    def doubtful(frame, pitch):
        near = [
            abs(float(whole[name][at, pitch - LOWEST]) - 0.5) < NEAR
            for name in ("onset", "frame")
            for at in (max(frame - 1, 0), min(frame, HOUR_FRAMES - 1))
        ]
        return any(near)

    differ = one ^ many
    assert len(differ) < len(one) / 1000
    surely = [d for d in differ if not (doubtful(d[0], d[2]) or doubtful(d[1], d[2]))]
    assert surely == []
