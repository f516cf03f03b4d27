"""What a command prints: any terminal can show it; a reader that has left or a full disk does not end the command.

All output goes through the standard streams as they are after `prepare`. Tables and coloured lines go through
`console`, which prints text as it is: `[large]` in a message is no markup.
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
    """The codecs error handler `plainer`: letters without accents, ASCII signs for signs, else a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = ""
    for char in error.object[error.start : error.end]:
        letters = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
        plain += ASCII.get(char) or letters or "?"
    return plain, error.end


codecs.register_error("plainer", _plainer)


class Output:
    """A standard stream. Once it cannot be written, what follows is dropped, and `lost` says why."""

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
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # for the processes that we start too
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def prepare() -> None:
    """Make the standard streams safe to print to, whatever they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # None where it is closed
            stream.reconfigure(errors="plainer")
            setattr(sys, name, Output(stream))


def finish(code: int) -> int:
    """Write what is left in the buffers; returns the exit code: 1 in place of 0 if output was lost on a full disk."""
    if sys.stdout is not None:
        sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is None or lost.errno == errno.EPIPE:
        return code
    print(f"error: standard output could not be written, a part of it is lost: {lost}", file=sys.stderr)
    return code or 1


def heard() -> bool:
    """Whether standard output may still have a reader."""
    return getattr(sys.stdout, "lost", None) is None


def console() -> Console:
    """A console that prints text as it is; 120 columns where the output is no terminal."""
    from rich.console import Console

    wide = None if sys.stdout is not None and sys.stdout.isatty() else 120
    return Console(width=wide, markup=False, emoji=False, highlight=False)
