"""Mistakes end before a run starts, in one line with exit code 2; each key is tested with nonsense values."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

import bench.plan
import bench.spec.compose as compose
import corruptions.options
import methods.backbones.options
import methods.injective_ode.options
import methods.inversion.options
from bench import hub, prefetch
from bench.errors import UserError
from bench.files import ZOO
from bench.spec import config as configs
from bench.spec.cells import expand
from bench.spec.compose import compose_config
from bench.spec.config import RunConfig
from bench.spec.registry import check_weights
from bench.spec.validation import validate
from methods.backbones import pretrained
from methods.options import Guarantees, MethodOptions

TINY = Path(__file__).parent / "golden" / "tiny"
SMALL = ["sweep=corruptions", "method=ddim", "severity=1", "profile=digits", "images=1", "corruption=random_mask"]
RAW = ("pydantic", "Input should", "hydra", "Hydra", "override", "Error", "instance of", "a valid ", "[key]")
"""Words of libraries that our messages must not contain."""


def in_one_line(error: UserError) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000
    assert not [word for word in RAW if word in message], message


# --- nonsense at every key ---------------------------------------------------------------------------------------


def kinds(annotation: Any) -> Iterator[Any]:
    """Return the plain types that an annotation allows at its top: int, str, tuple, dict, Literal, models, NoneType."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from kinds(inner)
    elif origin is Annotated:
        yield from kinds(get_args(annotation)[0])
    else:
        yield origin or annotation


BELOW_ZERO = ("time_mean", "mu")
"""Keys that may be negative."""


def nonsense(name: str, annotation: Any) -> list[Any]:
    """Return values that a key of this type must refuse."""
    known = set(kinds(annotation))
    models = {kind for kind in known if isinstance(kind, type) and issubclass(kind, BaseModel)}
    values: list[Any] = [] if dict in known or tuple in known else [{"a": {"b": 1}}, {1: 2}, [[]], []]
    if type(None) not in known:
        values.append(None)
    if known & {int, float}:
        values += [True, False, "nope", "", "1", 10**30, float("inf"), float("nan")] + [-1] * (name not in BELOW_ZERO)
    if int in known and float not in known:
        values.append(2.5)
    if bool in known:
        values += ["nope", "", "true", 0, 1, 2.5]
    if known & {str, Literal}:
        values += [True, 3, 2.5] + ["nope"] * (str not in known)
    if dict in known or tuple in known or models:
        values += [True, 3, 2.5, "nope"]
    if dict in known or models:
        values += [[], [[]], [1]]
    if tuple in known:
        values += [[[]], [None], [{"a": [1]}]]
    return values


def fields(model: type[BaseModel], *place: str) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name, field in model.model_fields.items():
        if name not in ("retry", "highlight"):  # free text, which is checked where it is used
            found.append(((*place, field.alias or name), field.annotation))
    return found


MODEL, DATA, CORRUPTION = ("model", "digits_vp"), ("dataset", "digits"), ("corruption", "random_mask")
KEYS = [
    *fields(RunConfig),
    *fields(configs.LauncherConfig, "launcher"),
    *fields(configs.Resources, "launcher", "models", "digits_vp"),
    *fields(configs.TrackerConfig, "tracker"),
    *fields(configs.ProfileConfig, "profile"),
    *fields(Guarantees, "guarantee"),
    *fields(configs.ModelConfig, *MODEL),
    *fields(configs.PathConfig, *MODEL, "path"),
    *fields(configs.GridConfig, *MODEL, "grid"),
    *fields(configs.TrainConfig, *MODEL, "train"),
    *fields(configs.FlowTrainConfig, *MODEL, "train", "flow"),
    *fields(configs.DatasetConfig, *DATA),
    *fields(configs.CorruptionConfig, *CORRUPTION),
]


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """Return a small sweep as Hydra composes it, before it is checked."""
    found: list[dict[str, Any]] = []

    def keep(model: Any, content: Any, where: str = "") -> Any:
        found.append(copy.deepcopy(content))
        return validate(model, content, where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "validate", keep)
        compose_config(SMALL)
    expand(validate(RunConfig, found[0]))
    return found[0]


def with_value(content: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(content)
    inner = made
    for part in place[:-1]:
        if not isinstance(inner.get(part), dict):
            inner[part] = {}
        inner = inner[part]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize(("place", "annotation"), KEYS, ids=lambda part: ".".join(part) if type(part) is tuple else "")
def test_nonsense_at_a_key_of_the_configuration(
    place: tuple[str, ...], annotation: Any, composed: dict[str, Any]
) -> None:
    values = nonsense(place[-1], annotation)
    assert values
    for value in values:
        with pytest.raises(UserError) as caught:
            print(f"{'.'.join(place)} takes {value!r}", expand(validate(RunConfig, with_value(composed, place, value))))
        in_one_line(caught.value)


NEEDED = {"missing": 0.1, "side": 0.1, "vocabulary": "scenes", "shape": [3, 32, 32], "pretrained": "a/b"}
NEEDED |= {"sigma": 1, "sigma01": 0.1}
OPTIONS = [
    made
    for module in (
        methods.inversion.options,
        methods.injective_ode.options,
        methods.backbones.options,
        corruptions.options,
    )
    for made in vars(module).values()
    if isinstance(made, type) and issubclass(made, BaseModel) and made.__module__ == module.__name__
]


@pytest.mark.parametrize("options", [MethodOptions, *OPTIONS], ids=lambda made: made.__qualname__)
def test_nonsense_at_an_option_of_a_class(options: type[BaseModel]) -> None:
    needed = {name: value for name, value in NEEDED.items() if name in options.model_fields}
    validate(options, needed)
    for (name,), annotation in fields(options):
        for value in nonsense(name, annotation):
            with pytest.raises(UserError) as caught:
                print(f"{name} takes {value!r}", validate(options, {**needed, name: value}, "here"))
            in_one_line(caught.value)
            assert name in str(caught.value), caught.value


# (the command line, words of the error's one line)
LINES: list[tuple[str, list[str]]] = [
    ("reference={method:nope}", ["unknown method 'nope' in reference", "allowed: "]),
    ("reference={severity:x}", ["severity='x'", "whole number"]),
    ("reference={severity:[1,2]}", ["reference.severity", "one value"]),
    ("reference=3", ["reference=3", "must be a list"]),
    ("severity={a:1}", ["severity={a:1}", "takes no mapping"]),
    ("method.ddim=[1]", ["method.ddim=[1]", "takes no list"]),
    ("metrics={a:1}", ["metrics={a:1}", "takes no mapping"]),
    ("matrix={severity:{a:1}}", ["severity={'a': 1}", "whole number"]),
    ("seed=1e400", ["seed=inf", "not infinite"]),
    ("seed=99999999999999999999", ["seed=99999999999999999999", "64 bits"]),
    ("seed=" + "9" * 5000, ["digits"]),
    ("seed=" + "[" * 2000 + "]" * 2000, ["recursion"]),
    ("seed=true", ["seed=True", "whole number"]),
    ("images=true", ["images=True", "must be a number"]),
    ("images='3'", ["images='3'", "must be a number, without quotes"]),
    ("images={a:1}", ["images", "must be a whole number"]),
    ("dry_run=1", ["dry_run=1", "true or false"]),
    ("method.ddim.strength=true", ["method.ddim.strength=True", "must be a number"]),
    ("method.ddim.version=-1", ["method.ddim.version=-1", "greater than or equal to 1"]),
    ("corruption.random_mask.severities.1.missing=true", ["severities.1.missing=True"]),
    ("corruption.random_mask.severities.x={missing: 0.1}", ["random_mask.severities: key 'x'", "whole number"]),
    ("launcher.max_failed=2.5", ["max_failed=2.5", "below 1", "whole number"]),
    ("launcher.env={A:true}", ["launcher.env.A=True", "must be text"]),
    ("launcher.retries={oops:1}", ["launcher.retries: key 'oops'", "'oom'"]),
    ("name=..", ["name='..'", "names files"]),
    ("name=.hidden", ["name='.hidden'"]),
    ("name=a/b", ["name='a/b'"]),
    ("name=" + "x" * 300, ["at most 100 bytes"]),
    ("results=" + "x" * 300, ["too long"]),
    ("title=\udcff", ["title=", "UTF-8"]),
    ("model.digits_vp.weights=zoo:../x", ["zoo:../x", "names files"]),
    ("model.digits_vp.weights=" + "x" * 300, ["too long"]),
    ("++method.a@b.class=methods.inversion.ddim.DDIM", ["is not an override"]),
    ("config_dir=~no_such_user/x", ["is not a folder"]),
]


@pytest.mark.parametrize(("written", "words"), LINES, ids=lambda part: part[:60] if isinstance(part, str) else "")
def test_a_wrong_line_is_explained_in_our_words(
    written: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key = written.partition("=")[0]
    with pytest.raises(UserError) as caught:
        bench.plan.look([*(part for part in SMALL if part.partition("=")[0] != key), written])
    in_one_line(caught.value) if "override" not in words[0] else None
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_name_of_a_part_cannot_leave_the_folder(composed: dict[str, Any]) -> None:
    for group in ("method", "model", "dataset", "corruption"):
        (part,) = composed[group].values()
        with pytest.raises(UserError, match=rf"{group}: key '\.\./x'"):
            validate(RunConfig, {**composed, group: {"../x": part}})


@pytest.mark.parametrize(
    ("written", "place", "value"),
    [
        ("launcher.env={THREADS: 4, RATE: 0.5, WORD: a}", "env", {"THREADS": "4", "RATE": "0.5", "WORD": "a"}),
        ("launcher.max_failed=3", "max_failed", 3),
        ("launcher.max_failed=0.25", "max_failed", 0.25),
        ("launcher.mem_gb=8", "mem_gb", 8),
        ("launcher.wait=false", "wait", False),
    ],
)  # fmt: skip
def test_what_yaml_means_still_works(written: str, place: str, value: Any) -> None:
    assert getattr(compose_config([*SMALL, written]).launcher, place) == value


def test_a_reference_can_be_taken_away_replaced_or_left_out_of_a_run() -> None:
    assert compose_config([*SMALL, "reference=[]"]).reference == ()
    assert compose_config([*SMALL, "reference=[{method: edict},{severity: 1}]"]).reference[1] == {"severity": 1}
    assert expand(compose_config([*SMALL, "reference={method: edict, severity: same}"])).cells


# --- fewest steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bdia", "obelm"])
def test_too_few_steps_are_skipped_with_the_reason(method: str) -> None:
    few = ["sweep=reconstruction", "profile=digits", f"method={method}", "images=1"]
    expansion = expand(compose_config([*few, "steps=1,2"]))
    assert {cell.axes["steps"] for cell in expansion.cells} == {2}
    assert {skip.reason for skip in expansion.skipped} == {f"{method} needs 2 steps or more, got 1"}
    with pytest.raises(UserError, match=r"needs 2 steps or more, got 10 at strength 0\.1"):
        expand(compose_config([*few, "steps=10", f"method.{method}.strength=0.1"]))


def test_the_fewest_steps_are_declared_by_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.inversion.options.DDIM, "least_steps", 4)
    expansion = expand(compose_config(["sweep=reconstruction", "profile=digits", "method=ddim", "steps=3,4"]))
    assert {skip.reason for skip in expansion.skipped} == {"ddim needs 4 steps or more, got 3"}


# --- weights -----------------------------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3456789\n"


def broken_weights(folder: Path) -> dict[str, Path]:
    """Return a map from the content of a broken weights file to the words that its error must contain."""
    whole = (ZOO / "digits_vp.safetensors").read_bytes()
    torch.save({"w": torch.zeros(2)}, folder / "torch.pt")
    torch.save({"w": torch.zeros(2)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    contents = {
        "Git LFS pointer": LFS,
        "cut: it has": whole[:-1],
        "cut within its header": whole[:100],
        "torch.save": (folder / "torch.pt").read_bytes(),
        "torch.save and": (folder / "old.pt").read_bytes(),
        "and can run code": pickle.dumps({"w": 1}, protocol=2),
        "not a safetensors file, or": b"# some text, such as a README, of more than eight bytes",
        "is empty": b"",
        "but its header says": whole + b"x",
        "not a safetensors file, or it is": b"\x02\0\0\0\0\0\0\0[]",
    }
    files = {}
    for number, (words, content) in enumerate(contents.items()):
        files[words] = folder / f"{number}.safetensors"
        files[words].write_bytes(content)
    return files


def test_broken_weights_are_named_as_what_they_are(tmp_path: Path) -> None:
    for words, file in broken_weights(tmp_path).items():
        assert words in str(hub.damage(file)), words
        with pytest.raises(UserError) as caught:
            bench.plan.look([*SMALL, f"model.digits_vp.weights={file}"])
        assert words in str(caught.value) and f"model.digits_vp.weights={file}" in str(caught.value)
        in_one_line(caught.value)
    assert "directory" in str(hub.damage(tmp_path))


def test_whole_weights_are_taken(tmp_path: Path) -> None:
    assert [file for file in ZOO.glob("*.safetensors") if hub.damage(file)] == []
    for number, tensors in enumerate(({}, {"a": torch.zeros(0)}, {"a": torch.zeros(3), "b": torch.ones(2, 2)})):
        save_file(tensors, tmp_path / f"{number}.safetensors", metadata={"format": "pt"})
        assert hub.damage(tmp_path / f"{number}.safetensors") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"network": {"prediction": "eps", "prediction": "v"}}', "duplicate key 'prediction'"),
        ('{"network": {"path": 3}}', "cannot be read"),
        ('{"network": {"prediction": ', "cannot be read"),
        ("[]", "cannot be read"),
        ('{"network": []}', "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_broken_card_is_named(text: str, words: str, tmp_path: Path) -> None:
    model = compose_config(SMALL).model["digits_vp"]
    shutil.copy(ZOO / "digits_vp.safetensors", tmp_path / "mine.safetensors")
    mine = model.model_copy(update={"weights": str(tmp_path / "mine.safetensors")})
    check_weights(mine, "here")
    (tmp_path / "mine.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        check_weights(mine, "here")
    assert words in str(caught.value) and "mine.json" in str(caught.value)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a complete small pipeline; the packages that load it count as installed."""
    monkeypatch.setattr(hub, "PACKAGES", ())
    shutil.copytree(TINY / "tiny_sd", tmp_path / "sd")
    assert hub.missing(str(tmp_path / "sd")) is None
    return tmp_path / "sd"


def test_a_pipeline_with_other_weights_than_safetensors_is_refused(pipeline: Path) -> None:
    (file,) = (pipeline / "unet").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(LFS)
    assert "lacks unet" in str(hub.missing(str(pipeline))) and "Git LFS pointer" in str(hub.missing(str(pipeline)))
    file.write_bytes(whole[:-1])
    assert "cut: it has" in str(hub.missing(str(pipeline)))
    file.rename(file.with_suffix(".bin"))
    assert "weights as .safetensors; other formats can run code" in str(hub.missing(str(pipeline)))
    (pipeline / "model_index.json").write_text("[")
    assert "model_index.json' cannot be read" in str(hub.missing(str(pipeline)))


def test_shards_are_looked_at_one_by_one(pipeline: Path) -> None:
    (file,) = (pipeline / "unet").glob("*.safetensors")
    shards = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    index = pipeline / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    for shard in shards.values():
        shutil.copy(file, file.with_name(shard))
    file.unlink()
    assert hub.missing(str(pipeline)) is None
    (pipeline / "unet" / "part-2.safetensors").write_bytes(LFS)
    assert "part-2.safetensors is a Git LFS pointer" in str(hub.missing(str(pipeline)))
    (pipeline / "unet" / "part-2.safetensors").unlink()
    assert "lacks unet (weights)" in str(hub.missing(str(pipeline)))
    index.write_text("{}")
    assert "index of weights cannot be read" in str(hub.missing(str(pipeline)))


def test_pipelines_are_loaded_and_fetched_as_safetensors_alone(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Library:
        @staticmethod
        def from_pretrained(*_: Any, **given: Any) -> Any:
            asked.append(given)
            raise OSError("enough")

        download = from_pretrained

    library = types.SimpleNamespace(StableDiffusionPipeline=Library, DiffusionPipeline=Library)
    monkeypatch.setattr(pretrained, "diffusers", lambda: library)
    with pytest.raises(FileNotFoundError, match="enough"):
        pretrained.load_pipeline("StableDiffusionPipeline", "unet", str(pipeline), torch.float32, ())
    model = compose_config(["sweep=reconstruction", "profile=sd15"]).model["sd15"]
    monkeypatch.setattr(hub, "missing", lambda *_: "not here")
    with pytest.raises(UserError, match="enough"):
        prefetch.fetch("sd15", model)
    assert [given["use_safetensors"] for given in asked] == [True, True]


# --- YAMLs of one's own folder -----------------------------------------------------------------------------------

MINE = "# @package method.mine\nclass: methods.inversion.ddim.DDIM\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mine.yml", MINE.encode(), ["mine.yml", "name it mine.yaml"]),
        ("my.method.yaml", MINE.encode(), ["'my.method'", "my_method.yaml"]),
        ("my method.yaml", MINE.encode(), ["'my method'", "my_method.yaml"]),
        ("3d.yaml", MINE.encode(), ["'3d'", "my_3d.yaml"]),
        ("mine.yaml", b"\xef\xbb\xbf" + MINE.encode(), ["mine.yaml", "byte order mark"]),
        ("mine.yaml", MINE.encode("utf-16"), ["mine.yaml", "not UTF-8"]),
    ],
)
def test_a_yaml_that_would_not_be_found_is_explained(
    name: str, content: bytes, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        compose_config([*SMALL, f"config_dir={tmp_path}"])
    in_one_line(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_yaml_of_ones_own_folder_works(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "my-method_2.yaml").write_bytes(
        MINE.replace("mine", "my-method_2").replace("\n", "\r\n").encode()
    )
    others = [part for part in SMALL if not part.startswith("method=")]
    assert list(compose_config([*others, f"config_dir={tmp_path}", "method=my-method_2"]).method) == ["my-method_2"]
