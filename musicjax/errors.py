"""Errors that a musician who programs can act on.

Every message is one or two sentences: what was given, what was expected, what to do. The command
line prints them without a traceback and exits with `exit_code`.
"""


class MusicJaxError(Exception):
    """Base of all errors raised on purpose by this library."""

    exit_code = 2

    def __str__(self) -> str:  # KeyError subclasses would print the repr of the sentence
        return str(self.args[0]) if self.args else ""


class AudioError(MusicJaxError, ValueError):
    """The audio cannot be read or is not audio that a model can hear."""


class ModelNotFoundError(MusicJaxError, KeyError):
    """No system or tag of that name; the message lists near matches."""


class WeightsError(MusicJaxError, ValueError):
    """Weights are missing, damaged, do not fit the model, or fail their checksum."""


class ConfigError(MusicJaxError, ValueError):
    """A configuration field is unknown or has a value that cannot work."""


class DataError(MusicJaxError, ValueError):
    """A corpus, record or MIDI file is missing, damaged or not in the expected layout."""


class TrainingError(MusicJaxError, RuntimeError):
    """Training cannot go on; the message says what to change."""


class TrainingStopped(MusicJaxError):
    """Training was interrupted and everything was saved; the same command continues it."""

    def __init__(self, sentence: str, exit_code: int = 130) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class OutputError(MusicJaxError, OSError):
    """A result cannot be written where it was asked for."""


class MissingDependencyError(MusicJaxError, ImportError):
    """An optional package or program is not installed; the message says how to get it."""
