"""What a recording says of its programs, and what a segment should have begun with."""

import numpy as np
import pytest

from musicjax.errors import ConfigError
from musicjax.notes import Codec, codec_config
from musicjax.notes.agreement import AgreementConfig, Votes, is_settled, states, tie_prompt

MT3 = Codec(codec_config("mt3"))
PIANO = Codec(codec_config("ismir2021"))


def words(codec, tokens):
    """Tokens as a line of text."""
    return ", ".join(codec.vocabulary.names(tokens))


def ids(codec, text):
    """The tokens of a line of text."""
    names = codec.vocabulary.names(np.arange(codec.vocabulary.rows))
    number = {name: i for i, name in enumerate(names)}
    number |= {"on 1": codec.vocabulary.velocity(1), "off 0": codec.vocabulary.velocity(0)}
    return np.array([number[word] for word in text.split(", ")])


FIRST = "tie, program 40, on 1, shift 10, pitch 60, pitch 64, program 0, pitch 30, eos"


def test_programs_heard_often_are_favoured():
    votes = Votes(MT3, AgreementConfig(prior=1.0, doubt=1.0, most=3.0))
    assert not votes.bias().any()
    votes.count(ids(MT3, FIRST))
    votes.count(ids(MT3, "program 7, pitch 60, tie, shift 3, program 40, on 1, pitch 3, drum 4"))
    bias = votes.bias()
    assert votes.notes[[0, 7, 40]].tolist() == [1, 0, 3]  # neither ties nor drums are notes
    lean = bias[MT3.vocabulary.program(np.array([40, 0, 7]))]
    np.testing.assert_allclose(lean, [0, np.log(2 / 4), np.log(1 / 4)], rtol=1e-6)
    assert np.count_nonzero(bias) == 127  # of programs, all but the one heard most
    votes.notes[40] = 10_000
    assert votes.bias().min() == -3.0
    assert not Votes(PIANO, AgreementConfig()).bias().any()  # has no programs


@pytest.mark.parametrize(
    ("own", "begins"),
    [
        ("program 40, pitch 60, pitch 64, tie, eos", "program 40, pitch 60, pitch 64, tie"),
        ("program 48, pitch 60, pitch 64, tie, eos", "program 40, pitch 60, pitch 64, tie"),
        ("program 48, pitch 60, tie, eos", "program 40, pitch 60, tie"),
        ("program 48, pitch 61, tie, eos", "tie"),
        ("program 40, pitch 60, program 48, pitch 60, tie, eos", "program 40, pitch 60, tie"),
        ("tie, eos", "tie"),
        ("shift 3, program 40, on 1, pitch 60, eos", "tie"),
    ],
)
def test_ties_take_their_programs_from_the_notes(own, begins):
    before, after = states(MT3, [ids(MT3, FIRST)])
    assert before.shape == (0, 2) and after.tolist() == [[0, 30], [40, 60], [40, 64]]
    assert words(MT3, tie_prompt(MT3, ids(MT3, own), after)) == begins


def test_two_instruments_on_one_pitch_are_told_apart():
    sounding = np.array([[0, 60], [40, 60]])
    one = ids(MT3, "program 48, pitch 60, tie, eos")
    assert words(MT3, tie_prompt(MT3, one, sounding)) == "program 0, pitch 60, tie"
    exact = ids(MT3, "program 40, pitch 60, tie, eos")
    assert words(MT3, tie_prompt(MT3, exact, sounding)) == "program 40, pitch 60, tie"
    assert tie_prompt(PIANO, ids(PIANO, "eos"), sounding) is None


def test_what_agrees_is_settled():
    votes = Votes(MT3, AgreementConfig())
    for _ in range(9):
        votes.count(ids(MT3, FIRST))
    row = ids(MT3, "program 40, pitch 60, tie, shift 5, off 0, pitch 60, eos")
    prompt, bias = ids(MT3, "program 40, pitch 60, tie"), votes.bias()
    assert is_settled(MT3, row, prompt, bias)
    assert is_settled(MT3, row, None, bias)
    assert not is_settled(MT3, row, ids(MT3, "program 0, pitch 60, tie"), bias)
    rare = ids(MT3, "tie, shift 5, program 41, on 1, pitch 60, eos")
    assert not is_settled(MT3, rare, ids(MT3, "tie"), bias)
    assert is_settled(MT3, ids(MT3, "tie, eos"), ids(MT3, "tie"), bias)


def test_settings_that_cannot_work_are_told():
    for wrong in ({"prior": -1.0}, {"doubt": 0.0}, {"most": -0.1}):
        with pytest.raises(ConfigError, match="must be 0 or above, and doubt"):
            AgreementConfig(**wrong)
