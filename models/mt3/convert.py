"""T5X checkpoints of MT3, and of the piano model before it, for our Transformer."""

from pathlib import Path

from musicjax.errors import WeightsError
from musicjax.hub.t5x import open_t5x
from musicjax.hub.t5x_layouts import transformer_from_t5x
from musicjax.nn.forms import TransformerConfig
from musicjax.nn.transformer import Transformer

# Rows of the token tables of the published models, and what their vocabularies tell apart.
VOCABULARIES = {
    1536: "mt3 and ismir2022 (1 velocity bin)",
    1664: "ismir2021 (127 velocity bins)",
}
_TABLE = "decoder/token_embedder/embedding"


def read_transformer(path: Path, config: TransformerConfig) -> Transformer:
    """The Transformer in a T5X checkpoint folder of any layout; its optimizer is left out.

    Raises WeightsError when the vocabulary is another than the config's, and one that lists
    everything else which is damaged or does not fit.
    """
    checkpoint = open_t5x(path)
    rows = getattr(checkpoint.part("target").get(_TABLE), "shape", (0,))[0]
    if rows in VOCABULARIES and rows != config.vocab_size:
        wanted = VOCABULARIES.get(config.vocab_size, f"one of {config.vocab_size} rows")
        raise WeightsError(
            f"the checkpoint {path} has {rows} token rows, the vocabulary of {VOCABULARIES[rows]}; "
            f"the model that it should become has {wanted}. Convert it to the model that it is of."
        )
    return transformer_from_t5x(checkpoint, config)
