"""What distinguishes one form of the system from another, and the forms that there are."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from musicjax.audio.config import FrontendConfig
from musicjax.audio.presets import preset
from musicjax.errors import ConfigError
from musicjax.models.piano_ar.states import STATES, StateSet
from musicjax.types import LOWEST_PITCH, NUM_PITCHES, Policy

Forcing = Literal["truth", "sampled", "corrupted"]


@dataclass(frozen=True)
class PianoARConfig:
    """Everything that distinguishes one form of the system from another. Hashable, static.

    The defaults are the paper's network as its training code has it.
    """

    frontend: FrontendConfig = replace(preset("ar_piano"), drop_last_frame=True)  # noqa: RUF009
    min_pitch: int = LOWEST_PITCH
    num_pitches: int = NUM_PITCHES
    states: StateSet = "five"
    conv_channels: tuple[int, int, int] = (48, 48, 96)
    conv_ahead: tuple[int, int, int] = (1, 1, 1)  # frames that each convolution hears ahead
    fc_units: int = 768
    embedding: int = 2  # numbers that tell the LSTM of one key's state in the frame before
    lstm_units: int = 768
    lstm_layers: int = 2
    lstm_biases: Literal[1, 2] = 2  # PyTorch keeps two that are added
    dropout: tuple[float, float, float] = (0.25, 0.25, 0.5)
    # Additions of this library, off in the published forms: a second acoustic model beside the
    # first, so that one can hear onsets and one what sounds; the last layer also sees the acoustic
    # models directly; and the strength of each key's onset is told.
    two_stacks: bool = False
    skip: bool = False
    velocity: bool = False
    # And a table, one for all keys, of how much likelier each state is after each, which the logits
    # are given; the LSTM alone takes long to learn that what sounds goes on sounding.
    transitions: bool = False
    # How much less likely than in training (nats) the table makes it that what sounds goes on or is
    # struck again, where the network is told its own states: taught with true ones, it trusts them
    # too much.
    doubt: float = 0.0
    acoustic_gain: float = 1.0  # of what comes from the acoustic models
    # Training. The states of the frame before are the true ones; or some of them, `forcing_rate` of
    # all, are those that the network itself says, or random ones. The rate of own states rises from
    # zero to this over `forcing_steps` steps as the inverse sigmoid of Bengio et al. 2015.
    forcing: Forcing = "truth"
    forcing_rate: float = 0.5
    forcing_steps: int = 0
    onset_weight: float = 1.0  # of cells in which a note begins
    velocity_weight: float = 1.0
    frozen: tuple[Literal["stack", "frame_stack"], ...] = ()  # acoustic models that do not learn
    # Decoding: what the probabilities of onsets are multiplied by (the public demo: 2).
    onset_boost: float = 1.0
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.states not in STATES:
            raise ConfigError(f"states is {self.states!r}; choose one of {', '.join(STATES)}.")
        if not set(self.conv_ahead) <= {0, 1}:
            raise ConfigError(
                f"conv_ahead is {self.conv_ahead}; a convolution of three frames hears 0 or 1 of "
                "them ahead."
            )
        if not 0 <= self.forcing_rate <= 1:
            raise ConfigError(f"forcing_rate is {self.forcing_rate}; expected 0 to 1.")
        if self.doubt and not self.transitions:
            raise ConfigError(f"doubt is {self.doubt}, but there is no table: transitions=True.")

    @property
    def num_states(self) -> int:
        """States of a key."""
        return len(STATES[self.states])

    @property
    def acoustic_units(self) -> int:
        """Numbers that the acoustic models give for a frame."""
        return self.fc_units * (1 + self.two_stacks)


# Silence before and after a recording, instead of its mirror: a stream knows no future.
_STREAMED: dict[str, Any] = {
    "padding": "zeros",
    "drop_last_sample": False,
    "drop_last_frame": True,
}


def _small(**fields: Any) -> PianoARConfig:
    """Sizes and filters of `onsets_frames.small`, whose onset and activation stacks fit."""
    frontend = replace(preset("onsets_frames"), **_STREAMED)
    sizes: dict[str, Any] = {
        "conv_channels": (16, 16, 32),
        "fc_units": 256,
        "lstm_units": 384,
        "lstm_biases": 1,
        "dropout": (0.0, 0.0, 0.0),
        # Acoustic models that end without a norm, made to feed an LSTM of their own.
        "acoustic_gain": 0.5,
        "onset_weight": 2.0,
        # An error at an onset is averaged over onsets, one of states over all cells, a hundred
        # times as many: at equal weight the LSTM would learn little but velocities.
        "velocity_weight": 0.02,
    }
    added = {"two_stacks": True, "skip": True, "velocity": True, "transitions": True}
    return PianoARConfig(frontend=frontend, **(sizes | added | fields))


def get_config(variant: str = "base") -> PianoARConfig:
    """The config of a variant.

    base (also called paper): the paper's, 14,594,994 parameters. demo: the same as the authors'
    public real-time demonstration has it. small: 4,251,859 parameters, two acoustic models of the
    shape of those of `onsets_frames.small`, hears 160 ms ahead and tells velocities. small_fast:
    the same hearing 96 ms ahead. tiny: for tests.
    """
    variants = {
        "base": PianoARConfig,
        "paper": PianoARConfig,
        # Its frames begin where the sound does; here they are counted from their centres.
        "demo": lambda: PianoARConfig(
            frontend=replace(preset("online_amt"), **_STREAMED), onset_boost=2.0
        ),
        "small": lambda: _small(doubt=1.5, onset_boost=2.0),
        "small_fast": lambda: _small(conv_ahead=(1, 0, 0), doubt=1.0, onset_boost=1.5),
        # Without the table: where weights are drawn at random it lets roundings change states.
        "tiny": lambda: _small(
            conv_channels=(2, 2, 4), fc_units=12, lstm_units=16, transitions=False
        ),
    }
    if variant not in variants:
        raise ConfigError(
            f"piano_ar has no variant {variant!r}; choose one of {', '.join(variants)}."
        )
    return variants[variant]()
