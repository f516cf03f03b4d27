"""The configuration of a run, as frozen pydantic models: a typo fails here, before any job. No torch.

Hydra's Compose API joins sweeps/run.yaml, the chosen groups and the overrides; pydantic checks the result. Options of
methods and corruptions are checked by their own models (`bench.spec.registry`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from bench.columns import NAME_AXES, Task
from bench.errors import unknown
from bench.files import PROJECT, ZOO
from bench.spec.validation import validate
from methods.options import Guarantees

GROUPS = ("sweep", "profile", "method", "model", "dataset", "corruption", "launcher", "tracker")
SAME = "same"
"""In `reference`: each entry is compared with the reference at its own value of that axis."""
SPACINGS = {
    "vp": ("leading", "leading1", "trailing", "linspace"),
    "rectified": ("linspace", "flux_shift"),
    "trig": ("linspace",),
}
"""Kind of path -> the grid spacings that it has. They are those of methods.paths, which needs torch: a plan does not
import it."""


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, infinity and nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


def _file_name(value: str) -> str:
    """Check the name of a sweep, method, model, ...: it becomes a part of file names. An empty name is allowed."""
    if not re.fullmatch(r"([\w-][\w.-]*)?", value) or len(value.encode()) > 100:
        raise ValueError("must be letters, digits, _, - and inner dots, at most 100 bytes: it names files")
    return value


FileName = Annotated[str, AfterValidator(_file_name)]


def _as_text(value: Any) -> Any:
    """Return a number as text, and everything else unchanged."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Component(Strict):
    """A method: a class by dotted path or entry point, and its options."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    models: dict[FileName, ModelConfig] = Field(
        {}, description="the method's own models; it runs on the one that takes the images of the data set"
    )
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat_options(cls, value: Any) -> Any:
        """Move every key of a method's YAML besides class, title and models into `options`."""
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping with a class")
        if not isinstance(value.get("options") or {}, Mapping):
            return value
        known = {"class", "class_path", "title", "models", "options"}
        options = {**(value.get("options") or {}), **{k: v for k, v in value.items() if k not in known}}
        return {**{k: v for k, v in value.items() if k in known}, "options": options}


class CorruptionConfig(Strict):
    """A corruption and its severities: severity -> options that replace or extend the common options."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    options: dict[str, Any] = {}
    severities: dict[int, dict[str, Any]] = Field(min_length=1)

    @field_validator("severities", mode="before")
    @classmethod
    def _merge_equal_severities(cls, value: Any) -> Any:
        """Merge a text key into the equal number key: `severities.1.side=0.3` on the command line has a text key."""
        if not isinstance(value, Mapping):
            return value
        merged: dict[Any, Any] = {}
        for key, options in value.items():
            severity = int(key) if isinstance(key, str) and key.isdecimal() else key
            mappings = isinstance(merged.get(severity), Mapping) and isinstance(options, Mapping)
            merged[severity] = {**merged[severity], **options} if mappings else options
        return merged

    @model_validator(mode="after")
    def _no_hidden_option(self) -> CorruptionConfig:
        for option in self.options:
            if all(option in options for options in self.severities.values()):
                raise ValueError(f"options.{option} has no effect: every severity sets it; set severities.N.{option}")
        return self


class PathConfig(Strict):
    """The path of a model: the functions alpha and sigma (methods.paths)."""

    kind: Literal["vp", "rectified", "trig"]
    schedule: Literal["scaled_linear", "cosine"] = Field(default="scaled_linear", description="only for a vp path")

    @model_validator(mode="after")
    def _meaningful(self) -> PathConfig:
        if self.kind != "vp" and self.schedule != "scaled_linear":
            raise ValueError(f"schedule={self.schedule} has no meaning on a path of kind {self.kind}")
        return self


class GridConfig(Strict):
    """The placement of N steps on the path (methods.paths)."""

    spacing: Literal["leading", "leading1", "trailing", "linspace", "flux_shift"]
    level0: Literal["first", "one"] = "one"
    mu: float | None = Field(default=None, description="shift of spacing=flux_shift")


class FlowTrainConfig(Strict):
    """The training of the injective ODE: shares of images by condition, and weights of the losses.

    Images that belong to no share are trained without a measurement.
    """

    draws: int = Field(4, ge=1, description="pairs (t, eps) per image; they share one pass of the conditioner")
    measured: float = Field(0.7, ge=0, le=1, description="share of images conditioned on a corrupted image")
    source: float = Field(0.1, ge=0, le=1, description="share where the data are the corrupted images themselves")
    clean: float = Field(0.05, ge=0, le=1, description="share of images conditioned on the image itself")
    corruptions: tuple[str, ...] = Field(
        ("random_mask", "block_mask", "gaussian_blur", "gaussian_noise"),
        min_length=1,
        description="corruptions of the training, drawn with equal probability",
    )
    mean_weight: float = Field(0.1, ge=0, description="weight of |mu - x|^2, added to the regression loss")
    likelihood_weight: float = Field(
        0.0, ge=0, description="weight of the likelihood of N(mu, diag c); easy and hard images count the same"
    )
    regulariser: Literal["none", "pairs", "jacobian"] = Field(
        "none", description="of the learned part of the field in the gauge: paired differences, or a Jacobian probe"
    )
    regulariser_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _meaningful(self) -> FlowTrainConfig:
        if self.measured + self.source + self.clean > 1:
            raise ValueError("the shares measured, source and clean add up to more than 1")
        if (self.regulariser == "none") != (self.regulariser_weight == 0):
            raise ValueError("regulariser and regulariser_weight need each other")
        return self


class TrainConfig(Strict):
    """The training of a model. With the values in its YAML, the shipped weights can be made again."""

    images: int = Field(60000, ge=1, description="size of the training pool (scenes are unlimited)")
    steps: int = Field(5000, ge=1, description="updates")
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(200, ge=0, description="updates of linear warm-up")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are saved")
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    time_mean: float = Field(0.0, ge=-5, le=5, description="mean of the logit-normal time; above 0: more noise")
    seed: int = Field(0, ge=0, lt=2**32)
    validate_every: int = Field(
        500, ge=1, description="updates between two checkpoints and between two held-out losses"
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: torch's default")
    init: str | None = Field(None, description="weights to start from: zoo:NAME or a path; None: random")
    flow: FlowTrainConfig | None = Field(None, description="only for the injective ODE")
    compile: bool = Field(False, description="use torch.compile on the network: a slower start, then faster updates")


def weights_file(weights: str | None) -> Path | None:
    """Return the file of weights given as `zoo:NAME` or as a path; None for None."""
    if weights is None:
        return None
    if weights.startswith("zoo:"):
        return ZOO / f"{weights.removeprefix('zoo:')}.safetensors"
    return Path(os.path.expanduser(weights))


class ModelConfig(Strict):
    """A backbone with its path and weights."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    kind: Literal["denoiser", "judge"] = "denoiser"
    path: PathConfig = PathConfig(kind="vp")
    prediction: Literal["eps", "x0", "v", "velocity"] = "eps"
    grid: GridConfig = GridConfig(spacing="trailing")
    backbone: dict[str, Any] = Field({}, description="arguments of the class")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="channels, height, width of its images")
    vocabulary: str | None = Field(None, description="the caption grammar that it was trained on")
    dataset: str | None = Field(None, description="the data set that it is trained on")
    weights: str | None = Field(None, description="zoo:NAME for shipped weights, or a path")
    guidance: float = Field(1.0, ge=0, description="default guidance for sampling; the card's samples use it")
    version: int = Field(1, ge=1, description="increased when new weights are shipped under the old name")
    train: TrainConfig | None = None

    @field_validator("backbone")
    @classmethod
    def _texts(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("pretrained", "revision"):
            if not isinstance(value.get(key, ""), str | None):
                raise ValueError(f"{key} must be text")
        return value

    @field_validator("weights")
    @classmethod
    def _in_the_zoo(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("zoo:"):
            _file_name(value.removeprefix("zoo:"))
        return value

    @model_validator(mode="after")
    def _grid_of_its_path(self) -> ModelConfig:
        grid, kind = self.grid, self.path.kind
        if grid.spacing not in SPACINGS[kind]:
            raise ValueError(str(unknown("grid.spacing", grid.spacing, SPACINGS[kind], f"on a path of kind {kind}")))
        if (grid.spacing == "flux_shift") != (grid.mu is not None):
            raise ValueError("grid.spacing=flux_shift and grid.mu need each other")
        if kind != "vp" and grid.level0 != "one":
            raise ValueError(f"grid.level0={grid.level0} has no meaning on a path of kind {kind}: level 0 is the image")
        return self

    @property
    def weights_file(self) -> Path | None:
        return weights_file(self.weights)

    @property
    def network(self) -> dict[str, Any]:
        """The settings that the weights depend on, as the card of trained weights keeps them."""
        of_a_denoiser = {"path", "prediction"} if self.kind == "denoiser" else set()
        return self.model_dump(mode="json", include={"backbone", "shape", "vocabulary", *of_a_denoiser})

    @property
    def pretrained(self) -> str | None:
        """The folder or hub id of a pretrained pipeline; None if the class does not load one."""
        return self.backbone.get("pretrained")

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit of a hub id; None is its main branch."""
        return self.backbone.get("revision")


class DatasetConfig(Strict):
    """A data set: a class by dotted path or entry point. A cell uses the first `images` images of its `split`."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    split: str = "test"
    options: dict[str, Any] = {}


FailureClass = Literal["oom", "timeout", "preempted", "node", "asset-missing", "numerical", "bug"]


class Resources(Strict):
    """The resources of a SLURM job."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = Field(1, ge=0, le=16, description="GPUs per node")
    tasks: int = Field(1, ge=1, le=128, description="processes per job; they share its cells, and its GPUs evenly")
    cpus: int = Field(8, ge=1, description="CPU cores per task")
    mem_gb: float = Field(40, gt=0, description="memory per node")
    timeout_min: int = Field(240, ge=1)
    additional_parameters: dict[str, Any] = Field({}, description="more sbatch parameters; they override the others")


class LauncherConfig(Resources):
    """The place where cells run, and the limits on their jobs."""

    kind: Literal["auto", "local", "debug", "slurm", "plugin"] = "auto"
    executor: str | None = Field(None, description="the submitit executor of kind=plugin, by its entry point's name")
    workers: int = Field(0, ge=0, le=4096, description="local processes at the same time; 0: one per CPU core")
    threads: int = Field(1, ge=1, le=256, description="CPU threads per worker")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chunk_minutes: float = Field(60.0, gt=0, description="predicted minutes of work per job")
    array_parallelism: int = Field(64, ge=1, description="jobs of a sweep that run at the same time")
    models: dict[str, dict[str, Any]] = Field({}, description="model -> other resources for its jobs")
    setup: tuple[str, ...] = Field((), description="shell lines that run before the job")
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Annotated[str, BeforeValidator(_as_text)]] = Field(
        {}, description="environment variables of the jobs"
    )
    cache: str | None = Field(
        None, description="folder on the nodes that replaces ~/.cache for huggingface and torch; None: as in this shell"
    )
    wait: bool = Field(True, description="wait until the jobs end; false: submit and return")
    signal_s: int = Field(90, ge=10, description="a job gets a signal to stop this many seconds before its time limit")
    partial_s: float = Field(30, ge=0, description="seconds of work between two writes of an open cell's images")
    cell_timeout_min: float | None = Field(None, gt=0, description="time limit of one cell in minutes")
    retries: dict[FailureClass, NonNegativeInt] = Field({}, description="failure class -> immediate further attempts")
    deaths: int = Field(5, ge=1, description="how often a cell may crash its process without progress")
    max_failed: float | None = Field(
        None, gt=0, description="the run ends at this number of failed cells; below 1: at this share"
    )

    @model_validator(mode="after")
    def _meaningful(self) -> LauncherConfig:
        if (self.kind == "plugin") != (self.executor is not None):
            raise ValueError("kind=plugin and executor need each other")
        if self.max_failed is not None and self.max_failed >= 1 and self.max_failed % 1:
            raise ValueError(f"max_failed={self.max_failed:g}: must be a share below 1, or a whole number of cells")
        for model in self.models:
            self.resources(model)
        return self

    def resources(self, model: str) -> Resources:
        """Return the resources of a model's jobs."""
        own = self.model_dump(include=set(Resources.model_fields))
        return validate(Resources, {**own, **self.models.get(model, {})}, f"launcher.models.{model}")


class TrackerConfig(Strict):
    """The Weights & Biases mirror of the store."""

    kind: Literal["wandb", "none"] = "none"
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online if logged in, else offline")
    project: str = Field(PROJECT, min_length=1)
    entity: str | None = None


class ProfileConfig(Strict):
    """The name of a profile. Its other settings are merged into the run."""

    name: str
    description: str = ""


class RunConfig(Strict):
    """The composed configuration of a run of a sweep."""

    name: FileName = Field("", description="the name of its files; empty: the sweep's own name")
    title: str = ""
    description: str = ""
    task: Task = "restore"
    guarantee: Guarantees = Field(Guarantees(), description="options of task=guarantee")
    images: int = Field(12, ge=1, description="images per cell")
    batch_size: int = Field(16, ge=1, description="images that are solved together")
    samples: int = Field(4, ge=0, le=64, description="images per cell that are kept for the report")
    results: str = Field("results", min_length=1, description="the store's folder")
    metrics: tuple[str, ...] = Field(("psnr", "ssim", "mse"), min_length=1, description="names or class paths")
    retry: tuple[str, ...] = Field((), description="failure classes to compute again, or `all`")
    dry_run: bool = False
    report: bool = Field(True, description="rebuild the report at the end")
    highlight: tuple[str, ...] = Field(
        (), description="methods that figures always show in colour, such as the proposed one"
    )
    matrix: dict[str, tuple[Any, ...]] = Field({}, description="axis -> values; every combination is a cell")
    zip: tuple[dict[str, tuple[Any, ...]], ...] = Field((), description="axes that advance together")
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations to leave out")
    include: tuple[dict[str, Any], ...] = Field(
        (), description="single cells to add; their names must be chosen by the run"
    )
    reference: tuple[dict[str, Any], ...] = Field(
        (), description="axes of a reference entry; each gets a table of the others' paired differences from it"
    )
    profile: ProfileConfig
    method: dict[FileName, Component] = {}
    model: dict[FileName, ModelConfig] = {}
    dataset: dict[FileName, DatasetConfig] = {}
    corruption: dict[FileName, CorruptionConfig] = {}
    launcher: LauncherConfig
    tracker: TrackerConfig

    @cached_property
    def models(self) -> dict[str, ModelConfig]:
        """All models that a cell may run on: the methods' own models, and the run's."""
        own = {name: model for method in self.method.values() for name, model in method.models.items()}
        return {**own, **self.model}

    @property
    def titles(self) -> dict[str, dict[str, str]]:
        """Titles as axis -> name -> title, for the axes whose values are names."""
        chosen = {axis: self.models if axis == "model" else getattr(self, axis) for axis in NAME_AXES}
        return {axis: {name: found.title or name for name, found in of.items()} for axis, of in chosen.items() if of}

    @field_validator("matrix", mode="before")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        """Turn a single value into a list, and `method: {p: [...]}` (from matrix.method.p=...) into `method.p`."""
        if not isinstance(value, Mapping):
            raise ValueError("must map axes to lists of values")
        flat: dict[Any, Any] = {}
        for axis, values in value.items():
            options = values if axis == "method" and isinstance(values, Mapping) else {}
            flat |= {f"{axis}.{option}": v for option, v in options.items()} or {axis: values}
        return {axis: tuple(v) if isinstance(v, (list, tuple)) else (v,) for axis, v in flat.items()}

    @field_validator("zip", "exclude", "include", "reference", mode="before")
    @classmethod
    def _single_entry(cls, value: Any) -> Any:
        return (value,) if isinstance(value, Mapping) else value

    @field_validator("retry", "metrics", "highlight", mode="before")
    @classmethod
    def _single_word(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("results")
    @classmethod
    def _plain_path(cls, value: str) -> str:
        return os.path.expanduser(value)
