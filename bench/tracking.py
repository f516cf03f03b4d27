"""The Weights & Biases mirror of the store: one run for every method, model, corruption and data set.

Written by one process after the cells, from the store alone, so it is never in a timed region; any failure of it is
one line and the sweep goes on. Offline unless the user is logged in (`tracker.mode=online|offline` decides otherwise).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import netrc
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.config import RunConfig, TrackerConfig
from bench.store import Store

NUMBERS = ("psnr", "ssim", "mse", "lpips", "input_psnr", "latent_std", "nfe", "seconds", "peak_mib")


def mode(tracker: TrackerConfig) -> str:
    """online | offline."""
    if tracker.mode != "auto":
        return tracker.mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        hosts = netrc.netrc().hosts
        if any("wandb" in host or "coreweave" in host for host in hosts):
            return "online"
    return "offline"


def mirror(config: RunConfig, cell_ids: Iterable[str], store: Store) -> str:
    """Publish finished cells; returns one line that says what was written where."""
    ids = [cell_id for cell_id in cell_ids if cell_id in store.done()]
    if not ids:
        return "wandb: nothing to publish"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _publish(config, ids, store)
    except Exception as error:  # a mirror must never cost a sweep
        return f"wandb: not published ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


def _publish(config: RunConfig, ids: list[str], store: Store) -> str:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else an offline node waits for telemetry at exit
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    chosen = mode(config.tracker)
    folder = Path(config.results).resolve()
    groups = store.rows(ids).groupby(["method", "model", "dataset", "task", "corruption"], dropna=False, sort=True)
    for keys, rows in groups:
        axes = dict(zip(("method", "model", "dataset", "task", "corruption"), map(_plain, keys), strict=True))
        words = "-".join(str(value) for value in axes.values() if value)
        run_id = hashlib.blake2b(f"{config.name}|{'|'.join(sorted(rows.cell_id.unique()))}".encode(), digest_size=8)
        run = wandb.init(
            project=config.tracker.project,
            entity=config.tracker.entity,
            group=config.name,
            name=words,
            id=f"{words}-{run_id.hexdigest()}"[:120],
            config={"sweep": config.name, **axes},
            dir=folder,
            mode=chosen,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(x_disable_stats=True, console="off", silent=True, finish_timeout=30),
        )
        columns = [name for name in NUMBERS if name in rows]
        by = ["severity", "steps", "guidance", "seed"]
        for step, (point, cell) in enumerate(rows.groupby(by, dropna=False, sort=True)):
            means = {name: float(value) for name, value in cell[columns].mean().items() if value == value}
            run.log(
                {**means, **{k: v for k, v in zip(by, map(_plain, point), strict=True) if v is not None}}, step=step
            )
        run.finish()
    return f"wandb: {len(groups)} runs mirrored {chosen} in {folder / 'wandb'}"


def _plain(value: Any) -> Any:
    """A pandas value as Python's own; missing as None."""
    if value is None or value != value:
        return None
    return value.item() if hasattr(value, "item") else value
