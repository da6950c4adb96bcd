"""Where events go: lines, files, a MIDI port on a loopback and a real one where ALSA offers it."""

import io
import json
import sys
import time
import types

import mido
import numpy as np
import pytest
from mido.ports import EchoPort

from musicjax.errors import MissingDependencyError, OutputError
from musicjax.infer.sinks import (
    JsonLines,
    Lines,
    MidiPort,
    closing,
    file_sink,
    midi_ports,
    note_and_cents,
)
from musicjax.infer.stream import NoteOff, NoteOn, PitchFrame
from musicjax.notes import read_csv, read_midi
from musicjax.notes.contour import read_contour

NOTES = [NoteOn(0.1, 60, 80), NoteOn(0.2, 64, 90), NoteOff(0.5, 60), NoteOff(0.7, 64)]


def voice(hz, start_s, seconds):
    times = start_s + np.arange(round(seconds / 0.01)) * 0.01
    return [PitchFrame(float(t), hz, 0.9) for t in times]


def test_json_lines_are_there_at_once_and_readable(tmp_path):
    sink = file_sink(tmp_path / "a.jsonl")
    sink.write(NOTES[:2])
    there = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert there[0] == {"event": "on", "time_s": 0.1, "pitch": 60, "velocity": 80, "note": "C4"}
    sink.write([NOTES[2], PitchFrame(0.6, 441.0, 0.75)])
    sink.close(1.0)
    last = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])
    assert last == {
        "event": "pitch", "time_s": 0.6, "f0_hz": 441.0, "confidence": 0.75, "note": "A4 +4"
    }  # fmt: skip
    stream = io.StringIO()
    JsonLines(stream).write(NOTES)
    assert len(stream.getvalue().splitlines()) == 4


def test_lines_to_read_are_few_where_frames_are_many():
    stream = io.StringIO()
    Lines(stream).write(NOTES + voice(440.0, 0.0, 0.5) + voice(0.0, 0.5, 0.1))
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == ["0.100", "on", "C4", "80"]
    assert lines[4].split() == ["0.000", "A4", "+0", "440.00", "Hz", "0.90"]
    assert len(lines) == 4 + 6
    assert note_and_cents(0.0) == ""


def test_note_files_hold_the_notes_and_close_what_hangs(tmp_path):
    for name, read in (("a.mid", read_midi), ("a.csv", read_csv)):
        sink = file_sink(tmp_path / name)
        sink.write(NOTES[:3])
        assert not (tmp_path / name).exists()
        sink.close(1.5)
        sink.close(9.0)
        notes = read(tmp_path / name)
        assert notes.pitch.tolist() == [60, 64]
        np.testing.assert_allclose(notes.offset_s, [0.5, 1.5], atol=1e-3)


def test_a_pitch_becomes_a_table_and_notes_across_a_gap(tmp_path):
    frames = voice(440.0, 0.0, 0.5) + voice(523.25, 0.903, 0.5)  # sound was lost in between
    for name in ("a.csv", "a.mid"):
        sink = file_sink(tmp_path / name, pitch=True)
        sink.write(frames)
        sink.close(1.4)
    assert len(read_contour(tmp_path / "a.csv")) == 100
    notes = read_midi(tmp_path / "a.mid")
    assert notes.pitch.tolist() == [69, 72]
    np.testing.assert_allclose(notes.onset_s, [0.0, 0.9], atol=0.03)


def test_places_that_cannot_be_written_are_told_before_anything_is_heard(tmp_path):
    for name in ("a.wav", "a", "gone/a.mid", "gone/a.jsonl"):
        with pytest.raises(OutputError):
            file_sink(tmp_path / name)


def test_all_sinks_are_closed_whatever_fails():
    class Sink:
        def __init__(self, fails):
            self.name, self.fails, self.closed_s = "sink", fails, None

        def write(self, events):
            pass

        def close(self, end_s):
            self.closed_s = end_s
            if self.fails:
                raise OutputError("the disk is full.")

    sinks = [Sink(True), Sink(False)]
    with pytest.raises(OutputError, match="full"), closing(sinks, lambda: 7.0):
        pass
    assert [sink.closed_s for sink in sinks] == [7.0, 7.0]


# Live MIDI ------------------------------------------------------------------------------------


class Loopback:
    """A MIDI system whose outputs are heard by their own input."""

    def __init__(self, names=("Fluid Synth 128:0", "Piano")):
        self.names, self.asked = list(names), []
        self.port = EchoPort()

    def get_output_names(self):
        return self.names

    def open_output(self, name, virtual=False):
        self.asked.append((name, virtual))
        return self.port


def test_notes_are_sent_at_once_and_none_hangs():
    system = Loopback()
    sink = MidiPort("fluid", backend=system)
    assert system.asked == [("Fluid Synth 128:0", False)]
    sink.write([NOTES[0], NOTES[0], NOTES[1], NOTES[2]])
    sent = [(m.type, m.note) for m in system.port.iter_pending()]
    assert sent == [
        ("note_on", 60), ("note_off", 60), ("note_on", 60), ("note_on", 64), ("note_off", 60)
    ]  # fmt: skip
    left = []
    system.port._close = lambda: left.extend(system.port.iter_pending())
    sink.close()
    sink.close()
    assert [(m.type, m.note) for m in left] == [("note_off", 64)]


def test_a_pitch_bends_its_note_and_leaps_to_the_next():
    system = Loopback()
    sink = MidiPort(backend=system)
    assert system.asked == [("musicjax", True)]
    hz = [440.0, 440.0 * 2 ** (0.5 / 12), 440.0 * 2 ** (2 / 12), 0.0]
    sink.write([PitchFrame(0.1 * n, f, 0.9) for n, f in enumerate(hz)])
    sent = list(system.port.iter_pending())
    assert [(m.type, getattr(m, "note", None) or m.pitch) for m in sent] == [
        ("pitchwheel", 0), ("note_on", 69), ("pitchwheel", 2048), ("note_off", 69),
        ("pitchwheel", 0), ("note_on", 71), ("note_off", 71),
    ]  # fmt: skip


def test_ports_that_cannot_be_had_are_told(monkeypatch):
    with pytest.raises(OutputError, match=r"'organ'; there are: Fluid Synth 128:0, Piano"):
        MidiPort("organ", backend=Loopback())
    with pytest.raises(OutputError, match="there is none"):
        MidiPort("organ", backend=Loopback(()))

    def fails():
        raise RuntimeError("error creating ALSA sequencer client object.")

    broken = types.SimpleNamespace(get_output_names=fails)
    for ask in (MidiPort, midi_ports):
        with pytest.raises(OutputError, match=r"ALSA sequencer.*-o notes\.mid"):
            ask(backend=broken)
    assert midi_ports(backend=Loopback()) == ["Fluid Synth 128:0", "Piano"]
    monkeypatch.setitem(sys.modules, "rtmidi", None)
    monkeypatch.delitem(sys.modules, "mido.backends.rtmidi", raising=False)
    with pytest.raises(MissingDependencyError, match=r"musicjax\[live\].*notes\.mid"):
        MidiPort()


def test_a_virtual_port_of_the_system_carries_notes():
    pytest.importorskip("rtmidi", reason="python-rtmidi (extra live) is not installed")
    try:
        sink = MidiPort()
    except OutputError as error:
        pytest.skip(f"this machine offers no virtual MIDI port: {error}")
    backend = mido.Backend(load=True)
    name = next(name for name in backend.get_input_names() if "musicjax" in name)
    with backend.open_input(name) as port:
        sink.write(NOTES[:3])
        got, deadline = [], time.monotonic() + 2.0
        while len(got) < 3 and time.monotonic() < deadline:
            got += port.iter_pending()
            time.sleep(0.01)
        sink.close()
    assert [(m.type, m.note, m.velocity) for m in got] == [
        ("note_on", 60, 80), ("note_on", 64, 90), ("note_off", 60, 64)
    ]  # fmt: skip
