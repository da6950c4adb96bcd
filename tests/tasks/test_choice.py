"""The model that suits a request, without a network: what is at hand, and what would be better."""

import json
from dataclasses import replace

import pytest
import soundfile

import musicjax
from musicjax import registry
from musicjax.cli import main
from musicjax.errors import ConfigError, WeightsError
from musicjax.hub import cache
from musicjax.hub.availability import availability
from musicjax.tasks.choice import AUTO, at_hand, candidates, choose

SMALL, BAND, TRANSKUN = "onsets_frames.small", "mt3.mini", "transkun.v2"
BENDING, KONG = "basic_pitch.icassp2022", "kong2021.maestro"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUSICJAX_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)


def keep(name):
    """As if the weights of that name had been fetched and converted."""
    path = cache.converted_path(registry.model_card(name).source)
    path.parent.mkdir(parents=True)
    path.touch()


def test_what_is_shipped_is_taken_and_the_better_one_named():
    found = choose()
    assert found.name == SMALL
    assert found.better is not None and found.better.name == TRANSKUN
    assert str(found).startswith(f"{SMALL} listens")
    assert f"50.8 MB to fetch once): --model {TRANSKUN}" in str(found)


def test_what_was_fetched_is_taken_and_nothing_is_better():
    keep(TRANSKUN)
    for wanted in ({}, {"pedals": True}, {"instrument": "piano"}):
        found = choose(**wanted)
        assert (found.name, found.better) == (TRANSKUN, None)
    assert "the best there is" in str(found)
    assert choose(real_time=True).name == SMALL  # the exact one is not fast enough


def test_a_mirror_is_at_hand(tmp_path, monkeypatch):
    wheel = registry.model_card(TRANSKUN).source.address.removeprefix("pypi:").split("/")[0]
    (tmp_path / wheel).touch()
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path))
    assert choose().name == TRANSKUN
    assert str(availability(registry.model_card(TRANSKUN))) == "in the mirror"


def test_other_instruments_and_bends():
    assert choose(instrument="any").name == BAND
    with pytest.raises(WeightsError, match=f"--model {BENDING}"):
        choose(bends=True)
    keep(BENDING)
    for wanted in ({"bends": True}, {"bends": True, "real_time": True}):
        assert choose(**wanted).name == BENDING
    assert choose(instrument="any", real_time=True).name == BAND
    assert choose(instrument="any").better is not None  # a larger network, for several at once
    assert choose().name == SMALL  # for a piano the piano's model


def test_all_that_fit_would_have_to_be_fetched():
    with pytest.raises(WeightsError) as told:
        choose(pedals=True)
    assert TRANSKUN in str(told.value) and KONG in str(told.value)
    assert "172.0 MB to fetch once" in str(told.value)


@pytest.mark.parametrize("speeds", [(90.0, 54.0), (54.0, 90.0)])
def test_of_two_that_hear_as_well_the_faster_one_listens(monkeypatch, speeds):
    """Their scores differ by less than a hundredth, the other way round than their speeds."""
    card_of, names = registry.model_card, (SMALL, "piano_ar.small")
    made_up = dict(zip(names, speeds, strict=True))

    def model_card(name):
        card = card_of(name)
        if name not in made_up:
            return card
        score = 0.952 if made_up[name] < 60 else 0.948
        ability = replace(card.ability, onset_f1={"piano": score}, times_real_time=made_up[name])
        return replace(card, ability=ability)

    monkeypatch.setattr(registry, "model_card", model_card)
    slow, fast = sorted(names, key=made_up.__getitem__)
    found = [model.name for model in candidates(instrument="piano")]
    assert found.index(fast) < found.index(slow)


def test_what_nothing_does_is_told():
    with pytest.raises(ConfigError, match="no model does pedals and bends for any instrument"):
        choose(pedals=True, bends=True)
    with pytest.raises(ConfigError, match="piano or any"):
        choose(instrument="kazoo")


def test_the_best_come_first_and_every_transcriber_with_weights_takes_part():
    for kind in ("piano", "any"):
        scores = [round(model.onset_f1, 2) for model in candidates(instrument=kind)]
        assert scores == sorted(scores, reverse=True)
    with_weights = {
        name
        for name in registry.list_models()
        if registry.find_system(name).task == "transcribe" and registry.model_card(name).source
    }
    everything = candidates(instrument="piano") + candidates(instrument="any")
    assert {model.name for model in everything} == with_weights
    shipped = [
        n for n in with_weights if registry.model_card(n).source.address.startswith("package:")
    ]
    assert {SMALL, BAND} <= set(shipped)
    assert sorted(at_hand()) == sorted(shipped)


def test_what_the_cards_expect_was_measured_or_told_by_the_authors(root):
    """Each score of an ability stands in the results, or among the card's scores as told."""
    sets = {"piano": "clips", "any": "ensembles"}
    lines = (root / "benchmarks" / "results" / "accuracy.jsonl").read_text().splitlines()
    measured = {}
    for line in map(json.loads, lines):
        key = (line["facts"]["model"], line["facts"]["set"])
        measured[key] = line["scores"]["onset_f1"]  # the newest line counts
    for name in registry.list_models():
        card = registry.model_card(name)
        for kind, score in card.ability.onset_f1.items() if card.ability else ():
            if (name, sets[kind]) in measured:
                assert score == pytest.approx(measured[name, sets[kind]], abs=5e-4), (name, kind)
            else:
                assert score in card.scores.values(), (name, kind)


# In Python and on the command line ---------------------------------------------------------------


def test_load_auto():
    model = musicjax.load(AUTO, instrument="piano", real_time=True, batch_size=1)
    assert model.name == SMALL
    assert model.runner.layout.batch_size == 1
    with pytest.raises(WeightsError):
        musicjax.load(AUTO, pedals=True)
    with pytest.raises(ConfigError, match="name a model"):
        musicjax.load(AUTO, task="pitch")


@pytest.fixture
def listened(tiny_weights, monkeypatch, capfd):
    """Run a command with the tiny model in place of the one asked for: (code, name, stderr)."""
    soundfile.write("a.wav", [0.0] * 8000, 16000)
    tiny = musicjax.load(tiny_weights, window_s=5.0)
    names = []
    monkeypatch.setattr("musicjax.tasks.loading.load", lambda n, **_: names.append(n) or tiny)

    def call(*args):
        code = main([*args, "a.wav"])
        return code, names[-1] if names else None, capfd.readouterr().err

    return call


def test_the_verb_says_what_would_be_better(listened):
    code, name, said = listened("transcribe")
    assert (code, name) == (0, SMALL)
    assert said.count("\n") == 1 and f"--model {TRANSKUN}" in said
    assert listened("transcribe", "--model", SMALL) == (0, SMALL, "")
    keep(TRANSKUN)
    assert listened("transcribe", "--pedals", "--json") == (0, TRANSKUN, "")


def test_options_of_the_chosen_model_are_known(listened):
    assert listened("transcribe", "--onset-threshold", "0.9")[:2] == (0, SMALL)
    keep(TRANSKUN)
    code, _, said = listened("transcribe", "--onset-threshold", "0.9")
    assert code == 2
    assert f"no option --onset-threshold of {TRANSKUN}" in said


def test_a_wish_goes_with_auto_only(listened):
    code, name, said = listened("transcribe", "--model", SMALL, "--pedals", "--real-time")
    assert (code, name) == (2, None)
    assert "--pedals and --real-time would choose a model" in said
    code, name, _ = listened("transcribe", "--instrument", "any")
    assert (code, name) == (0, BAND)


def test_a_wish_that_nothing_at_hand_fulfils_is_told(listened):
    code, name, said = listened("transcribe", "--instrument", "any", "--bends")
    assert (code, name) == (2, None)
    assert BENDING in said
