"""Everything that a YAML or the command line may say, as frozen models: a typo fails here, before any job. No torch.

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
"""In `reference`: each line is compared at its own value of that axis."""
SPACINGS = {
    "vp": ("leading", "leading1", "trailing", "linspace"),
    "rectified": ("linspace", "flux_shift"),
    "trig": ("linspace",),
}
"""The spacings of a grid that each path knows (methods.paths, which a plan does not import: it needs torch)."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


def _file_name(value: str) -> str:
    """The name of a sweep, method, model, ...: it becomes a part of file names. Empty where it may be left out."""
    if not re.fullmatch(r"([\w-][\w.-]*)?", value) or len(value.encode()) > 100:
        raise ValueError("must be letters, digits, _, - and inner dots, at most 100 bytes: it names files")
    return value


FileName = Annotated[str, AfterValidator(_file_name)]


def _as_text(value: Any) -> Any:
    """A number as the text that a YAML shows."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Component(Strict):
    """A method: a class by dotted path or entry point, and its options."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    models: dict[FileName, ModelConfig] = Field(
        {}, description="its own: it runs on the one that takes the data's images"
    )
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat_options(cls, value: Any) -> Any:
        """In a method's YAML every key besides class, title and models is an option."""
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping with a class")
        if not isinstance(value.get("options") or {}, Mapping):
            return value
        known = {"class", "class_path", "title", "models", "options"}
        options = {**(value.get("options") or {}), **{k: v for k, v in value.items() if k not in known}}
        return {**{k: v for k, v in value.items() if k in known}, "options": options}


class CorruptionConfig(Strict):
    """A corruption and its ladder: severity -> options that are laid over the common ones."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    options: dict[str, Any] = {}
    severities: dict[int, dict[str, Any]] = Field(min_length=1)

    @field_validator("severities", mode="before")
    @classmethod
    def _one_entry_a_severity(cls, value: Any) -> Any:
        """`severities.1.side=0.3` on the command line is a text key beside the YAML's number: laid over it."""
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
    kind: Literal["vp", "rectified", "trig"]
    schedule: Literal["scaled_linear", "cosine"] = Field(default="scaled_linear", description="of a vp path")

    @model_validator(mode="after")
    def _meaningful(self) -> PathConfig:
        if self.kind != "vp" and self.schedule != "scaled_linear":
            raise ValueError(f"schedule={self.schedule} has no meaning on a path of kind {self.kind}")
        return self


class GridConfig(Strict):
    """How N steps are laid on the path (methods.paths)."""

    spacing: Literal["leading", "leading1", "trailing", "linspace", "flux_shift"]
    level0: Literal["first", "one"] = "one"
    mu: float | None = Field(default=None, description="shift of spacing=flux_shift")


class FlowTrainConfig(Strict):
    """What the injective ODE is trained on besides captions: shares of images by condition, the rest unconditional."""

    draws: int = Field(4, ge=1, description="(t, eps) an image, which share its conditioner")
    measured: float = Field(0.7, ge=0, le=1, description="share conditioned on a corrupted image")
    source: float = Field(0.1, ge=0, le=1, description="share where the data are the corrupted images themselves")
    clean: float = Field(0.05, ge=0, le=1, description="share conditioned on the image itself")
    corruptions: tuple[str, ...] = Field(
        ("random_mask", "block_mask", "gaussian_blur", "gaussian_noise"), min_length=1, description="drawn evenly"
    )
    mean_weight: float = Field(0.1, ge=0, description="of |mu - x|^2 beside the regression")
    likelihood_weight: float = Field(0.0, ge=0, description="of the likelihood of N(mu, diag c), easy images as hard")
    regulariser: Literal["none", "pairs", "jacobian"] = Field(
        "none", description="on the learned part of the field in the gauge: paired differences, or a Jacobian probe"
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
    """How the shipped weights were made, and how to make them again."""

    images: int = Field(60000, ge=1, description="size of the training pool (scenes are unlimited)")
    steps: int = Field(5000, ge=1, description="updates")
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1.5e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: int = Field(200, ge=0, description="updates of linear warm-up")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are the ones kept")
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    time_mean: float = Field(0.0, ge=-5, le=5, description="mean of the logit-normal time; above 0: more noise")
    seed: int = Field(0, ge=0, lt=2**32)
    validate_every: int = Field(500, ge=1, description="updates between two checkpoints and held-out losses")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    init: str | None = Field(None, description="weights to start from: zoo:NAME or a path; None: random")
    flow: FlowTrainConfig | None = Field(None, description="of the injective ODE alone")
    compile: bool = Field(False, description="torch.compile the network: slower to start, then faster")


def weights_file(weights: str | None) -> Path | None:
    """The file that `zoo:NAME` or a path stands for."""
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
    vocabulary: str | None = Field(None, description="the caption grammar it was trained on")
    dataset: str | None = Field(None, description="the data set it is trained on")
    weights: str | None = Field(None, description="zoo:NAME for shipped weights, else a path")
    guidance: float = Field(1.0, ge=0, description="default guidance for sampling, the one that its card judges")
    version: int = Field(1, ge=1, description="raised when new weights are shipped under the old name")
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
        """What its weights depend on, as the card of trained weights keeps it."""
        of_a_denoiser = {"path", "prediction"} if self.kind == "denoiser" else set()
        return self.model_dump(mode="json", include={"backbone", "shape", "vocabulary", *of_a_denoiser})

    @property
    def pretrained(self) -> str | None:
        """The folder or hub id of a pretrained pipeline, where the class loads one."""
        return self.backbone.get("pretrained")

    @property
    def revision(self) -> str | None:
        """Of a hub id: a branch, tag or commit; None is its main branch."""
        return self.backbone.get("revision")


class DatasetConfig(Strict):
    """A data set: a class by dotted path or entry point; `images` of its `split` are used, from the first on."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    split: str = "test"
    options: dict[str, Any] = {}


FailureClass = Literal["oom", "timeout", "preempted", "node", "asset-missing", "numerical", "bug"]


class Resources(Strict):
    """What a job asks of SLURM."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = Field(1, ge=0, le=16, description="a node")
    tasks: int = Field(1, ge=1, le=128, description="processes of a job; they share its cells, and its GPUs evenly")
    cpus: int = Field(8, ge=1, description="a task")
    mem_gb: float = Field(40, gt=0, description="a node")
    timeout_min: int = Field(240, ge=1)
    additional_parameters: dict[str, Any] = Field({}, description="further sbatch parameters; they win")


class LauncherConfig(Resources):
    """Where cells run."""

    kind: Literal["auto", "local", "debug", "slurm", "plugin"] = "auto"
    executor: str | None = Field(None, description="the submitit executor of kind=plugin, by its entry point's name")
    workers: int = Field(0, ge=0, le=4096, description="local processes at a time; 0: one for every CPU core")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of each worker")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chunk_minutes: float = Field(60.0, gt=0, description="predicted minutes of work in one job")
    array_parallelism: int = Field(64, ge=1, description="jobs of a sweep at a time")
    models: dict[str, dict[str, Any]] = Field({}, description="model -> resources that its jobs ask for instead")
    setup: tuple[str, ...] = Field((), description="shell lines before the job")
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], Annotated[str, BeforeValidator(_as_text)]] = Field(
        {}, description="environment of the jobs"
    )
    cache: str | None = Field(
        None, description="the nodes' folder for huggingface and torch in place of ~/.cache; None: as in this shell"
    )
    wait: bool = Field(True, description="follow the jobs to their end; false: submit and leave")
    signal_s: int = Field(90, ge=10, description="seconds before its time limit at which a job is told to stop")
    partial_s: float = Field(30, ge=0, description="seconds of work after which the images of an open cell are kept")
    cell_timeout_min: float | None = Field(None, gt=0, description="minutes that one cell may take")
    retries: dict[FailureClass, NonNegativeInt] = Field({}, description="failure class -> further attempts at once")
    deaths: int = Field(5, ge=1, description="times that a cell may take its process with it, without progress")
    max_failed: float | None = Field(None, gt=0, description="failed cells that end a run; below 1: their share")

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
        """What the jobs of a model ask for."""
        own = self.model_dump(include=set(Resources.model_fields))
        return validate(Resources, {**own, **self.models.get(model, {})}, f"launcher.models.{model}")


class TrackerConfig(Strict):
    """The Weights & Biases mirror of the store."""

    kind: Literal["wandb", "none"] = "none"
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online only if logged in")
    project: str = Field(PROJECT, min_length=1)
    entity: str | None = None


class ProfileConfig(Strict):
    name: str
    description: str = ""


class RunConfig(Strict):
    """A sweep, as composed."""

    name: FileName = Field("", description="names its files; left out: the sweep's own name")
    title: str = ""
    description: str = ""
    task: Task = "restore"
    guarantee: Guarantees = Field(Guarantees(), description="how task=guarantee looks at a flow")
    images: int = Field(12, ge=1, description="images a cell")
    batch_size: int = Field(16, ge=1, description="images solved together")
    samples: int = Field(4, ge=0, le=64, description="images of each cell that are kept for the report")
    results: str = Field("results", min_length=1, description="the store's folder")
    metrics: tuple[str, ...] = Field(("psnr", "ssim", "mse"), min_length=1, description="names, or class paths")
    retry: tuple[str, ...] = Field((), description="failure classes to run again; `all` for every one")
    dry_run: bool = False
    report: bool = Field(True, description="rebuild the report at the end")
    highlight: tuple[str, ...] = Field((), description="methods that figures always colour, such as the proposed one")
    matrix: dict[str, tuple[Any, ...]] = Field({}, description="axis -> values; every combination is a cell")
    zip: tuple[dict[str, tuple[Any, ...]], ...] = Field((), description="axes that advance together")
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations to leave out")
    include: tuple[dict[str, Any], ...] = Field((), description="single cells to add, of what is chosen")
    reference: tuple[dict[str, Any], ...] = Field(
        (), description="axes of a line; the paired differences of all others to it make a table each"
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
        """All that a cell may run on: those that the methods bring, and the run's."""
        own = {name: model for method in self.method.values() for name, model in method.models.items()}
        return {**own, **self.model}

    @property
    def titles(self) -> dict[str, dict[str, str]]:
        """axis -> name -> title, of the axes whose values are names."""
        chosen = {axis: self.models if axis == "model" else getattr(self, axis) for axis in NAME_AXES}
        return {axis: {name: found.title or name for name, found in of.items()} for axis, of in chosen.items() if of}

    @field_validator("matrix", mode="before")
    @classmethod
    def _axes(cls, value: Any) -> Any:
        """A single value is an axis with one point; `method: {p: [...]}`, as matrix.method.p=... gives, is method.p."""
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
