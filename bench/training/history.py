"""The curves of a training on disk: one JSON line per logged update. The Weights & Biases mirror reads them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class History(Logger):
    """A Lightning logger that appends whole lines to `file`, so a killed run keeps what it has logged."""

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
        """Do nothing: the recipe has a file of its own beside the curves."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if not values:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
