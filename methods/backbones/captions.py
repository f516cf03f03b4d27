"""The caption grammars of the embedded data sets, as tokenizers: caption -> one symbol per slot. No torch.

A general text encoder would be larger than the networks that use it. These captions follow one sentence pattern, so one
slot for each of its words loses nothing. Symbol 0 of every slot means "absent". In the null condition all are absent.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

GLUE = frozenset(["a", "and", "on", "with", "the", "letter", "background", "digit"])
"""Words that may stand in every caption and carry no information."""


@dataclass(frozen=True)
class Vocabulary:
    """A caption grammar: `words[i]` are the symbols of slot i (besides absent); `pattern` has one group per slot."""

    pattern: re.Pattern[str]
    words: tuple[tuple[str, ...], ...]

    @property
    def slots(self) -> int:
        return len(self.words)

    @property
    def size(self) -> int:
        """The number of symbols of all slots. Each slot has its own range, which begins with its "absent"."""
        return sum(len(options) + 1 for options in self.words)

    def tokens(self, caption: str) -> list[int]:
        """Return one symbol per slot. Raises ValueError for a caption outside the grammar, with the nearest word."""
        values: tuple[str | None, ...] = (None,) * self.slots
        if caption:
            match = self.pattern.fullmatch(caption)
            if match is None:
                raise ValueError(self._error_of(caption))
            values = match.groups()
        tokens, offset = [], 0
        for value, options in zip(values, self.words, strict=True):
            tokens.append(offset + (1 + options.index(value) if value is not None else 0))
            offset += len(options) + 1
        return tokens

    def _error_of(self, caption: str) -> str:
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
