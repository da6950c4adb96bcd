"""Autoregressive multi-state piano transcription (Kwon, Jeong, Nam 2020), also while it sounds."""

from musicjax.registry import Ability, Card, Source, System

_MODULE = "musicjax.models.piano_ar"
_PAPER = "https://arxiv.org/abs/2010.01104"

_CARDS = {
    "small": Card(
        summary="Piano written down as it is played, 160 ms after; convolutions of a small form.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores played by sound fonts, five sampled and modelled pianos in rooms",
        sample_rate=16000,
        parameters=4_251_859,
        source=Source(
            address="package:small.safetensors",
            sha256="91488494082b757ca4f6e327e6260cc57c9438f8a6c261e7867fd2c1bc1b0aa8",
            size_bytes=8_510_510,
        ),
        scores={
            "onset_f1, sampled grand": 0.939,
            "onset_f1, unseen sound font in rooms": 0.881,
            "onset_offset_f1, unseen sound font in rooms": 0.645,
        },
        ability=Ability({"piano": 0.9390}, least_confidence=0.735, times_real_time=54.0),
    ),
    "small_fast": Card(
        summary="The same, 96 ms after; it hears less of what follows an onset.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores played by sound fonts, five sampled and modelled pianos in rooms",
        sample_rate=16000,
        parameters=4_251_859,
        source=Source(
            address="package:small_fast.safetensors",
            sha256="641764ddba01390f879c411c9eef730744a0862fc1c54ba4aaf6fbcbd0c3de54",
            size_bytes=8_510_526,
        ),
        scores={
            "onset_f1, sampled grand": 0.929,
            "onset_f1, unseen sound font in rooms": 0.851,
            "onset_offset_f1, unseen sound font in rooms": 0.509,
        },
        ability=Ability({"piano": 0.9295}, least_confidence=0.715, times_real_time=54.0),
    ),
    "paper": Card(
        summary="The paper's form; convert a checkpoint of its training code, or train it.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture; a checkpoint carries its own)",
        training_data="MAESTRO v2 (the paper's)",
        sample_rate=16000,
        parameters=14_594_994,
    ),
    "demo": Card(
        summary="The authors' public real-time demonstration; convert its checkpoint to use it.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture; the checkpoint carries its own)",
        training_data="MAESTRO (the public checkpoint)",
        sample_rate=16000,
        parameters=14_594_994,
    ),
}

SYSTEM = System(
    name="piano_ar",
    task="transcribe",
    title="Autoregressive multi-state note model",
    model=f"{_MODULE}.model:PianoAR",
    config=f"{_MODULE}.config:get_config",
    loss=f"{_MODULE}.model:loss",
    targets=f"{_MODULE}.labels:targets",
    decode=f"{_MODULE}.decoding:decode",
    decoder=f"{_MODULE}.decoding:decoder",
    adapt=f"{_MODULE}.ahead:adapt",
    cards=_CARDS,
)
