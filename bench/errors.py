"""A user's mistake: one line that says what was given, what is allowed and what is nearest; exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator

from bench import terminal


class UserError(Exception):
    """Ends a command with its message in one line and exit code 2, before anything has started."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class StoreError(Exception):
    """The store cannot be written: no fault of a cell, and nothing that the next cell would escape."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """What the operating system refuses in here is the store's fault: raises StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"the store cannot be written: {error}") from error


class NodeFault(Exception):
    """The machine is at fault: no further cell would do better in this process."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """`; nearest: edict`, or nothing where no name is near."""
    near = difflib.get_close_matches(given, sorted(allowed), n=1, cutoff=0.5)
    return f"; nearest: {near[0]}" if near else ""


def unknown(what: str, given: str, allowed: Iterable[str], where: str = "") -> UserError:
    """`unknown method 'edct'; allowed: ddim, edict; nearest: edict`; `where` follows what was given."""
    names = sorted(allowed)
    place = f" {where}" if where else ""
    return UserError(f"unknown {what} {given!r}{place}; allowed: {', '.join(names) or 'none'}{nearest(given, names)}")


def run_command(main: Callable[[list[str]], int]) -> None:
    """The entry of every command: user's errors become one line and exit code 2, Ctrl-C exit code 130."""
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
