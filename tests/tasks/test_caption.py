"""Captions of recordings: sentences with times, files, options, and what is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from musicjax.audio import Audio
from musicjax.cli import main
from musicjax.errors import ConfigError, DataError, OutputError
from musicjax.hub import save_weights
from musicjax.models.lp_musiccaps.model import Captioner as Model
from musicjax.models.lp_musiccaps.model import get_config
from musicjax.tasks import Caption, load
from musicjax.tasks.caption import Sentence, evaluation
from musicjax.text import open_tokenizer
from musicjax.text.tokenizers import RESERVED

RATE = 16_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny model with random weights that hears half a second at once."""
    config = replace(get_config("tiny"), clip_s=0.5, max_tokens=12)
    model = nnx.jit(lambda: Model(config, rngs=nnx.Rngs(1)))()
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), nnx.state(model))
    drawn = jax.tree.map(lambda x, y: x + y.astype(x.dtype), nnx.state(model), noise)
    nnx.update(model, drawn)
    ids = np.arange(config.transformer.vocab_size)  # words are likelier than ids without one
    words = (ids >= RESERVED) & (ids < open_tokenizer("words").size)
    model.transformer.logit_bias[...] = jnp.where(words, 4.0, 0.0)
    path = tmp_path_factory.mktemp("captioner") / "tiny.safetensors"
    save_weights(path, model, config, system="lp_musiccaps", dtype="float32")
    return path


@pytest.fixture(scope="module")
def sound():
    rng = np.random.default_rng(1)
    time = np.arange(20_000) / RATE
    return (np.sin(2 * np.pi * 300 * time) * 0.4 + rng.normal(scale=0.1, size=20_000)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def captioner(weights):
    return load(weights, task="caption", batch_size=2)


def test_a_sentence_for_each_clip(captioner, sound):
    """The last quarter of a second, shorter than a clip, is not heard."""
    result = captioner.caption(sound, RATE)
    assert [(s.start_s, s.end_s) for s in result.sentences] == [(0.0, 0.5), (0.5, 1.0)]
    assert all(s.text and s.score < 0 for s in result.sentences)
    assert result.duration_s == pytest.approx(1.25)
    assert result.text.startswith(result.sentences[0].text)
    short = captioner.caption(sound[:3000], RATE)
    assert [(s.start_s, s.end_s) for s in short.sentences] == [(0.0, 0.1875)]


def test_batches_and_neighbours_change_nothing(captioner, sound):
    one, two = captioner.caption(sound[:8000], RATE), captioner.caption(sound[8000:16_000], RATE)
    both = captioner.caption(sound, RATE)
    assert [s.text for s in both.sentences] == [one.text, two.text]
    many = captioner.caption_many([Audio(sound[:8000], RATE), Audio(sound, RATE)])
    assert [r.text for r in many] == [one.text, both.text]
    assert captioner.runner.programs == 1


def test_drawn_sentences_depend_on_seed_and_sound_alone(weights, sound):
    def drawn(seed, **settings):
        return load(weights, top_p=0.9, seed=seed, batch_size=2, **settings)

    first = drawn(1)
    both = first.caption(sound, RATE)
    assert first.caption(sound[8000:16_000], RATE).text == both.sentences[1].text
    assert drawn(2).caption(sound, RATE).text != both.text
    assert drawn(1).caption(sound, RATE) == both


def test_files_in_every_form(captioner, sound, tmp_path):
    result = captioner.caption(sound, RATE)
    document = json.loads(result.write(tmp_path / "x.json").read_text())
    assert document["text"] == result.text and len(document["sentences"]) == 2
    assert result.write(tmp_path / "x.txt").read_text().splitlines() == [
        s.text for s in result.sentences
    ]
    table = result.write(tmp_path / "x.csv").read_text().splitlines()
    assert table[0] == "start_s,end_s,text,score" and table[2].startswith("0.5,1,")
    with pytest.raises(OutputError, match=r"\.mid is not a known form; give a file ending in"):
        result.write(tmp_path / "x.mid")


def test_a_sentence_that_comes_again_is_said_once():
    sentences = tuple(Sentence(i, i + 1, text, 0.0) for i, text in enumerate("aba"))
    assert Caption(sentences, 3.0, "x").text == "a b"


def test_the_command_line(weights, sound, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("song.flac", sound, RATE)
    (tmp_path / "bad.flac").write_bytes(b"nothing")
    options = ["--weights", str(weights.parent), "--beams", "1"]
    assert main(["caption", "song.flac", "bad.flac", *options, "--format", "txt", "--json"]) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["outputs"] == ["song.txt"] and first["text"] and first["error"] is None
    assert second["outputs"] == [] and second["error"]
    assert (tmp_path / "song.txt").read_text().split("\n")[0] in first["text"]
    assert main(["caption", "song.flac", *options, "-o", "song.mid"]) == 2
    assert "ending in .json, .csv, .txt" in capsys.readouterr().err
    assert main(["caption", "song.flac", *options, "--top-p", "0.9"]) == 2


def test_what_does_not_go_together_is_told(weights, tmp_path):
    with pytest.raises(ConfigError, match="beams is 3 and tokens are to be drawn"):
        load(weights, beams=3, top_p=0.9)
    with pytest.raises(ConfigError, match="max_tokens is 90; this model writes from 2 to 11"):
        load(weights, max_tokens=90)
    with pytest.raises(ConfigError, match="does 'transcribe', not 'caption'; lp_musiccaps does"):
        load("onsets_frames.small", task="caption")
    config = replace(get_config("tiny"), tokenizer="tokenizer.json")
    path = tmp_path / "other.safetensors"
    save_weights(path, Model(config, rngs=nnx.Rngs(0)), config, system="lp_musiccaps")
    with pytest.raises(ConfigError, match=r"need the tokenizer tokenizer\.json, which is not"):
        load(path)
    assert load(path, tokenizer="words").config.tokenizer == "words"


def test_scores_of_a_training_run():
    """Nats of a model that knows nothing are those of a guess among all tokens."""
    from musicjax.configs.lp_musiccaps import get_config as recipe

    run = recipe("tiny")
    run = replace(run, data=replace(run.data, clip_s=0.5), model=replace(run.model, clip_s=0.5))
    state = nnx.state(nnx.eval_shape(lambda: Model(run.model, rngs=nnx.Rngs(0))))
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Model(run.model, rngs=nnx.Rngs(0))))
    score = evaluation(run)
    assert score is not None
    found = score(nnx.merge(graph, blank))
    assert found["token_nats"] == pytest.approx(np.log(128), abs=1e-4)
    assert 0 <= found["token_accuracy"] < 0.1 and found["left_out"] == 0
    score = evaluation(replace(run, model=replace(run.model, max_tokens=3)))
    with pytest.raises(DataError, match=r"all \d+ sentences to score are longer than the 3 tokens"):
        score(nnx.merge(graph, blank))
    assert evaluation(replace(run, data=replace(run.data, valid=()))) is None
