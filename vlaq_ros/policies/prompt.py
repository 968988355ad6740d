"""Instruction -> word indices. The vocabulary is closed: it belongs to the trained weights."""

import re

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.spec import PromptSpec

PADDING = 0
UNKNOWN = 1


def encode_words(instruction: str, prompt: PromptSpec) -> list[int]:
    """
    Return `prompt.max_words` indices into the vocabulary, padded at the end.

    A few unknown words are tolerated, as people phrase things freely.

    Raises:
        PolicyError: The instruction is empty, longer than the policy reads, or made of unknown
            words only.
    """
    words = re.findall(r'[a-z]+', instruction.lower())
    if not words:
        raise PolicyError(f'instruction {instruction!r} contains no words')
    if len(words) > prompt.max_words:
        raise PolicyError(
            f'instruction {instruction!r} has {len(words)} words; '
            f'this policy reads {prompt.max_words}'
        )
    index = {word: i for i, word in enumerate(prompt.vocabulary)}
    encoded = [index.get(word, UNKNOWN) for word in words]
    if set(encoded) == {UNKNOWN}:
        known = ', '.join(prompt.vocabulary[2:])
        raise PolicyError(f'this policy knows no word of {instruction!r}. It knows: {known}')
    return encoded + [PADDING] * (prompt.max_words - len(encoded))
