"""The dashboard of a sweep in Weights & Biases: a saved view of its runs, and a report.

Both are made once. After that they belong to the user, and this code does not change them. Needs the extra `dashboard`
(wandb-workspaces).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.columns import Column, column, declared
from bench.mirror.writing import Mirror, solver_history

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

QUALITY = ("image", "guarantee", "own")
"""Kinds of columns (bench.columns) that measure the quality of an output."""
LINKS = ("view_url", "report_url")
"""Names in the summary of the sweep's run. They hold the addresses of the view and the report."""


@dataclass(frozen=True)
class Shown:
    """The content of a sweep's dashboard."""

    entity: str
    project: str
    sweep: str
    title: str
    description: str
    axis: str
    quality: tuple[Column, ...]
    costs: tuple[Column, ...]
    latents: tuple[Column, ...]
    solver: tuple[str, ...]
    """The names of the curves over the steps of an adaptive solver."""


def shown(mirror: Mirror, entity: str) -> Shown:
    """Read the content from the store: the columns of finished cells. The axis is severity if the sweep has it, else
    steps."""
    manifest = mirror.store.manifest(mirror.sweep)
    done = mirror.store.done()
    first = {cell["axes"]["method"]: cell["id"] for cell in reversed(manifest["cells"]) if cell["id"] in done}
    rows = mirror.store.rows(first.values())
    walks = rows["solver_steps"].dropna() if "solver_steps" in rows else ()
    more = declared(manifest)
    numbers = [column(str(name), more) for name in rows.select_dtypes("number")]
    axes = manifest["cells"][0]["axes"]
    return Shown(
        entity,
        mirror.tracker.project,
        mirror.sweep,
        str(manifest.get("title") or mirror.sweep),
        str(manifest.get("description") or ""),
        "severity" if axes.get("severity") is not None else "steps",
        tuple(number for number in numbers if number.kind in QUALITY),
        tuple(number for number in numbers if number.kind == "cost"),
        tuple(number for number in numbers if number.kind == "latent"),
        tuple(dict.fromkeys(name for line in solver_history(walks) for name in line)),
    )


def _bars(columns: Sequence[Column]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.BarPlot(
            title=f"{shown.heading}: mean over the runs shown",
            metrics=[wr.SummaryMetric(shown.name)],
            groupby=wr.Config("method"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for shown in columns
    ]


def _clouds(columns: Sequence[Column], across: Mapping[str, wr.SummaryMetric | wr.Config]) -> list[Any]:
    """Return one panel per column and entry of `across`, which maps a title to the quantity on the x axis."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(title=f"{shown.axis} against {title}", x=x, y=wr.SummaryMetric(shown.name))
        for shown in columns
        for title, x in across.items()
    ]


def _curves(names: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.LinePlot(title=name, x="Step", y=[name]) for name in names]


def view(what: Shown) -> ws.Workspace:
    """Return the saved view: the cells of the sweep, grouped by method. The runs table can filter by any axis."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    spent = {cost.axis: wr.SummaryMetric(cost.name) for cost in what.costs}
    costs: list[Any] = [*_clouds(what.quality[:1], spent), *_bars(what.costs)]
    sections = [
        ws.Section(
            "Quality",
            [*_bars(what.quality), *_clouds(what.quality, {what.axis: wr.Config(what.axis)})],
            is_open=True,
        ),
        ws.Section("Cost", costs, is_open=True),
        ws.Section("Latents", _bars(what.latents)),
        ws.Section("Steps of adaptive solvers", _curves(what.solver)),
        ws.Section("Images", [wr.MediaBrowser(title="truth, input, output", media_keys=["images"], num_columns=3)]),
    ]
    return ws.Workspace(
        entity=what.entity,
        project=what.project,
        name=f"{what.sweep}: {what.title}",
        sections=[section for section in sections if section.panels],
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == what.sweep, ws.Config("kind") == "cell"],
            groupby=[ws.Config("method")],
            order=[ws.Ordering(ws.Config("method")), ws.Ordering(ws.Config(what.axis))],
            pinned_columns=[f"summary:{shown.name}" for shown in (*what.quality, *what.costs)],
        ),
    )


def report(what: Shown) -> wr.Report:
    """Return the report: the tables and the page of the sweep, quality, cost, images, and the cells that failed."""
    import wandb_workspaces.reports.v2 as wr

    def runs(name: str, kind: str) -> wr.Runset:
        filters = f"Metric('Group') == '{what.sweep}' and Config('kind') == '{kind}'"
        return wr.Runset(entity=what.entity, project=what.project, name=name, filters=filters)

    def grid(runset: wr.Runset, panels: Sequence[Any]) -> wr.PanelGrid:
        return wr.PanelGrid(runsets=[runset], panels=list(panels))

    cells, whole = runs("cells", "cell"), runs("the sweep", "sweep")
    costs = {cost.axis: wr.SummaryMetric(cost.name) for cost in what.costs}
    return wr.Report(
        entity=what.entity,
        project=what.project,
        title=what.title[:128],
        description=what.description,
        width="fluid",
        blocks=[
            wr.TableOfContents(),
            wr.H1("Tables"),
            wr.P("Computed from the rows of all images. The page below explains the intervals and marks."),
            grid(whole, [wr.WeavePanelSummaryTable(table_name=name) for name in ("table", "costs")]),
            wr.H1("Quality"),
            grid(cells, [*_bars(what.quality), *_clouds(what.quality, {what.axis: wr.Config(what.axis)})]),
            wr.H1("Cost"),
            grid(cells, _clouds(what.quality[:1], costs)),
            wr.H1("Images"),
            grid(cells, [wr.MediaBrowser(media_keys=["images"], num_columns=3)]),
            wr.H1("The whole report"),
            grid(whole, [wr.MediaBrowser(media_keys=["report"], num_columns=1)]),
            wr.H1("Cells that failed"),
            grid(runs("failed", "failure"), [wr.RunComparer(diff_only=True)]),
        ],
    )


def ensure(mirror: Mirror) -> str:
    """Make the view and the report if the run of the sweep has no address of them. Returns one line with both
    addresses."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        return "dashboard: not made; run pip install 'inversion-bench[dashboard]', then publish again"
    import wandb

    api = wandb.Api(timeout=30)
    entity = str(mirror.tracker.entity or api.default_entity)
    run = api.run(f"{entity}/{mirror.tracker.project}/{mirror.wanted()[-1].run_id}")
    known = {name: run.summary.get(name) for name in LINKS}
    what = shown(mirror, entity)
    makers: tuple[Callable[[Shown], Any], ...] = (view, report)
    for name, make in zip(LINKS, makers, strict=True):
        if not known[name]:
            run.summary[name] = known[name] = make(what).save().url
            run.summary.update()
    return f"dashboard: {known['view_url']} and {known['report_url']}"
