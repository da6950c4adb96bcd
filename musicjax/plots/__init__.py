"""Pictures of music: piano rolls over the sound they were heard in, comparisons, spectrograms.

Figures are made without pyplot, so that drawing in a thread or a server touches no global state.
Every function returns the matplotlib figure and, when given `path`, also writes it there: in place
whole or not at all, as PNG unless the name ends in .pdf or .svg.
"""

from musicjax.plots.contour import plot_contour
from musicjax.plots.figures import plot_comparison, plot_piano_roll, plot_spectrogram
from musicjax.plots.sound import pitch_spectrogram
from musicjax.plots.stack import plot_transcriptions

__all__ = [
    "pitch_spectrogram",
    "plot_comparison",
    "plot_contour",
    "plot_piano_roll",
    "plot_spectrogram",
    "plot_transcriptions",
]
