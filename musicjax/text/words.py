"""The words of the built-in sentences about music (`musicjax.data.captions`).

Their order is their ids: new ones go to the end, or weights trained before no longer fit.
"""

# fmt: off
WORDS: tuple[str, ...] = (
    ".", ",", "a", "an", "the", "and", "with", "in", "of", "to", "is", "for", "it", "this",
    "that", "there", "piano", "piece", "solo", "music", "passage", "recording", "one", "note",
    "notes", "at", "time", "few", "some", "many", "single", "lone", "almost", "silence", "sparse",
    "steady", "busy", "dense", "very", "slow", "moderate", "fast", "quick", "rapid", "calm",
    "lively", "soft", "quiet", "gentle", "loud", "strong", "forceful", "medium", "loudness",
    "low", "middle", "high", "wide", "narrow", "register", "range", "keyboard", "whole", "across",
    "melody", "line", "chords", "chord", "harmony", "voices", "together", "thin", "full",
    "texture", "long", "short", "held", "detached", "ringing", "pedal", "sustained", "plays",
    "played", "playing", "moves", "unfolds", "mood", "tempo", "second", "per", "about",
)
# fmt: on
