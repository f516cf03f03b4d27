"""Measure noise and cost of the injective ODE's two regularisers: `python -m bench.regularisers [model=digits_inode]`.

The points are drawn as in training, from held-out images, with the model's present weights. One estimate is one random
probe at one point. Keys: images=32, probes=16 (estimates at each point).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.arguments import own_arguments, whole_number
from bench.errors import UserError, run_command
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig
from bench.spec.registry import load

if TYPE_CHECKING:
    from torch import Tensor

    from methods.injective_ode.training import InjectiveTraining, Points, Regulariser

ESTIMATORS: tuple[Regulariser, ...] = ("pairs", "jacobian")
REPEATS = 3
"""The number of timings. The shortest counts."""


class Spread(NamedTuple):
    """Statistics of estimates at many points.

    They are the mean, the standard deviation over random points and probes, and the one over probes alone.
    """

    mean: float
    deviation: float
    by_probe: float


def spread(estimates: Tensor) -> Spread:
    """Return the statistics of `estimates` [probes, points]. There must be two probes or more."""
    by_probe = estimates.var(0).mean()
    deviation = estimates.mean(0).var(correction=0) + by_probe * (1 - 1 / len(estimates))
    return Spread(float(estimates.mean()), float(deviation.sqrt()), float(by_probe.sqrt()))


def estimate(module: InjectiveTraining, u: Tensor, at: Points, probes: int, seed: int = 0) -> Tensor:
    """Return estimates [probes, points] of the module's regulariser at gauge points u [points, C, H, W]."""
    import torch

    from methods.training import keyed_generator

    with torch.no_grad():
        return torch.stack(
            [module.penalty(u, at.t, at.features, keyed_generator(u.device, seed, n)) for n in range(probes)]
        )


def seconds(loss: Callable[[], Any]) -> float:
    """Return the CPU time in seconds of a loss and its gradient."""
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        loss().backward()
        taken.append(time.process_time() - start)
    return min(taken)


def parse(arguments: list[str]) -> tuple[ModelConfig, int, int]:
    """Return the model's configuration, the number of images and the number of probes."""
    own, overrides = own_arguments(arguments, {"images": "32", "probes": "16"})
    images, probes = whole_number(own, "images", 1), whole_number(own, "probes", 2)
    if not any(override.startswith("model=") for override in overrides):
        overrides = ["model=digits_inode", *overrides]
    models = compose_config(overrides, sweep_required=False, own=own).model
    if len(models) != 1:
        raise UserError("name one model: model=NAME")
    ((name, model),) = models.items()
    if model.train is None or model.train.flow is None:
        raise UserError(f"model={name} has no regulariser; models of the injective ODE have one (digits_inode ..)")
    if model.weights_file is None or not model.weights_file.is_file():
        raise UserError(
            f"model={name}: its weights are not on disk ({model.weights}); python -m bench.train makes them"
        )
    return model, images, probes


def main(arguments: list[str]) -> int:
    model, images, probes = parse(arguments)

    import torch

    from bench.cell.models import build_backbone
    from bench.training.observer import Observer
    from methods.backbones.captions import VOCABULARIES
    from methods.injective_ode.training import InjectiveTraining
    from methods.training import Optimisation, keyed_generator

    assert model.train is not None and model.train.flow is not None
    torch.set_num_threads(1)
    network: Any = build_backbone(model).eval()
    module = InjectiveTraining(network, Optimisation(1), Observer(model.train.flow), model.train.flow.draws)
    data = compose_config([f"dataset={model.dataset}"], sweep_required=False).dataset[str(model.dataset)]
    dataset = load(data.class_path, "dataset")(split="test")
    items = [dataset.item(i) for i in range(min(images, len(dataset)))]
    pictures = torch.stack([torch.from_numpy(item.image) for item in items]).float() * 2 - 1
    tokens = torch.tensor([VOCABULARIES[str(model.vocabulary)].tokens(item.caption) for item in items])

    def rng() -> torch.Generator:
        return keyed_generator(torch.device("cpu"), 0)

    def update(weight: float) -> Tensor:
        module.regulariser_weight = weight
        return module.loss(pictures, tokens, rng(), training=True)

    with torch.no_grad():
        at = module.draw(pictures, tokens, rng())
        u = network.to_gauge(at.z, at.t, at.features)
    alone = seconds(lambda: update(0.0))
    print("| regulariser | mean | std of one estimate | by its probe alone | CPU time of an update / without it |")
    print("|---|---:|---:|---:|---:|")
    for module.regulariser in ESTIMATORS:
        found = spread(estimate(module, u, at, probes))
        cost = seconds(lambda: update(1.0)) / alone
        figures = f"{found.mean:.4f} | {found.deviation:.4f} | {found.by_probe:.4f} | {cost:.2f}"
        print(f"| {module.regulariser} | {figures} |")
    print(f"\n{len(u)} points, {probes} probes at each; an update without regulariser: {alone:.2f} s of CPU time")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    run_command(main)
