"""Wrong command lines. Each ends in one line that says what was given and what is allowed, and nothing starts.

Most tests call `bench.plan` in this process. A few start real processes, to check the exit code and the streams.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bench.plan
import bench.posterior
import bench.regularisers
import bench.run
import bench.train
from bench.errors import UserError, nearest, run_command, unknown

ROOT = Path(__file__).resolve().parent.parent
SWEEP = "sweep=corruptions"
CLEAN = "sweep=reconstruction"
FLOW = "model=scenes_rf"
FIELD = [SWEEP, "model=scenes_inode"]
ARGUMENT = "model.scenes_inode.backbone"
UNET = "model.scenes_vp.backbone"

# (command line, words that its one line must contain)
CASES: list[tuple[list[str], list[str]]] = [
    # names of a group
    (["sweep=coruptions"], ["unknown sweep 'coruptions'", "reconstruction", "nearest: corruptions"]),
    ([SWEEP, "method=edct"], ["unknown method 'edct'", "allowed: ", "rf_inversion", "nearest: edict"]),
    ([SWEEP, "method=ddim,edct"], ["unknown method 'edct'", "nearest: edict"]),
    ([SWEEP, "model=scenes_vpp"], ["unknown model 'scenes_vpp'", "nearest: scenes_vp"]),
    ([SWEEP, "dataset=scene"], ["unknown dataset 'scene'", "digits", "nearest: scenes"]),
    ([SWEEP, "corruption=gausian_blur"], ["unknown corruption 'gausian_blur'", "nearest: gaussian_blur"]),
    ([SWEEP, "profile=embeded"], ["unknown profile 'embeded'", "nearest: embedded"]),
    ([SWEEP, "launcher=slrum"], ["unknown launcher 'slrum'", "auto, debug, local, plugin, slurm", "nearest: slurm"]),
    ([SWEEP, "launcher=null"], ["unknown launcher 'null'", "allowed: auto"]),
    ([SWEEP, "tracker=wanb"], ["unknown tracker 'wanb'", "nearest: wandb"]),
    # no sweep, or too many names
    ([], ["no sweep", "sweep=NAME", "corruptions", "reconstruction"]),
    (["severity=1"], ["no sweep", "sweep=NAME"]),
    ([SWEEP, CLEAN], ["sweep is given more than once"]),
    (["sweep=corruptions,reconstruction"], ["sweep takes one name", "corruptions, reconstruction"]),
    ([SWEEP, "launcher=local,debug"], ["launcher takes one name", "local, debug"]),
    ([SWEEP, "method=ddim,ddim"], ["names one method twice"]),
    ([SWEEP, "method="], ["method= names nothing", "allowed: "]),
    ([SWEEP, "method=[]"], ["method= names nothing"]),
    ([SWEEP, "method=null"], ["names no method", "method=NAME"]),
    ([SWEEP, "model=null"], ["names no model"]),
    ([SWEEP, "corruption=null"], ["task=restore needs a corruption"]),
    # unknown keys, at every level
    ([SWEEP, "imges=3"], ["unknown key 'imges'", "nearest: images"]),
    ([SWEEP, "hydra.run.dir=x"], ["unknown key 'hydra.run.dir'"]),
    ([SWEEP, "sweep.name=x"], ["unknown key 'sweep.name'"]),
    ([SWEEP, "launcher.wrkers=2"], ["unknown key 'wrkers' in launcher", "nearest: workers"]),
    ([SWEEP, "tracker.projct=a"], ["unknown key 'projct' in tracker", "nearest: project"]),
    ([SWEEP, "profile.nme=a"], ["unknown key 'nme' in profile", "nearest: name"]),
    ([SWEEP, "method.edict.q=1"], ["unknown key 'q' in method.edict", "leapfrog"]),
    ([SWEEP, "method.edict.leap=true"], ["unknown key 'leap' in method.edict", "nearest: leapfrog"]),
    ([SWEEP, "method.edct.p=0.9"], ["method.edct", "not one of the chosen", "nearest: edict"]),
    ([SWEEP, "method=ddim", "method.edict.p=0.9"], ["edict is not one of the chosen ddim"]),
    ([SWEEP, "model.scenes_vp.pth=x"], ["unknown key 'pth' in model.scenes_vp", "nearest: path"]),
    ([SWEEP, "model.scenes_vp.path.kindd=vp"], ["unknown key 'kindd' in model.scenes_vp.path", "nearest: kind"]),
    ([SWEEP, "model.scenes_vp.grid.space=x"], ["unknown key 'space' in model.scenes_vp.grid", "nearest: spacing"]),
    ([SWEEP, "model.scenes_vp.train.stepz=1"], ["unknown key 'stepz' in model.scenes_vp.train", "nearest: steps"]),
    ([SWEEP, "dataset.scenes.splitt=a"], ["unknown key 'splitt' in dataset.scenes", "nearest: split"]),
    ([SWEEP, "dataset.scenes.options.sise=1"], ["unknown option 'sise' in dataset.scenes.options"]),
    (
        [SWEEP, "corruption.random_mask.option=1"],
        ["unknown key 'option' in corruption.random_mask", "nearest: options"],
    ),
    ([SWEEP, "corruption.random_mask.options.sigma=1"], ["unknown key 'sigma'", "random_mask", "nearest: sigma01"]),
    ([SWEEP, "corruption.random_mask.severities.1.missin=0.1"], ["'missin'", "severities.1", "nearest: missing"]),
    # out of range
    ([SWEEP, "method.edict.p=2"], ["method.edict.p=2: ", "less than or equal to 1"]),
    ([SWEEP, "method.edict.p=2.0"], ["method.edict.p=2.0: must be less than or equal to 1"]),
    ([SWEEP, "method.edict.strength=0"], ["method.edict.strength=0", "greater than 0"]),
    ([SWEEP, "method.rf_inversion.window=[1,0.5]"], ["method.rf_inversion", "0 <= low <= high <= 1", "[1.0, 0.5]"]),
    ([SWEEP, "method.rf_inversion.window=[0.5]"], ["method.rf_inversion.window.1 is missing"]),
    ([SWEEP, "images=0"], ["images=0", "greater than or equal to 1"]),
    ([SWEEP, "images=10000000"], ["images=10000000", "scenes has 1000000 images"]),
    ([SWEEP, "profile=digits", "images=1000"], ["images=1000", "digits has 359 images"]),
    ([SWEEP, "batch_size=0"], ["batch_size=0", "greater than or equal to 1"]),
    ([SWEEP, "samples=-1"], ["samples=-1", "greater than or equal to 0"]),
    ([SWEEP, "launcher.workers=-1"], ["launcher.workers=-1", "greater than or equal to 0"]),
    ([SWEEP, "launcher.mem_gb=0"], ["launcher.mem_gb=0", "greater than 0"]),
    ([SWEEP, "guidance=-1"], ["guidance=-1", "greater than or equal to 0"]),
    ([SWEEP, "guidance=nan"], ["guidance=nan", "must be a number"]),
    ([SWEEP, "steps=0"], ["steps=0", "greater than or equal to 1"]),
    ([SWEEP, "steps=5000"], ["steps=5000", "less than or equal to 1000"]),
    ([SWEEP, "steps=10,5000"], ["steps=5000", "less than or equal to 1000"]),
    ([SWEEP, "seed=-1"], ["seed=-1", "0 or more"]),
    (
        [SWEEP, "severity=9", "corruption=random_mask"],
        ["unknown severity '9' of random_mask", "allowed: 1, 2, 3, 4, 5"],
    ),
    (
        [SWEEP, "corruption.random_mask.severities.1.missing=1.5"],
        ["random_mask.severities.1.missing=1.5", "less than 1"],
    ),
    ([SWEEP, "corruption.gaussian_blur.severities.2.sigma=-1"], ["gaussian_blur.severities.2.sigma=-1", "than 0"]),
    ([SWEEP, "corruption.gaussian_noise.severities.3.sigma01=-1"], ["severities.3.sigma01=-1", "greater than 0"]),
    ([SWEEP, "corruption.gaussian_blur.options.taps=4"], ["gaussian_blur", "taps must be odd, got 4"]),
    ([SWEEP, "model.scenes_vp.shape=[3,32]"], ["model.scenes_vp.shape.2 is missing"]),
    # values of the wrong type
    ([SWEEP, "images=abc"], ["images='abc'", "whole number"]),
    ([SWEEP, "images=1.5"], ["images=1.5", "whole number"]),
    ([SWEEP, "images=null"], ["images=None", "whole number"]),
    ([SWEEP, "severity=abc"], ["severity='abc'", "whole number"]),
    ([SWEEP, "severity=true"], ["severity=True", "whole number"]),
    ([SWEEP, "severity=1:2"], ["severity='1:2'", "whole number"]),
    ([SWEEP, "seed=1.5"], ["seed=1.5", "whole number"]),
    ([SWEEP, "steps=abc"], ["steps='abc'", "whole number"]),
    ([SWEEP, "steps=null"], ["steps=None", "whole number"]),
    ([SWEEP, "guidance=abc"], ["guidance='abc'", "must be a number"]),
    ([SWEEP, "dry_run=maybe"], ["dry_run='maybe'", "true or false"]),
    ([SWEEP, "method.edict=5"], ["method.edict=5", "mapping with a class"]),
    ([SWEEP, "method.edict.options=5"], ["method.edict.options=5", "mapping"]),
    ([SWEEP, "method.edict.p=0.9,0.93"], ["method.edict.p=[0.9, 0.93]", "must be a number", "matrix.method.p=A,B"]),
    ([SWEEP, "dataset=folder"], ["dataset folder", "dataset.folder.options.root=PATH"]),
    ([SWEEP, "dataset=folder", "dataset.folder.options.root=/no, where"], ["dataset folder", "/no, where"]),
    ([SWEEP, "method.edict.leapfrog=maybe"], ["method.edict.leapfrog='maybe'", "true or false"]),
    ([SWEEP, "method.edict.decode=nul"], ["method.edict.decode='nul'", "'caption' or 'null'", "nearest: null"]),
    ([SWEEP, "launcher.device=cda"], ["launcher.device='cda'", "'cpu'", "nearest: cuda"]),
    ([SWEEP, "task=restor"], ["task='restor'", "'reconstruct'", "nearest: restore"]),
    ([SWEEP, "name=a/b"], ["name='a/b'", "names files"]),
    ([SWEEP, "results="], ["results=''", "at least 1 character"]),
    # empty lists
    ([SWEEP, "severity=[]"], ["axis severity has no values"]),
    ([SWEEP, "severity="], ["severity=''", "whole number"]),
    ([SWEEP, "metrics=[]"], ["metrics is empty"]),
    # command lines that cannot be parsed
    ([SWEEP, "severity=[1,2"], ["cannot read 'severity=[1,2'"]),
    ([SWEEP, "severity=1,2]"], ["cannot read 'severity=1,2]'"]),
    ([SWEEP, "method=[ddim"], ["cannot read 'method=[ddim'", "brackets"]),
    ([SWEEP, "method.edict.p={"], ["cannot read 'method.edict.p={'"]),
    ([SWEEP, 'method.edict.p="a'], ["cannot read 'method.edict.p=\"a'"]),
    ([SWEEP, "severity"], ["'severity' is not an override", "key=value"]),
    ([SWEEP, "steps 10"], ["'steps 10' is not an override"]),
    ([SWEEP, "=3"], ["'=3' is not an override"]),
    ([SWEEP, "--workers=3"], ["'--workers=3' is not an override"]),
    ([SWEEP, "~method"], ["'~method'", "not supported", "exclude"]),
    ([SWEEP, "~method=ddim"], ["'~method=ddim'", "not supported"]),
    ([SWEEP, "severity=1", "severity=2"], ["severity is given more than once"]),
    ([SWEEP, "matrix.severity=[1]", "severity=2"], ["severity is given more than once"]),
    ([SWEEP, "images=${nothing}"], ["images", "nothing", "not found"]),
    # contradictions
    ([SWEEP, "task=reconstruct"], ["corruption has no meaning for task=reconstruct"]),
    ([CLEAN, "corruption=random_mask"], ["corruption has no meaning for task=reconstruct"]),
    ([CLEAN, "severity=1"], ["severity has no meaning for task=reconstruct"]),
    ([CLEAN, "task=restore", "corruption=random_mask"], ["task=restore needs severities", "severity=1"]),
    ([SWEEP, "method.edict.steps=3"], ["method.edict.steps=3 has no effect", "steps=VALUE"]),
    ([SWEEP, "matrix.method.p=0.9,0.93", "method.edict.p=0.9"], ["method.edict.p=0.9 has no effect", "method.p"]),
    ([SWEEP, "corruption.random_mask.options.missing=0.5"], ["options.missing has no effect", "severities.N.missing"]),
    ([SWEEP, "model=scenes_judge"], ["scenes_judge is a classifier"]),
    ([SWEEP, "model=digits_vp"], ["no cells", "1x16x16", "3x32x32"]),
    ([SWEEP, "launcher=slurm"], ["launcher=slurm", "no sbatch", "launcher=local"]),
    # matrix, zip, exclude, include
    ([SWEEP, "matrix=abc"], ["matrix='abc'", "lists of values"]),
    ([SWEEP, "matrix.sevrity=[1]"], ["unknown axis 'sevrity' in matrix", "nearest: severity"]),
    ([SWEEP, "matrix.method=[edct]"], ["unknown method 'edct' in matrix", "nearest: edict"]),
    ([SWEEP, "matrix.method.q=[1]"], ["unknown method option 'q' in matrix"]),
    ([SWEEP, "matrix.method.p=[0.9,2]"], ["method.edict.p=2", "less than or equal to 1"]),
    ([SWEEP, "zip=abc"], ["zip='abc'", "list"]),
    ([SWEEP, "zip=[{}]"], ["zip names no axis"]),
    ([SWEEP, "zip=[{severity:[1,2],steps:[10,20]}]"], ["axis severity is both in matrix and in zip"]),
    (
        [SWEEP, "zip=[{method:[ddim,edict],corruption:[random_mask]}]"],
        ["same number", "method has 2", "corruption has 1"],
    ),
    ([SWEEP, "zip=[{metod:[ddim]}]"], ["unknown axis 'metod' in zip", "nearest: method"]),
    ([SWEEP, "exclude=[abc]"], ["exclude.0='abc'", "mapping"]),
    ([SWEEP, "exclude=[{metod:ddim}]"], ["unknown axis 'metod' in exclude", "nearest: method"]),
    ([SWEEP, "exclude=[{method:edct}]"], ["unknown method 'edct' in exclude", "nearest: edict"]),
    ([SWEEP, "exclude=[{severity:one}]"], ["severity='one'", "whole number"]),
    ([SWEEP, "exclude=[{severity:[1,2,3,4,5]}]"], ["no cells", "exclude"]),
    ([SWEEP, "include=[{metod:ddim}]"], ["unknown axis 'metod' in include", "nearest: method"]),
    ([SWEEP, "include=[{method:edct}]"], ["unknown method 'edct' in include", "nearest: edict"]),
    ([SWEEP, "include=[{severity:7}]"], ["unknown severity '7'"]),
    ([SWEEP, "include=[{method:[ddim,edict]}]"], ["unknown method", "in include"]),
    ([SWEEP, "method=ddim", "include=[{method:edct}]"], ["unknown method 'edct' in include", "nearest: edict"]),
    # classes
    ([SWEEP, "+method.mine.class=nopkg.mod.Cls"], ["method class 'nopkg.mod.Cls'", "no module 'nopkg'"]),
    ([SWEEP, "+method.mine.class=methods.edit.EDICT"], ["no module 'methods.edit'"]),
    (
        [SWEEP, "+method.mine.class=methods.inversion.edict.EDCT"],
        ["unknown class 'EDCT' in methods.inversion.edict", "nearest: EDICT"],
    ),
    ([SWEEP, "+method.mine.class=methods.inversion.edict.DDIM"], ["unknown class 'DDIM' in methods.inversion.edict"]),
    ([SWEEP, "+method.mine.class=json.JSONDecoder"], ["json.JSONDecoder", "no Options"]),
    ([SWEEP, "+method.mine.class=edct"], ["unknown method class 'edct'", "entry point"]),
    ([SWEEP, "+method.mine.class=.edict"], ["'.edict'", "package.module.Class"]),
    ([SWEEP, "+method.mine.class=5"], ["method.mine.class=5", "text"]),
    ([SWEEP, "+method.mine.title=mine"], ["method.mine.class is missing"]),
    ([SWEEP, "dataset.scenes.class=bench.data.scenes.Scens"], ["unknown class 'Scens'", "nearest: Scenes"]),
    ([SWEEP, "dataset.scenes.split=tset"], ["dataset scenes", "'tset'", "train, test"]),
    ([SWEEP, "corruption.random_mask.class=corruptions.masks.RandmMask"], ["'RandmMask'", "nearest: RandomMask"]),
    ([SWEEP, "model.scenes_vp.class=methods.backbones.unet.UNt"], ["unknown class 'UNt'", "nearest: UNet"]),
    ([SWEEP, "model.scenes_vp.class=nopkg.unet.UNet"], ["no module 'nopkg'"]),
    # paths and grids
    ([SWEEP, "model.scenes_vp.path.kind=vpp"], ["model.scenes_vp.path.kind='vpp'", "'rectified'", "nearest: vp"]),
    ([SWEEP, "model.scenes_vp.path.schedule=cosin"], ["path.schedule='cosin'", "nearest: cosine"]),
    ([SWEEP, "model.scenes_vp.grid.spacing=trail"], ["grid.spacing='trail'", "nearest: trailing"]),
    ([SWEEP, "model.scenes_vp.grid.spacing=flux_shift"], ["'flux_shift'", "kind vp", "allowed: leading"]),
    ([SWEEP, FLOW, "model.scenes_rf.grid.spacing=trailing"], ["'trailing'", "kind rectified", "flux_shift, linspace"]),
    ([SWEEP, FLOW, "model.scenes_rf.grid.spacing=flux_shift"], ["flux_shift", "mu"]),
    ([SWEEP, FLOW, "model.scenes_rf.grid.mu=1.0"], ["flux_shift", "mu"]),
    ([SWEEP, FLOW, "model.scenes_rf.grid.level0=first"], ["level0=first", "rectified"]),
    ([SWEEP, FLOW, "model.scenes_rf.path.schedule=cosine"], ["schedule=cosine", "rectified"]),
    # arguments of a backbone
    ([*FIELD, f"{ARGUMENT}.constraint=hard"], [f"{ARGUMENT}.constraint='hard'", "'strict'"]),
    ([*FIELD, f"{ARGUMENT}.k_max=-1"], [f"{ARGUMENT}.k_max=-1", "greater than or equal to 0"]),
    ([*FIELD, f"{ARGUMENT}.kmax=1"], ["unknown key 'kmax' in model.scenes_inode.backbone", "nearest: k_max"]),
    ([*FIELD, f"{ARGUMENT}.variance=[1,0.5]"], [f"{ARGUMENT}.variance=[1, 0.5]", "0 < c_lo < c_hi"]),
    ([*FIELD, f"{ARGUMENT}.variance=[0.1]"], [f"{ARGUMENT}.variance.1 is missing"]),
    ([*FIELD, f"{ARGUMENT}.vocabulary=scene"], [f"{ARGUMENT}.vocabulary='scene'", "scenes, digits"]),
    ([*FIELD, f"{ARGUMENT}.widths=[]"], [f"{ARGUMENT}.widths is empty"]),
    ([*FIELD, f"{ARGUMENT}.widths=[48,200]"], ["at most four times", "[48, 200]"]),
    ([*FIELD, f"{ARGUMENT}.widths=[8,8]"], ["2x2 patch", "at least 12"]),
    ([*FIELD, f"{ARGUMENT}.widths=[48,48,48,48,48]"], ["divisible by 64", "[3, 32, 32]"]),
    ([*FIELD, f"{ARGUMENT}.conditioner=[24,20]"], [f"{ARGUMENT}.conditioner.1=20", "multiple of 8"]),
    ([*FIELD, f"{ARGUMENT}.conditioner=[24]"], [f"{ARGUMENT}.conditioner"]),
    ([*FIELD, f"{ARGUMENT}.shape=[3,16,16]"], ["model.scenes_inode: shape (3, 32, 32)", "(3, 16, 16)"]),
    ([*FIELD, "model.scenes_inode.prediction=eps"], ["model.scenes_inode: prediction eps", "which has prediction v"]),
    ([*FIELD, "model.scenes_inode.path.kind=rectified"], ["path rectified", "which has path trig"]),
    (
        [SWEEP, "method=injective_ode", "method.injective_ode.models.scenes_inode.backbone.k_max=-1"],
        ["method.injective_ode.models.scenes_inode.backbone.k_max=-1", "greater than or equal to 0"],
    ),
    ([SWEEP, f"{UNET}.wdiths=[64,96]"], ["unknown key 'wdiths' in model.scenes_vp.backbone", "nearest: widths"]),
    ([SWEEP, f"{UNET}.widths=[60,96]"], [f"{UNET}.widths.0=60", "multiple of 8"]),
    ([SWEEP, "model.scenes_vp.shape=[1,32,32]"], ["model.scenes_vp: channels 1", "which has channels 3"]),
    ([SWEEP, "model.scenes_vp.vocabulary=digits"], ["vocabulary digits", "which has vocabulary scenes"]),
    (["sweep=theory", "model.gmm.backbone={a: 1}"], ["unknown key 'a' in model.gmm.backbone"]),
    (["sweep=corruptions", "profile=flux", "model.flux.backbone.dtype=bf16"], ["dtype='bf16'", "nearest: bfloat16"]),
    # what weights were trained for
    ([SWEEP, f"{UNET}.widths=[32,64]"], ["backbone.widths=[32, 64]", "zoo:scenes_vp", "[64, 96]"]),
    ([SWEEP, f"{UNET}.embedding=64"], ["backbone.embedding=64", "zoo:scenes_vp", "embedding=128"]),
    ([SWEEP, "model.scenes_vp.prediction=eps"], ["prediction=eps", "zoo:scenes_vp", "prediction=v"]),
    ([SWEEP, "model.scenes_vp.path.schedule=cosine"], ["schedule=cosine", "zoo:scenes_vp", "scaled_linear"]),
    ([SWEEP, "model.scenes_vp.shape=[3,64,64]"], ["shape=[3, 64, 64]", "zoo:scenes_vp", "[3, 32, 32]"]),
    ([*FIELD, f"{ARGUMENT}.k_max=1"], ["backbone.k_max=1 ", "zoo:scenes_inode", "4.0"]),
    ([SWEEP, "model.scenes_vp.weights=null"], ["model.scenes_vp.weights", "untrained", "bench.train"]),
    # metrics, retries, places
    ([SWEEP, "metrics=psn"], ["unknown metric 'psn'", " ssim,", "nearest: psnr"]),
    ([SWEEP, "metrics=psnr,ssmi"], ["unknown metric 'ssmi'", "nearest: ssim"]),
    ([SWEEP, "retry=omm"], ["unknown failure class 'omm' in retry", "timeout", "nearest: oom"]),
    ([SWEEP, "retry=oom,tmeout"], ["unknown failure class 'tmeout'", "nearest: timeout"]),
    ([SWEEP, "highlight=edikt"], ["unknown method 'edikt' in highlight", "allowed: ", "ddim", "nearest: edict"]),
    ([SWEEP, "method=ddim", "highlight=ddim,edict"], ["unknown method 'edict' in highlight", "allowed: ddim"]),
    ([SWEEP, "config_dir=nowhere"], ["config_dir='nowhere' is not a folder"]),
    ([SWEEP, "config_dir=a_file"], ["config_dir='a_file' is not a folder"]),
    ([SWEEP, "config_dir="], ["config_dir='' is not a folder"]),
    ([SWEEP, "results=a_file"], ["results='a_file'", "is a file"]),
    ([SWEEP, "results=a_file/below"], ["results='a_file/below'", "'a_file' is a file"]),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter an empty working folder with one file; hide any scheduler."""
    (tmp_path / "a_file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("arguments", "words"), CASES, ids=lambda part: " ".join(part)[:80])
def test_a_wrong_command_line_ends_in_one_clear_line(arguments: list[str], words: list[str], folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        bench.plan.main(arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert sorted(path.name for path in folder.iterdir()) == ["a_file"]


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("plan", ["sweep=coruptions"], ["nearest: corruptions"]),
        ("plan", [SWEEP, "severity=[1,2"], ["cannot read"]),
        ("run", [SWEEP, "method=edct"], ["unknown method 'edct'", "nearest: edict"]),
        ("run", [SWEEP, "method.edict.p=2"], ["method.edict.p=2"]),
        ("run", [SWEEP, "model.scenes_vp.weights=no such, file"], ["missing weights", "scenes_vp", "no such, file"]),
        ("run", [SWEEP, "model.scenes_vp.grid.spacing=flux_shift"], ["'flux_shift'", "allowed: "]),
        ("train", ["model=scenes_vpp"], ["unknown model", "nearest: scenes_vp"]),
        ("train", [], ["name one model", "model=NAME"]),
        ("train", ["model=digits_vp", "crad=only"], ["unknown key 'crad'", "nearest: card"]),
        ("publish", ["train=scenes_vp"], ["unknown training 'scenes_vp'", "python -m bench.train model=scenes_vp"]),
    ],
)
def test_exit_code_and_streams(verb: str, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    given = [*arguments, f"results={results}"] if verb not in ("train", "publish") else [*arguments, f"out={results}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"bench.{verb}", *given]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parse", "arguments", "words"),
    [
        (bench.posterior.parse, ["imgae=2"], ["unknown key 'imgae'", " draws,", " out,", "nearest: image"]),
        (bench.regularisers.parse, ["prbes=2"], ["unknown key 'prbes'", "nearest: probes"]),
        (bench.train.parse, ["model=digits_vp", "otu=x"], ["unknown key 'otu'", "nearest: out"]),
    ],
)
def test_a_verbs_own_arguments_are_allowed(
    parse: Callable[[list[str]], object], arguments: list[str], words: list[str], folder: Path
) -> None:
    with pytest.raises(UserError) as caught:
        parse(arguments)
    for word in words:
        assert word in str(caught.value), caught.value


def test_a_store_that_cannot_be_made_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The permissions allow it but the file system does not, as in /proc."""

    def refused(*_: object, **__: object) -> None:
        raise FileNotFoundError("No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UserError, match=r"^results=below cannot be written: No such file or directory$"):
        bench.run.main([SWEEP, "method=ddim", "results=below", "tracker=none"])


BROKEN_YAML = {
    "class: [methods.inversion.edict.EDICT\ntitle: x: y": ["mine.yaml, line 3", "not YAML"],
    "class: methods.inversion.edict.EDICT\nclass: methods.inversion.ddim.DDIM": [
        "mine.yaml, line 3",
        "duplicate key class",
    ],
    "class: methods.inversion.edict.EDICT\np: 2": ["method.mine.p=2", "less than or equal to 1"],
    "class: ${nothing}": ["method.mine.class", "nothing"],
    "- a": ["method.mine", "mapping with a class"],
    "title: mine": ["method.mine.class is missing"],
    "defaults: [other]\nclass: methods.inversion.edict.EDICT": ["method/mine", "other"],
    "title: \xff": ["UTF-8"],
}


@pytest.mark.parametrize("text", BROKEN_YAML)
def test_a_broken_yaml_ends_in_one_clear_line(text: str, folder: Path) -> None:
    _write_group(folder / "my configs, v=1", "# @package method.mine\n" + text)
    with pytest.raises(UserError) as caught:
        bench.plan.main([SWEEP, "method=mine", f"config_dir={folder / 'my configs, v=1'}"])
    message = str(caught.value)
    assert "\n" not in message
    for word in BROKEN_YAML[text]:
        assert word in message, message


def test_a_yaml_without_its_package_line_says_so(folder: Path) -> None:
    _write_group(folder / "configs", "class: methods.inversion.edict.EDICT\n")
    with pytest.raises(UserError, match=r"does not begin with the line `# @package method\.NAME`"):
        bench.plan.main([SWEEP, "method=mine", "config_dir=configs"])


def _write_group(configs: Path, text: str) -> None:
    (configs / "method").mkdir(parents=True)
    (configs / "method" / "mine.yaml").write_bytes(text.encode("latin-1"))


def test_an_uninstalled_dependency_of_a_plugin_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "plugin_without_dependency"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text("import no_such_dependency\nclass Mine: ...\n")
    (package / "broken.py").write_text("class Mine(:\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(UserError, match="needs 'no_such_dependency', which is not installed"):
        bench.plan.main([SWEEP, "+method.mine.class=plugin_without_dependency.mine.Mine"])
    with pytest.raises(UserError, match=r"broken\.py, line 1"):
        bench.plan.main([SWEEP, "+method.mine.class=plugin_without_dependency.broken.Mine"])


def test_unknown_names_given_allowed_and_nearest() -> None:
    assert str(unknown("method", "edct", ["edict", "ddim"])) == (
        "unknown method 'edct'; allowed: ddim, edict; nearest: edict"
    )
    assert str(unknown("key", "x", [], "in here")) == "unknown key 'x' in here; allowed: none"
    assert nearest("zzz", ["edict"]) == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("two\n lines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "interrupted: what was finished is kept\n"),
    ],
)
def test_run_command(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == code
    assert capsys.readouterr().err == line
