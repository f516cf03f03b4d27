"""Writes the Weights & Biases mirror of the store: one run per cell, and one for the sweep (bench.mirror.records).

The mirror is offline unless the user is logged in and the server answers. `tracker.mode=online|offline` overrides this.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.columns import Metric, declared
from bench.files import write_json
from bench.mirror.records import (
    CELL_FILES,
    FAILURE_FILE,
    HISTORY_FILE,
    MARK,
    RECIPE_FILE,
    SWEEP_FILE,
    TRAINING,
    Mark,
    curves,
    digest,
    offline_runs,
    server_runs,
)
from bench.mirror.server import answers, prepare, server
from bench.spec.config import TrackerConfig
from bench.store import Store

FINISH_SECONDS = 60
STALL_SECONDS = 180
POLL_SECONDS = 1.0
COMPLETE_NOW = "complete\n"
GIVE_UP_AFTER = 3
"""The mirror stops after this many failed runs in a row."""
SOLVER_CURVES = {"t": "time", "h": "step_size", "tried": "steps_tried", "evaluations": "evaluations"}
"""Key of a step in the column `solver_steps` -> name of its curve."""

Progress = Callable[[str], None]
"""Called with the id of a run when it has been written."""


class Mirror:
    """The mirror of one sweep: the runs that it should have, the runs that it has, and how a run is written."""

    def __init__(self, store: Store, sweep: str, tracker: TrackerConfig, mode: str) -> None:
        prepare()
        self.store, self.sweep, self.tracker, self.mode = store, sweep, tracker, mode
        self.folder = store.root.resolve() / "wandb"
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str(self.folder / ".data")  # tables stay there until an offline run is synced
        self.url = ""
        self.known: set[str] = set()  # runs that the server has, complete or not

    def wanted(self) -> list[Mark]:
        """Return the marks that the mirror should have now: cells in the order of the manifest, then the sweep. A
        damaged cell has no mark, since it will be computed again."""
        ids = [cell["id"] for cell in self.store.manifest(self.sweep)["cells"]]
        damaged = self.store.damaged(ids).keys()
        done, failed = self.store.done() - damaged, self.store.failed() - damaged
        marks = [self.mark(cell_id, cell_id in done) for cell_id in ids if cell_id in done or cell_id in failed]
        content = [(self.store.root / "sweeps" / f"{self.sweep}.json").read_bytes()]
        content += [path.read_bytes() for path in self.report_files().values()]
        content += [mark.digest.encode() for mark in marks]
        return [*marks, Mark(self.sweep, "sweep", self.sweep, digest(*content))]

    def mark(self, cell_id: str, done: bool) -> Mark:
        path = self.store.root / ("cells" if done else "failures")
        file = path / cell_id / "rows.parquet" if done else path / f"{cell_id}.json"
        return Mark(self.sweep, "cell" if done else "failure", cell_id, digest(file.read_bytes()))

    def present(self) -> set[Mark]:
        """Return the marks of the complete runs in the mirror."""
        if self.mode == "offline":
            latest = {mark.run_id: mark for mark, _ in offline_runs(self.folder)}
            return set(latest.values())
        import wandb

        api = wandb.Api(timeout=30)
        entity = self.tracker.entity or api.default_entity
        found = list(server_runs(api, f"{entity}/{self.tracker.project}", self.sweep))
        self.known |= {run.id for _, run in found}
        return {mark for mark, _ in found if mark is not None}

    def write(self, mark: Mark) -> None:
        """Write the complete run of a record. Raises ConnectionError if the server does not answer, and all errors of
        wandb."""
        if self.mode == "online" and not answers(server()):
            raise ConnectionError(f"{server()} does not answer")
        {"cell": self._cell, "failure": self._failure, "sweep": self._sweep}[mark.kind](mark)
        self.known.add(mark.run_id)

    def _cell(self, mark: Mark) -> None:
        record, rows = self.store.record(mark.record), self.store.rows([mark.record])
        numbers = rows.select_dtypes(["number", "bool"]).drop(columns=list(record["axes"]), errors="ignore")
        means = {name: float(value) for name, value in numbers.mean().items() if value == value}
        config = {
            **record["axes"],
            "options": record["config"].get("method", {}).get("options", {}),
            "provenance": record["provenance"],
        }
        summary = {**means, "count": len(rows), "outcome": "done", "numerical": int((rows["outcome"] != "ok").sum())}
        files = {name: self.store.root / "cells" / mark.record / name for name in CELL_FILES}
        with self._run(mark, mark.record, record["axes"], config, files) as run:
            known = declared(self.store.manifest(self.sweep))
            if images := _images(self.store.samples(mark.record), rows, known):
                run.log({"images": images}, step=0)
            for step, line in enumerate(solver_history(rows["solver_steps"]) if "solver_steps" in rows else ()):
                run.log(line, step=step)
            run.summary.update(summary)

    def _failure(self, mark: Mark) -> None:
        failure = self.store.failure(mark.record)
        config = {**failure["axes"], "provenance": failure["provenance"]}
        files = {FAILURE_FILE: self.store.root / "failures" / f"{mark.record}.json"}
        with self._run(mark, mark.record, failure["axes"], config, files, exit_code=1) as run:
            run.summary.update({"outcome": failure["class"], "message": failure["message"]})

    def report_files(self) -> dict[str, Path]:
        """Return the tables and the page of the report, name -> file, if it has been built. The tables change whenever
        the report changes."""
        folder = self.store.root / "reports" / self.sweep
        found = {name: folder / name for name in ("table.csv", "costs.csv", "table.md", "index.html")}
        return {name: path for name, path in found.items() if path.is_file()}

    def _sweep(self, mark: Mark) -> None:
        import pandas as pd
        import wandb

        manifest, files = self.store.manifest(self.sweep), self.report_files()
        axes = {"task": "sweep"}
        config = {key: manifest.get(key) for key in ("title", "description", "task", "profile", "images")}
        done, failed = self.store.done(), self.store.failed()
        ids = {cell["id"] for cell in manifest["cells"]}
        own = {SWEEP_FILE: self.store.root / "sweeps" / f"{self.sweep}.json"}
        with self._run(mark, f"{self.sweep}: the sweep", axes, config, own | files) as run:
            shown: dict[str, Any] = {}
            for name in ("table", "costs"):
                if f"{name}.csv" in files:
                    frame = pd.read_csv(files[f"{name}.csv"])
                    shown[name] = wandb.Table(
                        columns=[str(column) for column in frame],
                        data=frame.astype(object).where(frame.notna(), None).values.tolist(),
                        allow_mixed_types=True,
                    )
            if "index.html" in files:
                shown["report"] = wandb.Html(files["index.html"].read_text(), inject=False)
            figures = sorted((self.store.root / "reports" / self.sweep / "figures").glob("*.png"))
            shown |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
            if shown:
                run.log(shown)
            run.summary.update({"cells": len(ids), "done": len(ids & done), "failed": len(ids & failed)})

    @contextlib.contextmanager
    def _run(
        self,
        mark: Mark,
        name: str,
        axes: Mapping[str, Any],
        config: Mapping[str, Any],
        files: Mapping[str, Path],
        exit_code: int = 0,
        final: Callable[[], Mark] | None = None,
    ) -> Iterator[Any]:
        """Open a run. The block logs into it; at the end it gets the files and the mark.

        `final` returns the mark at the end, if the content may change inside the block.
        """
        import wandb

        tags = [str(axes[key]) for key in ("task", "model", "dataset") if axes.get(key)]
        run = wandb.init(
            project=self.tracker.project,
            entity=self.tracker.entity,
            group=self.sweep,
            job_type=str(axes["task"]),
            name=name,
            id=mark.run_id,
            tags=[tag[:64] for tag in dict.fromkeys([self.sweep, *tags])],
            config={"kind": mark.kind, "sweep": self.sweep, "record": mark.record, **config},
            dir=self.folder.parent,
            mode=self.mode,  # type: ignore[arg-type]
            reinit="create_new",
            resume="allow" if mark.run_id in self.known else None,
            settings=settings(),
        )
        place = Path(run.settings.sync_dir).resolve()
        try:
            if self.folder not in place.parents:  # if wandb cannot write here, it warns and takes another folder
                raise OSError(f"wandb writes into {place} and not into {self.folder}")
            yield run
            mark = final() if final else mark
            for file_name, source in files.items():
                if source.is_file():
                    target = Path(run.dir, file_name)
                    _link(source, target)
                    run.save(str(target), base_path=run.dir, policy="now")
            run.summary[MARK] = mark.digest
        except BaseException:
            with contextlib.suppress(Exception):
                run.finish(exit_code=255)
            raise
        started = time.monotonic()
        run.finish(exit_code=exit_code)
        if time.monotonic() - started >= FINISH_SECONDS:
            raise TimeoutError(f"{server()} did not accept the run within {FINISH_SECONDS} s")
        self.url = run.url or ""
        _mark_complete(place, mark)


class TrainingMirror(Mirror):
    """The mirror of one training. OUT/NAME holds its curves and its recipe."""

    def __init__(self, out: Path, name: str, tracker: TrackerConfig, mode: str) -> None:
        super().__init__(Store(out), TRAINING, tracker, mode)
        self.name = name

    def wanted(self) -> list[Mark]:
        return [self._now()]

    def _now(self) -> Mark:
        recipe, history = (self.store.root / self.name / file for file in (RECIPE_FILE, HISTORY_FILE))
        fixed = {key: value for key, value in json.loads(recipe.read_text()).items() if key != "steps"}
        record = f"{self.name}-{digest(json.dumps(fixed, sort_keys=True).encode())[:8]}"
        return Mark(TRAINING, TRAINING, record, digest(history.read_bytes() if history.is_file() else b""))

    def write(self, mark: Mark, ended: Callable[[], bool] = lambda: True) -> None:
        """Log the curves while they grow, until `ended` returns True. An update is logged only after a later one
        exists, since it may have two lines in the file: the loss and the held-out loss."""
        folder = self.store.root / self.name
        recipe = json.loads((folder / RECIPE_FILE).read_text())
        axes = {"task": "train", "model": self.name, "dataset": recipe.get("dataset")}
        files = {HISTORY_FILE: folder / HISTORY_FILE, RECIPE_FILE: folder / RECIPE_FILE}
        with self._run(mark, f"train {self.name}", axes, {**axes, **recipe}, files, final=self._now) as run:
            logged = run.starting_step - 1  # a resumed run already has these steps
            while True:
                last = ended()
                steps = curves(folder / HISTORY_FILE)
                for step in list(steps) if last else list(steps)[:-1]:
                    if step > logged:
                        run.log(steps[step], step=step)
                        logged = step
                if last:
                    break
        self.known.add(mark.run_id)


def solver_history(walks: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
    """Return the values to log at each step of an adaptive solver, from the steps of every image.

    They are means over the images that take so many steps, separately for the way to the noise (`invert`) and the way
    to the image (`decode`).
    """
    history: list[dict[str, float]] = []
    ways = {f"solver/{name}": sign for name, sign in (("invert", 1), ("decode", -1))}
    for way, sign in ways.items():
        walked = [[step for step in walk if step["h"] * sign > 0] for walk in walks]
        for k in range(max(map(len, walked), default=0)):
            here = [walk[k] for walk in walked if len(walk) > k]
            line = {f"{way}/{name}": sum(step[key] for step in here) / len(here) for key, name in SOLVER_CURVES.items()}
            line |= {f"{way}/step_size": abs(line[f"{way}/step_size"]), f"{way}/images": float(len(here))}
            history += [{}] * (k + 1 - len(history))
            history[k] = history[k] | line
    return history


def settings() -> Any:
    """Return settings of wandb that record no data about the machine, the console or the code, since the store has
    them. Settings that this version of wandb does not know are left out."""
    import wandb

    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "symlink": False,
        "init_timeout": 30,
        "finish_timeout": FINISH_SECONDS,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": 2,
    }
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in wandb.Settings.model_fields})


def _link(source: Path, target: Path) -> None:
    """Make a hard link, else a copy. A link is enough, since the files of the store never change."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _images(samples: Mapping[str, Any], rows: Any, declared: Mapping[str, Metric]) -> list[Any]:
    """Return one picture per sample: truth, input and output side by side, with the scores in the caption."""
    import numpy as np
    import pandas as pd
    import wandb

    if not samples:
        return []
    by_image = rows.set_index("image_id")
    judges = [metric for metric in declared.values() if metric.printed and metric.name in rows]
    shown = []
    for index, image_id in enumerate(samples["ids"].tolist()):
        strip = np.concatenate([samples[name][index] for name in ("truth", "input", "output")], axis=1)
        row = by_image.loc[image_id]
        scores = ", ".join(f"{m.title} {m.text(row[m.name])}" for m in judges if not pd.isna(row[m.name]))
        shown.append(wandb.Image(strip.squeeze(), caption=f"{image_id}: truth, input, output; {scores}"))
    return shown


def _mark_complete(place: Path, mark: Mark) -> None:
    """Write the mark, and remove older offline folders of the same run: `wandb sync` would join them into one run."""
    write_json(place / f"{MARK}.json", {"time": time.time_ns(), MARK: mark.as_dict()})
    older = place.parent.glob(f"offline-run-*-{mark.run_id}") if place.name.startswith("offline-") else ()
    for folder in older:
        if folder != place and folder.name.split("-", 3)[3] == mark.run_id:
            shutil.rmtree(folder, ignore_errors=True)


# --- all runs of a sweep ---


@dataclass
class Outcome:
    """The result of one pass over the mirror."""

    wanted: int
    made: int
    left: int
    where: str
    error: str = ""

    def line(self, publish: str) -> str:
        """Return the message for the user. `publish` is the command that writes the runs that are left."""
        if self.left:
            return (
                f"wandb: {self.left} of {self.wanted} runs are not mirrored ({self.error or 'reason unknown'}); "
                f"{publish} completes it"
            )
        return f"wandb: {self.wanted} runs {self.where}, {self.made} of them new"


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def complete(mirror: Mirror, progress: Progress = lambda text: None) -> Outcome:
    """Write every run that is missing. A run that cannot be written is counted; this function never raises."""
    error, made, in_a_row = "", 0, 0
    wanted, there = mirror.wanted(), set()
    try:
        there = mirror.present()
        for mark in wanted:
            if mark in there:
                continue
            for _ in range(2):  # if the service of wandb has ended, only a failed run shows it
                try:
                    mirror.write(mark)
                    made, in_a_row = made + 1, 0
                    break
                except Exception as caught:
                    error, in_a_row = one_line(caught), in_a_row + 1
                    restart()
            if in_a_row >= GIVE_UP_AFTER:
                break
            progress(mark.run_id)
        if made:
            there = mirror.present()
    except Exception as caught:
        error = one_line(caught)
    where = f"in {mirror.folder}, offline" if mirror.mode == "offline" else f"at {mirror.url or server()}"
    return Outcome(len(wanted), made, len(set(wanted) - there), where, error)


def restart() -> None:
    """Stop the service of wandb, which may have ended already: the next run starts a new one."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown(exit_code=1)
