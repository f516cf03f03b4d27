"""Build a sweep's tables, figures and page from the store.

    python -m reports.build sweep=corruptions [store=results] [out=DIR] [metric=psnr] [quiet=true] [style=paper]
                            [source=wandb]

sweep   a sweep that has run into the store
store   the results folder (default: results)
out     where to write (default: STORE/reports/SWEEP)
metric  the metric of the printed table, the cost figure and the image captions (default: psnr, and print all tables)
quiet   true: print only the path of the page
style   full (default): every column; paper: Markdown, LaTeX and the terminal show one column per block (severity 3)
source  store (default) | wandb: the mirror on a W&B server | files: the offline run folders in STORE/wandb
project, entity  used with source=wandb (default: inversion-bench, and the entity of your login)

Exit codes: 0; 1 if compared cells have different measurements, or if cells are damaged (the page names them); 2 for a
mistake in the arguments or a damaged manifest. If the store and this code have not changed since the last build,
nothing is drawn again. A build that fails does not change the last report.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import terminal
from bench.arguments import one_of, only_arguments, truth
from bench.columns import Metric, declared
from bench.errors import StoreError, UserError, nearest, run_command
from bench.files import PROJECT, ROOT, sha256
from bench.mirror.records import CELL_FILES
from bench.store import Store
from reports.damage import DamagedFile
from reports.folder import Built, replacing
from reports.results import DAMAGED, MixedMeasurements, Results, check_measurements, load, title_of
from reports.tables import (
    Table,
    chosen,
    comparison,
    cost_table,
    csv,
    effect_table,
    latent_table,
    markdown,
    md,
    paper,
    placed,
    print_tables,
)

DEFAULTS = {
    "sweep": "", "store": "results", "out": "", "metric": "", "quiet": "false", "style": "full", "source": "store",
    "project": PROJECT, "entity": "",
}  # fmt: skip
NAMED = 5  # number of damaged cells that the message names


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
    """Parse key=value arguments and check them against the store. Raises UserError."""
    given = only_arguments(arguments, DEFAULTS)
    quiet, style = truth(given, "quiet"), one_of(given, "style", ("full", "paper"))
    root = Path(given["store"]).expanduser()
    out = Path(given["out"]).expanduser() if given["out"] else root / "reports" / given["sweep"]
    root = _mirrored(given, root)
    stores = _stores_beside(root)
    if not (root / "sweeps").is_dir():
        raise UserError(
            f"store={root} has no sweeps; results folders beside it: {', '.join(stores) or 'none'}"
            + nearest(str(root), stores)
        )
    sweeps = Store(root).manifests()
    if not given["sweep"]:
        raise UserError(f"no sweep given; write sweep=NAME with one of {', '.join(sweeps) or 'none'}")
    sweep = one_of(given, "sweep", sweeps)
    metric = one_of(given, "metric", tuple(declared(Store(root).manifest(sweep)))) if given["metric"] else None
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; give a folder")
    return Options(sweep, root, out, metric, quiet, style)


def _mirrored(given: Mapping[str, str], root: Path) -> Path:
    """Return the root of the store, or of a store that is restored from its mirror."""
    source = one_of(given, "source", ("store", "wandb", "files"))
    if source == "store":
        return root
    if not given["sweep"]:
        raise UserError(f"no sweep given; source={source} needs sweep=NAME")
    from reports.sources import from_files, from_server

    place = root / "mirrored" / source
    if source == "files":
        return from_files(root / "wandb", given["sweep"], place).root
    return from_server(given["project"], given["entity"] or None, given["sweep"], place).root


def _stores_beside(root: Path) -> list[str]:
    try:
        return sorted(str(path.parent) for path in root.parent.glob("*/sweeps") if path.is_dir())
    except OSError:
        return []


# --- what has changed ----------------------------------------------------------------------------------------------


def digest(store: Store, manifest: Mapping[str, Any], metric: str | None, style: str = "full") -> str:
    """Return the sha256 of everything that a report depends on: all files that it reads, and its code."""
    ids = {cell["id"] for cell in manifest["cells"]}
    cells, own = store.root / "cells", ROOT / "reports"
    code = [file for file in own.rglob("*") if file.suffix in (".py", ".j2", ".css", ".js", ".mplstyle", ".csv")]
    content = {
        "code": {str(file.relative_to(ROOT)): sha256(file) for file in code} | _columns(),
        "manifest": manifest,
        "metric": metric,
        "style": style,
        # Ids are not enough: a cell that is computed again keeps its id but may have other rows.
        "done": {i: [_content(cells / i / name) for name in CELL_FILES] for i in ids & store.done()},
        "failures": {i: _content(store.root / "failures" / f"{i}.json") for i in ids & store.failed()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _columns() -> dict[str, str]:
    file = ROOT / "bench" / "columns.py"
    return {"columns": sha256(file)} if file.is_file() else {}


def _content(file: Path) -> Any:
    """Return what identifies a file's content: an archive's own checksums, else the sha256; None if unreadable."""
    try:
        if file.suffix == ".npz" and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
        return sha256(file)
    except (OSError, zipfile.BadZipFile):
        return None


# --- building ------------------------------------------------------------------------------------------------------


def headline(results: Results, requested: str | None) -> Metric | None:
    """Return the requested metric, else the first metric. Raises UserError if no row has the requested one."""
    names = [metric.name for metric in results.metrics]
    if requested is None:
        return results.metrics[0] if names else None
    if requested not in names:
        reason = (results.manifest.get("unavailable") or {}).get(requested)
        why = f" ({reason})" if reason else ""
        raise UserError(f"metric {requested!r} has no values in this sweep{why}; it has {', '.join(names) or 'none'}")
    return results.declared[requested]


def build(
    store: Store, manifest: Mapping[str, Any], out: Path, metric: str | None, inputs: str, style: str = "full"
) -> Built:
    """Write the whole report and return its record. If this fails, the last report stays."""
    unreadable: dict[str, str] = {}
    while True:
        try:
            results = load(store, manifest, unreadable)
            lead = headline(results, metric)
            with replacing(out) as draft:
                try:
                    check_measurements(results, str(store.root / "cells"))
                    built = _build(results, lead, draft, inputs, style)
                except MixedMeasurements as error:
                    built = _refuse(results, draft, inputs, error)
                built.write(draft)
            return built
        except DamagedFile as found:  # try again without this cell
            unreadable[found.cell] = found.reason
        except OSError as error:
            raise StoreError(f"the report in {out} cannot be written: {error}; the last report is unchanged") from error


def _refuse(results: Results, out: Path, inputs: str, error: MixedMeasurements) -> Built:
    from reports.html import page

    what, remedy = f"No comparison: mixed measurements. {error}", f"Remedy: {error.remedy}"
    _write(out / "table.md", f"# {md(title_of(results.manifest))}\n\n**{md(what)}**\n\n{md(remedy)}\n")
    _write(out / "index.html", page(results, (), (), (), str(error), error.remedy))
    return Built(inputs, ("table.md", "index.html"), (), f"{what}\n{remedy}")


def _damage(results: Results) -> str:
    """Return a message that names the damaged cells; empty if there are none."""
    found = [f"{i} ({f['message']})" for i, f in results.failures.items() if f["class"] == DAMAGED]
    if not found:
        return ""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    listed = ", ".join(found[:NAMED])
    return f"{len(found)} damaged cell(s) are left out: {listed}{more}; the same bench.run command computes them again"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(errors="replace"))


def _build(results: Results, lead: Metric | None, out: Path, inputs: str, style: str) -> Built:
    from reports.html import page
    from reports.illustrations import illustrate
    from reports.latex import document, latex
    from reports.strictness import strict_lines, strictness_table
    from reports.summary import costs, effects, entry_costs, summarise

    summary = summarise(results)
    spent = entry_costs(results) if results.reconstructs else costs(results)
    flags: dict[tuple[str, str, str], str] = {}
    same: tuple[Table, ...] = ()  # the costs that are the same in every run
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
    title = title_of(results.manifest)
    if all(len(block.columns) == 1 for block in results.blocks):  # then the short form shows everything
        tables = (*map(paper, tables[:-1]), tables[-1])
    styled = tuple(paper(table) if style == "paper" else table for table in tables[:-1])
    texts = {
        "table.md": markdown((*styled, *same), title),
        "table.tex": document([f"tables/{table.key}" for table in (*styled, *same)], title),
        **{f"tables/{table.key}.tex": latex(table) for table in (*styled, *same)},
        "costs.md": markdown(tables[-1:], f"{title}: costs"),  # measured times differ in every run
        "table.csv": csv(placed(summary, results)),
        "costs.csv": csv(placed(spent, results)),
        **own,
    }
    for name, text in texts.items():
        _write(out / name, text)
    figures, galleries, drawn = illustrate(results, lead, summary, spent, out)
    _write(out / "index.html", page(results, tables, figures, galleries))
    return Built(inputs, (*texts, *drawn, "index.html"), (*styled, tables[-1]), _damage(results))


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
    if built.tables and not options.quiet:
        console.print(Text(title_of(manifest), style="bold"))
        print_tables(chosen(built.tables, options.metric), console)
    if built.error:
        print(built.error, file=sys.stderr)
    print(options.out / "index.html")
    return 1 if built.error else 0


def main(arguments: Sequence[str]) -> int:
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print((__doc__ or "").strip())
        return 0
    return run(parse(arguments))


if __name__ == "__main__":
    run_command(main)
