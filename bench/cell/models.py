"""Construction of a model's denoiser with its weights, and of its grid, from the model's configuration."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from bench.errors import UserError
from bench.hub import damage
from bench.spec.config import ModelConfig
from bench.spec.registry import load
from methods.denoiser import Denoiser
from methods.paths import TimeGrid, make_path

OF_THE_PATH = ("path", "t_max")
"""Arguments of a backbone that follow from its path."""


def build_backbone(config: ModelConfig, weights: bool = True, strict: bool = True) -> nn.Module:
    """Return the network alone, with its weights if `weights` is True and the model names some.

    Without `strict` the weights may lack layers. These keep their initial values, for a training that starts from the
    weights of a smaller network.
    """
    arguments = dict(config.backbone)
    made = load(config.class_path, "model")
    wanted, path = inspect.signature(made).parameters, make_path(config.path.kind, config.path.schedule)
    arguments |= {name: value for name, value in zip(OF_THE_PATH, (path, path.t_max), strict=True) if name in wanted}
    try:
        network = made(**arguments)
    except (TypeError, ValueError, ImportError, FileNotFoundError) as error:
        raise UserError(f"model class {config.class_path}: {error}") from error
    if weights and config.weights_file is not None:
        if config.weights_file.is_file() and (why := damage(config.weights_file)):
            raise UserError(f"weights {config.weights}: {why}")
        network.load_state_dict(load_file(config.weights_file), strict=strict)
    return network


def described(config: ModelConfig) -> dict[str, Any]:
    """Return `config.network` with the backbone's defaults, as a card describes the weights."""
    wanted = inspect.signature(load(config.class_path, "model")).parameters.values()
    defaults = {p.name: p.default for p in wanted if p.default is not p.empty and p.name not in OF_THE_PATH}
    return config.network | {"backbone": defaults | config.network["backbone"]}


def build_denoiser(config: ModelConfig, weights: bool = True, device: str = "cpu") -> Denoiser:
    """Return the denoiser, frozen and in channels-last memory (faster convolutions on CPUs)."""
    network = build_backbone(config, weights).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = make_path(config.path.kind, config.path.schedule)
    for key, stated, trained in (
        ("path", path, getattr(network, "path", path)),
        ("prediction", config.prediction, getattr(network, "prediction", config.prediction)),
    ):
        if stated != trained:
            raise UserError(f"{key}={stated} in the model's YAML, but its weights were trained for {trained}")
    denoiser = Denoiser(network, path, config.prediction).to(device)
    return denoiser.eval().requires_grad_(False)


def build_grid(config: ModelConfig, steps: int) -> TimeGrid:
    """Return the model's grid with N steps. Raises ValueError for a spacing that its path does not have."""
    path = make_path(config.path.kind, config.path.schedule)
    return path.grid(steps, config.grid.spacing, config.grid.level0, config.grid.mu)
