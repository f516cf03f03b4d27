"""Every invariant of operators and measurements, for each corruption of one list. Tolerances: 1e-12 in float64."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from corruptions import options
from corruptions.base import Corruption, Key, Measurement, Operator, content_hash, measure, stack
from corruptions.blur import Blur, GaussianBlur
from corruptions.masks import BlockMask, Mask, RandomMask
from corruptions.noise import GaussianNoise

CASES: list[tuple[type[Corruption[Any]], dict[str, Any]]] = [
    (RandomMask, {"missing": 0.0}),
    (RandomMask, {"missing": 0.7}),
    (RandomMask, {"missing": 0.92, "sigma01": 0.05}),
    (BlockMask, {"side": 0.5}),
    (BlockMask, {"side": 0.01}),
    (BlockMask, {"side": 1.0}),
    (BlockMask, {"side": 0.375, "centred": True, "sigma01": 0.05}),
    (GaussianBlur, {"sigma": 0.01}),
    (GaussianBlur, {"sigma": 3.0, "reference_side": 64}),
    (GaussianBlur, {"sigma": 1.5, "reference_side": 16, "taps": 9, "sigma01": 0.025}),
    (GaussianBlur, {"sigma": 6.0, "reference_side": 16}),  # as wide as reflect padding allows
    (GaussianNoise, {"sigma01": 0.025}),
]
# One other value for each field, which must change y. A new field without an entry fails the test.
BASES: dict[type[Corruption[Any]], dict[str, Any]] = {
    RandomMask: {"missing": 0.5},
    BlockMask: {"side": 0.5},
    GaussianBlur: {"sigma": 1.5, "reference_side": 16},
    GaussianNoise: {"sigma01": 0.05},
}
ALTERNATIVES: dict[type[Corruption[Any]], dict[str, Any]] = {
    RandomMask: {"missing": 0.6, "sigma01": 0.1},
    BlockMask: {"side": 0.75, "centred": True, "sigma01": 0.1},
    GaussianBlur: {"sigma": 2.0, "reference_side": 32, "taps": 5, "sigma01": 0.1},
    GaussianNoise: {"sigma01": 0.1},
}
# Recorded hashes. If one changes, old and new rows cannot be compared, and the corruption needs a higher `version`.
PINNED: dict[type[Corruption[Any]], str] = {
    RandomMask: "a1e0d96967281848bcc944808f718bb98d8357be0ef0eb6aeb9f27a263e500cb",
    BlockMask: "6f682bce2eb4ac0f918e4b0650200905a26132adbc5602beb01760c1c3764b11",
    GaussianBlur: "9b86f5a59d2eca980a8bc739b3b83de118e7316301023a2e95c1f0ec359b1cc1",
    GaussianNoise: "dcca36cf01643271f5430ad5c357edbc02bd08cd074d178cc194f23eef6b7e45",
}
SHAPES = [(3, 16, 16), (1, 12, 20)]
LADDERS = sorted((Path(__file__).parents[1] / "sweeps" / "corruption").glob("*.yaml"))


def make(cls: type[Corruption[Any]], given_options: dict[str, Any]) -> Corruption[Any]:
    """Make the corruption. Its options are found by the project's rule: pkg.mod.Name has pkg.options.Name."""
    return cls(getattr(options, cls.__name__)(**given_options))


def key_for(image: int = 0, **changes: Any) -> Key:
    return dataclasses.replace(Key("tests", f"image-{image}", "corruption", 3, 0), **changes)


def random_image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape))


def name_of(case: Any) -> str:
    return f"{case[0].__name__}-{'-'.join(f'{k}={v}' for k, v in case[1].items())}" if isinstance(case, tuple) else ""


corruption_cases = pytest.mark.parametrize("case", CASES, ids=name_of)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(case: tuple[type[Corruption[Any]], dict[str, Any]], shape: tuple[int, int, int]) -> Operator:
    return make(*case).draw(shape, key_for().generator("operator"))


# Operators


@corruption_cases
@shapes
def test_adjoint(case: Any, shape: tuple[int, int, int]) -> None:
    operator = draw(case, shape)
    x, y = random_image((2, *shape), 1), random_image((2, *shape), 2)
    left, right = (operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum()
    assert float((left - right).abs()) < 1e-12 * float(x.norm() * y.norm())


@corruption_cases
@shapes
def test_linear(case: Any, shape: tuple[int, int, int]) -> None:
    operator = draw(case, shape)
    x, y = random_image(shape, 1), random_image(shape, 2)
    torch.testing.assert_close(
        operator.forward(2 * x - y), 2 * operator.forward(x) - operator.forward(y), rtol=0, atol=1e-12
    )


@corruption_cases
@shapes
def test_norm_is_the_power_iteration(case: Any, shape: tuple[int, int, int]) -> None:
    operator = draw(case, shape)
    v = random_image(shape) + 2
    for _ in range(600):
        v = operator.adjoint(operator.forward(v))
        v = v / v.norm().clamp(min=1e-300)
    assert operator.norm == pytest.approx(float(operator.forward(v).norm()), abs=1e-6)


@corruption_cases
@shapes
def test_gain_of_a_constant_image(case: Any, shape: tuple[int, int, int]) -> None:
    operator = draw(case, shape)
    y = operator.forward(torch.full(shape, 0.7, dtype=torch.float64))
    if operator.known is None:
        torch.testing.assert_close(y, torch.full_like(y, 0.7), rtol=0, atol=1e-12)
    else:
        assert float(y.mean()) == pytest.approx(0.7 * float(operator.known.double().mean()), abs=1e-12)


@corruption_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=str)
def test_shape_dtype_and_inputs_are_kept(case: Any, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    operator = draw(case, (3, 16, 16))
    x = random_image((*batch, 3, 16, 16)).to(dtype)
    before = x.clone()
    for apply in (operator.forward, operator.adjoint):
        result = apply(x)
        assert result.shape == x.shape and result.dtype == dtype
        result.zero_()
        assert torch.equal(x, before)
    tolerance = 4 * torch.finfo(dtype).eps
    exact = operator.forward(x.double())
    assert float((operator.forward(x).double() - exact).abs().max()) <= tolerance


@corruption_cases
@shapes
def test_a_batch_gives_what_its_images_give_alone(case: Any, shape: tuple[int, int, int]) -> None:
    operator = draw(case, shape)
    x = random_image((5, *shape))
    for apply in (operator.forward, operator.adjoint):
        alone = torch.stack([apply(image) for image in x])
        torch.testing.assert_close(apply(x), alone, rtol=0, atol=1e-14)


@corruption_cases
@shapes
def test_observe_is_forward(case: Any, shape: tuple[int, int, int]) -> None:
    operator, x = draw(case, shape), random_image(shape)
    torch.testing.assert_close(operator.observe(x), operator.forward(x), rtol=0, atol=1e-12)


@corruption_cases
def test_gradients_and_autocast(case: Any) -> None:
    """The gradient of <A x, y> is A^T y, in full precision, even where it was measured without gradients."""
    with torch.no_grad():
        measurement = measure(make(*case), random_image((3, 16, 16)), key_for())
        batch = stack([measurement]).to("cpu", torch.float32)
        batch.forward(batch.y)
    x, y = (random_image((1, 3, 16, 16), seed).float().requires_grad_(seed == 1) for seed in (1, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = (batch.forward(x) * y * batch.y).sum()
    (gradient,) = torch.autograd.grad(product, x)
    torch.testing.assert_close(gradient, batch.adjoint(y * batch.y), rtol=0, atol=1e-5)


def test_blur_is_the_reference_convolution() -> None:
    """SciPy's `mirror` is the `reflect` of torch: the edge is not repeated."""
    x = random_image((3, 20, 28))
    for sigma, taps in ((0.6, 3), (1.5, 9), (4.0, 39)):
        expected = x.numpy()
        for axis in (-2, -1):
            expected = ndimage.gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=taps // 2)
        got = Blur(20, 28, sigma, taps).forward(x).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "reference_side", "taps", "sigma_px", "taps_px"),
    [
        ((3, 256, 256), 256, 61, 3.0, 61),
        ((3, 512, 512), 256, 61, 6.0, 123),  # 122 -> 123
        ((3, 32, 32), 256, 61, 0.375, 9),  # 7.625 -> 9
        ((3, 32, 32), 64, 61, 1.5, 31),  # 30.5 -> 31
        ((3, 8, 8), 256, 61, 0.09375, 3),
        ((3, 16, 16), 16, 61, 3.0, 31),  # reflect padding allows a radius of 15
        ((3, 16, 4), 16, 61, 3.0, 7),
    ],
)
def test_blur_scales_with_the_side(
    shape: tuple[int, int, int], reference_side: int, taps: int, sigma_px: float, taps_px: int
) -> None:
    operator = draw((GaussianBlur, {"sigma": 3.0, "reference_side": reference_side, "taps": taps}), shape)
    assert operator.describe() == {"sigma_px": sigma_px, "taps_px": taps_px}


@shapes
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.5, 0.7, 0.92, 0.999])
def test_random_mask_hides_the_exact_count(missing: float, shape: tuple[int, int, int]) -> None:
    operator = draw((RandomMask, {"missing": missing}), shape)
    assert operator.known is not None and operator.known.shape == (1, *shape[1:])
    assert int((~operator.known).sum()) == round(missing * shape[1] * shape[2])


def test_random_mask_hides_every_pixel_alike() -> None:
    corruption = make(RandomMask, {"missing": 0.5})
    hidden = torch.zeros(1, 8, 8)
    for i in range(400):
        known = corruption.draw((1, 8, 8), key_for(i).generator("operator")).known
        assert known is not None
        hidden += ~known
    assert float((hidden / 400 - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(400)


@pytest.mark.parametrize(("share", "side"), [(0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)])
@pytest.mark.parametrize("centred", [False, True])
def test_block_mask_is_one_square_inside(share: float, side: int, centred: bool) -> None:
    corruption = make(BlockMask, {"side": share, "centred": centred})
    corners = set()
    for i in range(600):
        known = corruption.draw((3, 12, 16), key_for(i).generator("operator")).known
        assert known is not None
        rows, columns = (~known[0]).any(1).nonzero().ravel(), (~known[0]).any(0).nonzero().ravel()
        assert int((~known).sum()) == side**2 and len(rows) == len(columns) == side
        corners.add((int(rows[0]), int(columns[0])))
    everywhere = {(top, left) for top in range(13 - side) for left in range(17 - side)}
    assert corners <= everywhere
    assert corners == {((12 - side) // 2, (16 - side) // 2)} if centred else len(corners) > 0.8 * len(everywhere)


# Measurements


@corruption_cases
def test_a_measurement_is_complete(case: Any) -> None:
    x = random_image((3, 16, 16))
    before = x.clone()
    m = measure(make(*case), x, key_for())
    assert torch.equal(x, before)
    assert m.y.dtype == torch.float32 and m.y.shape == x.shape and m.y.device.type == "cpu"
    assert m.sha256 == content_hash(m.y) and len(m.sha256) == 64
    assert m.sigma01 == case[1].get("sigma01", 0.0)
    if m.sigma01 == 0:
        assert m.snr_db is None
        torch.testing.assert_close(m.y.double(), m.operator.forward(x), rtol=0, atol=1e-7)
    assert all(isinstance(value, float) and math.isfinite(value) for value in m.details.values())
    clipped = ((m.y.double() + 1) / 2).clamp(0, 1)
    error = float((clipped - (x + 1) / 2).square().mean())
    assert m.psnr is None if error == 0 else m.psnr == pytest.approx(-10 * math.log10(error), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), state=st.integers(0, 2**31))
def test_order_and_grouping_change_nothing(order: list[int], cuts: set[int], state: int) -> None:
    torch.manual_seed(state)
    np.random.seed(state)
    for cls, base in BASES.items():
        corruption = make(cls, {**base, "sigma01": 0.05})
        alone = [measure(corruption, random_image((3, 8, 8), i), key_for(i)).sha256 for i in range(6)]
        edges = [0, *sorted(cuts), 6]
        for start, end in itertools.pairwise(edges):
            group = order[start:end]
            batch = stack([measure(corruption, random_image((3, 8, 8), i), key_for(i)) for i in group])
            assert list(batch.sha256) == [alone[i] for i in group]
            assert [content_hash(y) for y in batch.y] == list(batch.sha256)


@pytest.mark.parametrize("cls", [RandomMask, BlockMask, GaussianNoise])
@pytest.mark.parametrize(
    "change",
    [{"dataset": "other"}, {"image_id": "other"}, {"corruption": "other"}, {"severity": 4}, {"seed": 1}],
    ids=str,
)
def test_every_part_of_the_key_counts(cls: type[Corruption[Any]], change: dict[str, Any]) -> None:
    # The image is large enough that two blocks are not in the same place by chance.
    corruption, x = make(cls, BASES[cls]), random_image((3, 64, 64))
    assert measure(corruption, x, key_for()).sha256 != measure(corruption, x, key_for(**change)).sha256


def test_a_key_has_a_stream_for_each_purpose_and_no_memory() -> None:
    key = key_for()
    assert key.generator("noise").random() == key.generator("noise").random()
    assert key.generator("noise").random() != key.generator("operator").random()
    # Fields stay separate: a character that moves from one field to the next makes another key.
    assert Key("a", "bc", "", 1, 0).generator("noise").random() != Key("ab", "c", "", 1, 0).generator("noise").random()


@pytest.mark.parametrize("cls", list(BASES))
def test_every_option_changes_the_measurement(cls: type[Corruption[Any]]) -> None:
    x, base = random_image((3, 16, 16)), BASES[cls]
    reference = measure(make(cls, base), x, key_for()).sha256
    fields = set(getattr(options, cls.__name__).model_fields) - {"version"}
    assert fields == set(ALTERNATIVES[cls]), "declare another value for each option in ALTERNATIVES"
    for field, value in ALTERNATIVES[cls].items():
        assert measure(make(cls, {**base, field: value}), x, key_for()).sha256 != reference, field


@pytest.mark.parametrize("cls", list(BASES))
def test_measurements_are_the_recorded_ones(cls: type[Corruption[Any]]) -> None:
    x = (torch.arange(3 * 16 * 16, dtype=torch.float64).reshape(3, 16, 16) * 37 % 257) / 128 - 1
    assert measure(make(cls, {"sigma01": 0.05, **BASES[cls]}), x, key_for()).sha256 == PINNED[cls]


@pytest.mark.parametrize("sigma01", [0.0, 0.05])
@pytest.mark.parametrize("cls", [RandomMask, BlockMask])
def test_masks_keep_known_pixels_and_leave_holes_at_zero(cls: type[Corruption[Any]], sigma01: float) -> None:
    x = random_image((3, 32, 32))
    m = measure(make(cls, {**BASES[cls], "sigma01": sigma01}), x, key_for())
    known = m.operator.known
    assert known is not None and 0 < int(known.sum()) < known.numel()
    seen, holes = m.y[known.expand_as(x)], m.y[~known.expand_as(x)]
    assert torch.equal(holes, torch.zeros_like(holes)) and not bool(torch.signbit(holes).any())
    if sigma01 == 0:
        assert torch.equal(seen, x.float()[known.expand_as(x)])
    else:
        assert float((seen - x[known.expand_as(x)]).std()) == pytest.approx(2 * sigma01, rel=0.1)


@pytest.mark.parametrize("sigma01", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("cls", list(BASES))
def test_noise_has_the_stated_level(cls: type[Corruption[Any]], sigma01: float) -> None:
    x = random_image((3, 64, 64))
    m = measure(make(cls, {**BASES[cls], "sigma01": sigma01}), x, key_for())
    noise = m.y.double() - m.operator.forward(x)
    if m.operator.known is not None:
        noise = noise[m.operator.known.expand_as(x)]
    n, sigma = noise.numel(), 2 * sigma01
    assert abs(float(noise.mean())) < 4 * sigma / math.sqrt(n)
    assert float(noise.std()) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    signal = float(m.operator.forward((x + 1) / 2).square().sum())
    assert m.snr_db == pytest.approx(10 * math.log10(signal / (n * sigma01**2)), abs=0.2)


def test_noise_alone_has_the_textbook_psnr() -> None:
    """The PSNR is -20 log10(sigma01) for a mid-gray image, where nothing clips."""
    m = measure(make(GaussianNoise, {"sigma01": 0.025}), torch.zeros(3, 64, 64), key_for())
    assert m.psnr == pytest.approx(32.04, abs=0.1)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.full((3, 8, 8), 255.0),
        torch.full((3, 8, 8), math.nan),
    ],
    ids=["batch", "uint8", "0-255", "nan"],
)
def test_measure_refuses_what_is_no_image(x: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a"):
        measure(make(GaussianNoise, {"sigma01": 0.1}), x, key_for())


# Batches


def measured(case: Any, count: int = 3) -> list[Measurement]:
    return [measure(make(*case), random_image((3, 16, 16), i), key_for(i)) for i in range(count)]


@corruption_cases
def test_a_batch_applies_each_image_its_operator(case: Any) -> None:
    measurements = measured(case)
    batch = stack(measurements)
    x = random_image((3, 3, 16, 16), 9)
    assert batch.y.shape == x.shape and len(batch) == 3 and batch.sigma == 2 * batch.sigma01
    for i, m in enumerate(measurements):
        assert torch.equal(batch.y[i], m.y) and batch.sha256[i] == m.sha256
        torch.testing.assert_close(batch.forward(x)[i], m.operator.forward(x[i]), rtol=0, atol=1e-14)
        torch.testing.assert_close(batch.adjoint(x)[i], m.operator.adjoint(x[i]), rtol=0, atol=1e-14)
        assert (batch.known is None) == (m.operator.known is None)
        if batch.known is not None:
            assert m.operator.known is not None and torch.equal(batch.known[i], m.operator.known)


@corruption_cases
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_batch_moves(case: Any, device: str) -> None:
    batch = stack(measured(case))
    moved = batch.to(device, torch.float64)
    assert moved.y.device.type == device and moved.y.dtype == torch.float64 and moved.sha256 == batch.sha256
    assert batch.y.dtype == torch.float32
    forward = moved.forward(moved.y)
    torch.testing.assert_close(forward.cpu(), batch.forward(batch.y.double()), rtol=0, atol=1e-12)
    adjoint = moved.adjoint(moved.y)
    torch.testing.assert_close(adjoint.cpu(), batch.adjoint(batch.y.double()), rtol=0, atol=1e-12)


def test_a_batch_refuses_what_does_not_belong_together() -> None:
    noise, louder = (measured((GaussianNoise, {"sigma01": s}), 1) for s in (0.05, 0.1))
    mask = measured((RandomMask, {"missing": 0.5, "sigma01": 0.05}), 1)
    with pytest.raises(ValueError, match="at least one"):
        stack([])
    with pytest.raises(ValueError, match="one noise level"):
        stack(noise + louder)
    with pytest.raises(ValueError, match="only masks"):
        stack(noise + mask)
    with pytest.raises(ValueError, match="one image per measurement"):
        stack(noise).forward(torch.zeros(2, 3, 16, 16))


# Options and ladders


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("RandomMask", {}),
        ("RandomMask", {"missing": 1.0}),
        ("RandomMask", {"missing": -0.1}),
        ("RandomMask", {"missing": math.nan}),
        ("RandomMask", {"missing": 0.5, "sigma01": 1.1}),
        ("RandomMask", {"missing": 0.5, "sigma01": -0.1}),
        ("RandomMask", {"missing": 0.5, "version": 0}),
        ("RandomMask", {"missing": 0.5, "mising": 0.5}),
        ("BlockMask", {"side": 0.0}),
        ("BlockMask", {"side": 1.1}),
        ("GaussianBlur", {"sigma": 0.0}),
        ("GaussianBlur", {"sigma": math.inf}),
        ("GaussianBlur", {"sigma": 1.0, "reference_side": 0}),
        ("GaussianBlur", {"sigma": 1.0, "taps": 60}),
        ("GaussianBlur", {"sigma": 1.0, "taps": 1}),
        ("GaussianNoise", {}),
        ("GaussianNoise", {"sigma01": 0.0}),
        ("GaussianNoise", {"sigma01": 1.5}),
    ],
)
def test_options_refuse(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        getattr(options, name)(**wrong)


def test_options_are_frozen_described_and_free_of_torch() -> None:
    frozen: Any = options.RandomMask(missing=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        frozen.missing = 0.6
    for cls in BASES:
        fields = getattr(options, cls.__name__).model_fields
        assert all(field.description for field in fields.values())
    subprocess.run(
        [sys.executable, "-c", "import sys, corruptions.options; sys.exit('torch' in sys.modules)"],
        cwd=Path(__file__).parents[1],
        check=True,
    )


@pytest.mark.parametrize("path", LADDERS, ids=lambda path: path.stem)
def test_ladders_are_valid_and_rise(path: Path) -> None:
    text = path.read_text()
    ladder = yaml.safe_load(text)
    assert text.startswith(f"# @package corruption.{path.stem}\n")
    assert set(ladder) == {"class", "title", "options", "severities"} and list(ladder["severities"]) == [1, 2, 3, 4, 5]
    module, name = ladder["class"].rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    psnr = []
    for severity, level in ladder["severities"].items():
        corruption = make(cls, {**ladder["options"], **level})
        smooth = ndimage.gaussian_filter(random_image((3, 32, 32)).numpy(), (0, 2, 2))
        m = measure(corruption, torch.from_numpy(smooth), key_for(severity=severity))
        assert m.psnr is not None
        psnr.append(m.psnr)
    assert psnr == sorted(psnr, reverse=True) and len(set(psnr)) == 5


def test_there_is_a_ladder_for_every_corruption() -> None:
    assert {yaml.safe_load(path.read_text())["class"].rsplit(".", 1)[1] for path in LADDERS} == {
        cls.__name__ for cls in BASES
    }


def test_mask_is_usable_on_its_own() -> None:
    known = torch.tensor([[[True, False]]])
    mask = Mask(known)
    assert mask.describe() == {"missing": 0.5} and mask.norm == 1
    assert torch.equal(mask.forward(torch.ones(3, 1, 2)), torch.tensor([1.0, 0.0]).expand(3, 1, 2))
