"""Whether the mirror goes to a Weights & Biases server or to offline folders."""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
from urllib.parse import urlsplit

from bench.errors import UserError
from bench.spec.config import TrackerConfig

QUIET = {
    "WANDB_ERROR_REPORTING": "false",  # no telemetry; else a node without a network waits for it at its exit
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}


OF_A_RUN = (
    "CONFIG_PATHS", "FORK_FROM", "JOB_TYPE", "LAUNCH", "LAUNCH_CONFIG_PATH", "NAME", "NOTES", "RESUME", "RESUME_FROM",
    "RUN_GROUP", "RUN_ID", "SERVICE", "SWEEP_ID", "SWEEP_PARAM_PATH", "TAGS",
)  # fmt: skip
"""Variables WANDB_... that say which run a process is, as an agent of W&B sets them: our runs say so themselves."""


def prepare() -> None:
    """Set this process's environment for wandb: to be called before anything of it is used."""
    os.environ.update(QUIET)
    for name in OF_A_RUN:
        os.environ.pop(f"WANDB_{name}", None)


def server() -> str:
    """The address of the W&B server, from the environment or the user's settings."""
    prepare()
    import wandb

    return str(wandb.setup().settings.base_url)


def logged_in() -> bool:
    """Whether there is a key for a W&B server, in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return any("wandb" in host or "coreweave" in host for host in netrc.netrc().hosts)
    return False


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether the server takes a connection. Behind a proxy this cannot be known, and wandb must try."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    parts = urlsplit(url)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


def mode(tracker: TrackerConfig) -> str:
    """online | offline | disabled."""
    if tracker.mode != "auto":
        return tracker.mode
    given = os.environ.get("WANDB_MODE", "")
    if given in ("online", "offline", "disabled"):
        return given
    return "online" if logged_in() and answers(server()) else "offline"


def require_login() -> None:
    """Raises UserError where no server can be asked."""
    if not logged_in():
        raise UserError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY; or tracker.mode=offline")
    if not answers(server()):
        raise UserError(f"the W&B server {server()} does not answer; tracker.mode=offline writes the mirror to disk")
