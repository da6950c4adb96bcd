"""Network parts that several systems share: convolution, recurrence, the Transformer."""

from musicjax.nn.attention import Attention, Cache, LayerCache, attend
from musicjax.nn.axes import axes, constrain, linear
from musicjax.nn.conv import Conv2D, convolve, dropout, mask_frames, max_pool_frequency
from musicjax.nn.conv_stack import ConvStack
from musicjax.nn.embed import RelativeBias, sinusoids
from musicjax.nn.forms import TransformerConfig, form
from musicjax.nn.gru import BiGRU, GRUWeights, bigrus, gru
from musicjax.nn.norm import BatchNormReLU, norm_relu
from musicjax.nn.recurrent import LSTM, BiLSTM, LSTMWeights, bilstms, lstm
from musicjax.nn.transformer import Transformer, shift_right

__all__ = [
    "LSTM",
    "Attention",
    "BatchNormReLU",
    "BiGRU",
    "BiLSTM",
    "Cache",
    "Conv2D",
    "ConvStack",
    "GRUWeights",
    "LSTMWeights",
    "LayerCache",
    "RelativeBias",
    "Transformer",
    "TransformerConfig",
    "attend",
    "axes",
    "bigrus",
    "bilstms",
    "constrain",
    "convolve",
    "dropout",
    "form",
    "gru",
    "linear",
    "lstm",
    "mask_frames",
    "max_pool_frequency",
    "norm_relu",
    "shift_right",
    "sinusoids",
]
