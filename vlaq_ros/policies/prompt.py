"""Instruction -> word indices. The vocabulary is closed: it belongs to the trained weights."""

import re

from vlaq_ros.errors import PolicyError
from vlaq_ros.policies.spec import PromptSpec

PADDING = 0


def encode_words(instruction: str, prompt: PromptSpec) -> list[int]:
    """
    Return `prompt.max_words` indices into the vocabulary, padded at the end.

    An unknown word is refused: dropping it would turn "do not open the drawer" into its opposite.

    Raises:
        PolicyError: The instruction is empty, longer than the policy reads, or has words that are
            not in the vocabulary; all of them are named.
    """
    words = re.findall(r'[^\s.,;:!?"()]+', instruction.lower())
    if not words:
        raise PolicyError(f'instruction {instruction!r} contains no words')
    if len(words) > prompt.max_words:
        raise PolicyError(
            f'instruction {instruction!r} has {len(words)} words; '
            f'this policy reads {prompt.max_words}'
        )
    index = {word: i for i, word in enumerate(prompt.vocabulary)}
    unknown = sorted({word for word in words if word not in index})
    if unknown:
        known = ', '.join(prompt.vocabulary[2:])
        raise PolicyError(
            f'instruction {instruction!r} has words this policy does not know: '
            f'{", ".join(unknown)}. It knows: {known}'
        )
    encoded = [index[word] for word in words]
    return encoded + [PADDING] * (prompt.max_words - len(encoded))
