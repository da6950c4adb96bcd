"""Onsets and Frames (Hawthorne et al. 2018, 2019): piano recordings to notes."""

from musicjax.registry import Ability, Card, Source, System

_MODULE = "musicjax.models.onsets_frames.model"
_PAPER = "https://arxiv.org/abs/1810.12247"

_CARDS = {
    "small": Card(
        summary="Piano transcription at complexity 16, for any piano in any room.",
        paper=_PAPER,
        licence="Apache-2.0",
        training_data="scores played by sound fonts, sampled and modelled pianos in rooms",
        sample_rate=16000,
        parameters=3_204_856,
        source=Source(
            address="package:small.safetensors",
            sha256="e8e64fe0218069c2f28940fd313fb791e0f8c0c4c4a591ea32037409aa787e84",
            size_bytes=6_423_736,
        ),
        scores={
            "onset_f1, sampled grand": 0.950,
            "onset_f1, unseen sound font in rooms": 0.898,
            "onset_offset_f1, unseen sound font in rooms": 0.646,
        },
        ability=Ability({"piano": 0.9505}, least_confidence=0.74, times_real_time=90.0),
    ),
    "port": Card(
        summary="The public PyTorch port at paper size; convert its checkpoint to use it.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture; the checkpoint carries its own)",
        training_data="MAESTRO v1 (the public checkpoint)",
        sample_rate=16000,
        parameters=26_491_256,
    ),
    "magenta": Card(
        summary="The authors' form of 2019; convert their checkpoint to use it, or train it.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture; the checkpoint carries its own)",
        training_data="MAESTRO v1 (the published checkpoint)",
        sample_rate=16000,
        parameters=22_600_568,
    ),
    "paper2018": Card(
        summary="The form of 2018, no offset detector; convert a checkpoint, or train it.",
        paper="https://arxiv.org/abs/1710.11153",
        licence="Apache-2.0 (architecture; a checkpoint carries its own)",
        training_data="MAPS (the paper's)",
        sample_rate=16000,
        parameters=6_793_280,
    ),
}

SYSTEM = System(
    name="onsets_frames",
    task="transcribe",
    title="Onsets and Frames",
    model=f"{_MODULE}:OnsetsFrames",
    config=f"{_MODULE}:get_config",
    loss=f"{_MODULE}:loss",
    targets="musicjax.models.onsets_frames.labels:targets",
    decode="musicjax.models.onsets_frames.decoding:decode",
    decoder="musicjax.models.onsets_frames.decoding:decoder",
    cards=_CARDS,
)
