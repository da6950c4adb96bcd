"""The model that suits a request: the best at hand, and whether a better one could be fetched.

Nothing is hidden here: what a model hears and how well stands on its card
(`musicjax.registry.Ability`), and a model that is added takes part by its card alone.
"""

from dataclasses import dataclass

from musicjax import registry
from musicjax.errors import ConfigError, WeightsError
from musicjax.hub.availability import Availability, availability

AUTO = "auto"
_INSTRUMENTS = ("piano", "any")
# Real time needs a margin: other programs run as well, and dense music takes longer.
_REAL_TIME = 2.0


@dataclass(frozen=True)
class Candidate:
    """A model that fits a request: what to expect of it, and where its weights are."""

    name: str
    onset_f1: float
    weights: Availability

    @property
    def download(self) -> str:
        """How much is to be fetched, as a phrase."""
        return f"{self.weights} once"


@dataclass(frozen=True)
class Choice:
    """The model that was chosen, and the best that would have to be fetched, if that is better."""

    model: Candidate
    better: Candidate | None = None

    @property
    def name(self) -> str:
        """Of the chosen model, for `musicjax.load`."""
        return self.model.name

    def __str__(self) -> str:
        told = f"{self.name} listens, onset F1 {self.model.onset_f1:.2f} to expect"
        if self.better is None:
            return f"{told}; it is the best there is."
        return (
            f"{told}; {self.better.name} is better ({self.better.onset_f1:.2f}; "
            f"{self.better.download}): --model {self.better.name}"
        )


def choose(
    *,
    instrument: str | None = None,
    pedals: bool = False,
    bends: bool = False,
    real_time: bool = False,
) -> Choice:
    """The transcriber that hears best what is asked for and needs no download.

    Args:
      instrument: "piano", or "any" for other instruments, voices and ensembles; None means a
        piano, unless notes are to bend.
      pedals: it must write the movements of the pedals.
      bends: it must write how the pitch of notes bends.
      real_time: one processor core must hear at least twice as fast as the music plays.

    Raises ConfigError when no model does all of that, and WeightsError when those that do would
    all have to be fetched; both say what to do.
    """
    fitting = candidates(instrument=instrument, pedals=pedals, bends=bends, real_time=real_time)
    here = [model for model in fitting if model.weights.at_hand]
    best = fitting[0]
    if not here:
        others = "".join(f"; or {m.name} ({m.onset_f1:.2f}, {m.download})" for m in fitting[1:])
        raise WeightsError(
            f"no model at hand does what was asked for; {best.name} does (onset F1 "
            f"{best.onset_f1:.2f} to expect, {best.download}): name it to have it fetched, "
            f"--model {best.name}{others}."
        )
    return Choice(here[0], None if best is here[0] else best)


def candidates(
    *,
    instrument: str | None = None,
    pedals: bool = False,
    bends: bool = False,
    real_time: bool = False,
) -> list[Candidate]:
    """All transcribers with weights that fit, the best first; arguments and errors as `choose`.

    Scores that differ by less than a hundredth are told by few recordings: of such models one at
    hand comes first, and then the faster one.
    """
    if instrument not in (None, *_INSTRUMENTS):
        raise ConfigError(f"instrument is {instrument!r}; choose {' or '.join(_INSTRUMENTS)}.")
    kind = instrument or ("any" if bends else "piano")
    found = []
    for name in registry.list_models():
        card = registry.model_card(name)
        able = card.ability
        if able is None or kind not in able.onset_f1:
            continue
        slow = real_time and able.times_real_time < _REAL_TIME
        if (pedals and not able.pedals) or (bends and not able.bends) or slow:
            continue
        candidate = Candidate(name, able.onset_f1[kind], availability(card))
        order = (-round(candidate.onset_f1, 2), not candidate.weights.at_hand)
        found.append(((*order, -able.times_real_time, name), candidate))
    if not found:
        asked = {"pedals": pedals, "bends": bends, "real time": real_time}
        also = " and ".join(what for what, wanted in asked.items() if wanted)
        what = "a piano" if kind == "piano" else "any instrument"
        raise ConfigError(f"no model does {also} for {what}; ask for less of it at once.")
    return [candidate for _, candidate in sorted(found)]


def at_hand(task: str = "transcribe") -> list[str]:
    """Names of all models of a task that can be loaded without a download."""
    return [
        name
        for name in registry.list_models()
        if registry.find_system(name).task == task
        and availability(registry.model_card(name)).at_hand
    ]
