"""A user's mistake: one line that says what was given, what is allowed and what is nearest; exit code 2."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Ends a command with its message in one line and exit code 2, before anything has started."""


def unknown(what: str, given: str, allowed: Iterable[str]) -> UserError:
    """`unknown method 'edct'; allowed: ddim, edict; nearest: edict`."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; nearest: {near[0]}" if near else ""
    return UserError(f"unknown {what} {given!r}; allowed: {', '.join(names) or 'none'}{hint}")


def run_command(main: Callable[[list[str]], int]) -> None:
    """The entry of every verb: user's errors become one line and exit code 2, Ctrl-C exit code 130."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        sys.stderr.close()
        code = 1
    sys.exit(code)
