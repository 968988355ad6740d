"""Instructions become word indices, or a sentence that says why not."""

import pytest

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.prompt import PADDING, encode_words
from vlaq_ros.policies.spec import PromptSpec

PROMPT = PromptSpec(('<pad>', '<unk>', 'drawer', 'open', 'the'), 5)


def test_words_are_found_whatever_their_case_and_punctuation():
    assert encode_words('Open the DRAWER!', PROMPT) == [3, 4, 2, PADDING, PADDING]


def test_sentence_whose_meaning_hangs_on_an_unknown_word_is_refused():
    """Unknown words used to be dropped, so that this one opened the drawer."""
    with pytest.raises(PolicyError, match='does not know: do, not. It knows: drawer, open, the'):
        encode_words('Do not open the drawer', PROMPT)


@pytest.mark.parametrize('text', ['', '   ', ' !? '])
def test_instruction_without_words_is_refused(text):
    with pytest.raises(PolicyError, match='no words'):
        encode_words(text, PROMPT)


def test_long_instruction_is_refused_not_cut():
    with pytest.raises(PolicyError, match='6 words; this policy reads 5'):
        encode_words('open the drawer open the drawer', PROMPT)


def test_every_unknown_word_is_named():
    with pytest.raises(PolicyError, match='does not know: 2, away, fly'):
        encode_words('fly away 2', PROMPT)
