"""Errors of the project. A user's mistake becomes one line (what was given, what is allowed) and exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator

from bench import terminal


class UserError(Exception):
    """A user's mistake. It ends a command with its message in one line and exit code 2, before anything starts."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StoreError(Exception):
    """The store cannot be written. The cell did not cause this, and the next cell would fail in the same way."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn an OSError in the block into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"the store cannot be written: {error}") from error


class NodeFault(Exception):
    """The machine has failed. Other cells in this process would fail too."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return text such as `; nearest: edict`, or an empty text if no name is similar."""
    near = difflib.get_close_matches(given, sorted(allowed), n=1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""


def unknown(what: str, given: str, allowed: Iterable[str], where: str = "") -> UserError:
    """Return an error such as `unknown method 'edct'; allowed: ddim, edict; nearest: edict`.

    `where` is added after the given name.
    """
    names = sorted(allowed)
    place = f" {where}" if where else ""
    return UserError(f"unknown {what} {given!r}{place}; allowed: {', '.join(names) or 'none'}{nearest(given, names)}")


def run_command(main: Callable[[list[str]], int]) -> None:
    """Run a command and exit. A user's error is one line and exit code 2; Ctrl-C is exit code 130."""
    terminal.prepare()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except StoreError as error:
        print(f"error: {error}; what was finished is kept", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        code = 130
    sys.exit(terminal.finish(code))
