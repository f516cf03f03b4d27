"""Draw posterior samples: `python -m bench.posterior [image=0] [draws=16] [out=FILE.png] [key=value ..]`.

The picture has one row per corruption of sweep=corruptions, at severity 3 unless overridden. A row shows the injective
ODE's restoration of one held-out image, samples of the posterior, and their spread at each pixel. So a reader sees what
was measured and what the method added.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import own_arguments, whole_number
from bench.errors import UserError, run_command
from bench.spec.cells import Cell, expand
from bench.spec.compose import compose_config

SHOWN = 2
"""The number of samples in a row of the picture."""


@dataclass(frozen=True)
class Row:
    """One row of the picture: images [H, W, C] in [0, 1], and the spread [H, W] in the same units."""

    corruption: str
    truth: np.ndarray
    y: np.ndarray
    restored: np.ndarray
    samples: list[np.ndarray]
    spread: np.ndarray


def parse(arguments: list[str]) -> tuple[list[Cell], int, int, Path, dict[str, str]]:
    """Return the cells, the index of the image, the number of draws, the output file and the titles of corruptions."""
    own, overrides = own_arguments(arguments, {"image": "0", "draws": "16", "out": "results/posterior.png"})
    index, draws = whole_number(own, "image", 0), whole_number(own, "draws", SHOWN)
    out = Path(own["out"]).expanduser()
    if not out.suffix and not out.is_dir():
        out = out.with_suffix(".png")  # matplotlib adds this suffix itself, but the command prints the name
    if out.is_dir():
        raise UserError(f"out={own['out']!r} is a folder; it must be a file")
    given = {override.partition("=")[0] for override in overrides}
    defaults = {"sweep": "corruptions", "method": "injective_ode", "severity": "3", "steps": "10"}
    preset = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    config = compose_config([*preset, *overrides], own=own)
    return list(expand(config).cells), index, draws, out, config.titles["corruption"]


def solve(cell: Cell, index: int, draws: int) -> Row:
    """Solve one cell's problem for one image. Raises UserError for a method that draws no posterior samples."""
    import torch

    import corruptions.base as corruptions
    from bench.cell.execute import build_method
    from bench.cell.posing import image_generator, measure
    from bench.spec.datasets import open_dataset
    from methods.injective_ode.method import InjectiveODE, uncertainty

    data = cell.spec["dataset"]
    dataset = open_dataset(data)
    if index >= len(dataset):
        raise UserError(f"image={index}: dataset {data['name']} has {len(dataset)} images")
    item, method = dataset.item(index), build_method(cell)
    if not isinstance(method, InjectiveODE):
        raise UserError(f"method={cell.axes['method']} draws no posterior samples; injective_ode does")
    x = torch.from_numpy(item.image)[None] * 2 - 1
    measured = corruptions.stack([measure(cell, item.id, x[0])])
    with torch.no_grad():
        cond = method.denoiser.condition([item.caption], method.options.guidance)
        samples = method.posterior(measured, cond, draws, [image_generator(cell, item.id)])
        restored, _ = method.restore(measured, cond, [image_generator(cell, item.id)])

    def shown(image: Any) -> np.ndarray:
        return (image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().numpy()

    spread = uncertainty(samples)[0, 0].numpy() / 2
    drawn = [shown(sample) for sample in samples[:SHOWN]]
    return Row(cell.axes["corruption"], shown(x), shown(measured.y), shown(restored), drawn, spread)


def picture(rows: list[Row], draws: int, names: dict[str, str]) -> Any:
    """Draw one row per corruption, with its title from `names`. All rows share one scale of the spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = ["truth", "measured", "restored", *(f"sample {i + 1}" for i in range(SHOWN)), f"spread of {draws}"]
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.35 * len(titles) + 0.8, 1.4 * len(rows)), squeeze=False, layout="constrained"
    )
    widest = max(float(row.spread.max()) for row in rows)
    for line, row in zip(axes, rows, strict=True):
        for axis, image in zip(line, [row.truth, row.y, row.restored, *row.samples], strict=False):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        heat = line[-1].imshow(row.spread, cmap="magma", vmin=0, vmax=widest, interpolation="nearest")
        line[0].set_ylabel(names[row.corruption], fontsize=8)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    bar = figure.colorbar(heat, ax=axes[:, -1], shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    return figure


def main(arguments: list[str]) -> int:
    cells, index, draws, out, names = parse(arguments)
    figure = picture([solve(cell, index, draws) for cell in cells], draws, names)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, metadata={"Software": None})
    print(out)
    return 0


if __name__ == "__main__":
    run_command(main)
