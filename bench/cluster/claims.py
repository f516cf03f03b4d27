"""Claims: a claim says which process works on a cell. It is valid while its owner gives signs of life. No torch.

    ROOT/claims/CELL           the owner, when it claimed the cell, and how many owners ended in this cell
    ROOT/claims/.owners/NAME   the card of one process; a thread updates its time: this is the sign of life

A claim or a card that cannot be read is void: the cell is free.

Claims only save work. A record is written whole and once, whatever the claims say. A slow file system may show a claim
too late, and a process may be paused and go on later: both can cause a second computation, and nothing worse.
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
"""A card that is older than this is void. Network file systems cache attributes for up to 60 s; this is several pulses
more."""


@dataclass(frozen=True)
class Claim:
    """The claim on one cell; its owner may have ended."""

    cell: str
    owner: Mapping[str, Any]
    """Keys host, pid, started, job, log, since. Empty if the card of the owner is gone."""
    alive: bool
    since: float
    deaths: int
    """The number of owners in a row that ended in this cell without finishing one more image."""
    images: int
    """The number of images that were finished when the claim was made."""
    cause: str = "node"
    """Why the owner left: `preempted` if a signal stopped it, else `node`. In a claim that `take` returns, this field
    and the next two are those of the previous owner."""
    message: str = ""
    """The message of the error that made the owner leave; empty if it noted none."""
    trace: str = ""


def machine() -> str:
    """Return a name of the set of process ids that ours belongs to: each container has its own set."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}/{space}"


def started(pid: int) -> str | None:
    """Return the start time of a process, or None if there is no such process. It tells two processes with the same pid
    apart. A zombie has ended, although it still has a pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if os.path.isdir("/proc/self") else _without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _without_proc(pid: int) -> str | None:
    """Return an empty text if the process exists, else None: a system without /proc gives no start time."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Claims:
    """The claims of a store, made in the name of this process. Use it as a context: inside, this process gives signs of
    life."""

    def __init__(self, root: str | Path, lease: float = LEASE_SECONDS, **about: Any) -> None:
        """`lease`: seconds without a sign of life after which an owner has ended. `about`: facts about this process for
        other processes, such as its job and log."""
        self.folder = Path(root) / "claims"
        self.owners = self.folder / ".owners"
        self.lease = lease
        self.name = uuid.uuid4().hex
        self.about = {"host": machine(), "pid": os.getpid(), "started": started(os.getpid()), **about}
        self._quiet = threading.Event()

    def __enter__(self) -> Claims:
        with writing():
            self._write_card()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._quiet.set()
        with contextlib.suppress(OSError):
            (self.owners / self.name).unlink()

    def _write_card(self) -> None:
        write_json(self.owners / self.name, {**self.about, "since": time.time()})

    def _beat(self) -> None:
        while not self._quiet.wait(PULSE_SECONDS):
            with contextlib.suppress(OSError):
                try:
                    os.utime(self.owners / self.name)
                except FileNotFoundError:  # another process took us for ended and removed the card
                    self._write_card()

    # --- claiming and releasing ------------------------------------------------------------------------------------

    def take(self, cell: str, images: int = 0) -> Claim | None:
        """Claim a cell. Returns the claim, or None if a running process has the cell. `images` is the number of images
        that are finished. Raises StoreError."""
        before = self.look(cell)
        if before is not None and before.alive:
            return None
        if before is not None and not self._remove_void(cell):
            return None
        deaths = 0 if before is None else before.deaths + 1 if images <= before.images else 1
        claim = Claim(cell, self.about, True, time.time(), deaths, images)
        if not self._write(claim):
            return None
        if before is not None:
            claim = replace(claim, cause=before.cause, message=before.message, trace=before.trace)
        return claim

    def _remove_void(self, cell: str) -> bool:
        """Remove the claim of an owner that has ended. Returns False if another process removed it first."""
        aside = self.folder / f".{cell}.{uuid.uuid4().hex}"
        with writing():
            try:
                os.rename(self.folder / cell, aside)  # a process that comes later finds nothing to rename
            except FileNotFoundError:
                return False
            moved = self.look(aside.name)
            alive = moved is not None and moved.alive
            if alive:  # another process claimed the cell between our check and our rename
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.folder / cell)
            aside.unlink()
        return not alive

    def _write(self, claim: Claim) -> bool:
        content = {"owner": self.name, "since": claim.since, "deaths": claim.deaths, "images": claim.images}
        content |= {"cause": claim.cause, "message": claim.message, "trace": claim.trace}
        with writing():
            return create_json(self.folder / claim.cell, content)

    def release(self, cell: str) -> None:
        (self.folder / cell).unlink(missing_ok=True)

    def leave(self, claim: Claim, cause: str, message: str = "", trace: str = "") -> None:
        """Note in the claim why its owner is about to end, with the cell still open."""
        self.release(claim.cell)
        self._write(replace(claim, cause=cause, message=message, trace=trace))

    def forget(self, pids: Collection[int]) -> None:
        """Remove the claims of processes of this machine that were ended on purpose: this must not count against the
        cells."""
        for claim in self.all():
            if claim.owner.get("host") == self.about["host"] and claim.owner.get("pid") in pids:
                self.release(claim.cell)

    def tidy(self, ended: Collection[str]) -> None:
        """Remove the files of processes that have ended: their cards, their stale drafts, and their claims on the cells
        `ended`."""
        remove_drafts(self.folder)
        remove_drafts(self.owners)
        for file in self.owners.iterdir():
            # A name with a dot is a card that is still being written.
            if not file.name.startswith(".") and not self._owner(file.name)[1]:
                file.unlink(missing_ok=True)
        for claim in self.all():
            if claim.cell in ended and not claim.alive:
                self.release(claim.cell)

    @contextlib.contextmanager
    def alone(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Enter a block that only one process at a time may run, by `name`. Calls `waiting` once if it has to wait."""
        waited = False
        while self.take(f".{name}") is None:
            if not waited:
                waiting()
            waited = True
            time.sleep(0.2)
        try:
            yield
        finally:
            self.release(f".{name}")

    # --- reading -----------------------------------------------------------------------------------------------

    def look(self, cell: str) -> Claim | None:
        """Return the claim on a cell, whether its owner is running or has ended; None if there is none."""
        return self._read(cell, self._owner)

    def all(self) -> list[Claim]:
        """Return every claim: one scan of the folder, and one read per claim."""
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
        except (ValueError, KeyError, TypeError, AttributeError):  # a claim appears whole, so this one is damaged
            return Claim(cell, {}, False, 0.0, 0, 0)

    def _owner(self, name: str) -> tuple[Mapping[str, Any], bool]:
        """Return (the content of the card of an owner, True if the owner is still running)."""
        file = self.owners / name
        try:
            about, beat = json.loads(file.read_bytes()), file.stat().st_mtime
            if about["host"] == self.about["host"]:
                return about, started(about["pid"]) == about["started"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}, False
        return about, self._now() - beat < self.lease

    def _now(self) -> float:
        """Return the time of the file system, since the clocks of nodes differ."""
        file = self.owners / self.name
        if not file.exists():
            return time.time()
        os.utime(file)
        return file.stat().st_mtime
