"""From a network's logits to tokens: greedy, drawn, by beams, and through refilled slots.

`generate` decodes a batch in one compiled loop, `beam_search` looks for the best-scoring rows, and
`SlotDecoder` sends any number of segments through a fixed number of slots. All of them need of a
network no more than `DecodeCache` and one step.
"""

from musicjax.decode.beam import BeamState, Hypotheses, beam_search
from musicjax.decode.config import BeamConfig, GenerateConfig
from musicjax.decode.grammar import GrammarMask, TableGrammar
from musicjax.decode.loop import DecodeState, Generated, advance, generate, start
from musicjax.decode.protocol import DecodeCache, Prefill, Step, WeightedStep
from musicjax.decode.slots import Decoded, Run, Segment, SlotDecoder, Tally

__all__ = [
    "BeamConfig",
    "BeamState",
    "DecodeCache",
    "DecodeState",
    "Decoded",
    "GenerateConfig",
    "Generated",
    "GrammarMask",
    "Hypotheses",
    "Prefill",
    "Run",
    "Segment",
    "SlotDecoder",
    "Step",
    "TableGrammar",
    "Tally",
    "WeightedStep",
    "advance",
    "beam_search",
    "generate",
    "start",
]
