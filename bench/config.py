"""Everything that a YAML or the command line may say, as frozen models: a typo fails here, before any job. No torch.

Hydra's Compose API joins sweeps/run.yaml, the chosen groups and the overrides; pydantic checks the result. Options of
methods and corruptions are checked by their own models (`bench.registry`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bench.errors import UserError, unknown

SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"
GROUPS = ("sweep", "profile", "method", "model", "dataset", "corruption", "launcher", "tracker")
NUMBER_AXES = ("severity", "steps", "guidance", "seed")
NAME_AXES = ("method", "model", "dataset", "corruption")
Task = Literal["reconstruct", "restore", "edit"]
METRICS = ("psnr", "ssim", "mse", "lpips")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Component(Strict):
    """A method: a class by dotted path or entry point, and its options."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat_options(cls, value: Any) -> Any:
        """In a method's YAML every key besides class and title is an option."""
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping with a class, got {value!r}")
        known = {"class", "class_path", "title", "options"}
        options = {**(value.get("options") or {}), **{k: v for k, v in value.items() if k not in known}}
        return {**{k: v for k, v in value.items() if k in known}, "options": options}


class CorruptionConfig(Strict):
    """A corruption and its ladder: severity -> options that are laid over the common ones."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    options: dict[str, Any] = {}
    severities: dict[int, dict[str, Any]] = Field(min_length=1)


class PathConfig(Strict):
    kind: Literal["vp", "rectified"]
    schedule: Literal["scaled_linear", "cosine"] = "scaled_linear"


class GridConfig(Strict):
    """How N steps are laid on the path (methods.paths)."""

    spacing: Literal["leading", "leading1", "trailing", "linspace", "flux_shift"]
    level0: Literal["first", "one"] = "one"
    mu: float | None = Field(None, description="shift of spacing=flux_shift")


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
    seed: int = Field(0, ge=0)
    validate_every: int = Field(500, ge=1, description="updates between two checkpoints and held-out losses")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")
    compile: bool = Field(False, description="torch.compile the network: slower to start, then faster")


class ModelConfig(Strict):
    """A backbone with its path and weights."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    kind: Literal["denoiser", "judge"] = "denoiser"
    path: PathConfig = PathConfig(kind="vp")
    prediction: Literal["eps", "x0", "v", "velocity"] = "eps"
    grid: GridConfig = GridConfig(spacing="trailing")
    backbone: dict[str, Any] = Field({}, description="arguments of the class")
    shape: tuple[int, int, int] = Field(description="channels, height, width of its images")
    vocabulary: str | None = Field(None, description="the caption grammar it was trained on")
    dataset: str | None = Field(None, description="the data set it is trained on")
    weights: str | None = Field(None, description="zoo:NAME for shipped weights, else a path")
    guidance: float = Field(1.0, ge=0, description="default guidance for sampling, the one that its card judges")
    version: int = Field(1, description="raised when new weights are shipped under the old name")
    train: TrainConfig | None = None

    @property
    def weights_file(self) -> Path | None:
        if self.weights is None:
            return None
        if self.weights.startswith("zoo:"):
            return SWEEPS.parent / "methods" / "zoo" / f"{self.weights.removeprefix('zoo:')}.safetensors"
        return Path(self.weights).expanduser()


class DatasetConfig(Strict):
    """A data set: a class by dotted path or entry point; `images` of its `split` are used, from the first on."""

    class_path: str = Field(alias="class", min_length=1)
    title: str = ""
    split: str = "test"
    options: dict[str, Any] = {}


class LauncherConfig(Strict):
    """Where cells run."""

    kind: Literal["auto", "local", "debug", "slurm"] = "auto"
    workers: int = Field(0, ge=0, le=4096, description="local processes at a time; 0: one for every CPU core")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of each worker")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chunk_minutes: float = Field(2.0, gt=0, description="predicted minutes of work in one job")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int = Field(1, ge=0, le=16, description="a node")
    cpus: int = Field(8, ge=1, description="a task")
    mem_gb: float = Field(40, gt=0)
    timeout_min: int = Field(240, ge=1)
    array_parallelism: int = Field(64, ge=1, description="jobs of one array at a time")
    setup: tuple[str, ...] = Field((), description="shell lines before the job")
    additional_parameters: dict[str, Any] = Field({}, description="further sbatch parameters")


class TrackerConfig(Strict):
    """The Weights & Biases mirror of the store."""

    kind: Literal["wandb", "none"] = "none"
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online only if logged in")
    project: str = "inversion-bench"
    entity: str | None = None


class ProfileConfig(Strict):
    name: str
    description: str = ""


class RunConfig(Strict):
    """A sweep, as composed."""

    name: str = ""
    title: str = ""
    description: str = ""
    task: Task = "restore"
    images: int = Field(12, ge=1, description="images a cell")
    batch_size: int = Field(16, ge=1, description="images solved together")
    samples: int = Field(4, ge=0, le=64, description="images of each cell that are kept for the report")
    results: str = Field("results", min_length=1, description="the store's folder")
    metrics: tuple[Literal["psnr", "ssim", "mse", "lpips"], ...] = ("psnr", "ssim", "mse")
    retry: tuple[str, ...] = Field((), description="failure classes to run again; `all` for every one")
    dry_run: bool = False
    report: bool = Field(True, description="rebuild the report at the end")
    matrix: dict[str, tuple[Any, ...]] = Field({}, description="axis -> values; every combination is a cell")
    zip: tuple[dict[str, tuple[Any, ...]], ...] = Field((), description="axes that advance together")
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations to leave out")
    include: tuple[dict[str, Any], ...] = Field((), description="single cells to add")
    profile: ProfileConfig
    method: dict[str, Component] = {}
    model: dict[str, ModelConfig] = {}
    dataset: dict[str, DatasetConfig] = {}
    corruption: dict[str, CorruptionConfig] = {}
    launcher: LauncherConfig
    tracker: TrackerConfig

    @field_validator("matrix", mode="before")
    @classmethod
    def _single_values(cls, value: Any) -> Any:
        """A single value is an axis with one point."""
        if not isinstance(value, Mapping):
            raise ValueError(f"must map axes to lists of values, got {value!r}")
        return {k: tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in value.items()}

    @field_validator("zip", mode="before")
    @classmethod
    def _zip_lists(cls, value: Any) -> Any:
        return (value,) if isinstance(value, Mapping) else value

    @field_validator("retry", "metrics", mode="before")
    @classmethod
    def _single_word(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("results")
    @classmethod
    def _plain_path(cls, value: str) -> str:
        return os.path.expanduser(value)


# --- the command line ------------------------------------------------------------------------------------------------

_OVERRIDE = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[A-Za-z_][\w./@-]*)=(?P<value>.*)", re.DOTALL)


def options_of_group(group: str, extra: Path | None = None) -> list[str]:
    """The names that `group=` takes."""
    folders = [SWEEPS / group] + ([extra / group] if extra else [])
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def _rewrite(override: str, extra: Path | None) -> str:
    """Check one `key=value` and bring it into Hydra's grammar: lists without brackets, axes by their short name."""
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise UserError(f"{override!r} is not an override; write key=value, for example severity=3 or method=ddim,edict")
    sign, key, value = match["sign"] or "", match["key"], match["value"]
    if "," in value and not re.search(r"[\[{('\"]", value):
        value = f"[{value}]"
    if sign == "~":
        raise UserError(f"{override!r}: ~ is not supported; use exclude, or name what you want")
    if key in GROUPS:
        names = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        allowed = options_of_group(key, extra)
        for name in names:
            if name not in allowed and name != "null":
                raise unknown(key, name, allowed)
        if len(names) > 1 and key in ("sweep", "profile", "launcher", "tracker"):
            raise UserError(f"{key} takes one name, got {value}; allowed: {', '.join(allowed)}")
        if len(set(names)) < len(names):
            raise UserError(f"{override!r} names one {key} twice")
        if not names:
            raise UserError(f"{key}= names nothing; allowed: {', '.join(allowed)}")
        return f"{key}=[{','.join(names)}]" if key in NAME_AXES and names != ["null"] else f"{key}={names[0]}"
    if key in NUMBER_AXES:
        key = f"matrix.{key}"
    root = key.split(".")[0]
    if root not in RunConfig.model_fields:
        raise unknown("key", root, [*RunConfig.model_fields, *GROUPS, *NUMBER_AXES])
    return f"++{key}={value}"


def compose_config(overrides: list[str], sweep_required: bool = True) -> RunConfig:
    """Overrides -> the checked configuration. Raises UserError. `config_dir=PATH` adds a folder of the user's groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    extra: Path | None = None
    rest = []
    for override in overrides:
        if override.startswith("config_dir="):
            extra = Path(override.removeprefix("config_dir=")).expanduser().resolve()
            if not extra.is_dir():
                raise UserError(f"config_dir {str(extra)!r} is not a folder")
        else:
            rest.append(override)
    hydra_overrides = [_rewrite(override, extra) for override in rest]
    keys = [override.split("=")[0].lstrip("+") for override in hydra_overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key} is given more than once")
    if sweep_required and not any(key == "sweep" for key in keys):
        raise UserError(f"no sweep given; write sweep=NAME with NAME one of {', '.join(options_of_group('sweep', extra))}")
    if extra:
        hydra_overrides.append(f"hydra.searchpath=[file://{extra}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(SWEEPS), version_base="1.3"):
            composed = OmegaConf.to_container(compose("run", hydra_overrides), resolve=True)
    except (HydraException, OmegaConfBaseException, FileNotFoundError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(lines[0] if lines else repr(error)) from error
    return validate(RunConfig, composed)


def validate(model: type[Any], content: Any, where: str = "") -> Any:
    """content -> model, or a UserError that names the field, what was given, what is allowed and the nearest name."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _explain(error, model, where) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    first = error.errors(include_url=False)[0]
    place = ".".join([where] * bool(where) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        owner = _owner(model, first["loc"][:-1])
        prefix = place.rpartition(".")[0]
        return unknown(f"key in {prefix}" if prefix else "key", str(first["loc"][-1]), _names(owner or model))
    if first["type"] == "missing":
        return UserError(f"{place} is missing")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        near = unknown("x", str(first["input"]), re.findall(r"'([^']*)'", message)).args[0]
        return UserError(f"{place}={first['input']!r}: {message[0].lower()}{message[1:]}{near[near.find('; nearest'):] if 'nearest' in near else ''}")
    given = first["input"]
    shown = "" if isinstance(given, (Mapping, BaseModel)) else f"={given!r}"
    return UserError(f"{place}{shown}: {message[0].lower()}{message[1:]}")


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _owner(model: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model that a location inside `model` belongs to, through dicts of models."""
    owner: Any = model
    for part in location:
        fields = getattr(owner, "model_fields", None)
        if fields is None:
            continue
        field = fields.get(part) or next((f for f in fields.values() if f.alias == part), None)
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        owner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if owner is None:
            return None
    return owner
