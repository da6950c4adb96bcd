"""Basic Pitch (Bittner et al. 2022): recordings of any instrument to notes that bend."""

from musicjax.registry import Ability, Card, Source, System

_PACKAGE = "musicjax.models.basic_pitch"
_PAPER = "https://arxiv.org/abs/2203.09893"

_CARDS = {
    "icassp2022": Card(
        summary="Notes with pitch bends, any instrument, voice too; very small and fast.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="GuitarSet, iKala, MAESTRO, MedleyDB-pitch, Slakh (the authors' training)",
        sample_rate=22050,
        parameters=16_742,
        source=Source(
            address="pypi:basic_pitch-0.4.0-py2.py3-none-any.whl/basic_pitch/saved_models/icassp_2022/nmp.onnx",
            sha256="2c3c1d144bfa61ad236e92e169c13535c880469a12a047d4e73451f2c059a0ec",
            size_bytes=230_444,
            converter="convert",
            wheel_sha256="738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
            wheel_bytes=758_279,
        ),
        ability=Ability({"piano": 0.7761, "any": 0.5932}, bends=True, times_real_time=29.0),
    ),
}

SYSTEM = System(
    name="basic_pitch",
    task="transcribe",
    title="Basic Pitch",
    model=f"{_PACKAGE}.model:BasicPitch",
    config=f"{_PACKAGE}.model:get_config",
    loss=f"{_PACKAGE}.model:loss",
    targets=f"{_PACKAGE}.labels:targets",
    decode=f"{_PACKAGE}.note_creation:decode",
    decoder=f"{_PACKAGE}.note_creation:NoteCreation",
    cards=_CARDS,
)
