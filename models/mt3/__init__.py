"""MT3 (Gardner et al. 2022) and the piano model before it: recordings to tokens to notes."""

from musicjax.registry import Ability, Card, Source, System

_FOLDER = "musicjax.models.mt3"
_PAPER = "https://arxiv.org/abs/2111.03017"
_LICENCE = "Apache-2.0 (code; the authors name none for the checkpoint)"

_CARDS = {
    "mt3": Card(
        summary="Several instruments and drums, with the authors' checkpoint.",
        paper=_PAPER,
        licence=_LICENCE,
        training_data="MAESTRO v3, Slakh2100, Cerberus4, GuitarSet, MusicNet-EM, URMP",
        sample_rate=16_000,
        parameters=45_896_704,
        source=Source(
            address="gs://mt3/checkpoints/mt3/", sha256="", size_bytes=0, converter="convert"
        ),
        scores={
            "onset_f1, MAESTRO, as the authors tell": 0.9455,
            "onset_f1, Slakh2100, as the authors tell": 0.7585,
            "onset_offset_program_f1, Slakh2100, as the authors tell": 0.5453,
        },
        ability=Ability({"piano": 0.9455, "any": 0.7585}),
    ),
    "ismir2021": Card(
        summary="Piano with velocities, with the authors' checkpoint of 2021.",
        paper="https://arxiv.org/abs/2107.09142",
        licence=_LICENCE,
        training_data="MAESTRO v3",
        sample_rate=16_000,
        parameters=46_027_776,
        source=Source(
            address="gs://mt3/checkpoints/ismir2021/", sha256="", size_bytes=0, converter="convert"
        ),
        scores={"onset_f1, MAESTRO v3, as the authors tell": 0.9601},
        ability=Ability({"piano": 0.9601}),
    ),
    "mini": Card(
        summary="Several instruments and drums by family, a fifth of MT3's size.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores and grooves played by sound fonts, in bands and rooms",
        sample_rate=16_000,
        parameters=8_774_106,
        source=Source(
            address="package:mini.safetensors",
            sha256="e49dc40d67e89604afcc3bd8e2d403c81850952052c84b5b546831d4d9122d07",
            size_bytes=17_562_196,
        ),
        scores={
            "onset_f1, band": 0.724,
            "onset_f1, song with piano": 0.818,
            "onset_f1, string quartet": 0.556,
            "drum_onset_f1, drums": 0.699,
            "onset_f1, bands of an unseen sound font": 0.498,
            "onset_offset_program_f1, band": 0.310,
        },
        ability=Ability({"piano": 0.8520, "any": 0.6995}, times_real_time=19.0),
    ),
    "small": Card(
        summary="MT3's size with mini's language of no quirks and its ears, to be trained.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture)",
        training_data="none: an architecture to train",
        sample_rate=16_000,
        parameters=47_277_450,
    ),
    "base": Card(
        summary="The larger network of MT3's code (its ismir2022), to be trained.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture)",
        training_data="none: an architecture to train",
        sample_rate=16_000,
        parameters=200_980_992,
    ),
}

SYSTEM = System(
    name="mt3",
    task="transcribe",
    title="MT3",
    model=f"{_FOLDER}.model:MT3",
    config=f"{_FOLDER}.config:get_config",
    loss=f"{_FOLDER}.model:loss",
    targets=f"{_FOLDER}.tokens:targets",
    decode=f"{_FOLDER}.tokens:decode",
    cards=_CARDS,
)
