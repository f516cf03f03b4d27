"""The output of a command reaches any terminal complete and unchanged; a closed pipe or a full disk stops no run."""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bench.plan
from bench import hub, terminal
from bench.arguments import only_arguments, own_arguments, truth, whole_number
from bench.errors import UserError
from bench.spec.compose import compose_config
from bench.store import Store

ROOT = Path(__file__).resolve().parent.parent
SAID = "[red]a[/red] pip install inversion-bench[large] :smile: ± é … \udcff"
ASCII = SAID.replace("±", "+-").replace("é", "e").replace("…", "...")
SCRIPT = f"""
import sys
from pathlib import Path
from bench import terminal
from bench.errors import run_command

def main(arguments):
    for _ in range(int(arguments[0])):
        print({SAID!a})
        terminal.console().print({SAID!a}, soft_wrap=True)
    Path("ended").write_text(str(terminal.heard()))
    return 0

run_command(main)
"""


def script(folder: Path, lines: int = 1, more: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script above in a shell; `more` is the end of the shell's command."""
    command = f'"{sys.executable}" -c "$SCRIPT" {lines} {more}'
    known = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    known |= {"PYTHONPATH": str(ROOT), "SCRIPT": SCRIPT, **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder, env=known, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ASCII),
        ({"PYTHONIOENCODING": "latin-1"}, SAID.replace("…", "...").replace("±", "\ufffd").replace("é", "\ufffd")),
        ({"LANG": "C"}, SAID),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ASCII),
        ({"PYTHONIOENCODING": "utf-8"}, SAID),
    ],
)
def test_any_terminal_is_printed_to_and_brackets_are_no_markup(
    environment: dict[str, str], shown: str, tmp_path: Path
) -> None:
    ended = script(tmp_path, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    plain, rich = ended.stdout.splitlines()
    assert plain == rich
    assert "[red]a[/red] pip install inversion-bench[large] :smile: " in plain
    assert plain == shown.replace("\udcff", "?")


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    ended = script(tmp_path, 20_000, "| head -n 1 > first")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "ended").read_text() == "False"
    assert (tmp_path / "first").read_text().count("\n") == 1


def test_a_full_disk_behind_the_output_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    for lines in (1, 5_000):
        ended = script(tmp_path, lines, "> /dev/full")
        assert ended.returncode == 1
        (line,) = ended.stderr.splitlines()
        assert line.startswith("error: standard output could not be written") and "No space left" in line
        assert (tmp_path / "ended").is_file()
        (tmp_path / "ended").unlink()
    assert script(tmp_path, 5_000, "> /dev/full 2> /dev/full").returncode == 1
    assert (tmp_path / "ended").is_file()


def test_closed_streams_are_no_mistake(tmp_path: Path) -> None:
    assert script(tmp_path, 3, ">&- 2>&-").returncode == 0
    assert (tmp_path / "ended").is_file()


def test_what_follows_a_failed_write_is_dropped(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with open(tmp_path / "file", "w") as file:
        full: Any = Full()
        full.fileno = file.fileno
        output = terminal.Output(full)
        assert output.write("text") == 4
        assert output.lost is not None and output.lost.errno == errno.ENOSPC
        os.write(file.fileno(), b"a process of ours that writes there too")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_sweep_ends_whole_without_a_reader_on_an_ascii_terminal(tmp_path: Path) -> None:
    arguments = "sweep=reconstruction profile=digits method=ddim steps=1,2 images=1 launcher=debug tracker=none"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = f'"{sys.executable}" -m bench.run {arguments} results="[large] é" | head -n 1'
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("4 cells: 0 done, 4 missing")
    store = Store(tmp_path / "[large] é")
    assert len(store.done()) == 4
    assert (store.root / "reports" / "reconstruction" / "table.csv").is_file()


def test_a_plan_says_what_to_install_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "PACKAGES", ("no_such_package",))
    outlook = bench.plan.look(["sweep=reconstruction", "profile=sd15", "method=ddim", f"results={tmp_path}/[a]"])
    bench.plan.show(outlook, terminal.console())
    assert "(pip install inversion-bench[large])" in capsys.readouterr().out


def test_every_console_is_the_one_that_knows_no_markup() -> None:
    made = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for room in ("bench", "reports", "methods")
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and "Console" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
    ]
    assert len(made) == 1 and made[0].startswith("bench/terminal.py")


# --- arguments ---------------------------------------------------------------------------------------------------


def test_own_arguments() -> None:
    own, others = own_arguments(["a=1", "c=2", "d"], {"a": "0", "b": "x=y"})
    assert (own, others) == ({"a": "1", "b": "x=y"}, ["c=2", "d"])
    assert only_arguments(["a=b=c"], {"a": ""}) == {"a": "b=c"}
    assert truth({"a": "True"}, "a") and not truth({"a": "false"}, "a") and whole_number({"a": "3"}, "a", 3) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a=1", "a=2"], "a is given more than once"),
        (["a="], "argument 'a=' has no value; write a=VALUE"),
        (["a"], "argument 'a' has no value; write a=VALUE"),
        (["ab=1"], "unknown argument 'ab'; allowed: a, more; nearest: a"),
    ],
)
def test_wrong_arguments_of_a_command(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        only_arguments(arguments, {"a": ""}, more=("more",))
    assert str(caught.value) == words


@pytest.mark.parametrize("text", ["-1", "2", "1.5", "", "x", "³", "9" * 30])
def test_a_whole_number_is_checked(text: str) -> None:
    with pytest.raises(UserError, match=r"a=.*: must be a whole number, 3 or more"):
        whole_number({"a": text}, "a", 3)


@pytest.mark.parametrize("verb", ["publish", "prefetch", "status", "cancel", "train", "posterior", "regularisers"])
def test_every_command_refuses_an_argument_given_twice(verb: str, tmp_path: Path, monkeypatch: Any) -> None:
    module = __import__(f"bench.{verb}", fromlist=["main"])
    monkeypatch.chdir(tmp_path)
    key = {"prefetch": "metric", "posterior": "image", "regularisers": "images", "train": "out"}.get(verb, "results")
    with pytest.raises(UserError, match=f"^{key} is given more than once$"):
        module.main([f"{key}=1", f"{key}=2"])


def test_a_composed_configuration_takes_no_argument_twice() -> None:
    with pytest.raises(UserError, match="images is given more than once"):
        compose_config(["sweep=corruptions", "images=1", "images=2"])
