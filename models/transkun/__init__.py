"""Transkun V2 (Yan and Duan 2024): piano recordings to notes and pedals, by scored intervals."""

from musicjax.registry import Ability, Card, Source, System

_FOLDER = "musicjax.models.transkun"

_CARDS = {
    "v2": Card(
        summary="Piano with pedals, the authors' weights: the most exact transcriber here.",
        paper="https://arxiv.org/abs/2404.09466",
        licence="MIT",
        training_data="MAESTRO v3, augmented, keys as released (the authors' checkpoint)",
        sample_rate=44_100,
        parameters=13_613_711,
        source=Source(
            address="pypi:transkun-2.0.1-py3-none-any.whl/transkun/pretrained/2.0.pt",
            sha256="50a80010effc2a59ffcd068a95cd2b29bd7f23a27a3515bc3ccd209c89a3d44c",
            size_bytes=56_408_978,
            converter="convert",
            wheel_sha256="7d7f5bf88b0d21f7da0415b089cff3bcbcbdda04e1a3c9719964947942c859fe",
            wheel_bytes=50_758_783,
        ),
        scores={
            "onset_f1, MAESTRO v3, as the authors tell": 0.9833,
            "onset_f1, MAPS, as the authors tell": 0.922,
        },
        ability=Ability({"piano": 0.9745}, pedals=True, least_confidence=0.11, times_real_time=0.9),
    ),
}

SYSTEM = System(
    name="transkun",
    task="transcribe",
    title="Transkun V2",
    model=f"{_FOLDER}.model:Transkun",
    config=f"{_FOLDER}.config:get_config",
    loss=f"{_FOLDER}.model:loss",
    targets=f"{_FOLDER}.labels:targets",
    decode=f"{_FOLDER}.events:decode",
    cards=_CARDS,
)
