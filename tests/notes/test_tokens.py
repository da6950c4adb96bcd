"""Notes as tokens: streams written by hand, every quirk, and input that nobody should send."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from musicjax.errors import ConfigError, DataError
from musicjax.hub.typed_json import from_json, to_json
from musicjax.notes import (
    NO_QUIRKS,
    Codec,
    CodecConfig,
    Note,
    Notes,
    Pedal,
    Quirks,
    TokenDecoder,
    Vocabulary,
    coarser_programs,
    codec_config,
)
from musicjax.notes.encoding import boundary_steps

MT3 = Codec(codec_config("mt3"))
PIANO = Codec(codec_config("ismir2021"))
MENDED = Codec(codec_config("mt3", faithful=False))
ONE = Notes.from_arrays([0.5], [1.0], [60])


def quirk(**changes) -> Codec:
    """MT3's codec with all quirks off but those named."""
    return Codec(replace(codec_config("mt3"), quirks=replace(NO_QUIRKS, **changes)))


def words(codec: Codec, tokens: np.ndarray) -> str:
    """Tokens as a line of text."""
    return ", ".join(codec.vocabulary.names(tokens))


def ids(codec: Codec, text: str) -> np.ndarray:
    """The tokens of a line of text."""
    vocabulary = codec.vocabulary
    one = {"tie": vocabulary.tie, "eos": 1, "pad": 0, "unknown": 2}
    many = {
        "shift": vocabulary.shift,
        "pitch": vocabulary.pitch,
        "on": vocabulary.velocity,
        "off": vocabulary.velocity,
        "program": vocabulary.program,
        "drum": vocabulary.drum,
    }
    tokens = []
    for word in text.split(", "):
        name, _, value = word.partition(" ")
        tokens.append(many[name](int(value)) if value else one[name])
    return np.array(tokens)


# The vocabulary ------------------------------------------------------------------------------


def test_sizes_and_places_of_both_vocabularies() -> None:
    mt3, piano = MT3.vocabulary, PIANO.vocabulary
    assert (mt3.num_events, mt3.size, mt3.rows) == (1388, 1491, 1536)
    assert (piano.num_events, piano.size, piano.rows) == (1514, 1617, 1664)
    for vocabulary, places in (
        (mt3, [0, 1000, 1001, 1128, 1129, 1130, 1131, 1132, 1259, 1260, 1387]),
        (piano, [0, 1000, 1001, 1128, 1129, 1256, 1257, 1258, 1385, 1386, 1513]),
    ):
        bins = vocabulary.config.velocity_bins
        spoken = [
            *(vocabulary.shift(0), vocabulary.shift(1000)),
            *(vocabulary.pitch(0), vocabulary.pitch(127)),
            *(vocabulary.velocity(0), vocabulary.velocity(bins)),
            vocabulary.tie,
            *(vocabulary.program(0), vocabulary.program(127)),
            *(vocabulary.drum(0), vocabulary.drum(127)),
        ]
        assert [token - 3 for token in spoken] == places
        every = vocabulary.names(np.arange(vocabulary.rows))
        assert len(set(every)) == vocabulary.num_events + 3  # with pad, eos and never
        for token in spoken:
            assert ids(Codec(vocabulary.config), every[token]) == token
    assert mt3.names(np.array([-1, 2, 1500, 99999])) == ["never"] * 4


def test_velocity_bins() -> None:
    every = np.arange(128)
    np.testing.assert_array_equal(PIANO.vocabulary.velocity_bin(every), every)
    assert [PIANO.vocabulary.bin_velocity(b) for b in (0, 1, 64, 127)] == [0, 1, 64, 127]
    assert MT3.vocabulary.velocity_bin(every).tolist() == [0] + [1] * 127
    assert MT3.vocabulary.bin_velocity(1) == 127
    twenty = Vocabulary(CodecConfig(velocity_bins=20))
    bins = twenty.velocity_bin(every)
    assert bins[[0, 1, 6, 7, 127]].tolist() == [0, 1, 1, 2, 20]
    assert [twenty.bin_velocity(b) for b in (1, 2, 20)] == [6, 12, 127]


def test_granularities() -> None:
    programs = np.array([0, 7, 8, 42, 127])
    assert coarser_programs(programs, "full").tolist() == programs.tolist()
    assert coarser_programs(programs, "midi_class").tolist() == [0, 0, 8, 40, 120]
    assert coarser_programs(programs, "flat").tolist() == [0] * 5
    with pytest.raises(ConfigError, match="granularity must be"):
        coarser_programs(programs, "coarse")


def test_profiles() -> None:
    assert codec_config("mt3") == codec_config("ismir2022") == CodecConfig()
    piano = codec_config("ismir2021")
    assert (piano.velocity_bins, piano.granularity, piano.ties) == (127, "flat", False)
    assert (piano.segment_frames, piano.max_tokens) == (512, 1024)
    assert codec_config("mt3", faithful=False).quirks == NO_QUIRKS != Quirks()
    assert from_json(CodecConfig, json.loads(json.dumps(to_json(piano)))) == piano
    assert hash(Codec(piano)) == hash(PIANO)
    with pytest.raises(ConfigError, match="no codec profile 'mt4'; choose one of mt3"):
        codec_config("mt4")
    for wrong in ({"velocity_bins": 0}, {"segment_frames": 0}, {"frames_per_second": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CodecConfig(**wrong)
    with pytest.raises(ConfigError, match="set ties to False"):
        CodecConfig(onsets_only=True)


# Encoding ------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    """One note from 0.5 s to 1 s, in numbers and in words."""
    encoded = MT3.encode(ONE, 200)
    assert encoded.tokens.tolist() == [1134, 53, 1135, 1133, 1064, 103, 1132, 1064, 1]
    assert words(MT3, encoded[0]) == (
        "tie, shift 50, program 0, on 1, pitch 60, shift 100, off 0, pitch 60, eos"
    )
    assert words(PIANO, PIANO.encode(ONE, 200)[0]) == (
        "shift 50, on 80, pitch 60, shift 100, off 0, pitch 60, eos"
    )
    decoded = MT3.decode(encoded)
    assert list(decoded.notes) == [Note(0.5, 1.0, 60, 127)]
    assert decoded.report.invalid == decoded.report.dropped == 0


def test_order_within_one_step() -> None:
    """Ends first, then drums after programs, programs and pitches rising, each word said once."""
    notes = Notes.from_arrays(
        [0.0, 0.5, 0.5, 0.5, 0.5],
        [0.5, 0.7, 0.7, 0.7, 0.6],
        [72, 64, 60, 62, 36],
        program=[40, 40, 40, 0, 0],
        is_drum=[False, False, False, False, True],
    )
    assert words(MT3, MT3.encode(notes, 256)[0]) == (
        "tie, program 40, on 1, pitch 72, "
        "shift 50, off 0, pitch 72, program 0, on 1, pitch 62, program 40, pitch 60, pitch 64, "
        "drum 36, shift 70, program 0, off 0, pitch 62, program 40, pitch 60, pitch 64, eos"
    )


def test_order_is_that_of_unrounded_times() -> None:
    """A note that begins just before another ends is said first, though both are at one step."""
    notes = Notes.from_arrays([0.0, 0.499], [0.501, 1.0], [60, 62])
    assert "pitch 62, off 0, pitch 60" in words(MT3, MT3.encode(notes, 256)[0])


def test_rounding_is_half_to_even_of_the_product() -> None:
    notes = Notes.from_arrays([0.005, 0.015, 0.025], [1.0, 1.0, 1.0], [60, 61, 62])
    text = words(MT3, MT3.encode(notes, 256)[0])
    assert text.startswith("tie, program 0, on 1, pitch 60, shift 2, pitch 61, pitch 62, shift 100")


def test_segments_own_the_steps_from_their_first_frame() -> None:
    """Frame 256 is at 2.048 s and begins with step 204; shifts count from there."""
    assert boundary_steps(np.array([0, 1, 5, 256, 512, 1280]), MT3.config).tolist() == [
        *(0, 0, 4, 204, 409, 1024)
    ]
    assert MT3.segments(600).tolist() == [[0, 256], [256, 512], [512, 600]]
    assert MT3.segments(512).tolist() == [[0, 256], [256, 512]]
    notes = Notes.from_arrays([2.03, 2.04, 3.0], [2.034, 5.0, 3.1], [60, 61, 62])
    first, second, third = map(lambda t: words(MT3, t), MT3.encode(notes, 640))
    assert first == "tie, shift 203, program 0, on 1, pitch 60, off 0, pitch 60, eos"
    assert second == (
        "tie, program 0, on 1, pitch 61, shift 96, pitch 62, shift 106, off 0, pitch 62, eos"
    )
    assert third == "program 0, pitch 61, tie, shift 91, off 0, pitch 61, eos"


def test_ties_are_told_by_program_and_pitch() -> None:
    notes = Notes.from_arrays(
        [0.1] * 4, [3.0] * 4, [64, 60, 62, 40], program=[7, 7, 0, 0], is_drum=[0, 0, 0, 1]
    )
    second = MT3.encode(notes, 512)[1]
    assert words(MT3, second).startswith(
        "program 0, pitch 62, program 7, pitch 60, pitch 64, tie, "
    )
    sounding = np.array([[7, 64], [0, 62], [7, 60]])
    tie_section = MT3.tie_section(sounding)
    np.testing.assert_array_equal(tie_section, second[: len(tie_section)])
    assert words(MT3, MT3.tie_section(sounding[:0])) == "tie"
    flat = Codec(replace(MT3.config, granularity="flat"))
    assert words(flat, flat.tie_section(sounding)) == "pitch 62, pitch 60, pitch 64, tie"


def test_long_shifts_are_split() -> None:
    codec = Codec(replace(PIANO.config, segment_frames=4000))
    notes = Notes.from_arrays([25.0], [30.0], [60])
    assert words(codec, codec.encode(notes, 4000)[0]) == (
        "shift 1000, shift 1000, shift 500, on 80, pitch 60, "
        "shift 1000, shift 1000, shift 1000, off 0, pitch 60, eos"
    )
    assert list(codec.decode(codec.encode(notes, 4000)).notes) == [Note(25.0, 30.0, 60)]


def test_onsets_only() -> None:
    codec = Codec(replace(PIANO.config, onsets_only=True))
    notes = Notes.from_arrays([0.5, 0.5], [1.0, 2.0], [64, 60], program=[0, 9])
    encoded = codec.encode(notes, 256)
    assert words(codec, encoded[0]) == "shift 50, pitch 60, pitch 64, eos"
    heard = codec.decode([ids(codec, "shift 50, pitch 60, drum 36, pitch 64, eos")])
    assert list(heard.notes) == [Note(0.5, 0.51, 60, 100), Note(0.5, 0.51, 64, 100)]
    assert heard.report.unexpected == heard.report.invalid == 1


def test_the_pedal_is_applied() -> None:
    pedal = Pedal.from_arrays([0.4, 1.5], [127, 0])
    held = replace(ONE, pedal=pedal)
    np.testing.assert_array_equal(
        MT3.encode(held, 256).tokens, MT3.encode(held.sustained(), 256).tokens
    )
    assert "shift 150, off 0" in words(MT3, MT3.encode(held, 256)[0])
    assert "shift 110, off 0" in words(MT3, MT3.encode_clip(held, 0.4))


# Quirks --------------------------------------------------------------------------------------


def test_stale_ties() -> None:
    """After the last event of a recording the original still ties what that event ended."""
    stale = quirk(stale_ties=True).encode(ONE, 512)[1]
    assert words(MT3, stale) == "program 0, pitch 60, tie, eos"
    assert words(MT3, MENDED.encode(ONE, 512)[1]) == "tie, eos"
    decoded = MT3.decode(MT3.encode(ONE, 512))
    assert (decoded.report.untied, decoded.report.invalid) == (1, 1)
    assert list(decoded.notes) == [Note(0.5, 1.0, 60, 127)]
    drum = Notes.from_arrays([0.0], [0.1], [36], is_drum=True)
    assert words(MT3, MT3.encode(drum, 512)[1]) == "tie, eos"


def test_late_events() -> None:
    notes = Notes.from_arrays([0.5, 3.0], [4.0, 5.0], [60, 62])
    kept = MT3.encode(notes, 256)
    assert "shift 300, pitch 62, shift 400, off 0, pitch 60" in words(MT3, kept[0])
    cut = MENDED.encode(notes, 256)
    assert words(MENDED, cut[0]) == "tie, shift 50, program 0, on 1, pitch 60, eos"
    assert kept.report.after_end == cut.report.after_end == 1
    ends_with_audio = Notes.from_arrays([0.5], [2.04], [60])
    assert "shift 204, off 0, pitch 60, eos" in words(MT3, MENDED.encode(ends_with_audio, 256)[0])


def test_overlaps() -> None:
    notes = Notes.from_arrays([0.0, 1.0], [2.0, 1.5], [60, 60])
    kept = MT3.decode(MT3.encode(notes, 256))
    assert list(kept.notes) == [Note(0.0, 1.0, 60, 127), Note(1.0, 1.5, 60, 127)]
    assert (kept.report.unstarted, kept.report.invalid) == (1, 1)
    encoded = MENDED.encode(notes, 256)
    trimmed = MENDED.decode(encoded)
    assert trimmed.notes == kept.notes and trimmed.report.invalid == 0
    assert encoded.report.overlapping == 1
    twice = Notes.from_arrays([1.0, 1.0], [2.0, 3.0], [60, 60], program=[0, 0])
    assert list(MENDED.decode(MENDED.encode(twice, 400)).notes) == [Note(1.0, 3.0, 60, 127)]


def test_late_program_mapping() -> None:
    """A violin and a cello on one pitch: two ties of one string class, or one note."""
    notes = Notes.from_arrays([0.5, 0.6], [3.0, 3.0], [60, 60], program=[40, 42])
    config = replace(codec_config("mt3"), granularity="midi_class")
    late = Codec(config).encode(notes, 512)
    assert words(MT3, late[1]).startswith("program 40, pitch 60, pitch 60, tie")
    assert Codec(config).decode(late).report.tied_twice == 1
    early = Codec(replace(config, quirks=NO_QUIRKS))
    assert words(MT3, early.encode(notes, 512)[1]).startswith("program 40, pitch 60, tie")


def test_start_rounding() -> None:
    """The float remainder puts some segments a step early; segment 15 begins at 30.72 s."""
    onset = ids(MT3, "tie, shift 10, program 0, on 1, pitch 60, shift 20, off 0, pitch 60, eos")
    starts = {}
    for rounding in ("float64", "float32", "exact"):
        codec = quirk(start_rounding=rounding)
        starts[rounding] = codec.decode([onset], np.array([15 * 256])).notes.onset_s[0] - 0.1
    assert starts["exact"] == pytest.approx(30.72, abs=1e-9)
    assert starts["float64"] == pytest.approx(30.72 - 30.72 % 0.01, abs=1e-9)
    assert starts["float64"] == pytest.approx(30.71, abs=1e-9)
    second = quirk(start_rounding="float32").decode([onset], np.array([256]))
    assert second.notes.onset_s[0] == float(np.float32(2.0399999618)) + 0.1


def test_carry_state() -> None:
    first = ids(MT3, "tie, program 40, on 1, shift 10, pitch 60, shift 20, off 0, pitch 60, eos")
    second = ids(MT3, "tie, on 1, shift 10, pitch 62, shift 20, off 0, pitch 62, eos")
    carried = quirk(carry_state=True).decode([first, second])
    assert carried.notes.program.tolist() == [40, 40]
    assert MENDED.decode([first, second]).notes.program.tolist() == [40, 0]


def test_strict_ties() -> None:
    """Without its end the tie section swallows every pitch; leniently the first shift ends it."""
    first = ids(MT3, "tie, program 0, on 1, shift 10, pitch 60, pitch 64, eos")
    second = ids(
        MT3, "program 0, pitch 60, shift 10, on 1, pitch 62, shift 20, off 0, pitch 60, eos"
    )
    strict = quirk(strict_ties=True).decode([first, second], end_s=3.0)
    assert strict.report.invalid == 2
    assert strict.notes.pitch.tolist() == [60, 64]
    lenient = MENDED.decode([first, second], end_s=3.0)
    assert lenient.report.invalid == 0
    assert list(lenient.notes) == [
        Note(0.1, 2.24, 60, 127),
        Note(0.1, 2.04, 64, 127),
        Note(2.14, 3.0, 62, 127),
    ]


def test_exact_ties() -> None:
    """A note tied under another program's name ends, or goes on and is known by both names."""
    first = ids(MT3, "tie, program 40, on 1, shift 10, pitch 60, pitch 64, eos")
    second = ids(
        MT3,
        "program 48, pitch 60, pitch 64, tie, shift 20, off 0, pitch 60, on 1, shift 30, pitch 64, "
        "shift 40, off 0, pitch 64, eos",
    )
    exact = quirk(exact_ties=True).decode([first, second])
    assert (exact.report.untied, exact.report.unstarted) == (2, 1)
    assert [n.offset_s for n in exact.notes if n.program == 40] == [2.04, 2.04]
    known = MENDED.decode([first, second])
    assert known.report.invalid == 0
    assert list(known.notes) == [
        Note(0.1, 2.24, 60, 127, 40),
        Note(0.1, 2.34, 64, 127, 40),  # struck anew, under its new name
        Note(2.34, 2.44, 64, 127, 48),
    ]


# Decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tie, unknown, pad, on 1, eos", "unknown"),
        ("tie, shift 50, program 0, on 1, shift 20, pitch 60, eos", "backwards"),
        ("program 0, pitch 60, tie, eos", "untied"),
        ("tie, program 0, off 0, pitch 60, eos", "unstarted"),
        ("tie, off 0, drum 36, eos", "silent_drum"),
        ("tie, tie, eos", "stray_tie"),
    ],
)
def test_invalid_events_are_counted_by_kind(text: str, kind: str) -> None:
    report = MT3.decode([ids(MT3, text)]).report
    assert getattr(report, kind) == report.invalid > 0


def test_a_tie_said_twice_and_notes_that_are_not_tied() -> None:
    first = ids(MT3, "tie, program 0, on 1, shift 50, pitch 60, pitch 64, eos")
    second = ids(MT3, "program 0, pitch 60, pitch 60, tie, shift 10, off 0, pitch 60, eos")
    decoded = MT3.decode([first, second])
    assert (decoded.report.tied_twice, decoded.report.invalid) == (1, 1)
    start_s = 2.048 - 2.048 % 0.01
    assert list(decoded.notes) == [
        Note(0.5, start_s + 0.1, 60, 127),
        Note(0.5, start_s, 64, 127),
    ]


def test_events_of_the_next_segment_are_dropped() -> None:
    """Up to the step where the next segment begins, and no further."""
    first = ids(
        MT3, "tie, program 0, on 1, shift 204, pitch 60, shift 205, pitch 61, pitch 62, eos"
    )
    decoded = MT3.decode([first, ids(MT3, "tie, eos")])
    assert decoded.notes.pitch.tolist() == [60]
    assert (decoded.report.dropped, decoded.report.invalid) == (3, 0)
    assert MT3.decode([first]).notes.pitch.tolist() == [60, 61, 62]


def test_shifts_add_up_until_something_happens() -> None:
    """An id without meaning between two shifts does not part them."""
    decoded = MT3.decode([ids(MT3, "tie, program 0, on 1, shift 100, unknown, shift 50, pitch 60")])
    assert decoded.notes.onset_s.tolist() == [1.5]
    assert decoded.report.unknown == decoded.report.invalid == 1


def test_what_is_never_ended() -> None:
    stream = ids(MT3, "tie, shift 50, program 0, on 1, pitch 60, shift 120, drum 36, eos")
    assert MT3.decode([stream]).notes.offset_s.tolist() == [1.2, 1.21]
    assert MT3.decode([stream], end_s=2.0).notes.offset_s.tolist() == [2.0, 1.21]
    alone = MT3.decode([ids(MT3, "tie, shift 50, program 0, on 1, pitch 60")])
    assert alone.notes.offset_s.tolist() == [0.51]


def test_segments_in_any_order_and_form() -> None:
    notes = Notes.from_arrays([0.5, 2.5, 4.5], [1.0, 4.3, 5.0], [60, 62, 64])
    encoded = MENDED.encode(notes, 768)
    rows, fits = encoded.padded(20)
    assert fits.all()
    forward = MENDED.decode(encoded).notes
    assert forward.pitch.tolist() == [60, 62, 64]
    order = [2, 0, 1]
    assert MENDED.decode(rows[order], np.array(order) * 256).notes == forward
    assert MENDED.decode([encoded[i] for i in order], np.array(order) * 256).notes == forward
    with pytest.raises(DataError, match="3 segments but 2 start_frames"):
        MENDED.decode(list(rows), np.array([0, 256]))


def test_a_decoder_tells_what_sounds() -> None:
    decoder = TokenDecoder(MT3.config)
    decoder.segment(ids(MT3, "tie, program 7, on 1, pitch 64, program 0, pitch 60, eos"), 0, 256)
    assert decoder.sounding().tolist() == [[0, 60], [7, 64]]
    section = MT3.tie_section(decoder.sounding())
    decoder.segment(np.append(section, 1), 256)
    assert decoder.sounding().tolist() == [[0, 60], [7, 64]]
    assert decoder.finish(5.0).report.invalid == 0


def test_a_segment_read_alone_says_the_same_again() -> None:
    text = (
        "program 40, pitch 60, pitch 64, program 48, pitch 60, tie, shift 20, program 40, off 0, "
        "pitch 60, program 0, on 1, pitch 72, drum 38, shift 203, program 48, off 0, pitch 60, eos"
    )
    for codec in (MT3, MENDED):
        notes = codec.decode_clip(ids(codec, text))
        assert notes.onset_s.min() == -1.0 and notes.offset_s.max() == 3.048
        assert words(codec, codec.encode_clip(notes, 0.0)) == text
    assert MT3.decode_clip(ids(MT3, "tie, eos")) == Notes.empty()
    alone = ids(PIANO, "shift 3, on 90, pitch 60, eos")
    assert words(PIANO, PIANO.encode_clip(PIANO.decode_clip(alone), 0.0)) == words(PIANO, alone)


def test_segments_that_never_end_are_counted() -> None:
    report = MT3.decode([ids(MT3, "tie, eos"), ids(MT3, "tie, program 0, on 1")]).report
    assert (report.cut, report.invalid) == (1, 0)


def test_nothing_at_all() -> None:
    for codec in (MT3, PIANO, MENDED):
        encoded = codec.encode(Notes.empty(), 600)
        expected = "tie, eos" if codec.config.ties else "eos"
        assert {words(codec, tokens) for tokens in encoded} == {expected}
        assert codec.decode(encoded).notes == Notes.empty()
        assert codec.decode([]).notes == codec.decode([np.zeros(0, int)]).notes == Notes.empty()
        assert len(codec.encode(ONE, 0)) == 0
        assert words(codec, codec.encode_clip(Notes.empty(), 3.0)) == expected


# Bad input -----------------------------------------------------------------------------------


def test_a_target_that_is_too_long_is_not_cut() -> None:
    notes = Notes.from_arrays([0.1] * 50 + [3.0], [0.2] * 50 + [3.1], [*range(40, 90), 60])
    encoded = MT3.encode(notes, 512)
    rows, fits = encoded.padded(64)
    assert fits.tolist() == [False, True]
    assert not rows[0].any()
    np.testing.assert_array_equal(rows[1, : encoded.lengths[1]], encoded[1])
    assert not rows[1, encoded.lengths[1] :].any()
    wide, all_fit = encoded.padded(200)
    assert all_fit.all() and (wide[0] > 0).sum() == encoded.lengths[0] == len(encoded[-2])
    with pytest.raises(DataError, match="max_tokens"):
        encoded.padded(0)
    with pytest.raises(IndexError):
        encoded[2]


def test_notes_that_cannot_be_said_are_counted() -> None:
    notes = Notes.from_arrays(
        [-3.0, -1.0, 0.5, 1.0, 1.5, 9.0],
        [-2.0, 1.5, 0.5, 1.2, 1.6, 9.5],
        [60, 61, 62, 63, 64, 65],
        [80, 80, 80, 0, 80, 80],
        is_drum=[False, False, False, False, True, False],
    )
    encoded = MENDED.encode(notes, 256)
    report = encoded.report
    assert (report.notes, report.before_start, report.zero_length) == (6, 1, 1)
    assert (report.silent, report.after_end, report.overlapping) == (1, 1, 0)
    assert words(MT3, encoded[0]).startswith(
        "program 0, pitch 61, tie, shift 50, on 1, pitch 62, off"
    )
    heard = MENDED.decode(encoded)
    assert heard.report.untied == heard.report.invalid - heard.report.unstarted == 1
    assert list(heard.notes) == [
        Note(0.5, 0.51, 62, 127),
        Note(1.0, 1.2, 63, 127),
        Note(1.5, 1.51, 64, 127, 0, True),
    ]
    assert PIANO.encode(notes, 256).report.before_start == 2


def test_ten_thousand_notes_at_once() -> None:
    place = np.arange(10_000)
    notes = Notes.from_arrays(
        np.full(10_000, 0.5), np.full(10_000, 3.0), place % 128, program=place // 128
    )
    encoded = MENDED.encode(notes, 512)
    assert encoded.lengths.tolist() == [10_083, 20_162]
    assert not encoded.padded(1024)[1].any()
    heard = MENDED.decode(encoded)
    assert len(heard.notes) == 10_000 and heard.report.invalid == 0


def test_a_ten_hour_recording() -> None:
    """Encoded in one go; its last minutes are decoded at their own times."""
    rng = np.random.default_rng(0)
    onset_s = np.sort(rng.uniform(0, 36_000, 50_000))
    notes = Notes.from_arrays(onset_s, onset_s + 0.5, rng.integers(21, 109, 50_000))
    begun = time.perf_counter()
    encoded = MENDED.encode(notes, 36_000 * 125)
    assert time.perf_counter() - begun < 20
    assert len(encoded) == 17_579
    first = len(encoded) - 100
    heard = MENDED.decode(list(encoded)[first:], np.arange(first, len(encoded)) * 256).notes
    expected = notes[notes.onset_s > first * 2.048 + 0.01]
    assert len(heard) == len(expected) > 200
    np.testing.assert_allclose(heard.onset_s, np.sort(expected.onset_s), atol=0.0051)


def test_segments_must_make_sense() -> None:
    timeline = MT3.timeline(ONE)
    for starts, ends in ([[-1], [5]], [[5], [5]]):
        with pytest.raises(DataError, match="Segments must begin"):
            timeline.tokens(np.array(starts), np.array(ends))
