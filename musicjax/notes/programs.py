"""The 128 General MIDI programs (General MIDI System Level 1, MMA 1991): names and families."""

from typing import Literal

import numpy as np
from jaxtyping import Integer

from musicjax.errors import ConfigError, DataError

Granularity = Literal["full", "midi_class", "flat"]

# One family of eight a line.
_NAMES = """
Acoustic Grand Piano,Bright Acoustic Piano,Electric Grand Piano,Honky-tonk Piano,Electric Piano 1,Electric Piano 2,Harpsichord,Clavinet
Celesta,Glockenspiel,Music Box,Vibraphone,Marimba,Xylophone,Tubular Bells,Dulcimer
Drawbar Organ,Percussive Organ,Rock Organ,Church Organ,Reed Organ,Accordion,Harmonica,Tango Accordion
Nylon Guitar,Steel Guitar,Jazz Guitar,Clean Electric Guitar,Muted Electric Guitar,Overdriven Guitar,Distortion Guitar,Guitar Harmonics
Acoustic Bass,Fingered Electric Bass,Picked Electric Bass,Fretless Bass,Slap Bass 1,Slap Bass 2,Synth Bass 1,Synth Bass 2
Violin,Viola,Cello,Contrabass,Tremolo Strings,Pizzicato Strings,Orchestral Harp,Timpani
String Ensemble 1,String Ensemble 2,Synth Strings 1,Synth Strings 2,Choir Aahs,Voice Oohs,Synth Voice,Orchestra Hit
Trumpet,Trombone,Tuba,Muted Trumpet,French Horn,Brass Section,Synth Brass 1,Synth Brass 2
Soprano Sax,Alto Sax,Tenor Sax,Baritone Sax,Oboe,English Horn,Bassoon,Clarinet
Piccolo,Flute,Recorder,Pan Flute,Blown Bottle,Shakuhachi,Whistle,Ocarina
Square Lead,Sawtooth Lead,Calliope Lead,Chiff Lead,Charang Lead,Voice Lead,Fifths Lead,Bass and Lead
New Age Pad,Warm Pad,Polysynth Pad,Choir Pad,Bowed Pad,Metallic Pad,Halo Pad,Sweep Pad
Rain,Soundtrack,Crystal,Atmosphere,Brightness,Goblins,Echoes,Sci-fi
Sitar,Banjo,Shamisen,Koto,Kalimba,Bagpipe,Fiddle,Shanai
Tinkle Bell,Agogo,Steel Drums,Woodblock,Taiko Drum,Melodic Tom,Synth Drum,Reverse Cymbal
Guitar Fret Noise,Breath Noise,Seashore,Bird Tweet,Telephone Ring,Helicopter,Applause,Gunshot
"""  # noqa: E501
PROGRAM_NAMES = tuple(name for line in _NAMES.split("\n") if line for name in line.split(","))


def program_name(program: int) -> str:
    """Name of a General MIDI program, counted from 0: 0 is Acoustic Grand Piano."""
    if not 0 <= program <= 127:
        raise DataError(f"program must be from 0 to 127; got {program}.")
    return PROGRAM_NAMES[program]


def coarser_programs(
    program: Integer[np.ndarray, " notes"], granularity: str
) -> Integer[np.ndarray, " notes"]:
    """Programs as a granularity tells them apart (MT3, ICLR 2022, section 4.2).

    "full" all 128; "midi_class" the first of each family of eight, so that a violin (40) and a
    cello (42) are both 40; "flat" 0 for all.
    """
    if granularity == "full":
        return program
    if granularity == "midi_class":
        return program // 8 * 8
    if granularity == "flat":
        return np.zeros_like(program)
    raise ConfigError(f"granularity must be 'full', 'midi_class' or 'flat'; got {granularity!r}.")
