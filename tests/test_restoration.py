"""The shipped weights of the injective ODE restore images that were not in their training data."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cell.execute import execute
from bench.spec.cells import expand
from bench.spec.compose import compose_config

MARGIN = {"random_mask": 6.0, "block_mask": 2.0, "gaussian_blur": 2.0, "gaussian_noise": 2.0}
"""The least gain of a restoration over its input at severity 3, in dB."""


@pytest.mark.parametrize("profile", ["embedded", "digits"])
def test_restorations_beat_their_input_by_a_clear_margin(profile: str) -> None:
    chosen = [f"profile={profile}", "sweep=corruptions", "method=injective_ode", "severity=3", "images=12", "steps=4"]
    cells = expand(compose_config(chosen)).cells
    assert {str(cell.axes["corruption"]) for cell in cells} == set(MARGIN)
    for cell in cells:
        rows = execute(cell, 12, 0)[0]
        gain = np.mean([row["psnr"] - row["input_psnr"] for row in rows])
        assert gain > MARGIN[str(cell.axes["corruption"])], f"{cell.axes['corruption']}: {gain:.2f} dB"


def test_the_flow_adds_to_what_its_conditioner_says() -> None:
    """Decoding the zero latent beats the conditioner's mean, but only by little: likelihood trained the mean."""
    chosen = ["sweep=corruptions", "method=injective_ode,injective_ode_mean", "corruption=random_mask", "severity=3"]
    cells = expand(compose_config([*chosen, "images=24", "steps=10"])).cells
    psnr = {cell.axes["method"]: [row["psnr"] for row in execute(cell, 12, 0)[0]] for cell in cells}
    gains = np.subtract(psnr["injective_ode"], psnr["injective_ode_mean"])
    assert gains.mean() > 0.02 and (gains > 0).mean() >= 0.6, gains
