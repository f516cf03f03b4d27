"""Who works on which cell: one lease per cell, alive while the pulse of its owner is. No torch.

    ROOT/claims/CELL           who has it, since when, and how often it took its owner with it
    ROOT/claims/.owners/NAME   one per process, touched by a thread: its pulse

A claim that cannot be read is void, and so is a card: their cells are free.

Claims only save work. A record is written whole and once whatever the claims say, so that a lease which a slow file
system shows too late, or a process that was frozen and thawed, costs a second computation and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import writing
from bench.files import create_json, remove_drafts, write_json

PULSE_SECONDS = 15.0
LEASE_SECONDS = 180.0
"""Longer than network file systems cache attributes (60 s) by several pulses."""


@dataclass(frozen=True)
class Claim:
    """A cell in somebody's hands, or in nobody's any more."""

    cell: str
    owner: Mapping[str, Any]
    """host, pid, job, log, since; empty once the owner has left."""
    alive: bool
    since: float
    deaths: int
    """How many owners ended in this cell without one more image."""
    images: int
    """Images that were finished when the claim was made."""
    cause: str = "node"
    """Why the owner left it: `preempted` if it was asked to, else `node`. What `take` returns has these three of the
    owner before."""
    message: str = ""
    """Of the error that it left for; empty if it went without a word."""
    trace: str = ""


def machine() -> str:
    """Names the set of process ids that ours is one of: a container counts them for itself."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"


def started(pid: int) -> str | None:
    """When a process began, so that a pid that is used again is not taken for it; None if there is none. A zombie has
    ended, although it has a pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if os.path.isdir("/proc/self") else _without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _without_proc(pid: int) -> str | None:
    """An empty text for every process that is there: such a system does not say when it began."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Claims:
    """The claims of a store, in the name of this process. Use as a context: the pulse beats inside it."""

    def __init__(self, root: str | Path, lease: float = LEASE_SECONDS, **about: Any) -> None:
        """`about`: what others shall know of this process, such as its job and log."""
        self.folder = Path(root) / "claims"
        self.owners = self.folder / ".owners"
        self.lease = lease
        self.name = uuid.uuid4().hex
        self.about = {"host": machine(), "pid": os.getpid(), "started": started(os.getpid()), **about}
        self._quiet = threading.Event()

    def __enter__(self) -> Claims:
        with writing():
            self._sign()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._quiet.set()
        with contextlib.suppress(OSError):
            (self.owners / self.name).unlink()

    def _sign(self) -> None:
        write_json(self.owners / self.name, {**self.about, "since": time.time()})

    def _beat(self) -> None:
        while not self._quiet.wait(PULSE_SECONDS):
            with contextlib.suppress(OSError):
                try:
                    os.utime(self.owners / self.name)
                except FileNotFoundError:  # somebody took us for dead
                    self._sign()

    # --- taking and leaving ------------------------------------------------------------------------------------

    def take(self, cell: str, images: int = 0) -> Claim | None:
        """The claim if the cell is ours now; None if a living process has it. `images`: how many are finished. Raises
        StoreError."""
        before = self.look(cell)
        if before is not None and before.alive:
            return None
        if before is not None and not self._bury(cell):
            return None
        deaths = 0 if before is None else before.deaths + 1 if images <= before.images else 1
        claim = Claim(cell, self.about, True, time.time(), deaths, images)
        if not self._write(claim):
            return None
        if before is not None:
            claim = replace(claim, cause=before.cause, message=before.message, trace=before.trace)
        return claim

    def _bury(self, cell: str) -> bool:
        """Remove a claim of the dead; False if somebody else was quicker."""
        grave = self.folder / f".{cell}.{uuid.uuid4().hex}"
        with writing():
            try:
                os.rename(self.folder / cell, grave)  # who comes later finds nothing to rename
            except FileNotFoundError:
                return False
            buried = self.look(grave.name)
            alive = buried is not None and buried.alive
            if alive:  # the cell was taken between our look and our rename
                with contextlib.suppress(FileExistsError):
                    os.link(grave, self.folder / cell)
            grave.unlink()
        return not alive

    def _write(self, claim: Claim) -> bool:
        content = {"owner": self.name, "since": claim.since, "deaths": claim.deaths, "images": claim.images}
        content |= {"cause": claim.cause, "message": claim.message, "trace": claim.trace}
        with writing():
            return create_json(self.folder / claim.cell, content)

    def release(self, cell: str) -> None:
        (self.folder / cell).unlink(missing_ok=True)

    def leave(self, claim: Claim, cause: str, message: str = "", trace: str = "") -> None:
        """Note why the owner is about to end with its cell open."""
        self.release(claim.cell)
        self._write(replace(claim, cause=cause, message=message, trace=trace))

    def forget(self, pids: Collection[int]) -> None:
        """Drop the claims of processes of this machine that were ended on purpose: no death to count."""
        for claim in self.all():
            if claim.owner.get("host") == self.about["host"] and claim.owner.get("pid") in pids:
                self.release(claim.cell)

    def tidy(self, ended: Collection[str]) -> None:
        """Remove what processes left that are gone: their cards, their stale drafts, their claims on cells that have
        `ended`."""
        remove_drafts(self.folder)
        remove_drafts(self.owners)
        for file in self.owners.iterdir():
            if not file.name.startswith(".") and not self._owner(file.name)[1]:  # else it is still being written
                file.unlink(missing_ok=True)
        for claim in self.all():
            if claim.cell in ended and not claim.alive:
                self.release(claim.cell)

    @contextlib.contextmanager
    def alone(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Inside, no other process is in the block of this name. `waiting` is called once if one is."""
        told = False
        while self.take(f".{name}") is None:
            if not told:
                waiting()
            told = True
            time.sleep(0.2)
        try:
            yield
        finally:
            self.release(f".{name}")

    # --- looking -----------------------------------------------------------------------------------------------

    def look(self, cell: str) -> Claim | None:
        """The claim on a cell, of the living or the dead."""
        return self._read(cell, self._owner)

    def all(self) -> list[Claim]:
        """Every claim: a directory scan, and a file read each."""
        owner = functools.cache(self._owner)
        try:
            names = sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        except FileNotFoundError:
            return []
        return [claim for name in names if (claim := self._read(name, owner)) is not None]

    def _read(self, cell: str, owner: Any) -> Claim | None:
        try:
            content = json.loads((self.folder / cell).read_bytes())
            about, alive = owner(content.pop("owner"))
            return Claim(cell, about, alive, **content)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError):  # it appeared whole, so it will not become readable
            return Claim(cell, {}, False, 0.0, 0, 0)

    def _owner(self, name: str) -> tuple[Mapping[str, Any], bool]:
        """(what is known of an owner, whether it lives)."""
        file = self.owners / name
        try:
            about, beat = json.loads(file.read_bytes()), file.stat().st_mtime
            if about["host"] == self.about["host"]:
                return about, started(about["pid"]) == about["started"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}, False
        return about, self._now() - beat < self.lease

    def _now(self) -> float:
        """The file system's time: clocks of nodes differ."""
        file = self.owners / self.name
        if not file.exists():
            return time.time()
        os.utime(file)
        return file.stat().st_mtime
