"""Makes the measurements that the injective ODE is trained on."""

from __future__ import annotations

from typing import Any

from bench.spec.compose import compose_config
from bench.spec.config import FlowTrainConfig
from bench.spec.registry import check_options, load


class Observer:
    """Corrupts a batch of images as the corruption sweep does, with a random severity for each image.

    The kinds are those of `methods.injective_ode.conditioner`. All random numbers come from the given generator.
    """

    def __init__(self, flow: FlowTrainConfig) -> None:
        chosen = compose_config([f"corruption=[{','.join(flow.corruptions)}]"], sweep_required=False).corruption
        self.flow = flow
        self.corruptions = {
            name: [
                load(c.class_path, "corruption")(
                    check_options(c.class_path, "corruption", {**c.options, **severity}, "corruption")
                )
                for severity in c.severities.values()
            ]
            for name, c in chosen.items()
        }

    def __call__(self, images: Any, rng: Any) -> Any:
        """Map images [B, C, H, W] in [-1, 1] to methods.injective_ode.training.Observation."""
        import torch

        from methods.injective_ode.conditioner import KINDS
        from methods.injective_ode.training import Observation

        flow, names = self.flow, list(self.corruptions)
        y, known = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        data, kinds = images.clone(), torch.full((len(images),), KINDS.index("null"), device=images.device)
        draws = torch.rand(3, len(images), generator=rng, device=images.device).tolist()
        seeds = torch.randint(2**62, (len(images),), generator=rng, device=images.device).tolist()
        for i, (share, which, level) in enumerate(zip(*draws, strict=True)):
            name = names[int(which * len(names))]
            if share < flow.measured:
                y[i], known[i] = self.measure(name, level, images[i], seeds[i])
                kinds[i] = KINDS.index(name)
            elif share < flow.measured + flow.source:
                data[i], _ = self.measure(name, level, images[i], seeds[i])
                kinds[i] = KINDS.index(f"is_{name}")
            elif share < flow.measured + flow.source + flow.clean:
                y[i], known[i], kinds[i] = images[i], 1.0, KINDS.index("clean")
        return Observation(data, y, known, kinds)

    def measure(self, name: str, level: float, image: Any, seed: int) -> tuple[Any, Any]:
        """Return (y, known) of an image [C, H, W]. `level` in [0, 1) chooses the severity, from the weakest up."""
        import torch

        from corruptions.base import Key, measure

        severities = self.corruptions[name]
        place = int(level * len(severities))
        measured = measure(severities[place], image, Key("training", "", name, place, seed))
        known = measured.operator.known
        return measured.y.to(image), torch.ones_like(image[:1]) if known is None else known.to(image)
