"""Tables as plain data, and how they are written: terminal (rich), Markdown and CSV.

The template writes HTML, and `reports.latex` writes LaTeX. An entry is printed as `24.31 ±0.42`: the mean over images
and half the width of its 95 % bootstrap interval. The CSV has the exact ends of the interval. The best method is bold
and the second underlined (in Markdown: italic), but only if the paired test confirms it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from csv import DictReader
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.columns import COSTS, LATENTS, Column, Metric
from reports.results import DAMAGED, Results, plain, words
from reports.summary import INPUT

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

MISSING = "–"
DAGGER = "†"
EXPLODED_SIGN = "‡"
SECOND = "underlined: second"  # Markdown has no underline and uses italic


@dataclass(frozen=True)
class Entry:
    """One entry: text, numbers, and mark (best, second, missing, failed, input, published, or empty)."""

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    mark: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    entries: tuple[Entry, ...]
    reference: bool = False  # the input or a published number: shown but never ranked
    printed: bool = True  # shown in the terminal


@dataclass(frozen=True)
class Group:
    """Rows under one heading with one set of columns, such as a corruption with its severities.

    `shown` is the column that represents the group in a short table, or "" if no column does.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    corner: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a title. `key` names its content: a metric, or costs."""

    key: str
    title: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    printed: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Table:
        groups = tuple(
            Group(
                group["title"],
                tuple(group["columns"]),
                tuple(
                    Row(
                        row["title"],
                        tuple(Entry(**entry) for entry in row["entries"]),
                        row["reference"],
                        row["printed"],
                    )
                    for row in group["rows"]
                ),
                group["corner"],
                group["shown"],
            )
            for group in content["groups"]
        )
        return cls(content["key"], content["title"], groups, tuple(content["notes"]), content["printed"])


# --- building ------------------------------------------------------------------------------------------------------


def comparison(
    metric: Metric, summary: pd.DataFrame, results: Results, flags: Mapping[tuple[str, str, str], str] | None = None
) -> Table:
    """Return the table of one metric: one group per block, methods as rows, severities (or steps) as columns.

    `flags`: (line, block, column) -> the fault of its latents, which a perfect round trip would hide.
    """
    flags = flags or {}
    entries = {}
    chosen = summary[summary["metric"] == metric.name]
    for record in chosen.to_dict("records"):
        key = (record["line"], record["block"], record["column"])
        entries[key] = _flagged(_entry(metric, record), flags.get(key, ""))
    titles = [(INPUT, _input_title(summary)), *((line.key, line.title) for line in results.lines)]
    groups = []
    for block in results.blocks:
        rows = []
        for line, title in titles:
            found = [entries.get((line, block.key, column)) for column in block.columns]
            if any(found):
                blank = Entry("", hint="not in this sweep")
                rows.append(Row(title, tuple(entry or blank for entry in found), line == INPUT))
        groups.append(Group(block.title, block.columns, tuple(rows), block.axis, block.shown))
    groups += published(metric.name, str(results.manifest.get("task")))
    notes = _notes(metric, chosen, results)
    if any(flags.values()):
        notes += (f"{EXPLODED_SIGN}: The latent exploded or collapsed, even if the round trip is exact (see Latents).",)
    size = f", n = {_size(chosen)} images" if metric.extractor else ""
    return Table(metric.name, metric.heading + size, tuple(groups), notes, metric.printed)


def _flagged(entry: Entry, flag: str) -> Entry:
    if not flag or not entry.n:
        return entry
    return replace(entry, text=entry.text + EXPLODED_SIGN, hint=f"{entry.hint}; latent {flag}")


def _input_title(summary: pd.DataFrame) -> str:
    titles = summary.loc[summary["line"] == INPUT, "title"]
    return str(titles.iloc[0]) if len(titles) else ""


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _entry(metric: Metric, record: Mapping[Any, Any]) -> Entry:
    if record["n"] == 0:
        if record["failure"] == DAMAGED:
            return Entry(DAMAGED, mark="failed", hint="its files in the store are damaged")
        if record["failure"]:
            return Entry(f"failed ({record['failure']})", mark="failed", hint="every run of this cell failed")
        if record["n_numerical"]:
            return Entry("failed (numerical)", mark="failed", hint="no output image is finite")
        return Entry(MISSING, mark="missing", hint="not run yet")
    mean, low, high = record["mean"], record["low"], record["high"]
    text = ("0" if mean == 0 else format(mean, metric.digits)) if math.isfinite(mean) else "∞"
    if math.isfinite(high - low) and not (mean == low == high == 0):
        text += f" ±{format((high - low) / 2, metric.digits)}"
    text += DAGGER if record["partial"] else ""
    mark = "input" if record["line"] == INPUT else record["mark"]
    return Entry(text, _finite(mean), _finite(low), _finite(high), int(record["n"]), mark, _hint(metric, record))


def _hint(metric: Metric, record: Mapping[Any, Any]) -> str:
    parts = [f"n = {record['n']} images"]
    if math.isfinite(record["high"] - record["low"]):
        parts.append(f"95 % interval {record['low']:{metric.digits}} to {record['high']:{metric.digits}}")
    if not math.isnan(record["p_holm"]):
        parts.append(f"difference to the best {record['to_best']:+{metric.digits}} (Holm p = {record['p_holm']:.2g})")
    if record["partial"]:
        parts.append(f"{record['cells_done']} of {record['cells']} cells")
    if record["n_numerical"]:
        parts.append(f"{record['n_numerical']} images not finite")
    return "; ".join(parts)


def _size(summary: pd.DataFrame) -> str:
    sizes = sorted({int(n) for n in summary["n"] if n})
    return "no" if not sizes else str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _notes(metric: Metric, summary: pd.DataFrame, results: Results) -> tuple[str, ...]:
    if metric.extractor:
        notes = [SETS[metric.distance], *absent(results)]
    else:
        notes = [
            f"Entries are means over n = {_size(summary)} images. The seeds of an image are averaged first.",
            "± is half the width of the 95 % bootstrap interval.",
            f"Bold: best; {SECOND}. A method is marked only if it is significantly better than every method ranked "
            "below it (Wilcoxon signed-rank test, paired by image, Holm over methods, p < .05).",
            *_undecided(metric, summary),
            *absent(results),
        ]
    if summary["partial"].any():
        notes.append(
            f"{DAGGER}: Some cells, seeds or images are missing or not finite. The entry is shown but not ranked."
        )
    notes += setting(results)
    if results.reconstructs and metric.note:
        notes.append(metric.note)
    if (unfinished := int(summary["n_numerical"].sum())) > 0:
        made = "reconstructed" if results.reconstructs else "edited" if results.edits else "restored"
        notes.append(f"{unfinished} {made} images were not finite and have no {metric.title}.")
    return tuple(notes)


def setting(results: Results) -> list[str]:
    """Return notes on the steps and guidance that all cells share, and on the method options that were set."""
    shared = []
    for axis in ("steps", "guidance"):
        values = {words(cell.axes[axis]) for cell in results.cells if cell.axes.get(axis) is not None}
        shared += [f"{axis} {value}" for value in values if len(values) == 1]
    chosen = results.manifest.get("options") or {}
    titles = {line.method: results.title("method", line.method) for line in results.lines}
    options = [
        f"{title} ({', '.join(f'{name} {words(value)}' for name, value in chosen[method].items())})"
        for method, title in titles.items()
        if method in chosen
    ]
    notes = []
    if shared:
        notes.append(f"All cells: {', '.join(shared)}.")
    if options:
        notes.append(f"Method options that were set: {'; '.join(options)}.")
    return notes


def _undecided(metric: Metric, summary: pd.DataFrame) -> list[str]:
    """Return a note on the number of columns that compare several methods but have none in bold."""
    compared = len(summary[summary["p_holm"].notna()].groupby(["block", "column"]))
    undecided = compared - int((summary["mark"] == "best").sum())
    if not undecided:
        return []
    where = f"{metric.title}: In {undecided} of {compared} columns,"
    return [f"{where} the best method is not significantly better than all others, so no method is bold."]


SETS = {
    "frechet": "Each entry is one distance between the features of all outputs and the features of their truths "
    "(Fréchet distance, Heusel et al. 2017). It has no interval and no rank. With few images it is biased upwards, for "
    "all methods alike.",
    "kernel": "Each entry is one distance between the features of all outputs and the features of their truths "
    "(unbiased squared MMD with a cubic kernel, Binkowski et al. 2018). It has no interval and no rank. It may be "
    "negative.",
}


def absent(results: Results) -> list[str]:
    """Return notes on missing, failed and damaged cells and on unavailable metrics; empty if there are none."""
    failed, missing, total = results.count("failed"), results.count("missing"), len(results.cells)
    notes = []
    if missing:
        notes.append(f"{missing} of {total} cells are missing. {MISSING}: no cell of this entry has run.")
    if failed:
        notes.append(f"{failed} of {total} cells failed.")
    if damaged := results.count(DAMAGED):
        notes.append(f"{damaged} of {total} cells are damaged in the store. The next run computes them again.")
    unavailable = (results.manifest.get("unavailable") or {}).values()
    return notes + [f"Unavailable metric: {reason}" for reason in dict.fromkeys(unavailable)]


LATENT_NOTES = (
    "Latent std: standard deviation of the latent; 1 for Gaussian noise.",
    "Kurtosis: kurtosis of the latent; 3 for Gaussian noise.",
    "W2: 2-Wasserstein distance between the latent's values and N(0, 1).",
)
COST_NOTES = (
    "State: size of what decoding needs besides the model.",
    "NFE: network evaluations per image; guidance counts two.",
    "Grad: network evaluations with a backward pass.",
)


def effect_table(metric: Metric, effects: pd.DataFrame, results: Results, comparison: int = 0) -> Table:
    """Return the table of one metric's differences to a reference line, with Hedges' g as effect size."""
    wanted = (effects["metric"] == metric.name) & (effects["comparison"] == comparison)
    chosen = effects[wanted].to_dict("records")
    entries = {(r["line"], r["block"], r["column"]): _effect(metric, r) for r in chosen}
    titles = {line.key: line.title for line in results.lines if any(line.key == key[0] for key in entries)}
    groups = []
    for block in results.blocks:
        blank = Entry("", hint="not in this sweep")
        rows = [
            Row(title, tuple(entries.get((line, block.key, column), blank) for column in block.columns))
            for line, title in titles.items()
        ]
        groups.append(Group(block.title, block.columns, tuple(rows), block.axis, block.shown))
    compared = " or ".join(dict.fromkeys(str(record["reference"]) for record in chosen))
    notes = (
        f"Entries are mean differences to {compared}, paired by image.",
        "± is half the width of the 95 % bootstrap interval.",
        "g: Hedges' g of the paired differences. *: p < .05 in the Wilcoxon signed-rank test, Holm over a column.",
        *absent(results),
    )
    if any(record["partial"] for record in chosen):
        notes += (
            f"{DAGGER}: Only some of the images are compared. The others are missing or not finite for one of the two.",
        )
    key, effect = f"{metric.name}_effects", "Effect"
    if comparison:
        key, effect = f"{key}_{comparison + 1}", f"Effect {comparison + 1}"
    return Table(key, f"{effect} on {metric.heading}", tuple(groups), notes, metric.printed)


def _effect(metric: Metric, record: Mapping[Any, Any]) -> Entry:
    mean, low, high = record["mean"], record["low"], record["high"]
    text = f"{mean:+{metric.digits}}"
    if math.isfinite(high - low):
        text += f" ±{format((high - low) / 2, metric.digits)}"
    if math.isfinite(record["hedges_g"]):
        text += f" (g {record['hedges_g']:+.1f})"
    text += ("*" if record["p_holm"] < 0.05 else "") + (DAGGER if record["partial"] else "")
    hint = f"n = {record['n']} images; Holm p = {record['p_holm']:.2g}"
    return Entry(text, _finite(mean), _finite(low), _finite(high), int(record["n"]), "", hint)


def cost_table(costs: pd.DataFrame, results: Results) -> Table:
    """Return each method's mean costs over its finished cells, and flags for latents off the prior's scale."""
    with_model = costs["model"].nunique() > 1
    measured = (*COSTS.values(), *LATENTS.values())
    shown = [column for column in measured if column.name != "latent_w2" or costs["latent_w2"].notna().any()]
    rows = []
    for record in costs.to_dict("records"):
        entries = [Entry(record["model"])] if with_model else []
        entries += [_cost(column, record[column.name]) for column in shown]
        entries.append(Entry(record["flag"], mark="failed" if record["flag"] else ""))
        rows.append(Row(record["title"], tuple(entries)))
    columns = ("model",) * with_model + tuple(column.head for column in shown) + ("flag",)
    notes = [
        "Costs are means over the images of all finished cells. Seconds are those of the median cell.",
        "Peak: memory allocated on a GPU, or growth of the process's memory on a CPU.",
        *COST_NOTES,
        *LATENT_NOTES,
        "Flag: The latent exploded if its standard deviation is above 3, and collapsed if it is below 1/3.",
        "An inversion that stops before the noise level N has no latent to compare with noise.",
        *absent(results),
        *_machines(results),
        *_unsteady(costs),
    ]
    return Table("costs", "Costs", (Group("", columns, tuple(rows), "method"),), tuple(notes))


def latent_table(costs: pd.DataFrame, results: Results, timed: bool) -> Table:
    """Return the scale, shape and costs of the latents: one group per block, one row per method and column.

    `costs` comes from `entry_costs`. Without `timed`, the table holds only numbers that are the same in every run. The
    terminal shows the last column of each method and every flagged one.
    """
    optional = {"nfe_grad": costs["nfe_grad"].gt(0).any(), "latent_w2": costs["latent_w2"].notna().any()}
    spent = [COSTS[name] for name in ("state_bytes", "nfe", "nfe_grad", "seconds", "peak_mib")]
    shown = [column for column in (*LATENTS.values(), *spent) if optional.get(column.name, True)]
    shown = [column for column in shown if timed or not column.timed]
    groups = []
    for block in results.blocks:
        part = costs[costs["block"] == block.key].to_dict("records")
        last = {record["line"]: record["column"] for record in part if record["n_values"]}
        rows = []
        for record in part:
            entries = [Entry(record["column"], _number(record["column"]))]
            entries += [_cost(column, record[column.name]) for column in shown]
            entries.append(Entry(record["flag"], mark="failed" if record["flag"] else ""))
            printed = bool(record["flag"]) or last.get(record["line"], block.columns[-1]) == record["column"]
            rows.append(Row(record["title"], tuple(entries), printed=printed))
        columns = (block.axis, *(column.head for column in shown), "flag")
        groups.append(Group(block.title, columns, tuple(rows), "method"))
    notes = [
        "Entries are means over images.",
        *LATENT_NOTES,
        "Flag: The latent exploded if its standard deviation is above 3 or not finite, and collapsed if it is below "
        "1/3.",
        *COST_NOTES,
        *absent(results),
    ]
    if not timed:
        return Table("latents", "Latents", tuple(groups), tuple(notes))
    return Table("costs", "Latents and cost", tuple(groups), (*notes, *_machines(results)))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


UNSTEADY = 2.0  # time of an evaluation in a method's slow cells, divided by the time in its fast cells


def _unsteady(costs: pd.DataFrame) -> list[str]:
    worst = costs.sort_values("unsteady", ascending=False).iloc[0] if costs["unsteady"].notna().any() else None
    if worst is None or worst["unsteady"] < UNSTEADY:
        return []
    return [
        "Timings are unsteady. Perhaps the machine did other work. In some cells of one method "
        f"({worst['title']}), an evaluation took {worst['unsteady']:.1f} times as long as in others."
    ]


def _machines(results: Results) -> list[str]:
    machines = sorted({_machine(record) for record in results.records.values()})
    if len(machines) > 1:
        return [f"Timed on {len(machines)} kinds of machine ({'; '.join(machines)}). Seconds are not comparable."]
    return [f"Timed on {machines[0]}."] if machines else []


def _machine(record: Mapping[str, Any]) -> str:
    provenance = record.get("provenance", {})
    threads, batch = provenance.get("torch_threads"), provenance.get("batch_size")
    machine = provenance.get("gpu") or provenance.get("cpu") or "CPU"
    counted = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((threads, "thread"),) if n]
    return ", ".join([str(machine), *counted, *([f"batches of {batch}"] if batch else [])])


def _cost(column: Column, value: float) -> Entry:
    if math.isnan(value):
        return Entry(MISSING, mark="missing")
    return Entry(column.number(value), _finite(value))


# --- published numbers, and the short form ----------------------------------------------------------------------------

PUBLISHED = Path(__file__).parent / "published"


def published(metric: str, task: str) -> list[Group]:
    """Return numbers from papers for a metric of a task: one group per source and setting, never ranked.

    `published/TASK.csv` has one line per number: metric, citation, setting, method, axis, column and the printed value.
    """
    file = PUBLISHED / f"{task}.csv"
    if not file.is_file():
        return []
    groups: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    with open(file, newline="") as lines:
        for line in DictReader(lines):
            if line["metric"] == metric:
                place = (line["citation"], line["setting"], line["axis"])
                groups.setdefault(place, {}).setdefault(line["method"], {})[line["column"]] = line["value"]
    return [_published(*place, rows) for place, rows in groups.items()]


def _published(citation: str, setting: str, axis: str, rows: Mapping[str, Mapping[str, str]]) -> Group:
    columns = tuple(dict.fromkeys(column for row in rows.values() for column in row))
    made = tuple(
        Row(method, tuple(_as_printed(row.get(column, "")) for column in columns), reference=True, printed=False)
        for method, row in rows.items()
    )
    return Group(f"published, {citation}: {setting}", columns, made, axis)


def _as_printed(text: str) -> Entry:
    return Entry(text or MISSING, _number(text), mark="published")


def paper(table: Table) -> Table:
    """Return the short form of a table: one column per group, the group's `shown` column.

    Tables of one group, tables of costs and published numbers do not change.
    """
    own = [group for group in table.groups if group.shown]
    if len(own) < 2:
        return table
    titles = dict.fromkeys((row.title, row.reference) for group in own for row in group.rows)
    rows = tuple(
        Row(title, tuple(_representative(group, title) for group in own), reference) for title, reference in titles
    )
    short = Group("", tuple(group.title for group in own), rows, "method")
    note = f"The columns show {own[0].corner} {', '.join(dict.fromkeys(group.shown for group in own))}."
    return replace(
        table,
        groups=(short, *(group for group in table.groups if not group.shown)),
        notes=(note, *table.notes),
    )


def _representative(group: Group, title: str) -> Entry:
    found = [row.entries[group.columns.index(group.shown)] for row in group.rows if row.title == title]
    return found[0] if found else Entry("", hint="not in this sweep")


# --- rendering -----------------------------------------------------------------------------------------------------


MIXED_COLUMNS = ("costs", "guarantees", "volumes", "stability", "round_trips")
"""Tables whose columns hold different quantities, so each column gets its own width."""


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Print every table, and then each distinct note once."""
    from rich.text import Text

    for table in tables:
        print_table(table, console)
    if not console.is_terminal:
        console.print("* marks the best method, _ the second.")
    for note in dict.fromkeys(note for table in tables for note in table.notes):
        console.print(Text(plain(note), style="dim"))


def print_table(table: Table, console: Console) -> None:
    """Print one rich table per group, all with the same column widths, so that the columns line up."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    styles = {"best": "bold green", "second": "underline", "failed": "red", "missing": "dim", "input": "dim"}
    texts = [entry.text for group in table.groups for row in group.rows for entry in row.entries]
    uniform = table.key not in MIXED_COLUMNS
    width = min(14, max(map(len, texts), default=1))
    # A pipe or a log has no bold: there the marks are characters.
    signs = {} if console.is_terminal else {"best": "*", "second": "_"}
    first = max((len(row.title) for group in table.groups for row in group.rows), default=0)
    console.print(Text(f"\n{plain(table.title)}", style="bold"))
    if any(not row.printed and not row.reference for group in table.groups for row in group.rows):
        console.print(Text("Only the last column of each method and flagged columns; the page shows all.", style="dim"))
    for group in table.groups:
        if not any(row.printed for row in group.rows):
            continue
        title = Text(plain(group.title)) if group.title else None  # a Text is never parsed as markup
        grid = Grid(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD)
        grid.add_column(
            Text(group.corner), min_width=min(first, 40) if uniform else _widest_word(r.title for r in group.rows)
        )
        for i, column in enumerate(group.columns):
            needed = _widest_word([column, *(row.entries[i].text for row in group.rows)])
            grid.add_column(
                Text(plain(column)), justify="right", min_width=width if uniform else needed, overflow="fold"
            )
        above = ""
        for row in group.rows:
            if not row.printed:
                continue
            entries = [
                Text(signs.get(entry.mark, "") + plain(entry.text), style=styles.get(entry.mark, ""))
                for entry in row.entries
            ]
            grid.add_row(
                Text(plain(row.title) if row.title != above else "", style="dim" if row.reference else ""), *entries
            )
            above = row.title
        console.print(grid)


def _widest_word(texts: Iterable[str]) -> int:
    """Return the width that a column needs. rich drops a column that is narrower."""
    return max((len(word) for text in texts for word in text.split()), default=1)


def markdown(tables: Sequence[Table], title: str) -> str:
    """Return all tables as GitHub Markdown without HTML; marks are **bold** and *italic*."""
    parts = [f"# {md(title)}\n"]
    for table in tables:
        parts.append(f"## {md(table.title)}\n")
        for group in table.groups:
            if group.title:
                parts.append(f"### {md(group.title)}\n")
            lines = [
                _md_row(map(md, [group.corner, *group.columns])),
                _md_row(["---", *("---:" for _ in group.columns)]),
            ]
            lines += [_md_row([md(row.title), *(md(e.text, e.mark) for e in row.entries)]) for row in group.rows]
            parts.append("\n".join(lines) + "\n")
        parts.append("\n".join(f"- {md(note.replace(SECOND, 'italic: second'))}" for note in table.notes) + "\n")
    return "\n".join(parts)


def md(text: str, mark: str = "") -> str:
    """Escape text for Markdown: nothing in it is markup, HTML or mathematics. `mark` makes it bold or italic."""
    text = re.sub(r"([\\`*_<>|$~#&]|\](?=[(\[:]))", r"\\\1", plain(text))
    return f"**{text}**" if mark == "best" else f"*{text}*" if mark == "second" else text


def _md_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def chosen(tables: Sequence[Table], metric: str | None) -> list[Table]:
    """Return the tables of the terminal: the costs, and the given metric or else every printed one."""
    return [t for t in tables if t.key == "costs" or (t.key == metric if metric else t.printed)]


def csv(frame: pd.DataFrame) -> str:
    """Return CSV at full precision: the shortest decimals that read back as the same numbers. No text is a formula."""
    texts = {name: frame[name].map(_cell) for name in frame if frame[name].dtype.kind not in "biuf"}
    return frame.assign(**texts).rename(columns=_cell).to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula."""
    formula = isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@") and _number(value) is None
    return f"'{value}" if formula else value


def placed(frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Return a summary or costs whose block and column have the names of their axes."""
    names = {"block": results.blocks[0].over, "column": results.blocks[0].axis} if results.blocks else {}
    places = {block.key: dict(block.places) for block in results.blocks if block.places}
    if places and "block" in frame:
        keys, frame = frame["block"], frame.copy()
        for position, name in enumerate(next(iter(places.values()))):
            values = [places[key][name] for key in keys]
            if name == names["block"]:
                frame["block"] = values
            else:
                frame.insert(list(frame.columns).index("block") + position, name, values)
    return frame.drop(columns="axis", errors="ignore").rename(columns=names)


def without_hints(table: Table) -> Table:
    """Return the table without hints. The terminal needs none when it prints a report again."""
    groups = tuple(
        replace(g, rows=tuple(replace(r, entries=tuple(replace(e, hint="") for e in r.entries)) for r in g.rows))
        for g in table.groups
    )
    return replace(table, groups=groups)
