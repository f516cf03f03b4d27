"""The choice of figures and images of a report, and their captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.columns import Metric
from reports import drawing, guarantees, strictness, theory
from reports import figures as draw
from reports.drawing import Looks
from reports.html import Figure
from reports.images import Gallery, gallery, image_grid, scores_of
from reports.results import Results, middle

if TYPE_CHECKING:
    import pandas as pd


def illustrate(
    results: Results, lead: Metric | None, summary: pd.DataFrame, spent: pd.DataFrame, out: Path
) -> tuple[list[Figure], list[Gallery], list[str]]:
    """Write the figures as files. Return the figures of the page, its sample images, and the names of the files."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []

    def keep(stem: str, figure: Any, vector: bool = True) -> bytes:
        paths = drawing.save(figure, folder / stem, vector)
        names.extend(f"figures/{path.name}" for path in paths)
        return paths[0].read_bytes()

    with drawing.styled():
        galleries = _galleries(results, lead)
        results = drawing.drawable(results)
        # An error on a logarithmic scale shows more about a round trip than its PSNR.
        if results.reconstructs and results.error is not None:
            return _round_trips(results, summary, spent, keep), galleries, names
        looks = drawing.choose_looks(results, lead, summary)
        shown = _guarantees(results, looks, keep) if results.guarantees else []
        shown += _comparisons(results, lead, summary, spent, looks, keep)
        if lead is not None and (strict := strictness.strict_lines(results)):
            title = (
                f"{lead.title} against the strictness of the constraint. Open markers: models that are not certified"
            )
            png = keep(f"strictness_{lead.name}", strictness.strictness_figure(lead, strict, summary, results))
            shown.append(_figure("strictness", title, png, results))
        for number, block in enumerate(results.blocks):
            own = {shown.column: shown for shown in galleries if shown.block.key == block.key}
            if own:
                stem = f"grid_{number + 1}_{_file_name(block.key)}"
                keep(stem, image_grid(own[middle(block.axis, list(own))], looks), vector=False)
    return shown, galleries, names


def _figure(name: str, title: str, png: bytes, results: Results, panels: bool = True) -> Figure:
    """Return a figure of the page, with an alternative text that names its panels."""
    named = f". Panels: {', '.join(block.title for block in results.blocks)}" if panels else ""
    return Figure(name.replace("_", "-"), title, f"{title}{named}. The numbers are in the tables.", png)


def _comparisons(
    results: Results, lead: Metric | None, summary: pd.DataFrame, spent: pd.DataFrame, looks: Looks,
    keep: Callable[[str, Any], bytes],
) -> list[Figure]:  # fmt: skip
    """Return curves or intervals of every printed metric; for `lead` also cost, profiles and single images."""
    rule = f". {looks.rule}" if looks.rule else ""
    shown = []
    for metric in results.metrics:
        if not (metric.printed or metric is lead):
            continue
        if any(len(block.columns) > 1 for block in results.blocks):
            name, title = f"curves_{metric.name}", f"{metric.title} against {results.blocks[0].axis}: mean"
            title, figure = f"{title} and 95 % bootstrap band{rule}", draw.curves(metric, summary, results, looks)
        else:
            name, title = f"intervals_{metric.name}", f"{metric.title}: mean and 95 % bootstrap interval{rule}"
            title, figure = f"{title}. Dashed: the input", draw.intervals(metric, summary, results, looks)
        shown.append(_figure(name, title, keep(name, figure), results))
    if lead is None or results.reconstructs:
        return shown
    title = f"{lead.title} against cost{rule}. The grey line joins the methods that no other method beats in both"
    pareto = keep(f"pareto_{lead.name}", draw.pareto(lead, summary, spent, looks))
    shown.append(_figure("pareto", title, pareto, results, panels=False))
    scores = draw.by_image(lead, results)
    if scores.empty:
        return shown
    more = "at least" if lead.higher_is_better else "at most"
    title = f"Performance profiles: share of images with {more} this {lead.title}, over all columns{rule}"
    profiles = keep(f"profiles_{lead.name}", draw.profiles(lead, scores, results, looks))
    shown.append(_figure("profiles", title, profiles, results))
    if len(looks.titles) > 1:
        leader = looks.titles[looks.coloured[0]]
        title = f"{lead.title} of single images: {leader} against its best rival. One point per image and column"
        png = keep(f"scatter_{lead.name}", draw.scatter(lead, scores, summary, results, looks))
        shown.append(_figure("scatter", title, png, results))
    return shown


def _guarantees(results: Results, looks: Looks, keep: Callable[[str, Any], bytes]) -> list[Figure]:
    """Return the figures of a guarantee: measured values in the certified band, and round trips."""
    bands = (
        "Above: singular values of the flow's Jacobian (thick) and ratios of sought pairs (thin), from the smallest to "
        "the largest over images, in the certified band (shaded; hatched if it is nominal). Below: how much the "
        "restoration amplifies noise in its measurement"
    )
    trips = "Round-trip error of the image against network evaluations and against dopri5's tolerance"
    band, trip = guarantees.band_figure(results, looks), guarantees.trip_figure(results, looks)
    return [
        _figure("singular_values", bands, keep("singular_values", band), results),
        _figure("round_trips", trips, keep("round_trips", trip), results, panels=False),
    ]


def _round_trips(
    results: Results, summary: pd.DataFrame, spent: pd.DataFrame, keep: Callable[[str, Any], bytes]
) -> list[Figure]:
    """Return the figures of round trips: error against steps and NFE, scale of the latents, and checks of theory."""
    error, axis = results.error, results.blocks[0].axis
    assert error is not None
    looks = drawing.choose_looks(results, error, summary, theory.exact(error, summary))
    drawn = []
    if any(len(block.columns) > 1 for block in results.blocks):
        drawn = [
            (
                f"curves_{error.name}",
                f"Round-trip error against {axis}. Grey: slopes of first order (1/N) and of second order (1/N²). "
                "The number after a method is its order, measured between its last two points",
                theory.round_trip(error, summary, spent, results, looks, "steps"),
            ),
            (
                f"work_{error.name}",
                f"Round-trip error against network evaluations. Each line joins the {axis} of one method",
                theory.round_trip(error, summary, spent, results, looks, "nfe"),
            ),
            (
                "latent_std",
                f"Scale of the latent against {axis}. The prior has 1",
                theory.latent_scale(spent, results, looks),
            ),
        ]
    shown = [_figure(name, title, keep(name, figure), results) for name, title, figure in drawn]
    for name, title, extra in (
        (
            "growth",
            "Parasitic growth of the latent behind a perfect round trip. Grey: the laws p⁻²ᴺ (EDICT) and γ⁻ᴺ (BDIA) "
            "through the last point. With finer steps the growing part starts smaller. So the measured growth between "
            "two numbers of steps stays a little below the law",
            theory.growth(spent, results, looks),
        ),
        (
            "marginals",
            "Marginals of RF-Inversion's ODEs and SDEs. They agree only at 0 and at 1 (Theorems 3.4 and 3.5)",
            theory.marginals(results),
        ),
    ):
        if extra is not None:
            shown.append(_figure(name, title, keep(name, extra), results, panels=False))
    return shown


def _galleries(results: Results, lead: Metric | None) -> list[Gallery]:
    scores = scores_of(results, lead)
    found = (gallery(results, block, column, lead, scores) for block in results.blocks for column in block.columns)
    return [shown for shown in found if shown is not None]


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in text.lower()).strip("_")[:60] or "all"
