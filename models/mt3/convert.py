"""The authors' T5X checkpoints of MT3 and of the piano model for this network."""

from pathlib import Path

from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.t5x import T5XCheckpoint, fill, open_t5x
from musicjax.hub.t5x_layouts import check_vocabulary, t5x_rules
from musicjax.models.mt3.config import MT3Config, get_config
from musicjax.models.mt3.model import MT3

_PREFIX = "transformer."
_TABLE = "decoder/token_embedder/embedding"
_PUBLISHED = ("mt3", "ismir2021", "base")  # those of which checkpoints can be met
VOCABULARIES = {1536: "MT3", 1664: "the piano model ismir2021"}  # by rows of the token table


def convert(path: Path, tag: str = "") -> tuple[MT3, MT3Config]:
    """The model in a T5X checkpoint, in any of its layouts.

    path: the checkpoint's folder or its index file. tag: which variant it is of; left out, the size
    of its token table tells mt3 and ismir2021 apart. Raises one WeightsError with everything that
    is damaged or does not fit.
    """
    checkpoint = open_t5x(path)
    if not tag:
        rows = getattr(checkpoint.part("target").get(_TABLE), "shape", (0,))[0]
        tag = "ismir2021" if rows == 1664 else "mt3"
    if tag not in _PUBLISHED:
        raise WeightsError(
            f"mt3.{tag} has no foreign checkpoints; convert to one of "
            f"{', '.join(f'mt3.{name}' for name in _PUBLISHED)}."
        )
    config = get_config(tag)
    return from_checkpoint(checkpoint, config), config


def from_checkpoint(checkpoint: T5XCheckpoint, config: MT3Config) -> MT3:
    """The model of a config with the parameters of an opened checkpoint."""
    network = config.transformer
    check_vocabulary(checkpoint, network, VOCABULARIES)
    graph, state = nnx.split(nnx.eval_shape(lambda: MT3(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(checkpoint, state, t5x_rules(network, prefix=_PREFIX)))
