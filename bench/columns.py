"""Every column of the results, declared once: its name, title, format and the direction that is better. No torch.

Plans, cells, tables, figures, CSV files and the W&B dashboard read these declarations. A metric of a third party also
has a declaration, as the attribute `column` of its class. The manifest of a sweep carries it to the reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from bench.weights import CLIP, INCEPTION, JUDGE, LPIPS, LPIPS_SQUEEZE, LPIPS_VGG, Pretrained, Shipped, Weights

# --- tasks and axes ------------------------------------------------------------------------------------------------

Task = Literal["reconstruct", "restore", "edit", "guarantee"]
TASKS: tuple[str, ...] = get_args(Task)
MEASURING = ("restore", "guarantee")
"""The tasks whose input is a corrupted image."""
NAME_AXES = ("method", "model", "dataset", "corruption")
"""Axes whose values are names of YAMLs. Each YAML has a title."""
NUMBER_AXES = ("severity", "steps", "guidance", "seed")
EDIT_AXIS = "edit"
"""The kinds of edit that a data set knows: an axis of task=edit."""

# --- declarations --------------------------------------------------------------------------------------------------

Better = Literal["higher", "lower", ""]
Kind = Literal["axis", "identity", "measurement", "image", "set", "latent", "cost", "guarantee", "own"]
"""The kind of a column. axis, identity: the problem that a row belongs to. measurement: facts about y. image: a metric
of single images. set: a metric of sets of images. latent, cost, guarantee: measurements of a method. own: a column that
a method adds and that is not declared here."""


@dataclass(frozen=True)
class Column:
    """A column of the rows."""

    name: str
    title: str
    unit: str = ""
    better: Better = ""
    digits: str = ".3g"  # a format specification; `bytes` for a size
    kind: Kind = "own"
    short: str = ""  # the heading of a narrow column; empty: the title is used
    timed: bool = False  # the value differs from run to run

    @property
    def head(self) -> str:
        return self.short or self.title

    @property
    def axis(self) -> str:
        """The label of an axis of a figure."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def heading(self) -> str:
        """The title of a table."""
        return f"{self.axis}, {self.better} is better" if self.better else self.axis

    @property
    def higher_is_better(self) -> bool:
        return self.better == "higher"

    def number(self, value: float) -> str:
        """Return a value as text without the unit. Values from 1000 to 1e6 have no exponent: 12346, not 1.235e+04."""
        if self.digits == "bytes":
            return _size(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else format(value, self.digits)

    def text(self, value: float) -> str:
        """Return a value as text with its unit."""
        unit = "" if self.digits == "bytes" else self.unit
        return f"{self.number(value)} {unit}".strip()

    def declaration(self) -> dict[str, Any]:
        """Return the part of the column that a report needs, as JSON; `from_declaration` reads it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_A_RUN}

    @classmethod
    def from_declaration(cls, content: Mapping[str, Any]) -> Self:
        """Return the column of a declaration. Keys that this version does not know are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})


@dataclass(frozen=True)
class Metric(Column):
    """A column by which methods are compared.

    A metric of single images is a callable with a class path. It gives one number for each image of a
    `bench.metrics.scoring.Batch`. A metric of sets is a `distance` of `reports.distances` between the features of all
    outputs and the features of their truths, by an `extractor`. The report computes it, so that it can combine cells,
    seeds and shards.
    """

    kind: Kind = "image"
    version: int = 1  # raised when the numbers change: part of a cell's identity
    tasks: tuple[str, ...] = TASKS
    path: str = ""  # class path of the callable
    needs: Weights | Pretrained | Shipped | None = None
    of_input: bool = False  # also computed for the input of the method
    extractor: str = ""
    distance: str = ""
    printed: bool = True  # shown in the terminal if the user names no metric
    floor: float = 0.0  # smaller differences are rounding and rank no method
    exact: float = 0.0  # if the root mean square of a round trip's errors is below this, the error is rounding
    note: str = ""  # text below its table of round trips


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


SHARE = "share"
"""The unit of a metric that is 0 or 1 for each image."""
_OF_A_RUN = ("tasks", "path", "needs", "of_input")

# --- metrics -------------------------------------------------------------------------------------------------------


def _of_images(name: str, title: str, better: Better, digits: str, path: str, **more: Any) -> Metric:
    return Metric(name, title, better=better, digits=digits, path=f"bench.metrics.{path}", **more)


def _of_edits(name: str, title: str, better: Better, digits: str, path: str, **more: Any) -> Metric:
    return _of_images(name, title, better, digits, f"edit.{path}", tasks=("edit",), **more)


def _of_sets(name: str, title: str, digits: str, extractor: str, distance: str, **more: Any) -> Metric:
    return Metric(
        name, title, better="lower", digits=digits, kind="set", extractor=extractor, distance=distance, **more
    )


def _by_name(columns: Iterable[Any]) -> dict[str, Any]:
    return {column.name: column for column in columns}


_BLACK = "with the mask black (PIE-Bench)"
_ERROR: dict[str, Any] = {"printed": False, "floor": 1e-14}  # the floor is for float32 images in [0, 1]
METRICS: dict[str, Metric] = _by_name([
    _of_images("psnr", "PSNR", "higher", ".2f", "image.PSNR", unit="dB", of_input=True,
               note="PSNR is at most 100 dB, the value of equal images."),
    _of_images("ssim", "SSIM", "higher", ".3f", "image.SSIM", of_input=True),
    _of_edits("verdict", "requested change is present, by the classifier", "higher", ".2f", "verdict", unit=SHARE,
              needs=JUDGE),
    _of_edits("outside_psnr", "PSNR outside the mask", "higher", ".2f", "OUTSIDE_PSNR", unit="dB"),
    _of_sets("fd_scenes", "FD-scenes", ".3g", "scenes", "frechet", needs=JUDGE),
    _of_images("lpips", "LPIPS (AlexNet)", "lower", ".3f", "image.LPIPS", needs=LPIPS),
    _of_images("lpips_vgg", "LPIPS (VGG)", "lower", ".3f", "image.LPIPS_VGG", needs=LPIPS_VGG),
    _of_images("lpips_squeeze", "LPIPS (SqueezeNet)", "lower", ".3f", "image.LPIPS_SQUEEZE", needs=LPIPS_SQUEEZE),
    _of_images("l2", "L2", "lower", ".3g", "image.L2", printed=False),
    _of_edits("kept", "other attributes kept, by the classifier", "higher", ".2f", "kept", unit=SHARE, needs=JUDGE,
              printed=False),
    _of_edits("inside_psnr", "PSNR inside the mask", "higher", ".2f", "INSIDE_PSNR", unit="dB", printed=False),
    _of_edits("outside_ssim", "SSIM outside the mask", "higher", ".3f", "OUTSIDE_SSIM", printed=False),
    _of_edits("outside_mse", "MSE outside the mask", "lower", ".1e", "OUTSIDE_MSE", **_ERROR),
    _of_edits("inside_mse", "MSE inside the mask", "lower", ".1e", "INSIDE_MSE", **_ERROR),
    _of_edits("pie_psnr", f"PSNR {_BLACK}", "higher", ".2f", "PIE_PSNR", unit="dB", printed=False),
    _of_edits("pie_ssim", f"SSIM {_BLACK}", "higher", ".3f", "PIE_SSIM", printed=False),
    _of_edits("pie_mse", f"MSE {_BLACK}", "lower", ".1e", "PIE_MSE", **_ERROR),
    _of_edits("pie_lpips", f"LPIPS (SqueezeNet) {_BLACK}", "lower", ".3f", "PIE_LPIPS", needs=LPIPS_SQUEEZE,
              printed=False),
    _of_edits("clip", "CLIP similarity (ViT-L/14)", "higher", ".2f", "clip", needs=CLIP, printed=False),
    _of_edits("pie_clip", "CLIP similarity (ViT-L/14) inside the mask (PIE-Bench)", "higher", ".2f", "pie_clip",
              needs=CLIP, printed=False, version=2),  # 2: the border belongs to the mask
    _of_sets("fid", "FID", ".4g", "inception", "frechet", needs=INCEPTION),
    _of_sets("kid", "KID", ".3g", "inception", "kernel", needs=INCEPTION, printed=False),
    _of_sets("kd_scenes", "KD-scenes", ".3g", "scenes", "kernel", needs=JUDGE, printed=False),
    _of_images("mse", "MSE", "lower", ".1e", "image.MSE", exact=1e-6, **_ERROR,
               note="MSE is computed on images that are clipped to [0, 1] and kept in float32: for an exact round trip "
               "it is 0, or rounding below 1e-14."),
    Metric("latent_mse", "latent MSE", better="lower", digits=".1e", kind="latent", floor=1e-24, exact=1e-9,
           note="Latent MSE compares the decoded input of the model with the original one, unclipped, in float64 and "
           "at the scale [-1, 1]; below 1e-24 it is rounding and ranks no method."),
])  # fmt: skip
"""The metrics, in the order of the tables. `latent_mse` is recorded for every round trip; a user names the others."""
ASKED = tuple(name for name, metric in METRICS.items() if metric.kind in ("image", "set"))
"""The names that `metrics=` takes, besides class paths and entry points."""

# --- measurements of every method ------------------------------------------------------------------------------------

COSTS: dict[str, Column] = _by_name([
    Column("nfe", "NFE per image", "", "lower", ".4g", "cost", "NFE"),
    Column("nfe_grad", "NFE with a backward pass, per image", "", "lower", ".4g", "cost", "grad"),
    Column("seconds", "seconds per image", "", "lower", ".3g", "cost", "s/image", timed=True),
    Column("peak_mib", "peak memory", "MiB", "lower", ".1f", "cost", "peak MiB", timed=True),
    Column("state_bytes", "state that a decode needs", "bytes", "lower", "bytes", "cost", "state"),
])  # fmt: skip
LATENTS: dict[str, Column] = _by_name([
    Column("latent_std", "std of the latent", kind="latent", short="latent std"),
    Column("latent_kurtosis", "kurtosis of the latent", kind="latent", short="kurtosis"),
    Column("latent_w2", "W2 from the latent's values to N(0, 1)", better="lower", kind="latent", short="W2"),
])  # fmt: skip


def _guarantee(name: str, title: str, short: str, digits: str = ".3g") -> Column:
    return Column(name, title, digits=digits, kind="guarantee", short=short)


GUARANTEES: dict[str, Column] = _by_name([
    _guarantee("sv_min", "smallest singular value of the flow's Jacobian", "σ of J"),
    _guarantee("sv_max", "largest singular value of the flow's Jacobian", "σ of J"),
    _guarantee("pairs_min", "smallest ratio of distances, random pairs", "random pairs"),
    _guarantee("pairs_max", "largest ratio of distances, random pairs", "random pairs"),
    _guarantee("adversarial_min", "smallest ratio of distances, adversarial pairs", "adversarial pairs"),
    _guarantee("adversarial_max", "largest ratio of distances, adversarial pairs", "adversarial pairs"),
    _guarantee("log_det", "log |det J|", "log det"),
    _guarantee("log_det_error", "standard error of log |det J|", "±", ".2g"),
    _guarantee("certified", "field is certified; if not, its constants are nominal", "certified"),
    _guarantee("certified_min", "certified smallest ratio of distances in u", "certified"),
    _guarantee("certified_max", "certified largest ratio of distances in u", "certified"),
    _guarantee("certified_z_min", "certified smallest ratio of distances in z", "certified, z"),
    _guarantee("certified_z_max", "certified largest ratio of distances in z", "certified, z"),
    _guarantee("certified_log_det", "certified bound on |log |det J||", "at most"),
    _guarantee("K", "K, the integral of k(t)", "K"),
    _guarantee("L", "constant L of the certificate", "L"),
    _guarantee("lam", "constant λ of the certificate", "λ"),
    _guarantee("h", "constant h of the certificate", "h"),
    _guarantee("lipschitz_N", "Lipschitz constant of the network N", "Lipschitz N"),
    _guarantee("gronwall", "Gronwall factor in u", "Gronwall"),
    _guarantee("gronwall_z", "Gronwall factor in z", "Gronwall, z"),
    _guarantee("used_min", "certified ratio / measured ratio, smallest", "used"),
    _guarantee("used_max", "measured ratio / certified ratio, largest", "used"),
    _guarantee("violated", "measured values outside the constants", "outside"),
    _guarantee("flow_steps", "rk4 steps of the measured flow", "steps"),
    _guarantee("amplification", "amplification of noise in y, mean over draws", "amplified"),
    _guarantee("amplification_max", "amplification of noise in y, largest", "at most"),
    _guarantee("encoded_std", "std of the clean image's latent", "latent std"),
    _guarantee("encoded_max", "largest value of the clean image's latent", "max"),
    _guarantee("rk4_error", "error of a reverse solve with rk4", "error", ".1e"),
    _guarantee("rk4_local_errors", "local errors of a reverse solve with rk4", "local", ".1e"),
    _guarantee("gronwall_bound", "Gronwall bound on the error of a reverse solve", "bound", ".1e"),
    _guarantee("edit_inside", "L2 change inside an edited square", "inside"),
    _guarantee("edit_outside", "L2 change outside an edited square", "outside"),
    _guarantee("edit_bound", "certified bound on the change outside", "at most"),
])  # fmt: skip
TRIP = "trip_"
"""The prefix of the columns of round trips: `trip_SOLVER`, with or without one of the endings of `TRIPS`."""
TRIPS: dict[str, Column] = _by_name([
    _guarantee("", "rms error of the image", "rms error", ".1e"),
    _guarantee("_nfe", "NFE of the round trip", "NFE", ".0f"),
    _guarantee("_unequal", "numbers that differ after the round trip", "unequal", ".0f"),
    _guarantee("_alone", "rms error, decoded from x_T alone", "x_T alone", ".1e"),
    _guarantee("_float32", "rms error in float32", "float32", ".1e"),
])  # fmt: skip

# --- the problem that a row belongs to -------------------------------------------------------------------------------

AXES: dict[str, Column] = _by_name(
    Column(name, name, kind="axis") for name in (*NAME_AXES, "task", EDIT_AXIS, *NUMBER_AXES)
)
IDENTITY: dict[str, Column] = _by_name([
    Column("cell_id", "cell", kind="identity"),
    Column("image_id", "image", kind="identity"),
    Column("y_sha256", "sha256 of the measurement", kind="identity"),
    Column("outcome", "ok, or numerical where the output is not finite", kind="identity"),
    Column("walked", "share of the steps that the method uses", kind="identity"),
])  # fmt: skip
MEASUREMENT: dict[str, Column] = _by_name([
    Column("sigma01", "std of the noise in y, image range [0, 1]", kind="measurement"),
    Column("snr_db", "signal-to-noise ratio of y", "dB", kind="measurement", digits=".2f"),
    Column("details", "random choices of the corruption", kind="measurement"),
    Column("solver_steps", "steps of an adaptive solver", kind="measurement"),
])  # fmt: skip
COLUMNS: dict[str, Column] = {
    **AXES, **IDENTITY, **METRICS, **LATENTS, **COSTS, **GUARANTEES, **MEASUREMENT,
}  # fmt: skip

PLACE = ("line", "block", "column")
"""Columns that a report adds to the rows: their places in its tables."""
OF_INPUT = "input_"
"""The prefix of the metrics of a method's input."""


def column(name: str, more: Mapping[str, Column] = COLUMNS) -> Column:
    """Return the declaration of a column. `more` are those of third parties.

    The title of a method's own column is its name.
    """
    if found := COLUMNS.get(name) or more.get(name):
        return found
    if name.startswith(TRIP):
        ending = next(ending for ending in reversed(TRIPS) if name.endswith(ending))
        solver = name.removeprefix(TRIP).removesuffix(ending).replace("_", " ")
        return Column(name, f"{TRIPS[ending].title}, {solver}", digits=TRIPS[ending].digits, kind="guarantee")
    if name.startswith(OF_INPUT) and (of := METRICS.get(name.removeprefix(OF_INPUT))):
        return Column(name, f"{of.title} of the input", of.unit, of.better, of.digits, "measurement")
    kind: Kind = "axis" if name.startswith("method.") else "own"
    return Column(name, name.replace("_", " "), kind=kind)


def declared(manifest: Mapping[str, Any]) -> dict[str, Metric]:
    """Return every metric of a sweep's tables: ours, then those of third parties that its manifest declares."""
    foreign = {name: Metric.from_declaration(found) for name, found in (manifest.get("columns") or {}).items()}
    return METRICS | foreign
