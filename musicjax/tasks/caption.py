"""Captions: from a recording to sentences about it."""

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from musicjax.audio.framing import Windowing
from musicjax.decode import BeamConfig, GenerateConfig, beam_search, generate
from musicjax.errors import ConfigError, DataError, OutputError
from musicjax.files import atomic_write
from musicjax.hub import LoadedModel
from musicjax.infer import (
    FixedLayout,
    Heard,
    Recording,
    Runner,
    as_recording,
    attempt,
    hear,
    spread,
)

Source = Recording | np.ndarray | tuple[np.ndarray, int]

CPU_BATCH = 2
GPU_BATCH = 16
FORMATS = (".json", ".csv", ".txt")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Sentence:
    """What was written about one part of a recording.

    score: mean log-probability of its tokens (of beams: as they are ranked), higher is surer.
    """

    start_s: float
    end_s: float
    text: str
    score: float


@dataclass(frozen=True)
class Caption:
    """Sentences about a recording, one for each part that the model heard as a whole."""

    sentences: tuple[Sentence, ...]
    duration_s: float
    model: str

    FORMATS: ClassVar[tuple[str, ...]] = FORMATS

    @property
    def text(self) -> str:
        """All sentences as one text; one that only repeats an earlier one is said once."""
        return " ".join(dict.fromkeys(s.text for s in self.sentences if s.text))

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write text, sentences with their times, and the model's name as JSON."""
        document = {
            "format": "musicjax.caption/1",
            "model": self.model,
            "duration_s": round(self.duration_s, 6),
            "text": self.text,
            "sentences": [asdict(s) for s in self.sentences],
        }
        return self._write(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a sentence: start_s,end_s,text,score."""
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("start_s", "end_s", "text", "score"))
        rows.writerows(
            (f"{s.start_s:g}", f"{s.end_s:g}", s.text, f"{s.score:.4f}") for s in self.sentences
        )
        return self._write(path, table.getvalue())

    def to_txt(self, path: str | os.PathLike[str]) -> Path:
        """Write one line a sentence."""
        return self._write(path, "".join(f"{s.text}\n" for s in self.sentences))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the form that the path's ending asks for: JSON, CSV or plain text."""
        suffix = Path(path).suffix.lower()
        forms = {".json": self.to_json, ".csv": self.to_csv, ".txt": self.to_txt}
        if suffix not in forms:
            raise OutputError(
                f"cannot write {path}: {suffix or 'no ending'} is not a known form; give a file "
                f"ending in {', '.join(FORMATS)}."
            )
        return forms[suffix](path)

    def _write(self, path: str | os.PathLike[str], text: str) -> Path:
        with atomic_write(path) as file:
            file.write(text.encode())
        return Path(path)


class Captioner:
    """A captioning model ready to listen.

    The system's model is one that writes tokens (see `musicjax.infer.sequences`) and has
    `config.clip_samples`, `rules(**settings) -> GenerateConfig` and `beams(number) -> BeamConfig`;
    its `decode` makes sentences of `tokens` (clips, L).

    A recording is heard in clips that follow each other; what is left at the end, shorter than a
    clip, is not heard, as published. A recording shorter than a clip is filled up with silence.

    Args:
      loaded: from `musicjax.hub.load_model`.
      beams: hypotheses kept side by side; None takes the model's own number, 1 is greedy.
      top_p: draw tokens at random among the likeliest that together have this probability.
      temperature: of the drawing; above 0 tokens are drawn, and there are no beams.
      repetition_penalty: above 1 disfavours tokens that the sentence already has; None takes the
        paper's, 1.1 for tokens that are drawn and 1 for beams.
      max_tokens: most tokens of a sentence; None takes what the model was trained with.
      seed: of what is drawn. A clip's sentence depends on this and on its sound alone.
      tokenizer: a file or folder (see `musicjax.text.open_tokenizer`); None takes the one beside
        the weights, else the one that the weights name.
      batch_size: clips heard at once.
      device: where to compute; None takes all GPUs that there are, or the CPU.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        beams: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        tokenizer: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        device: jax.Device | None = None,
    ) -> None:
        self.name, self.card, self.system = loaded.name, loaded.card, loaded.system
        model: Any = loaded.model
        self.config = replace(
            loaded.config, tokenizer=_tokenizer(loaded.config.tokenizer, loaded.name, tokenizer)
        )
        self.sample_rate: int = self.config.frontend.sample_rate
        drawn = top_p is not None or (temperature or 0) > 0
        if drawn and beams is not None:
            raise ConfigError(
                f"beams is {beams} and tokens are to be drawn (top_p {top_p}, temperature "
                f"{temperature}); give the one or the other."
            )
        if temperature is None:
            temperature = 1.0 if drawn else 0.0
        if repetition_penalty is None:
            repetition_penalty = 1.1 if drawn else 1.0
        settings: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
        }
        if max_tokens is not None:
            settings["max_length"] = _checked_length(max_tokens, self.config.max_tokens)
        rules = model.rules(**settings)
        writer = _Writer(model, rules, None if drawn else model.beams(beams), seed)
        on_cpu = (device or jax.devices()[0]).platform == "cpu"
        samples = self.config.clip_samples
        # A clip counts as one frame: the sentence about it.
        windowing = Windowing(samples=samples, stride=samples, lead=0, first=0, last=1)
        size = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        layout = FixedLayout(self.config.frontend.hop_length, windowing, size)
        self.runner = Runner(writer, layout, device=spread(device))
        self._decode = loaded.system.resolve("decode")
        self._decode({"tokens": np.zeros((1, 1), np.int32)}, self.config)  # is there a tokenizer?

    def caption(self, source: Source, sample_rate: int | None = None) -> Caption:
        """Sentences about one recording of any length.

        `source` is a path, a binary file object, an `Audio`, or an array (N,) or (C, N) with its
        `sample_rate`. Raises AudioError for what is not audio.
        """
        (result,) = self.caption_many([as_recording(source, sample_rate)])
        if isinstance(result, Exception):
            raise result
        return result

    def caption_many(
        self,
        sources: Iterable[Recording],
        *,
        progress: Callable[[int, float], None] | None = None,
    ) -> Iterator[Caption | Exception]:
        """Sentences about many recordings, each as soon as it is done, in the order given.

        Recordings share batches. One that cannot be read gives its error in place of its
        sentences, and the others go on. `progress` gets the recording's place and seconds done.
        """
        for heard in hear(self.runner, sources, self.sample_rate, progress):
            yield heard.error or attempt(functools.partial(self._result, heard))

    def _result(self, heard: Heard) -> Caption:
        tokens = heard.activations["tokens"].astype(np.int32)
        scores = heard.activations["score"]
        step_s = self.config.clip_samples / self.sample_rate
        sentences = tuple(
            Sentence(
                start_s=round(i * step_s, 6),
                end_s=round(min((i + 1) * step_s, heard.duration_s), 6),
                text=text,
                score=round(float(score), 6),
            )
            for i, (text, score) in enumerate(
                zip(self._decode({"tokens": tokens}, self.config), scores, strict=True)
            )
        )
        return Caption(sentences, heard.duration_s, self.name)

    def __repr__(self) -> str:
        clip_s = self.config.clip_samples / self.sample_rate
        return f"Captioner({self.name}, a sentence each {clip_s:g} s)"


class _Writer(nnx.Module):
    """The model as a `Runner` wants it: clips in, the tokens of one sentence each out."""

    # Ids of tokens are whole in float32 up to 16 million, in float16 up to 2048.
    float32_activations = ("tokens", "score")

    def __init__(
        self, model: nnx.Module, rules: GenerateConfig, beams: BeamConfig | None, seed: int
    ) -> None:
        self.model = model
        self.rules, self.beams, self.seed = rules, beams, seed

    def activations(
        self, audio: Float[Array, "B N"], *, frames: Int[Array, "B"] | None = None
    ) -> dict[str, Float[Array, "B 1 ..."]]:
        """tokens (B, 1, L) and score (B, 1). The silence that fills a clip up is heard."""
        del frames
        model: Any = self.model
        cache = model.prefill(audio, None, self.rules.max_length)
        if self.beams is not None and self.beams.num_beams > 1:
            found = beam_search(model.step, cache, self.rules, self.beams)
            tokens, score = found.tokens[:, 0], found.scores[:, 0]
        else:
            written = generate(model.step, cache, self.rules, key=self._keys(audio))
            tokens = written.tokens
            score = written.scores / jnp.maximum(written.lengths, 1)
        return {"tokens": tokens[:, None].astype(jnp.float32), "score": score[:, None]}

    def _keys(self, audio: Float[Array, "B N"]) -> jax.Array | None:
        """A key for each clip, from the seed and its samples, whatever batch it is in."""
        if not self.rules.samples:
            return None
        bits = jax.lax.bitcast_convert_type(audio, jnp.uint32)
        places = jnp.arange(1, audio.shape[1] + 1, dtype=jnp.uint32)
        marks = jnp.sum(bits * places, axis=1, dtype=jnp.uint32)
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), marks)


def _checked_length(asked: int, most: int) -> int:
    if not 2 <= asked < most:
        raise ConfigError(
            f"max_tokens is {asked}; this model writes from 2 to {most - 1} tokens a sentence."
        )
    return asked


def _tokenizer(named: str, weights: str, given: str | os.PathLike[str] | None) -> str:
    """Which tokenizer to open: the one given, one beside the weights, or the one of the config."""
    if given is not None:
        return os.fspath(given)
    if named in ("bytes", "words"):
        return named
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    names = dict.fromkeys((Path(named).name, *_TOKENIZERS))
    beside = [folder / name for name in names if path.exists() and (folder / name).is_file()]
    if beside:
        return os.fspath(beside[0])
    if not Path(named).expanduser().exists():
        raise ConfigError(
            f"the weights {weights} need the tokenizer {named}, which is not beside them; put it "
            "there, or name it with tokenizer=… (on the command line --tokenizer)."
        )
    return named


# Training -----------------------------------------------------------------------------------


def evaluation(run: Any) -> Callable[[nnx.Module], dict[str, float]] | None:
    """The evaluation that a training run asks for: model -> scores on its validation data.

    token_nats: what a token of the true sentence costs, without smoothing, when those before it
    are known; lower is better. token_accuracy: the share of tokens that are the likeliest.
    left_out: the share of sentences that are longer than the model's, which count in neither. Of
    each recording the first clip counts. `run` is a `musicjax.train.RunConfig`; None when it
    validates on nothing. One compiled program serves all evaluations.
    """
    from musicjax.data.captions import caption_examples
    from musicjax.registry import find_system

    if not run.data.valid:
        return None
    config, rate = run.model, run.sample_rate
    count = round(run.data.clip_s * rate)
    targets = find_system(run.system).resolve("targets")
    judge = nnx.jit(_judged)

    def score(model: nnx.Module) -> dict[str, float]:
        nats, hits, tokens, sentences, left_out = 0.0, 0, 0, 0, 0
        for _, samples, texts in caption_examples(run.data.valid, rate):
            clip = np.zeros((1, count), np.float32)
            clip[0, : min(count, len(samples))] = samples[:count]
            for text in texts:
                labels = targets(text, 0.0, count, config)
                sentences, left_out = sentences + 1, left_out + int(labels["left_out"])
                if labels["left_out"]:
                    continue
                row = labels["tokens"][None]
                cost, hit, number = (
                    float(x) for x in judge(model, jnp.asarray(clip), jnp.asarray(row))
                )
                nats, hits, tokens = nats + cost, hits + int(hit), tokens + int(number)
        if not sentences:
            raise DataError("there are no sentences to score; check the name of the data.")
        if not tokens:
            raise DataError(
                f"all {sentences} sentences to score are longer than the {config.max_tokens} "
                "tokens of the model: give it more max_tokens, or shorter sentences."
            )
        return {
            "token_nats": nats / tokens,
            "token_accuracy": hits / tokens,
            "left_out": left_out / sentences,
        }

    return score


def _judged(
    model: Any, audio: Float[Array, "B N"], tokens: Int[Array, "B L"]
) -> tuple[Array, Array, Array]:
    """Nats of all tokens, how many are the likeliest, and how many there are."""
    from musicjax.nn import shift_right
    from musicjax.nn.cross_entropy import cross_entropy

    text = model.config.transformer
    encoded = model.activations(audio)["encoded"]
    logits = model.transformer.decode(shift_right(tokens, text.start_id), encoded)
    counts = tokens != text.pad_id
    cost, _ = cross_entropy(logits, tokens)
    hits = (logits.argmax(-1) == tokens) & counts
    return jnp.where(counts, cost, 0).sum(), hits.sum(), counts.sum()
