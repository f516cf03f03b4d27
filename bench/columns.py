"""Every column of the results, declared once: its name, and how it is titled, formatted and compared. No torch.

Plans, cells, tables, figures, CSV files and the W&B dashboard read these declarations. A metric of a third party has
one too, as the attribute `column` of its class; the manifest of a sweep carries it to the reports.
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
"""The tasks that are given a corrupted image."""
NAME_AXES = ("method", "model", "dataset", "corruption")
"""Axes whose values are names of YAMLs, each with a title."""
NUMBER_AXES = ("severity", "steps", "guidance", "seed")
EDIT_AXIS = "edit"
"""The kinds of edit that a data set knows: an axis of task=edit."""

# --- declarations --------------------------------------------------------------------------------------------------

Better = Literal["higher", "lower", ""]
Kind = Literal["axis", "identity", "measurement", "image", "set", "latent", "cost", "guarantee", "own"]
"""axis and identity: which problem a row is of. measurement: facts of y. image: a metric of single images. set: a
metric of sets of images. latent, cost, guarantee: what was measured of a method. own: a method's own, not declared."""


@dataclass(frozen=True)
class Column:
    """A column of the rows."""

    name: str
    title: str
    unit: str = ""
    better: Better = ""
    digits: str = ".3g"  # a format specification; `bytes` for a size
    kind: Kind = "own"
    short: str = ""  # its heading where columns are narrow; the title where it has none
    timed: bool = False  # differs from run to run

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
        """A value without the column's unit; below a million without an exponent: 12346 rather than 1.235e+04."""
        if self.digits == "bytes":
            return _size(value)
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else format(value, self.digits)

    def text(self, value: float) -> str:
        """A value with its unit."""
        unit = "" if self.digits == "bytes" else self.unit
        return f"{self.number(value)} {unit}".strip()

    def declaration(self) -> dict[str, Any]:
        """What a reader needs of it, as JSON; `from_declaration` is the way back."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_A_RUN}

    @classmethod
    def from_declaration(cls, content: Mapping[str, Any]) -> Self:
        """Keys that this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})


@dataclass(frozen=True)
class Metric(Column):
    """A column by which methods are compared.

    A metric of single images is a callable that is found by its class path, and gives one number for each image of a
    `bench.metrics.scoring.Batch`. A metric of sets is a `distance` of `reports.distances` between the features, by an
    `extractor`, of all outputs and those of their truths: the report makes it, so that cells, seeds and shards combine.
    """

    kind: Kind = "image"
    version: int = 1  # raised when the numbers change: part of a cell's identity
    tasks: tuple[str, ...] = TASKS
    path: str = ""  # class path of the callable
    needs: Weights | Pretrained | Shipped | None = None
    of_input: bool = False  # also taken of what the method was given
    extractor: str = ""
    distance: str = ""
    printed: bool = True  # in the terminal, where no metric is asked for
    floor: float = 0.0  # differences below it are rounding: they rank no method
    exact: float = 0.0  # root mean square below which the error of a round trip is the arithmetic's
    note: str = ""  # below its table of round trips


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


SHARE = "share"
"""The unit of what an image has or has not."""
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
_ERROR: dict[str, Any] = {"printed": False, "floor": 1e-14}  # of float32 images in [0, 1]
METRICS: dict[str, Metric] = _by_name([
    _of_images("psnr", "PSNR", "higher", ".2f", "image.PSNR", unit="dB", of_input=True,
               note="PSNR ends at 100 dB, the value of equal images."),
    _of_images("ssim", "SSIM", "higher", ".3f", "image.SSIM", of_input=True),
    _of_edits("verdict", "asked change is there, by the classifier", "higher", ".2f", "verdict", unit=SHARE,
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
              needs=CLIP, printed=False, version=2),  # 2: the border is of the mask
    _of_sets("fid", "FID", ".4g", "inception", "frechet", needs=INCEPTION),
    _of_sets("kid", "KID", ".3g", "inception", "kernel", needs=INCEPTION, printed=False),
    _of_sets("kd_scenes", "KD-scenes", ".3g", "scenes", "kernel", needs=JUDGE, printed=False),
    _of_images("mse", "MSE", "lower", ".1e", "image.MSE", exact=1e-6, **_ERROR,
               note="MSE is of images clipped to [0, 1] and kept in float32: an exact round trip is 0 or rounding, "
               "below 1e-14."),
    Metric("latent_mse", "latent MSE", better="lower", digits=".1e", kind="latent", floor=1e-24, exact=1e-9,
           note="Latent MSE is of the decoded against the given input of the model, unclipped, in float64 and at the "
           "scale [-1, 1]; below 1e-24 it is rounding and ranks no method."),
])  # fmt: skip
"""In the order of the tables. `latent_mse` is recorded of every round trip; the others are asked for by name."""
ASKED = tuple(name for name, metric in METRICS.items() if metric.kind in ("image", "set"))
"""What `metrics=` takes, besides class paths and entry points."""

# --- what every method is measured by --------------------------------------------------------------------------------

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
    _guarantee("sv_min", "least singular value of the flow's Jacobian", "σ of J"),
    _guarantee("sv_max", "largest singular value of the flow's Jacobian", "σ of J"),
    _guarantee("pairs_min", "least ratio of distances, random pairs", "random pairs"),
    _guarantee("pairs_max", "largest ratio of distances, random pairs", "random pairs"),
    _guarantee("adversarial_min", "least ratio of distances, sought pairs", "sought pairs"),
    _guarantee("adversarial_max", "largest ratio of distances, sought pairs", "sought pairs"),
    _guarantee("log_det", "log |det J|", "log det"),
    _guarantee("log_det_error", "standard error of log |det J|", "±", ".2g"),
    _guarantee("certified", "field is certified; else its constants are nominal", "certified"),
    _guarantee("certified_min", "certified least ratio of distances, of u", "certified"),
    _guarantee("certified_max", "certified largest ratio of distances, of u", "certified"),
    _guarantee("certified_z_min", "certified least ratio of distances, of z", "certified, z"),
    _guarantee("certified_z_max", "certified largest ratio of distances, of z", "certified, z"),
    _guarantee("certified_log_det", "certified bound of |log |det J||", "at most"),
    _guarantee("K", "K, the integral of k(t)", "K"),
    _guarantee("L", "constant L of the certificate", "L"),
    _guarantee("lam", "constant λ of the certificate", "λ"),
    _guarantee("h", "constant h of the certificate", "h"),
    _guarantee("lipschitz_N", "Lipschitz constant of the network N", "Lipschitz N"),
    _guarantee("gronwall", "Gronwall factor, of u", "Gronwall"),
    _guarantee("gronwall_z", "Gronwall factor, of z", "Gronwall, z"),
    _guarantee("used_min", "certified over measured ratio, least", "used"),
    _guarantee("used_max", "measured over certified ratio, largest", "used"),
    _guarantee("violated", "measured outside the constants", "outside"),
    _guarantee("flow_steps", "steps of rk4 for the flow that was measured", "steps"),
    _guarantee("amplification", "amplification of noise in y, mean over draws", "amplified"),
    _guarantee("amplification_max", "amplification of noise in y, largest", "at most"),
    _guarantee("encoded_std", "std of the clean image's latent", "latent std"),
    _guarantee("encoded_max", "largest value of the clean image's latent", "max"),
    _guarantee("rk4_error", "error of a reverse solve by rk4", "error", ".1e"),
    _guarantee("rk4_local_errors", "local errors of a reverse solve by rk4", "local", ".1e"),
    _guarantee("gronwall_bound", "Gronwall bound of a reverse solve", "bound", ".1e"),
    _guarantee("edit_inside", "L2 change inside an edited square", "inside"),
    _guarantee("edit_outside", "L2 change outside an edited square", "outside"),
    _guarantee("edit_bound", "certified bound of the change outside", "at most"),
])  # fmt: skip
TRIP = "trip_"
"""Begins the columns of round trips: `trip_SOLVER` and `trip_SOLVER` with one of the endings of `TRIPS`."""
TRIPS: dict[str, Column] = _by_name([
    _guarantee("", "rms error of the image", "rms error", ".1e"),
    _guarantee("_nfe", "NFE there and back", "NFE", ".0f"),
    _guarantee("_unequal", "numbers that do not come back the same", "unequal", ".0f"),
    _guarantee("_alone", "rms error, decoded from x_T alone", "x_T alone", ".1e"),
    _guarantee("_float32", "rms error in float32", "float32", ".1e"),
])  # fmt: skip

# --- which problem a row is of ---------------------------------------------------------------------------------------

AXES: dict[str, Column] = _by_name(
    Column(name, name, kind="axis") for name in (*NAME_AXES, "task", EDIT_AXIS, *NUMBER_AXES)
)
IDENTITY: dict[str, Column] = _by_name([
    Column("cell_id", "cell", kind="identity"),
    Column("image_id", "image", kind="identity"),
    Column("y_sha256", "sha256 of the measurement", kind="identity"),
    Column("outcome", "ok, or numerical where the output is not finite", kind="identity"),
    Column("walked", "share of the steps that the method walks", kind="identity"),
])  # fmt: skip
MEASUREMENT: dict[str, Column] = _by_name([
    Column("sigma01", "std of the noise in y, image range [0, 1]", kind="measurement"),
    Column("snr_db", "signal-to-noise ratio of y", "dB", kind="measurement", digits=".2f"),
    Column("details", "what the corruption drew", kind="measurement"),
    Column("solver_steps", "steps of an adaptive solver", kind="measurement"),
])  # fmt: skip
COLUMNS: dict[str, Column] = {
    **AXES, **IDENTITY, **METRICS, **LATENTS, **COSTS, **GUARANTEES, **MEASUREMENT,
}  # fmt: skip

PLACE = ("line", "block", "column")
"""What a report adds to the rows: where in its tables they go."""
OF_INPUT = "input_"
"""Begins the metrics of what a method was given."""


def column(name: str, more: Mapping[str, Column] = COLUMNS) -> Column:
    """The declaration of a column; `more`: those of third parties. A method's own column is titled by its name."""
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
    """Every metric of a sweep's tables: ours, then those of third parties that its manifest declares."""
    foreign = {name: Metric.from_declaration(told) for name, told in (manifest.get("columns") or {}).items()}
    return METRICS | foreign
