"""FlowEdit: inversion-free editing with pre-trained flow models (Kulikov et al. 2024, arXiv 2412.08629, Alg. 1).

Z starts at the image x0. It follows the difference of two velocities: that of the target at T, and that of the source
at S. T and S are noisy images with the same new noise. A step s -> s-, from level n_max down to n_min, is the mean over
n_avg draws of

    eps ~ N(0, I)    S = (1 - s) x0 + s eps    T = Z + S - x0    Z += (s- - s) (v(T, s; target) - v(S, s; source))

With n_min > 0, T at level n_min is sampled down to level 0 by Euler's step, under the target alone.

There is no inversion, no x_T and no reconstruction: with target = source the difference is 0, and every model returns
the image unchanged. A restoration starts at y, with the null condition as source and the caption as target. The latent
that it reports is the input image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from methods.base import Generators, Latent, Measurement, Method, Problem, needed, normal, only_inside, with_known
from methods.denoiser import Condition, Denoiser
from methods.inversion import options
from methods.inversion.rectified import velocity
from methods.paths import TimeGrid

Hold = Callable[[Tensor, float, Tensor | float], Tensor]
"""Maps (X, s, eps) to X with its known pixels set to (1 - s) y + s eps."""


class FlowEdit(Method):
    Options = options.FlowEdit

    def __init__(self, denoiser: Denoiser, options: options.FlowEdit, grid: TimeGrid) -> None:
        super().__init__(denoiser, options, grid)
        if options.n_max is not None:
            self.grid = TimeGrid(grid.nodes[: options.n_max + 1])

    def _run(self, problem: Problem) -> tuple[Tensor, Latent]:
        if problem.task == "edit":
            target, image = needed(problem.target, problem.task, "target"), problem.image.to(self.latent_dtype)
            return self.edit(image, problem.source, target, problem.mask, problem.generators)
        measurement = needed(problem.measurement, problem.task, "measurement")
        return self.restore(measurement, problem.source, problem.generators)

    def edit(
        self, x0: Tensor, source: Condition, target: Condition, mask: Tensor | None = None, generators: Generators = ()
    ) -> tuple[Tensor, Latent]:
        """Move x0 from the source to the target. Outside `mask` (bool [B, 1, H, W]) the image is kept."""
        w = self.options.guidance_invert
        edited = self.move(x0, source if w is None else source.at(w), target, generators)
        return only_inside(edited, x0, mask), Latent({"x_0": x0})

    def restore(self, measurement: Measurement, cond: Condition, generators: Generators = ()) -> tuple[Tensor, Latent]:
        """Move y from the null condition to the caption. The option `project` says how known pixels are kept."""
        y, known, project = measurement.y.to(self.latent_dtype), measurement.known, self.options.project

        def hold(x: Tensor, s: float, eps: Tensor | float) -> Tensor:
            return torch.where(known, (1 - s) * y + s * eps, x)  # type: ignore[arg-type]

        each_step = hold if known is not None and project == "each_step" else None
        x_hat = self.move(y, cond.unconditional, cond, generators, each_step)
        return with_known(x_hat, measurement, project), Latent({"x_0": y})

    def move(
        self, x0: Tensor, source: Condition, target: Condition, generators: Generators, hold: Hold | None = None
    ) -> Tensor:
        """Return x0 [B, C, H, W], moved from the source to the target condition."""
        z, n_min = x0, self.options.n_min
        for k in range(self.grid.steps, n_min, -1):
            draws = [self.difference(z, x0, k, source, target, generators) for _ in range(self.options.n_avg)]
            z = z + (self.grid[k - 1].s - self.grid[k].s) * torch.stack(draws).mean(0)
            z = hold(z, 0.0, 0.0) if hold else z  # z is a clean image at every level
        return self.sample(z, x0, target, generators, hold) if n_min else z

    def difference(
        self, z: Tensor, x0: Tensor, level: int, source: Condition, target: Condition, generators: Generators
    ) -> Tensor:
        """Return v(T; target) - v(S; source) for one draw of the noise."""
        node = self.grid[level]
        noisy = (1 - node.s) * x0 + node.s * normal(x0, generators)
        flow = self.denoiser
        return velocity(flow, z + noisy - x0, node, target) - velocity(flow, noisy, node, source)

    def sample(self, z: Tensor, x0: Tensor, target: Condition, generators: Generators, hold: Hold | None) -> Tensor:
        """Run the last n_min steps: sample from T under the target, with one draw of the noise."""
        eps = normal(x0, generators)
        x = z + self.grid[self.options.n_min].s * (eps - x0)
        for k in range(self.options.n_min, 0, -1):
            node, earlier = self.grid[k], self.grid[k - 1]
            x = x + (earlier.s - node.s) * velocity(self.denoiser, x, node, target)
            x = hold(x, earlier.s, eps) if hold else x
        return x * self.grid[0].scale

    def expected_nfe(self, inverting: Condition, decoding: Condition) -> int:
        """Return the evaluations per image. `inverting` is the condition of the source, `decoding` that of the
        target."""
        n_min = self.options.n_min
        moved = (self.grid.steps - n_min) * self.options.n_avg * (inverting.evaluations + decoding.evaluations)
        return moved + n_min * decoding.evaluations
