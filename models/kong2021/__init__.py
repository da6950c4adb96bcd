"""High-resolution piano transcription with pedals (Kong et al. 2021)."""

from musicjax.registry import Ability, Card, Source, System

_PACKAGE = "musicjax.models.kong2021"

_CARDS = {
    "maestro": Card(
        summary="Piano with sustain pedal, times finer than frames.",
        paper="https://arxiv.org/abs/2010.01815",
        licence="CC-BY-4.0",
        training_data="MAESTRO v2 (the authors' training)",
        sample_rate=16000,
        parameters=34_080_055,
        source=Source(
            address="https://zenodo.org/records/4034264/files/CRNN_note_F1=0.9677_pedal_F1=0.9186.pth",
            sha256="c3fa9730725bf4a762f1c14bc80cd5986eacda01b026f5a4a2525cd607876141",
            size_bytes=171_966_578,
            converter="convert",
        ),
        scores={
            "onset_f1, MAESTRO v2, as the authors tell": 0.9677,
            "pedal_onset_f1, MAESTRO v2, as the authors tell": 0.9186,
        },
        ability=Ability({"piano": 0.9677}, pedals=True),
    ),
}

SYSTEM = System(
    name="kong2021",
    task="transcribe",
    title="High-resolution piano transcription with pedals",
    model=f"{_PACKAGE}.model:Kong2021",
    config=f"{_PACKAGE}.model:get_config",
    loss=f"{_PACKAGE}.model:loss",
    targets=f"{_PACKAGE}.labels:targets",
    decode=f"{_PACKAGE}.regression:decode",
    decoder=f"{_PACKAGE}.regression:LongRecording",
    cards=_CARDS,
)
