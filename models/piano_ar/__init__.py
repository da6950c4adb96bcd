"""Autoregressive multi-state piano transcription (Kwon, Jeong, Nam 2020), also while it sounds."""

from musicjax.registry import Card, System

_MODULE = "musicjax.models.piano_ar"
_PAPER = "https://arxiv.org/abs/2010.01104"

_CARDS = {
    "small": Card(
        summary="Piano written down as it is played, 160 ms after; convolutions of a small form.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores played by sound fonts, a sampled grand and modelled pianos in rooms",
        sample_rate=16000,
        parameters=4_251_859,
    ),
    "small_fast": Card(
        summary="The same, 64 ms after; it hears less of what follows an onset.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores played by sound fonts, a sampled grand and modelled pianos in rooms",
        sample_rate=16000,
        parameters=4_251_859,
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
    cards=_CARDS,
)
