"""Printing of the commands: any terminal can show it, and a closed pipe or a full disk does not end the command.

All output goes through the standard streams that `prepare` makes. Tables and coloured lines go through `console`, which
prints text as it is: `[large]` in a message is not markup.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

ASCII = {"…": "...", "±": "+-", "−": "-", "–": "-", "—": "-", "→": "->", "×": "x", "·": ".", "≤": "<=", "≥": ">="}


def _plainer(error: UnicodeError) -> tuple[str, int]:
    """The codecs error handler `plainer`: removes accents, writes signs in ASCII, and everything else as `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = ""
    for char in error.object[error.start : error.end]:
        letters = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
        plain += ASCII.get(char) or letters or "?"
    return plain, error.end


codecs.register_error("plainer", _plainer)


class Output:
    """A standard stream. After an error of writing, all later output is dropped, and `lost` holds the error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self.lost = error
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())  # child processes write to it too
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def prepare() -> None:
    """Make the standard streams safe to print to, for any encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a closed stream is None
            stream.reconfigure(errors="plainer")
            setattr(sys, name, Output(stream))


def finish(code: int) -> int:
    """Flush the output and return the exit code: 1 in place of 0 if output was lost on a full disk."""
    if sys.stdout is not None:
        sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or lost.errno == errno.EPIPE:
        return code
    print(f"error: standard output could not be written, and a part of it is lost: {lost}", file=sys.stderr)
    return code or 1


def heard() -> bool:
    """Return True if standard output can still be written."""
    return getattr(sys.stdout, "lost", None) is None


def console() -> Console:
    """Return a console that prints text as it is. It has 120 columns if the output is not a terminal."""
    from rich.console import Console

    wide = None if sys.stdout is not None and sys.stdout.isatty() else 120
    return Console(width=wide, markup=False, emoji=False, highlight=False)
