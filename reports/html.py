"""The HTML page in one file, with styles, script and images inside, so that it can be mailed or archived."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.images import Gallery
from reports.results import Results, middle, plain, title_of, words
from reports.tables import Table

if TYPE_CHECKING:
    import numpy as np

LIMIT = 9_500_000  # bytes of the page; the sample images may use what the rest leaves
LEAST = 1_000_000  # bytes that the sample images may always use
JPEG_BYTES = 0.7  # most bytes per pixel at quality 85, for photographs that are too large as PNG
LISTED = 500  # most cells named under one heading
DATA = "@gallery-data@"  # placeholder until the size of the page without images is known


@dataclass(frozen=True)
class Figure:
    """A figure of the page: the bytes of its PNG file, a title and an alternative text."""

    id: str
    title: str
    alt: str
    png: bytes

    @property
    def width(self) -> int:
        """Width in CSS pixels: 96 per inch. The file, drawn at 160 per inch, has its size in its header."""
        return int.from_bytes(self.png[16:20], "big") * 96 // 160

    @property
    def height(self) -> int:
        return int.from_bytes(self.png[20:24], "big") * 96 // 160

    @property
    def uri(self) -> str:
        """Data URI of the image with 256 colours. A drawing has few colours, and this cuts the page to a third."""
        from PIL import Image

        buffer = io.BytesIO()
        drawing = Image.open(io.BytesIO(self.png)).convert("RGB")
        drawing.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG")
        return _uri(min(buffer.getvalue(), self.png, key=len), "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def encoder(galleries: Iterable[Gallery], budget: int) -> Callable[[np.ndarray], str]:
    """Return a function array -> data URI: lossless PNG if all images fit `budget` bytes, else smaller JPEG."""
    from PIL import Image

    images = {p.image.tobytes(): p.image for g in galleries for row in g.pictures for p in row if p.image is not None}
    budget = budget * 3 // 4  # base64 adds a third
    whole: dict[bytes, bytes] = {}
    if sum(map(len, images)) <= 4 * budget:
        whole = {key: _png(image) for key, image in images.items()}
    fits = bool(whole) and sum(map(len, whole.values())) <= budget
    side = max(16, int(math.sqrt(budget / JPEG_BYTES / max(1, len(images)))))

    def encode(image: np.ndarray) -> str:
        if fits:
            return _uri(whole[image.tobytes()], "png")
        buffer = io.BytesIO()
        picture = Image.fromarray(image)
        picture.thumbnail((side, side))
        picture.save(buffer, "JPEG", quality=85)
        return _uri(buffer.getvalue(), "jpeg")

    return encode


def gallery_data(galleries: Sequence[Gallery], budget: int) -> str:
    """Return JSON of all galleries for the page's script: each image once, cells as [image or null, caption]."""
    encode = encoder(galleries, budget)
    images: dict[bytes, int] = {}
    uris: list[str] = []

    def index(image: np.ndarray | None) -> int | None:
        if image is None:
            return None
        key = image.tobytes()
        if key not in images:
            images[key] = len(uris)
            uris.append(encode(image))
        return images[key]

    blocks: dict[str, dict[str, Any]] = {}
    for shown in galleries:
        entry = blocks.setdefault(shown.block.key, {"title": shown.block.title, "panels": []})
        cells = [[[index(row[i].image), row[i].caption] for row in shown.pictures] for i in range(len(shown.heads))]
        names = {"heads": shown.heads, "ids": shown.ids, "ranks": shown.ranks, "rule": shown.rule}
        entry["panels"].append({"column": shown.column, **names, "cells": cells})
        entry["open"] = middle(shown.block.axis, [panel["column"] for panel in entry["panels"]])
    text = json.dumps({"images": uris, "blocks": list(blocks.values())}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # so that no text can end the script element


def filters(results: Results, tables: Sequence[Table]) -> list[tuple[str, str, list[str]]]:
    """Return the filters of the page that have a choice: (kind of the page's elements, heading, values)."""
    blocks = results.blocks
    inputs = dict.fromkeys(r.title for table in tables for group in table.groups for r in group.rows if r.reference)
    columns = dict.fromkeys(column for block in blocks for column in block.columns)
    offered = [
        ("method", "method", [*(line.title for line in results.lines), *inputs]),
        ("block", blocks[0].over if blocks else "", [block.title for block in blocks]),
        ("column", blocks[0].axis if blocks else "", list(columns)),
    ]
    if not tables:
        return []
    return [(kind, legend, values) for kind, legend, values in offered if len(values) > 1]


def failures(results: Results) -> list[dict[str, Any]]:
    """Group failures by class, message and traceback, each with its cells (id, place)."""
    places = {cell.id: describe(cell.axes) for cell in results.cells}
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for i, failure in results.failures.items():
        trace = failure.get("traceback", "no traceback recorded")
        key = (str(failure.get("class", "unknown")), str(failure.get("message", "")), str(trace))
        groups.setdefault(key, []).append((i, places[i]))
    return [
        {"kind": kind, "message": message, "traceback": trace, "cells": cells}
        for (kind, message, trace), cells in groups.items()
    ]


def by_reason(skipped: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return what the plan skipped as (reason, places), in the order of the plan."""
    reasons: dict[str, list[str]] = {}
    for skip in skipped:
        reasons.setdefault(skip.get("reason", ""), []).append(describe(skip.get("axes") or {}))
    return list(reasons.items())


def provenance(results: Results) -> list[tuple[str, list[str]]]:
    """Return the provenance of the numbers as (heading, distinct values)."""
    records = [record.get("provenance", {}) for record in results.records.values()]

    def distinct(values: Iterable[Any]) -> list[str]:
        return sorted({words(value) for value in values if value not in (None, "", [], {})})

    packages = {f"{name} {version}" for r in records for name, version in (r.get("packages") or {}).items()}
    weights = {f"{name}: {sha}" for r in records for name, sha in (r.get("weights") or {}).items() if sha}
    started = distinct(r.get("started") for r in records)
    commits = {r["git_sha"] + _changes(r.get("dirty")) for r in records if "git_sha" in r}
    shown = [
        ("Commit", sorted(commits)),
        ("Python", distinct(r.get("python") for r in records)),
        ("Packages", sorted(packages)),
        ("Hosts", distinct(r.get("host") for r in records)),
        ("Device", distinct(r.get("device") for r in records)),
        ("GPU", distinct(r.get("gpu") for r in records)),
        ("CUDA", distinct(r.get("cuda") for r in records)),
        ("Threads", distinct(r.get("torch_threads") for r in records)),
        ("Weights (sha256)", sorted(weights)),
        ("Started", [started[0], f"to {started[-1]}"] if len(started) > 1 else started),
    ]
    return [(heading, values) for heading, values in shown if values]


def _changes(dirty: Any) -> str:
    return f" (with local changes {words(dirty)})" if dirty else ""


def describe(axes: Mapping[str, Any]) -> str:
    """Describe a cell's place, such as "method ddim, steps 20", without empty axes."""
    named = {name: value for name, value in axes.items() if value is not None}
    return ", ".join(f"{name} {words(value)}" for name, value in named.items())


def page(
    results: Results,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    galleries: Sequence[Gallery],
    error: str = "",
    remedy: str = "",
) -> str:
    """Return the whole page. `error` and `remedy` are given if its cells cannot be compared."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    blocks = results.blocks
    html = environment.get_template("report.html.j2").render(
        manifest=results.manifest,
        title=title_of(results.manifest),
        description=plain(results.manifest.get("description") or ""),
        task=results.manifest.get("task") or "–",
        error=error,
        remedy=remedy,
        tables=tables,
        figures=figures,
        galleries=bool(galleries),
        data=DATA,
        over=blocks[0].over if blocks else "",
        axis=blocks[0].axis if blocks else "",
        blocks={block.title for block in blocks},
        filters=filters(results, tables),
        images=int(results.rows["image_id"].nunique()),
        count={status: results.count(status) for status in ("done", "failed", "damaged", "missing")},
        total=len(results.cells),
        methods=len({line.method for line in results.lines}),
        missing=[cell.id for cell in results.cells if cell.status == "missing"],
        failures=failures(results),
        unavailable=sorted((results.manifest.get("unavailable") or {}).items()),
        skipped=by_reason(results.manifest.get("skipped") or []),
        provenance=provenance(results),
        listed=LISTED,
    )
    if not galleries:
        return html
    before, _, after = html.rpartition(DATA)  # the last one, since a title may contain the same text
    return before + gallery_data(galleries, max(LEAST, LIMIT - len(html.encode(errors="replace")))) + after
