"""The curves of a training on disk, a JSON line a logged update: what the Weights & Biases mirror is made from."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class History(Logger):
    """A Lightning logger that appends to FILE; whole lines only, so that a killed run leaves what it logged."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def name(self) -> str:
        return self.file.parent.name

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The recipe stands beside the curves, and not in them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        known = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if not known:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
