"""Instructions become word indices, or a sentence that says why not."""

import pytest

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.prompt import PADDING, UNKNOWN, encode_words
from vlaq_ros.policies.spec import PromptSpec

PROMPT = PromptSpec(('<pad>', '<unk>', 'drawer', 'open', 'the'), 5)


def test_words_are_found_whatever_their_case_and_punctuation():
    assert encode_words('Open the DRAWER!', PROMPT) == [3, 4, 2, PADDING, PADDING]


def test_single_unknown_word_is_marked():
    assert encode_words('open the fridge', PROMPT)[:3] == [3, 4, UNKNOWN]


@pytest.mark.parametrize('text', ['', '   ', '42 !?'])
def test_instruction_without_words_is_refused(text):
    with pytest.raises(PolicyError, match='no words'):
        encode_words(text, PROMPT)


def test_long_instruction_is_refused_not_cut():
    with pytest.raises(PolicyError, match='6 words; this policy reads 5'):
        encode_words('open the drawer open the drawer', PROMPT)


def test_instruction_of_unknown_words_lists_the_known_ones():
    with pytest.raises(PolicyError, match='drawer, open, the'):
        encode_words('fly away', PROMPT)
