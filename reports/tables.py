"""Tables as plain data, and their renderings: terminal (rich), Markdown and CSV. HTML is the template's, LaTeX
`reports.latex`'s.

An entry is printed as `24.31 ±0.42`: the mean over images and half its 95 % bootstrap interval, whose exact ends are
in the CSV. Bold is the best and underlined (in Markdown: italic) the second, only where the paired test holds it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from csv import DictReader
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.results import DAMAGED, Metric, Results, plain, words
from reports.summary import INPUT

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

MISSING = "–"
DAGGER = "†"
EXPLODED_SIGN = "‡"
SECOND = "underlined: second"  # Markdown has no underline: there it is italic


@dataclass(frozen=True)
class Entry:
    """Its text, the numbers behind it, and its mark: best, second, missing, failed, input, published or none."""

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
    reference: bool = False  # the input, or a published number: shown, never ranked
    printed: bool = True  # in the terminal


@dataclass(frozen=True)
class Group:
    """Rows under one heading with one set of columns: a corruption with its severities.

    `shown` is the column that stands for the group in a short table; "" where none does.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    corner: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; `key` is what it shows (a metric's name, or costs)."""

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
    """The table of one metric: a group a block, methods as rows, severities (or steps) as columns.

    `flags`: (line, block, column) -> what is wrong with its latents; a perfect round trip would hide it.
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
        notes += (f"{EXPLODED_SIGN} the latent exploded or collapsed (see Latents), however exact its round trip.",)
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
            return Entry("failed (numerical)", mark="failed", hint="no image came back finite")
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
        parts.append(f"to the best {record['to_best']:+{metric.digits}} (Holm p = {record['p_holm']:.2g})")
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
            f"Mean over images; ± is half the 95 % bootstrap interval over n = {_size(summary)} images (seeds averaged "
            "within an image).",
            f"Bold: best, {SECOND}, only where the Wilcoxon signed-rank test paired by image (Holm over methods, "
            "p < .05) holds it against every method ranked below.",
            *_undecided(metric, summary),
            *absent(results),
        ]
    if summary["partial"].any():
        notes.append(f"{DAGGER} part of the cells, seeds or images is missing or not finite: shown, not ranked.")
    notes += setting(results)
    if results.reconstructs and metric.name in FLOORS:
        notes.append(FLOORS[metric.name])
    if (unfinished := int(summary["n_numerical"].sum())) > 0:
        made = "reconstructed" if results.reconstructs else "edited" if results.edits else "restored"
        notes.append(f"{unfinished} {made} images were not finite and have no {metric.title}.")
    return tuple(notes)


def setting(results: Results) -> list[str]:
    """Steps and guidance where all cells share them, and what was set of the methods' options, in words."""
    shared = []
    for axis in ("steps", "guidance"):
        values = {words(cell.axes[axis]) for cell in results.cells if cell.axes.get(axis) is not None}
        shared += [f"{axis} {value}" for value in values if len(values) == 1]
    chosen = results.manifest.get("options") or {}
    titles = {line.method: str(line.axes.get("method_title") or line.method) for line in results.lines}
    told = [
        f"{title}: {', '.join(f'{name} {words(value)}' for name, value in chosen[method].items())}"
        for method, title in titles.items()
        if method in chosen
    ]
    notes = []
    if shared:
        notes.append(f"{', '.join(shared).capitalize()}.")
    if told:
        notes.append(f"Set: {'; '.join(told)}.")
    return notes


def _undecided(metric: Metric, summary: pd.DataFrame) -> list[str]:
    """In how many columns no method is bold, although several are compared."""
    compared = len(summary[summary["p_holm"].notna()].groupby(["block", "column"]))
    undecided = compared - int((summary["mark"] == "best").sum())
    if not undecided:
        return []
    where = f"{metric.title}: in {undecided} of {compared} columns"
    return [f"{where} the best is not significantly better than all others, so none is bold."]


SETS = {
    "frechet": "One distance between the features of all outputs and of their truths (Fréchet, Heusel et al. 2017): no "
    "interval and no rank. It is biased upwards for few images, alike for all methods.",
    "kernel": "One distance between the features of all outputs and of their truths (unbiased squared MMD, cubic "
    "kernel, Binkowski et al. 2018): no interval and no rank. It may be negative.",
}


FLOORS = {
    "psnr": "PSNR ends at 100 dB, the value of equal images.",
    "mse": "MSE is of images clipped to [0, 1] and kept in float32: an exact round trip is 0 or rounding, below 1e-14.",
    "latent_mse": "Latent MSE is of the decoded against the given input of the model, unclipped, in float64 and at the "
    "scale [-1, 1]; below 1e-24 it is rounding and ranks nobody.",
}  # fmt: skip


def absent(results: Results) -> list[str]:
    """`k of n cells missing`, in words, if any is."""
    failed, missing, total = results.count("failed"), results.count("missing"), len(results.cells)
    notes = []
    if missing:
        notes.append(f"{missing} of {total} cells missing ({MISSING} where nothing has run).")
    if failed:
        notes.append(f"{failed} of {total} cells failed.")
    if damaged := results.count(DAMAGED):
        notes.append(f"{damaged} of {total} cells are damaged in the store; the next run computes them again.")
    unavailable = (results.manifest.get("unavailable") or {}).values()
    return notes + [f"unavailable: {reason}" for reason in dict.fromkeys(unavailable)]


COST_COLUMNS = (
    ("nfe", "NFE", ".4g"),
    ("nfe_grad", "grad", ".4g"),
    ("seconds", "s/image", ".3g"),
    ("peak_mib", "peak MiB", ".1f"),
    ("state_bytes", "state", "bytes"),
    ("latent_std", "latent std", ".3g"),
    ("latent_kurtosis", "kurtosis", ".3g"),
    ("latent_w2", "W2", ".3g"),
)
PRIOR = "Kurtosis: of the latent, 3 if Gaussian; W2: 2-Wasserstein distance of the latent's values from N(0, 1)."


def effect_table(metric: Metric, effects: pd.DataFrame, results: Results, comparison: int = 0) -> Table:
    """The differences of one metric to a reference line, and how large they are beside their spread over images."""
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
        f"Mean difference to {compared}, image by image; ± is half their 95 % bootstrap interval.",
        "g: Hedges' g of the paired differences. *: Wilcoxon signed-rank, Holm over a column, p < .05.",
        *absent(results),
    )
    if any(record["partial"] for record in chosen):
        notes += (f"{DAGGER} over a part of the images: the others are missing or not finite in one of the two.",)
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
    """What a method costs, mean over its finished cells, and whether its latents keep the scale of the prior."""
    with_model = costs["model"].nunique() > 1
    shown = [c for c in COST_COLUMNS if c[0] != "latent_w2" or costs["latent_w2"].notna().any()]
    rows = []
    for record in costs.to_dict("records"):
        entries = [Entry(record["model"])] if with_model else []
        entries += [_cost(record[name], digits) for name, _, digits in shown]
        entries.append(Entry(record["flag"], mark="failed" if record["flag"] else ""))
        rows.append(Row(record["title"], tuple(entries)))
    columns = ("model",) * with_model + tuple(title for _, title, _ in shown) + ("flag",)
    notes = [
        "Costs: means over the images of all finished cells, seconds of the median cell. NFE: network evaluations an "
        "image, guidance counts two; grad: those with a backward pass; peak: memory allocated on a GPU, or by how much "
        "the process grew on a CPU; state: what a decode needs besides the model. " + PRIOR,
        "Flag: latent exploded where the latent's standard deviation is above 3, collapsed where it is below 1/3. An "
        "inversion that stops on the way has no latent to compare with noise.",
        *absent(results),
        *_machines(results),
        *_unsteady(costs),
    ]
    return Table("costs", "Costs", (Group("", columns, tuple(rows), "method"),), tuple(notes))


LATENT_COLUMNS = (
    ("latent_std", "latent std", ".3g"),
    ("latent_kurtosis", "kurtosis", ".3g"),
    ("latent_w2", "W2", ".3g"),
    ("state_bytes", "state", "bytes"),
    ("nfe", "NFE", ".4g"),
    ("nfe_grad", "grad", ".4g"),
)
TIMED_COLUMNS = (("seconds", "s/image", ".3g"), ("peak_mib", "peak MiB", ".1f"))


def latent_table(costs: pd.DataFrame, results: Results, timed: bool) -> Table:
    """A group a block, a row a method and column: its latents' scale and shape and what they cost.

    `costs` as `entry_costs` gives them. Without `timed` it holds only what is the same in every run. The terminal
    shows a method's last column and whatever is flagged.
    """
    seldom = {"nfe_grad": costs["nfe_grad"].gt(0).any(), "latent_w2": costs["latent_w2"].notna().any()}
    shown = [c for c in LATENT_COLUMNS if seldom.get(c[0], True)]
    shown += TIMED_COLUMNS if timed else ()
    groups = []
    for block in results.blocks:
        part = costs[costs["block"] == block.key].to_dict("records")
        last = {record["line"]: record["column"] for record in part if record["n_values"]}
        rows = []
        for record in part:
            entries = [Entry(record["column"], _number(record["column"]))]
            entries += [_cost(record[name], digits) for name, _, digits in shown]
            entries.append(Entry(record["flag"], mark="failed" if record["flag"] else ""))
            brief = bool(record["flag"]) or last.get(record["line"], block.columns[-1]) == record["column"]
            rows.append(Row(record["title"], tuple(entries), printed=brief))
        columns = (block.axis, *(title for _, title, _ in shown), "flag")
        groups.append(Group(block.title, columns, tuple(rows), "method"))
    notes = [
        "Means over images. Latent std and kurtosis: 1 and 3 for Gaussian noise; flag: exploded where the std is above "
        "3 or not finite, collapsed where it is below 1/3. State: what a decode needs besides the model. NFE: network "
        "evaluations an image, guidance counts two; grad: those with a backward pass. " + PRIOR,
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


UNSTEADY = 2.0  # times that an evaluation takes longer in a method's slow cells than in its quick ones


def _unsteady(costs: pd.DataFrame) -> list[str]:
    worst = costs.sort_values("unsteady", ascending=False).iloc[0] if costs["unsteady"].notna().any() else None
    if worst is None or worst["unsteady"] < UNSTEADY:
        return []
    return [
        f"Timings are unsteady, as on a machine with other work: an evaluation took up to {worst['unsteady']:.1f} "
        f"times longer in some cells of one method ({worst['title']}) than in others."
    ]


def _machines(results: Results) -> list[str]:
    machines = sorted({_machine(record) for record in results.records.values()})
    if len(machines) > 1:
        return [f"Timed on {len(machines)} kinds of machine ({'; '.join(machines)}): seconds do not compare."]
    return [f"Timed on {machines[0]}."] if machines else []


def _machine(record: Mapping[str, Any]) -> str:
    provenance = record.get("provenance", {})
    threads, batch = provenance.get("torch_threads"), provenance.get("batch_size")
    machine = provenance.get("gpu") or provenance.get("cpu") or "CPU"
    counted = [f"{n} {word}{'s' * (n != 1)}" for n, word in ((threads, "thread"),) if n]
    return ", ".join([str(machine), *counted, *([f"batches of {batch}"] if batch else [])])


def _cost(value: float, digits: str) -> Entry:
    if math.isnan(value):
        return Entry(MISSING, mark="missing")
    text = _bytes(value) if digits == "bytes" else _plain(value, digits)
    return Entry(text, _finite(value))


def _plain(value: float, digits: str) -> str:
    """Significant digits without an exponent below a million: 12346 rather than 1.235e+04."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else format(value, digits)


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


# --- published numbers, and the short form ----------------------------------------------------------------------------

PUBLISHED = Path(__file__).parent / "published"


def published(metric: str, task: str) -> list[Group]:
    """Numbers of papers for a metric of a task: a group a source and setting, shown beside ours and never ranked.

    `published/TASK.csv` has a line a number: metric, citation, setting, method, axis, column, value, as it was printed.
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
    """The short form: a column a group, each at the column that stands for it. Tables of one group or of costs, and
    published numbers, stay as they are."""
    own = [group for group in table.groups if group.shown]
    if len(own) < 2:
        return table
    titles = dict.fromkeys((row.title, row.reference) for group in own for row in group.rows)
    rows = tuple(Row(title, tuple(_standing(group, title) for group in own), reference) for title, reference in titles)
    short = Group("", tuple(group.title for group in own), rows, "method")
    note = f"Columns at {own[0].corner} {', '.join(dict.fromkeys(group.shown for group in own))}."
    return replace(
        table,
        groups=(short, *(group for group in table.groups if not group.shown)),
        notes=(note, *table.notes),
    )


def _standing(group: Group, title: str) -> Entry:
    found = [row.entries[group.columns.index(group.shown)] for row in group.rows if row.title == title]
    return found[0] if found else Entry("", hint="not in this sweep")


# --- rendering -----------------------------------------------------------------------------------------------------


UNLIKE = ("costs", "guarantees", "volumes", "stability", "round_trips")
"""Tables whose columns are of different things, so that each is as wide as it needs."""


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Every table, then the notes of all of them, each once."""
    from rich.text import Text

    for table in tables:
        print_table(table, console)
    if not console.is_terminal:
        console.print("Without bold and underline: * marks the best, _ the second.")
    for note in dict.fromkeys(note for table in tables for note in table.notes):
        console.print(Text(plain(note), style="dim"))


def print_table(table: Table, console: Console) -> None:
    """A rich table a group, all of one shape, so that blocks stand under one another."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    styles = {"best": "bold green", "second": "underline", "failed": "red", "missing": "dim", "input": "dim"}
    texts = [entry.text for group in table.groups for row in group.rows for entry in row.entries]
    alike = table.key not in UNLIKE
    width = min(14, max(map(len, texts), default=1))
    # Where there is no bold (a pipe, a log) the marks are characters.
    signs = {} if console.is_terminal else {"best": "*", "second": "_"}
    first = max((len(row.title) for group in table.groups for row in group.rows), default=0)
    console.print(Text(f"\n{plain(table.title)}", style="bold"))
    if any(not row.printed and not row.reference for group in table.groups for row in group.rows):
        console.print(Text("the last column of every method and what is flagged; the page has them all", style="dim"))
    for group in table.groups:
        if not any(row.printed for row in group.rows):
            continue
        title = Text(plain(group.title)) if group.title else None  # as Text nothing in it is markup
        grid = Grid(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD)
        grid.add_column(
            Text(group.corner), min_width=min(first, 40) if alike else _widest_word(r.title for r in group.rows)
        )
        for i, column in enumerate(group.columns):
            needed = _widest_word([column, *(row.entries[i].text for row in group.rows)])
            grid.add_column(Text(plain(column)), justify="right", min_width=width if alike else needed, overflow="fold")
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
    """What a column needs: rich leaves a narrower one out."""
    return max((len(word) for text in texts for word in text.split()), default=1)


def markdown(tables: Sequence[Table], title: str) -> str:
    """All tables as GitHub Markdown, the marks as **bold** and *italic*; no HTML."""
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
    """Text for Markdown, where nothing in it is markup, HTML or mathematics; bold or italic by its mark."""
    text = re.sub(r"([\\`*_<>|$~#&]|\](?=[(\[:]))", r"\\\1", plain(text))
    return f"**{text}**" if mark == "best" else f"*{text}*" if mark == "second" else text


def _md_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def chosen(tables: Sequence[Table], metric: str | None) -> list[Table]:
    """What the terminal shows: the metric asked for, else every printed one; costs always."""
    return [t for t in tables if t.key == "costs" or (t.key == metric if metric else t.printed)]


def csv(frame: pd.DataFrame) -> str:
    """Full precision: the shortest decimal that reads back as the same number. Text is no spreadsheet's formula."""
    texts = {name: frame[name].map(_cell) for name in frame if frame[name].dtype.kind not in "biuf"}
    return frame.assign(**texts).rename(columns=_cell).to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    """Text with an apostrophe before it where a spreadsheet would run it as a formula."""
    formula = isinstance(value, str) and value.lstrip()[:1] in ("=", "+", "-", "@") and _number(value) is None
    return f"'{value}" if formula else value


def placed(frame: pd.DataFrame, results: Results) -> pd.DataFrame:
    """A summary or costs with axes by their own names."""
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
    """The table as the terminal needs it: what a re-run without changes prints."""
    groups = tuple(
        replace(g, rows=tuple(replace(r, entries=tuple(replace(e, hint="") for e in r.entries)) for r in g.rows))
        for g in table.groups
    )
    return replace(table, groups=groups)
