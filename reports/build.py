"""Rebuild a sweep's tables, figures and page from the store.

    python -m reports.build sweep=corruptions [store=results] [out=DIR] [metric=psnr] [quiet=true] [style=paper]
                            [source=wandb]

sweep   a sweep that has run into the store
store   the results folder (default: results)
out     where to write (default: STORE/reports/SWEEP)
metric  the metric of the printed table, the cost figure and the image captions (default: psnr, and all tables printed)
quiet   true prints the path of the page alone
style   full (default): every column; paper: Markdown, LaTeX and the terminal show one column a block, severity 3 say
source  store (default) | wandb: the mirror on a W&B server | files: the offline run folders in STORE/wandb
project, entity  of source=wandb (default: inversion-bench, and the entity of your login)

Exit code 0; 1 if cells that would be compared measured different inputs (the page says which); 2 for a mistake in
the arguments. Nothing is redrawn while the store holds what it held at the last build.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import terminal
from bench.arguments import one_of, only_arguments, truth
from bench.errors import UserError, nearest, run_command
from bench.files import PROJECT
from bench.store import Store
from reports.results import METRICS, Metric, MixedMeasurements, Results, check_measurements, load
from reports.tables import (
    PUBLISHED,
    Table,
    chosen,
    comparison,
    cost_table,
    csv,
    effect_table,
    latent_table,
    markdown,
    paper,
    print_tables,
    without_hints,
)

VERSION = 26  # of the reports: raise it when the same rows should give other files
DEFAULTS = {
    "sweep": "", "store": "results", "out": "", "metric": "", "quiet": "false", "style": "full", "source": "store",
    "project": PROJECT, "entity": "",
}  # fmt: skip
INPUTS = ".inputs"


@dataclass(frozen=True)
class Options:
    sweep: str
    store: Path
    out: Path
    metric: str | None
    quiet: bool
    style: str = "full"


# --- arguments -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Options:
    """key=value arguments, checked against the store. Raises UserError."""
    given = only_arguments(arguments, DEFAULTS)
    quiet, style = truth(given, "quiet"), one_of(given, "style", ("full", "paper"))
    if given["metric"]:
        one_of(given, "metric", tuple(METRICS))
    root = Path(given["store"]).expanduser()
    out = Path(given["out"]).expanduser() if given["out"] else root / "reports" / given["sweep"]
    root = _mirrored(given, root)
    stores = _stores_beside(root)
    if not (root / "sweeps").is_dir():
        raise UserError(
            f"store={root} holds no sweeps; results folders beside it: {', '.join(stores) or '(none)'}"
            + nearest(str(root), stores)
        )
    sweeps = Store(root).manifests()
    if not given["sweep"]:
        raise UserError(f"no sweep given; write sweep=NAME with one of {', '.join(sweeps) or '(none)'}")
    sweep = one_of(given, "sweep", sweeps)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; give a folder")
    return Options(sweep, root, out, given["metric"] or None, quiet, style)


def _mirrored(given: Mapping[str, str], root: Path) -> Path:
    """The store itself, or the one put together from its mirror."""
    source = one_of(given, "source", ("store", "wandb", "files"))
    if source == "store":
        return root
    if not given["sweep"]:
        raise UserError(f"no sweep given; source={source} needs sweep=NAME")
    from reports.sources import NoMirror, from_files, from_server

    place = root / "mirrored" / source
    try:
        if source == "files":
            return from_files(root / "wandb", given["sweep"], place).root
        return from_server(given["project"], given["entity"] or None, given["sweep"], place).root
    except NoMirror as error:
        raise UserError(str(error)) from error


def _stores_beside(root: Path) -> list[str]:
    try:
        return sorted(str(path.parent) for path in root.parent.glob("*/sweeps") if path.is_dir())
    except OSError:
        return []


# --- what has changed ----------------------------------------------------------------------------------------------


def digest(store: Store, manifest: Mapping[str, Any], metric: str | None, style: str = "full") -> str:
    """Of everything a report depends on."""
    ids = {cell["id"] for cell in manifest["cells"]}
    done = sorted(ids & store.done())
    content = {
        "version": VERSION,
        "manifest": manifest,
        "metric": metric,
        "style": style,
        # Not the ids alone: a cell that is computed again keeps its id and may have other rows.
        "done": {i: _sha256(store.root / "cells" / i / "rows.parquet") for i in done},
        "published": [_sha256(file) for file in sorted(PUBLISHED.glob("*.csv"))],
        "failures": {i: store.failure(i) for i in sorted(ids & store.failed())},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(frozen=True)
class Built:
    """What a build left: its inputs, its files (relative to the folder), the tables to print, and an error if any."""

    digest: str
    files: tuple[str, ...]
    tables: tuple[Table, ...]
    error: str = ""

    def write(self, out: Path) -> None:
        content = {
            "digest": self.digest,
            "files": sorted(self.files),
            "error": self.error,
            "tables": [without_hints(table).as_dict() for table in self.tables],
        }
        _write(out / INPUTS, json.dumps(content, sort_keys=True).encode())

    @classmethod
    def read(cls, out: Path) -> Built | None:
        """None if there was no build, or one of its files has gone."""
        try:
            content = json.loads((out / INPUTS).read_text())
            tables = tuple(Table.from_dict(table) for table in content["tables"])
            built = cls(content["digest"], tuple(content["files"]), tables, content["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return built if all((out / name).is_file() for name in built.files) else None


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader with the page open never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# --- building ------------------------------------------------------------------------------------------------------


def headline(results: Results, asked: str | None) -> Metric | None:
    """The metric asked for, else the first there is. Raises UserError if no row has the one asked for."""
    names = [metric.name for metric in results.metrics]
    if asked is None:
        return results.metrics[0] if names else None
    if asked not in names:
        reason = (results.manifest.get("unavailable") or {}).get(asked)
        why = f" ({reason})" if reason else ""
        raise UserError(f"metric {asked!r} has no values in this sweep{why}; it has {', '.join(names) or '(none)'}")
    return METRICS[asked]


def build(
    store: Store, manifest: Mapping[str, Any], out: Path, metric: str | None, inputs: str, style: str = "full"
) -> Built:
    """Write the whole report and return what it left."""
    results = load(store, manifest)
    lead = headline(results, metric)
    _clear(out)
    try:
        check_measurements(results)
    except MixedMeasurements as error:
        built = _refuse(results, out, inputs, str(error))
    else:
        built = _build(store, results, lead, out, inputs, style)
    built.write(out)
    return built


def _clear(out: Path) -> None:
    """Remove what the last build wrote, and nothing else: `out` may be the user's own folder."""
    try:
        names = json.loads((out / INPUTS).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return
    (out / INPUTS).unlink()  # first: a build that dies from here on is no build
    for name in names:
        if (out / name).resolve().is_relative_to(out.resolve()):
            (out / name).unlink(missing_ok=True)


def _refuse(results: Results, out: Path, inputs: str, error: str) -> Built:
    from reports.html import page

    title = results.manifest.get("title") or results.manifest["name"]
    _write(out / "table.md", f"# {title}\n\n**No comparison: mixed measurements.** {error}\n".encode())
    _write(out / "index.html", page(results, (), (), (), error).encode())
    return Built(inputs, ("table.md", "index.html"), (), error)


def _build(store: Store, results: Results, lead: Metric | None, out: Path, inputs: str, style: str) -> Built:
    from reports.html import page
    from reports.illustrations import illustrate
    from reports.latex import document, latex
    from reports.strictness import strict_lines, strictness_table
    from reports.summary import costs, effects, entry_costs, summarise

    summary = summarise(results)
    spent = entry_costs(results) if results.reconstructs else costs(results)
    flags: dict[tuple[str, str, str], str] = {}
    same: tuple[Table, ...] = ()  # the part of the costs that no run changes
    if results.reconstructs:
        flags = dict(zip(zip(spent["line"], spent["block"], spent["column"], strict=True), spent["flag"], strict=True))
        same = (latent_table(spent, results, timed=False),)
    tables: tuple[Table, ...] = ()
    own: dict[str, str] = {}
    if results.guarantees:
        from reports.guarantees import guarantee_csv, guarantee_tables

        tables = guarantee_tables(results)
        own = {"guarantees.csv": guarantee_csv(results)}
    tables += tuple(comparison(metric, summary, results, flags) for metric in results.metrics)
    differences = effects(results)
    shown = set(zip(differences["metric"], differences["comparison"], strict=True))
    tables += tuple(
        effect_table(metric, differences, results, number)
        for metric in results.metrics
        for number in sorted(number for name, number in shown if name == metric.name)
    )
    if lead is not None and (strict := strict_lines(results)):
        tables += (strictness_table(lead, strict, summary, results),)
    tables += (latent_table(spent, results, timed=True) if results.reconstructs else cost_table(spent, results),)
    title = results.manifest.get("title") or results.manifest["name"]
    if all(len(block.columns) == 1 for block in results.blocks):  # then the short form leaves nothing out
        tables = (*map(paper, tables[:-1]), tables[-1])
    styled = tuple(paper(table) if style == "paper" else table for table in tables[:-1])
    texts = {
        "table.md": markdown((*styled, *same), title),
        "table.tex": document([f"tables/{table.key}" for table in (*styled, *same)], title),
        **{f"tables/{table.key}.tex": latex(table) for table in (*styled, *same)},
        "costs.md": markdown(tables[-1:], f"{title}: costs"),  # measured, so never the same twice
        "table.csv": csv(summary, results),
        "costs.csv": csv(spent, results),
        **own,
    }
    for name, text in texts.items():
        _write(out / name, text.encode())
    figures, galleries, drawn = illustrate(store, results, lead, summary, spent, out)
    _write(out / "index.html", page(results, tables, figures, galleries).encode())
    return Built(inputs, (*texts, *drawn, "index.html"), (*styled, tables[-1]))


# --- shell ---------------------------------------------------------------------------------------------------------


def run(options: Options) -> int:
    from rich.text import Text

    store = Store(options.store)
    manifest = store.manifest(options.sweep)
    inputs = digest(store, manifest, options.metric, options.style)
    built = Built.read(options.out)
    if built is None or built.digest != inputs:
        built = build(store, manifest, options.out, options.metric, inputs, options.style)
    console = terminal.console()
    if built.error:
        print(f"mixed measurements, no comparison: {built.error}", file=sys.stderr)
    elif not options.quiet:
        console.print(Text(str(manifest.get("title") or options.sweep), style="bold"))
        print_tables(chosen(built.tables, options.metric), console)
    print(options.out / "index.html")
    return 1 if built.error else 0


def main(arguments: Sequence[str]) -> int:
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print((__doc__ or "").strip())
        return 0
    return run(parse(arguments))


if __name__ == "__main__":
    run_command(main)
