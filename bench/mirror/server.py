"""The choice between a Weights & Biases server and offline folders for the mirror."""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
from urllib.parse import urlsplit

from bench.errors import UserError
from bench.spec.config import TrackerConfig

QUIET = {
    "WANDB_ERROR_REPORTING": "false",  # no telemetry: a node without a network would wait for it at its exit
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
}

RUN_VARIABLES = (
    "CONFIG_PATHS", "FORK_FROM", "JOB_TYPE", "LAUNCH", "LAUNCH_CONFIG_PATH", "NAME", "NOTES", "RESUME", "RESUME_FROM",
    "RUN_GROUP", "RUN_ID", "SERVICE", "SWEEP_ID", "SWEEP_PARAM_PATH", "TAGS",
)  # fmt: skip
"""Variables WANDB_... that assign a process to a run. An agent of W&B sets them; our runs choose their own id."""


def prepare() -> None:
    """Set the environment of this process for wandb. Call it before any use of wandb."""
    os.environ.update(QUIET)
    for name in RUN_VARIABLES:
        os.environ.pop(f"WANDB_{name}", None)


def server() -> str:
    """Return the address of the W&B server, from the environment or the settings of the user."""
    prepare()
    import wandb

    return str(wandb.setup().settings.base_url)


def logged_in() -> bool:
    """Return True if the environment or ~/.netrc has a key for a W&B server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return any("wandb" in host or "coreweave" in host for host in netrc.netrc().hosts)
    return False


def answers(url: str, seconds: float = 3.0) -> bool:
    """Return True if the server accepts a connection. Behind a proxy this cannot be known: then it returns True, and
    wandb tries."""
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
    """Return the mode: online, offline or disabled."""
    if tracker.mode != "auto":
        return tracker.mode
    given = os.environ.get("WANDB_MODE", "")
    if given in ("online", "offline", "disabled"):
        return given
    return "online" if logged_in() and answers(server()) else "offline"


def require_login() -> None:
    """Raise UserError if the user is not logged in, or if the server does not answer."""
    if not logged_in():
        raise UserError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY, or use tracker.mode=offline")
    if not answers(server()):
        raise UserError(f"the W&B server {server()} does not answer; tracker.mode=offline writes the mirror to disk")
