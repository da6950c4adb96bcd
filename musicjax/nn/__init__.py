"""Network parts that several systems share: convolution, recurrence."""

from musicjax.nn.conv import Conv2D, convolve, dropout, mask_frames, max_pool_frequency
from musicjax.nn.recurrent import BiLSTM, LSTMWeights, lstm

__all__ = [
    "BiLSTM",
    "Conv2D",
    "LSTMWeights",
    "convolve",
    "dropout",
    "lstm",
    "mask_frames",
    "max_pool_frequency",
]
