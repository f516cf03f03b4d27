"""Tests of the glossary: every word names a file and a name that this file contains."""

from __future__ import annotations

import re
from pathlib import Path

GLOSSARY = Path(__file__).resolve().parent.parent / "docs" / "GLOSSARY.md"
ENTRY = re.compile(r"^- \*\*(.+?)\*\*: (.+?) \[(\S+)\]\((\S+)\) `(.+?)`$")


def entries() -> list[str]:
    """Return the entries of the glossary, each on one line."""
    text = re.sub(r"\n  +", " ", GLOSSARY.read_text())
    return [line for line in text.splitlines() if line.startswith("- ")]


def test_every_entry_names_a_file_that_defines_the_word() -> None:
    wrong = []
    for entry in entries():
        match = ENTRY.match(entry)
        assert match, entry
        _, _, shown, target, name = match.groups()
        file = GLOSSARY.parent / target
        if not target.endswith(shown) or not file.is_file() or name not in file.read_text():
            wrong.append(entry)
    assert not wrong


def test_no_word_is_defined_twice() -> None:
    words = [match[1] for entry in entries() if (match := ENTRY.match(entry))]
    assert len(words) > 40
    assert len(words) == len(set(words))
