"""Network parts that several systems share: convolution, normalisation, recurrence."""

from musicjax.nn.conv import Conv2D, convolve, dropout, mask_frames, max_pool_frequency
from musicjax.nn.norm import BatchNormReLU, norm_relu
from musicjax.nn.recurrent import BiLSTM, LSTMWeights, bilstms, lstm

__all__ = [
    "BatchNormReLU",
    "BiLSTM",
    "Conv2D",
    "LSTMWeights",
    "bilstms",
    "convolve",
    "dropout",
    "lstm",
    "mask_frames",
    "max_pool_frequency",
    "norm_relu",
]
