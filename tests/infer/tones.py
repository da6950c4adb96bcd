"""A model that hears pure tones as they sound, and a sound card, for tests of what is around them.

    python tests/infer/tones.py ARGUMENTS...       `musicjax listen ARGUMENTS...` with it

A frame is the strength of each of 88 tones in the last 64 ms; a tone that stands out is a note.
"""

import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicjax.infer.stream import NoteOff, NoteOn, PitchFrame, StreamSpec

RATE, HOP, WINDOW, LOWEST = 16000, 512, 1024, 21
SPEC = StreamSpec(RATE, HOP, lookahead=HOP)


def tone(pitch, seconds, rate=RATE, level=0.3):
    """A sine of a MIDI pitch, faded in and out so that it has no clicks."""
    time_s = np.arange(round(seconds * rate)) / rate
    fade = np.minimum(1.0, np.minimum(time_s, seconds - time_s) / 0.01)
    hz = 440 * 2 ** ((pitch - 69) / 12)
    return (level * fade * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def melody(pitches, seconds=0.4, rate=RATE):
    """Tones one after the other, with a rest of 0.1 s before each, and one at the end."""
    rest = np.zeros(round(0.1 * rate), np.float32)
    return np.concatenate([p for n in pitches for p in (rest, tone(n, seconds, rate))] + [rest])


class Tones(nnx.Module):
    stream_spec = SPEC

    def __init__(self, *, slow=0.0, pitch=False):
        hz = 440 * 2 ** ((np.arange(88) + LOWEST - 69) / 12)
        wave = np.exp(-2j * np.pi * np.outer(np.arange(WINDOW), hz) / RATE)
        wave *= np.hanning(WINDOW)[:, None] * 4 / WINDOW
        self.real, self.imag = (
            nnx.Param(jnp.asarray(w, jnp.float32)) for w in (wave.real, wave.imag)
        )
        self.slow, self.pitch = slow, pitch

    def stream_start(self, batch):
        return {"before": jnp.zeros((batch, WINDOW - HOP))}

    def stream_step(self, state, samples):
        heard = jnp.concatenate([state["before"], samples], axis=1)
        strength = jnp.hypot(heard @ self.real[...], heard @ self.imag[...])
        return {"before": heard[:, HOP:]}, {"strength": strength[:, None]}

    def stream_end(self, state):
        return state

    def stream_reader(self, threshold: float = 0.1):
        return Reader(threshold, self.slow, self.pitch)


class Reader:
    def __init__(self, threshold, slow, pitch):
        self.threshold, self.slow, self.pitch, self.sounding = threshold, slow, pitch, None

    def read(self, activations, first_frame):
        if self.slow:
            time.sleep(self.slow)
        (strength,) = activations["strength"]
        best, time_s = int(strength.argmax()), SPEC.time_s(first_frame)
        heard = best + LOWEST if strength[best] > self.threshold else None
        if self.pitch:
            hz = 440 * 2 ** ((heard - 69) / 12) if heard else 0.0
            return [PitchFrame(time_s, hz, float(min(strength[best], 1.0)))]
        if heard == self.sounding:
            return []
        events = self.end(first_frame)
        if heard is not None:
            events.append(NoteOn(time_s, heard, min(127, round(200 * float(strength[best])))))
        self.sounding = heard
        return events

    def end(self, frame):
        if self.sounding is None:
            return []
        pitch, self.sounding = self.sounding, None
        return [NoteOff(SPEC.time_s(frame), pitch)]


class FakeSoundCard(types.ModuleType):
    """sounddevice with one microphone that takes 48 kHz only and plays a melody into the callback.

    `ends` says how: "unplugged" after the sound, with a flag of `overflow` in the middle of it.
    """

    class PortAudioError(Exception):
        pass

    def __init__(self, *, rates=(48000,), inputs=1, ends="unplugged", overflow=False, missing=0):
        super().__init__("sounddevice")
        self.rates, self.inputs, self.ends = rates, inputs, ends
        self.overflow, self.missing = overflow, missing
        self.opened, self.closed = [], 0

    def query_devices(self, device=None, kind=None):
        card = {"name": "Fake Mic", "default_samplerate": 48000.0, "max_input_channels": 1}
        if kind is None:
            return [card] * self.inputs
        if not self.inputs or device == "other":
            raise self.PortAudioError("Error querying device -1")
        return card

    def check_input_settings(self, *, device, channels, dtype, samplerate):
        if samplerate not in self.rates:
            raise self.PortAudioError("Invalid sample rate")

    def InputStream(self, **settings):
        self.opened.append(settings["samplerate"])
        return _FakeStream(self, settings)


class _FakeStream:
    latency = 0.012

    def __init__(self, card, settings):
        self.card, self.settings, self.active = card, settings, False

    def start(self):
        if self.card.ends == "busy":
            raise self.card.PortAudioError("Device unavailable")
        self.active = True
        self.thread = threading.Thread(target=self.play, daemon=True)
        self.thread.start()

    def play(self):
        rate, size = self.settings["samplerate"], 480
        sound = melody([69, 72], 0.3, rate)
        for place in range(0, len(sound) - size, size):
            over = self.card.overflow and place == 10 * size
            if over:
                sound = np.concatenate([sound[:place], sound[place + self.card.missing :]])
            if place + size > len(sound):
                break
            shift = self.card.missing if self.card.overflow and place >= 10 * size else 0
            flags = types.SimpleNamespace(input_overflow=over, input_underflow=False)
            when = types.SimpleNamespace(inputBufferAdcTime=100.0 + (place + shift) / rate)
            self.settings["callback"](sound[place : place + size, None], size, when, flags)
            time.sleep(0.002)
        self.active = False
        if self.card.ends == "unplugged":
            self.settings["finished_callback"]()

    def close(self):
        self.card.closed += 1


if __name__ == "__main__":
    from musicjax.cli import main
    from musicjax.infer.stream import Streamer
    from musicjax.tasks import live

    def load_streamer(model, **others):
        return Streamer(Tones(pitch=model == "pitch"), bad_samples="silence")

    live.resolve = lambda model, pitch: ("pitch" if pitch else "tones", pitch)
    live.load_streamer = load_streamer
    sys.exit(main(["listen", *sys.argv[1:]]))
