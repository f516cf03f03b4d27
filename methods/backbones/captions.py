"""The caption grammars of the embedded data sets, as tokenizers: caption -> one symbol a slot. No torch.

A general text encoder would be larger than the networks it feeds; these captions follow one sentence pattern, so a
slot for each of its words is lossless. Symbol 0 of every slot is "absent"; the null condition is absent everywhere.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

GLUE = frozenset(["a", "and", "on", "with", "the", "letter", "background", "digit"])
"""Words that every caption may hold and that say nothing."""


@dataclass(frozen=True)
class Vocabulary:
    """`words[i]` are the symbols that slot i can hold (besides absent); `pattern` has one named group a slot."""

    pattern: re.Pattern[str]
    words: tuple[tuple[str, ...], ...]

    @property
    def slots(self) -> int:
        return len(self.words)

    @property
    def size(self) -> int:
        """Symbols over all slots; every slot has its own range, starting with its "absent"."""
        return sum(len(options) + 1 for options in self.words)

    def tokens(self, caption: str) -> list[int]:
        """One symbol a slot. Raises ValueError, with the nearest known word, for a caption outside the grammar."""
        values: tuple[str | None, ...] = (None,) * self.slots
        if caption:
            match = self.pattern.fullmatch(caption)
            if match is None:
                raise ValueError(self._complaint(caption))
            values = match.groups()
        tokens, offset = [], 0
        for value, options in zip(values, self.words, strict=True):
            tokens.append(offset + (1 + options.index(value) if value is not None else 0))
            offset += len(options) + 1
        return tokens

    def _complaint(self, caption: str) -> str:
        known = GLUE | {word for options in self.words for word in options}
        for word in caption.split():
            if word not in known:
                near = difflib.get_close_matches(word, sorted(known), n=1)
                hint = f"; nearest: {near[0]}" if near else ""
                return f"caption {caption!r}: unknown word {word!r}{hint}"
        return f"caption {caption!r} does not follow the pattern {self.pattern.pattern}"


def _any(words: tuple[str, ...]) -> str:
    return f"({'|'.join(words)})"


COLOR_WORDS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPE_WORDS = ("circle", "square", "triangle", "cross")
PATTERN_WORDS = ("plain", "striped", "checked", "gradient")
TONE_WORDS = ("gray", "brown", "slate", "pink")
LETTER_WORDS = ("A", "E", "H", "L", "T", "X")
DIGIT_WORDS = tuple("0123456789")

_THING = f"a {_any(COLOR_WORDS)} {_any(SHAPE_WORDS)}"
VOCABULARIES = {
    "scenes": Vocabulary(
        re.compile(
            rf"{_THING}(?: and {_THING})? on a {_any(PATTERN_WORDS)} {_any(TONE_WORDS)} background"
            rf"(?: with the letter {_any(LETTER_WORDS)})?"
        ),
        (COLOR_WORDS, SHAPE_WORDS, COLOR_WORDS, SHAPE_WORDS, PATTERN_WORDS, TONE_WORDS, LETTER_WORDS),
    ),
    "digits": Vocabulary(re.compile(rf"the digit {_any(DIGIT_WORDS)}"), (DIGIT_WORDS,)),
}
