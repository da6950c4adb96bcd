"""Listening live: every source, every kind of trouble on the way, and time that never drifts."""

import importlib.util
import io
import os
import sys
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import soxr

from musicjax.errors import AudioError, ConfigError, MissingDependencyError
from musicjax.infer.live import Listening, Resampler
from musicjax.infer.sound_queue import SoundQueue
from musicjax.infer.sources import Blocks, Microphone, PcmFormat, PcmStream, PlayedFile, _Patience
from musicjax.infer.stream import NoteOff, NoteOn, Streamer, events_to_notes

_spec = importlib.util.spec_from_file_location("tones", Path(__file__).with_name("tones.py"))
tones = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tones)
RATE, HOP, melody, tone = tones.RATE, tones.HOP, tones.melody, tones.tone


@pytest.fixture(scope="module")
def streamer():
    return Streamer(tones.Tones(), bad_samples="silence")


@pytest.fixture(scope="module")
def slow_streamer():
    """Takes twice as long as the sound does."""
    return Streamer(tones.Tones(slow=2 * HOP / RATE), bad_samples="silence")


def heard(streamer, source, **settings):
    """Events, and the listening, of a stream to its end."""
    streamer.reset()
    listening = Listening(streamer, source, **settings)
    return list(listening), listening


def pitches(events):
    return [event.pitch for event in events if isinstance(event, NoteOn)]


def cut(samples, sizes):
    """Blocks of the given sizes, the last size for all that is left."""
    sizes = iter(sizes)
    size = 1
    while len(samples):
        size = next(sizes, size)
        yield samples[:size]
        samples = samples[size:]


@pytest.mark.parametrize("size", [1, 37, 512, 5000, 200_000])
def test_blocks_of_any_size_are_heard_alike(streamer, size):
    """One sample at a time, and more at once than the buffer holds."""
    sound = melody([69, 72], 0.3)
    source = Blocks(cut(sound, [size]), RATE, own_speed=False)
    events, listening = heard(streamer, source, buffer_s=0.2)
    streamer.reset()
    assert events == streamer.feed(sound) + streamer.finish()
    assert pitches(events) == [69, 72]
    figures = listening.figures
    assert figures.overruns == figures.stalls == figures.bad_samples == 0
    assert figures.lost_s == 0.0
    assert streamer.time_s == pytest.approx(len(sound) / RATE, abs=HOP / RATE)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_another_rate_is_resampled_without_a_seam(streamer, rate):
    sound = melody([69, 76], 0.3, rate)
    events, _ = heard(streamer, Blocks(cut(sound, [100, 3000, 1, 777]), rate))
    notes = events_to_notes(events)
    assert notes.pitch.tolist() == [69, 76]
    np.testing.assert_allclose(notes.onset_s, [0.1, 0.5], atol=0.05)


def test_the_resampler_gives_what_the_whole_gives():
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    resampler = Resampler(44100, 16000)
    parts = [resampler.feed(part) for part in cut(sound, [1, 1000, 3, 4097])]
    found = np.concatenate([*parts, resampler.flush()])
    whole = soxr.resample(sound, 44100, 16000, quality="HQ")
    assert len(found) == len(whole)
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_int16_and_channels_are_understood_and_others_told(streamer):
    stereo = np.stack([tone(69, 0.3), tone(69, 0.3)])
    events, _ = heard(streamer, Blocks([stereo, (tone(72, 0.3) * 32767).astype(np.int16)], RATE))
    assert pitches(events) == [69, 72]
    with pytest.raises(AudioError, match="dtype int32"):
        heard(streamer, Blocks([np.zeros(10, np.int32)], RATE))
    with pytest.raises(AudioError, match="rate of the blocks"):
        Blocks([], 0)


def test_nan_is_silence_and_counted_before_it_is_resampled(streamer):
    sound = melody([69, 72], 0.3, 48000)
    sound[2000:2010] = np.nan
    sound[3000], sound[3001] = np.inf, 1e30
    told = []
    events, listening = heard(streamer, Blocks(cut(sound, [480]), 48000), tell=told.append)
    assert pitches(events) == [69, 72]
    assert listening.figures.bad_samples == 12
    assert len([sentence for sentence in told if "NaN" in sentence]) == 1


def test_a_stream_that_stalls_is_told_and_waited_for(streamer):
    def stalling():
        yield tone(69, 0.3)
        time.sleep(1.5)
        yield tone(72, 0.3)

    streamer.reset()
    told, off_s = [], None
    listening = Listening(streamer, Blocks(stalling(), RATE), stall_s=0.3, tell=told.append)
    begun_s, events = time.monotonic(), []
    for event in listening:
        events.append(event)
        if isinstance(event, NoteOff) and off_s is None:
            off_s = time.monotonic() - begun_s
    assert pitches(events) == [69, 72]
    assert 0.25 < off_s < 1.4  # the note that hung was closed before the sound came again
    assert listening.figures.stalls == listening.figures.underruns == 1
    assert [sentence.split()[0] for sentence in told] == ["no", "sound"]
    assert events_to_notes(events).onset_s[1] == pytest.approx(0.3, abs=0.05)  # the audio's clock


@pytest.mark.slow
def test_ten_seconds_without_sound_end_the_note_and_are_one_stall(streamer):
    """With the settings that one has who gives none."""

    def stalling():
        yield tone(69, 1.0)[: -RATE // 10]  # in the middle of a note
        time.sleep(10.0)
        yield tone(72, 0.3)

    streamer.reset()
    listening, told_s, begun_s = Listening(streamer, Blocks(stalling(), RATE)), [], time.monotonic()
    for event in listening:
        told_s.append((type(event), event.pitch, time.monotonic() - begun_s))
    assert [(kind, pitch) for kind, pitch, _ in told_s] == [
        (NoteOn, 69), (NoteOff, 69), (NoteOn, 72), (NoteOff, 72)
    ]  # fmt: skip
    assert 1.5 < told_s[1][2] < 5.0 and told_s[2][2] > 9.5
    figures = listening.figures
    assert (figures.stalls, figures.underruns, figures.overruns) == (1, 1, 0)
    assert figures.lost_s == 0.0
    assert [sentence.split()[0] for sentence in listening.notices] == ["no", "sound"]


def test_a_slow_model_drops_and_catches_up_and_time_stays_true(slow_streamer):
    """Sound at its own speed for 1.6 s, of which half can be heard."""
    sound = melody([60, 64, 67, 72], 0.3)

    def live():
        begun_s = time.monotonic()
        for place in range(0, len(sound), 320):
            time.sleep(max(0.0, begun_s + (place + 320) / RATE - time.monotonic()))
            yield sound[place : place + 320]

    told = []
    begun_s = time.monotonic()
    events, listening = heard(slow_streamer, Blocks(live(), RATE), buffer_s=0.2, tell=told.append)
    took_s = time.monotonic() - begun_s
    figures = listening.figures
    assert figures.overruns > 0
    assert 0.2 < figures.lost_s < 1.65
    assert took_s < len(sound) / RATE + 1.3  # what was left of the buffer, and the look-ahead
    assert any("were passed over to catch up" in sentence for sentence in told)
    assert slow_streamer.time_s == pytest.approx(len(sound) / RATE, abs=2 * HOP / RATE)
    truth = {60: 0.1, 64: 0.5, 67: 0.9, 72: 1.3}
    assert pitches(events)
    for event in events:
        if isinstance(event, NoteOn):
            assert truth[event.pitch] - 0.05 < event.time_s < truth[event.pitch] + 0.35


def test_a_pipe_that_was_full_before_reading_began_stays_live(slow_streamer):
    """Two seconds have gathered while the model was loaded; the rest comes as it sounds."""
    sound = np.concatenate([melody([60, 64, 67, 72], 0.4), melody([60, 64, 67, 72], 0.3)])
    raw = (sound * 32767).astype("<i2").tobytes()
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    held = os.write(writes, raw[: 1 << 16])
    os.set_blocking(writes, True)

    def play():
        begun_s = time.monotonic()
        for place in range(held, len(raw), 640):
            time.sleep(max(0.0, begun_s + (place + 640 - held) / (2 * RATE) - time.monotonic()))
            os.write(writes, raw[place : place + 640])
        os.close(writes)

    threading.Thread(target=play, daemon=True).start()
    begun_s = time.monotonic()
    with os.fdopen(reads, "rb") as pipe:
        _, listening = heard(slow_streamer, PcmStream(pipe), buffer_s=0.2)
    took_s = time.monotonic() - begun_s
    live_s = (len(raw) - held) / (2 * RATE)
    assert listening.figures.lost_s > held / (2 * RATE) - 0.5  # what had gathered is passed over
    assert took_s < live_s + 0.8
    assert slow_streamer.time_s == pytest.approx(len(sound) / RATE, abs=2 * HOP / RATE)


def test_a_file_through_a_pipe_waits_for_a_model_that_is_slow(slow_streamer):
    sound = melody([60, 64, 67, 72], 0.4)
    raw = np.stack([sound, sound], axis=1).astype("<f4").tobytes()
    reads, writes = os.pipe()

    def play():
        with os.fdopen(writes, "wb") as pipe:
            pipe.write(raw)

    threading.Thread(target=play, daemon=True).start()
    with os.fdopen(reads, "rb") as pipe:
        stream = PcmStream(pipe, PcmFormat("f32le", RATE, 2))
        events, listening = heard(slow_streamer, stream, buffer_s=0.2)
    assert pitches(events) == [60, 64, 67, 72]
    assert listening.figures.lost_s == listening.figures.overruns == 0


class Recorded(SoundQueue):
    """A queue that only notes what it is told to do when it is full."""

    def __init__(self):
        super().__init__(clock=lambda: self.now_s)
        self.begin(100)
        self.told, self.now_s = [], 0.0

    def put(self, samples, *, may_wait=False, let_in=False, lost=0):
        self.told.append("wait" if may_wait else "let in" if let_in else "drop")
        self.now_s += 5.0 * may_wait  # however long that takes
        return True


def told(blocks, held_s=0.0):
    """What is done with blocks that each take so long to come and hold so many seconds."""
    queue = Recorded()
    patience = _Patience(queue, held_s, None)
    for took_s, came_s in blocks:
        queue.now_s += took_s
        assert patience.put(np.zeros(round(100 * came_s), np.float32))
    return queue.told


def test_live_sound_never_waits():
    live = [(0.1, 0.1)]
    assert set(told([(3.0, 3.0)] * 5)) == {"drop"}  # long blocks, the first one waited for
    assert set(told([(9.0, 0.1), *live * 50])) == {"drop"}
    full = told([(0.0, 0.5)] * 4 + live * 50, held_s=2.0)
    assert full == ["let in"] * 4 + ["drop"] * 50
    late = told([*live * 20, (0.3, 0.1), (0.0, 0.1), (0.0, 0.1), *live * 60])
    assert "wait" not in late and late[-25:] == ["drop"] * 25
    # A radio that begins with four seconds at once is taken for a file only as long as that lasts.
    burst = told([(1.0, 0.5), *[(0.001, 0.5)] * 8, *live * 50])
    assert "drop" not in burst[1:9] and burst[8] == "wait"
    assert burst[-30:] == ["drop"] * 30
    stalled = told([*live * 20, (8.0, 0.1), *[(0.0, 0.5)] * 16, *live * 60])
    assert stalled[-30:] == ["drop"] * 30


@pytest.mark.parametrize("took_s", [0.0, 0.001, 0.1, 0.3])
@pytest.mark.parametrize("start_s", [0.0, 4.0])
def test_what_comes_faster_waits_and_is_never_dropped(took_s, start_s):
    found = told([(start_s + took_s, 0.5), *[(took_s, 0.5)] * 40], held_s=2.0)
    assert "drop" not in found[1:]
    assert found[-1] == "wait" and found.index("wait") < 25
    paused = told([(took_s, 0.5)] * 40 + [(60.0, 0.5)] + [(took_s, 0.5)] * 40, held_s=2.0)
    assert "drop" not in paused[1:40] + paused[41:]


def test_what_comes_faster_than_it_sounds_is_made_to_wait(streamer):
    sound = np.concatenate([melody([60, 64, 67, 72], 0.2)] * 5)
    events, listening = heard(streamer, Blocks(cut(sound, [1600]), RATE))
    assert pitches(events) == [60, 64, 67, 72] * 5
    assert listening.figures.lost_s == 0.0


def test_the_queue_drops_what_waits_and_keeps_count():
    queue = SoundQueue(0.1)
    queue.begin(1000)
    for number in range(4):
        assert queue.put(np.full(60, number, np.float32))
    assert (queue.overruns, queue.lost, queue.waiting_s) == (1, 120, 0.12)
    assert queue.put(np.zeros(5, np.float32), lost=10)
    first = queue.get(1000, 0.0)
    assert (first.start, len(first.samples), queue.overruns) == (240 + 10, 5, 3)
    assert queue.lost == 240 + 10
    assert queue.get(10, 0.0) is None
    queue.stop()
    assert not queue.put(np.zeros(5, np.float32))
    with pytest.raises(ConfigError, match="buffer of 0"):
        SoundQueue(0)


def test_on_a_device_by_name_the_step_is_compiled_once(streamer):
    """What was compiled before the first sound serves it, a skip, and the next stream."""
    bound = Streamer(tones.Tones(), device=jax.devices()[0])
    sound = melody([69, 72], 0.2)
    found = bound.feed(sound) + bound.skip(100) + bound.feed(sound) + bound.finish()
    assert pitches(found) == [69, 72, 69, 72]
    bound.reset()
    assert bound.feed(sound)
    assert bound.programs == 1


# Files and pipes ------------------------------------------------------------------------------


def test_a_file_is_played_at_its_own_speed_or_as_fast_as_it_is_heard(streamer, tmp_path):
    soundfile.write(tmp_path / "a.wav", melody([69, 72], 0.3, 22050), 22050)
    took = {}
    for own_speed in (True, False):
        begun_s = time.monotonic()
        source = PlayedFile(tmp_path / "a.wav", own_speed=own_speed)
        events, listening = heard(streamer, source)
        took[own_speed] = time.monotonic() - begun_s
        assert pitches(events) == [69, 72]
        assert listening.figures.lost_s == 0.0
    assert source.duration_s == pytest.approx(0.9, abs=0.01)
    assert max(0.85, took[False]) < took[True]
    with pytest.raises(AudioError, match="does not exist"):
        PlayedFile(tmp_path / "gone.wav")


def test_stopping_ends_soon_and_closes_what_sounds(streamer, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(69, 3.0), RATE)
    streamer.reset()
    listening = Listening(streamer, PlayedFile(tmp_path / "a.wav"))
    threading.Timer(0.4, listening.stop).start()
    begun_s = time.monotonic()
    events = list(listening)
    assert time.monotonic() - begun_s < 2.0
    assert [type(event) for event in events] == [NoteOn, NoteOff]
    with pytest.raises(AudioError, match="heard already"):
        list(listening)


@pytest.mark.parametrize(
    ("kind", "scale", "dtype"),
    [("s16le", 32767, "<i2"), ("s32le", 2**31 - 1, "<i4"), ("f32le", 1.0, "<f4")],
)
def test_raw_samples_of_each_format(streamer, kind, scale, dtype):
    mono = melody([69, 72], 0.3, 24000)
    raw = (np.stack([mono, mono], axis=1).astype(np.float64) * scale).astype(dtype).tobytes()
    stream = PcmStream(io.BytesIO(raw + b"\0"), PcmFormat(kind, 24000, 2))
    events, listening = heard(streamer, stream)
    assert pitches(events) == [69, 72]
    assert listening.figures.lost_s == 0.0


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_header_in_the_pipe_tells_the_format(streamer, subtype):
    file = io.BytesIO()
    soundfile.write(file, melody([69], 0.3, 32000), 32000, format="WAV", subtype=subtype)
    file.seek(0)
    stream = PcmStream(file)
    events, _ = heard(streamer, stream)
    assert pitches(events) == [69]
    assert stream.form.sample_rate == 32000


def wav_bytes(sound, rate=RATE, *, size=None, behind=b""):
    """A WAV file whose data chunk says it has `size` bytes, and what stands behind it."""
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    place = data.index(b"data") + 4
    if size is not None:
        data[place : place + 4] = size.to_bytes(4, "little")
    return bytes(data) + behind


class Trickle(io.BytesIO):
    """Brings seven bytes at a time."""

    def read(self, size=-1):
        return super().read(min(size, 7))


@pytest.mark.parametrize("kind", [io.BytesIO, Trickle])
def test_what_stands_behind_the_samples_of_a_wav_file_is_not_heard(streamer, kind):
    sound = melody([69], 0.2)
    note = (tone(81, 0.3) * 32767).astype("<i2").tobytes()
    behind = b"LIST" + len(note).to_bytes(4, "little") + note
    events, _ = heard(streamer, PcmStream(kind(wav_bytes(sound, behind=behind)), own_speed=False))
    assert pitches(events) == [69]
    assert streamer.time_s == pytest.approx(len(sound) / RATE, abs=HOP / RATE)
    cut_short = wav_bytes(sound, behind=behind)[: -len(behind) - 3200]
    assert pitches(heard(streamer, PcmStream(kind(cut_short), own_speed=False))[0]) == [69]


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_file_that_is_still_being_written_is_heard_to_its_end(streamer, size):
    sound = melody([69, 72], 0.2)
    events, _ = heard(streamer, PcmStream(io.BytesIO(wav_bytes(sound, size=size))))
    assert pitches(events) == [69, 72]
    assert streamer.time_s == pytest.approx(len(sound) / RATE, abs=HOP / RATE)


@pytest.mark.parametrize(
    ("head", "told"),
    [(b"fLaC", "a FLAC file"), (b"OggS", "an Ogg file"), (b"ID3\4", "an MP3 file")],
)
def test_compressed_files_in_the_pipe_are_refused_with_what_decodes_them(streamer, head, told):
    ending = told.split()[1].lower()
    command = rf"ffmpeg -i song\.{ending} -f s16le -ac 1 -ar 16000 - \| musicjax listen --stdin"
    with pytest.raises(AudioError, match=rf"{told}.*{command}"):
        heard(streamer, PcmStream(io.BytesIO(head + bytes(1000))))


def test_the_name_tells_the_format_once_it_is_known(streamer):
    stream = PcmStream(io.BytesIO(wav_bytes(melody([69], 0.2, 44100), 44100)))
    assert stream.name == "stdin"
    heard(streamer, stream)
    assert stream.name == "stdin (WAV, s16le, 44100 Hz, mono)"
    raw = PcmStream(io.BytesIO(bytes(3200)))
    heard(streamer, raw)
    assert raw.name == "stdin (s16le, 16000 Hz, mono)"


def test_wrong_formats_are_told(streamer, monkeypatch):
    for wrong in ({"kind": "u8"}, {"sample_rate": 0}, {"channels": 0}):
        with pytest.raises(ConfigError):
            PcmFormat(**wrong)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(100), 16000, format="WAV", subtype="PCM_24")
    file.seek(0)
    with pytest.raises(AudioError, match="24 bits"):
        heard(streamer, PcmStream(file))
    with pytest.raises(AudioError, match="damaged"):
        heard(streamer, PcmStream(io.BytesIO(b"RIFF\0\0\0\0WAVEdata\0\0\0\0")))
    with pytest.raises(AudioError, match="within its header"):
        heard(streamer, PcmStream(io.BytesIO(b"RIFF\0\0\0\0WAVEfmt ")))
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=os.fdopen(os.openpty()[1], "rb")))
    with pytest.raises(AudioError, match="terminal"):
        PcmStream()


# Microphones ----------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    def plug(**facts):
        found = tones.FakeSoundCard(**facts)
        monkeypatch.setitem(sys.modules, "sounddevice", found)
        return found

    return plug


def test_a_device_that_is_unplugged_keeps_what_was_heard(streamer, card):
    plugged = card()
    streamer.reset()
    listening, events = Listening(streamer, Microphone(), buffer_s=5.0), []
    with pytest.raises(AudioError, match=r"Fake Mic stopped giving sound.*is kept"):
        for event in listening:
            events.append(event)
    assert pitches(events) == [69, 72]
    assert isinstance(events[-1], NoteOff)
    assert plugged.opened == [48000]  # 16 kHz was refused
    assert plugged.closed == 1
    assert listening.figures.latency_s > 0.012


def test_a_device_that_falls_silent_without_a_word_is_noticed(streamer, card):
    card(ends="dead")
    streamer.reset()
    listening = Listening(streamer, Microphone(), buffer_s=5.0)
    with pytest.raises(AudioError, match="Fake Mic stopped giving sound"):
        list(listening)


def test_an_overflow_of_the_device_moves_time_on(streamer, card):
    card(overflow=True, missing=1600, rates=(16000,))
    streamer.reset()
    told, events = [], []
    listening = Listening(streamer, Microphone(), buffer_s=5.0, tell=told.append)
    with pytest.raises(AudioError):
        for event in listening:
            events.append(event)
    assert listening.figures.overruns == 1
    assert listening.figures.lost_s == pytest.approx(0.1, abs=0.001)
    last = [event for event in events if isinstance(event, NoteOn)][-1]
    assert (last.pitch, last.time_s) == (72, pytest.approx(0.5, abs=0.05))


def test_rates_nearest_and_above_first(card):
    for rates, chosen in [((16000, 48000), 16000), ((44100, 48000, 8000), 44100), ((8000,), 8000)]:
        card(rates=rates)
        assert Microphone().rate_for(16000) == chosen
    card(rates=())
    with pytest.raises(AudioError, match="takes no rate"):
        Microphone().rate_for(16000)


def test_microphones_that_cannot_be_had_are_told(streamer, card, monkeypatch):
    card(inputs=0)
    with pytest.raises(AudioError, match=r"no microphone.*--stdin.*--file"):
        Microphone()
    card()
    with pytest.raises(AudioError, match=r"'other'.*Fake Mic"):
        Microphone("other")
    card(ends="busy")
    with pytest.raises(AudioError, match="another program"):
        heard(streamer, Microphone())
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependencyError, match=r"musicjax\[live\].*--stdin.*--file"):
        Microphone()
