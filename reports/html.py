"""One self-contained page: styles, script and images are inside the file, so that it can be mailed or archived."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.figures import Gallery, middle
from reports.results import Cell, Results, words
from reports.tables import Table

if TYPE_CHECKING:
    import numpy as np

BUDGET = 5_000_000  # bytes of sample images in the page, before base64 adds a third
MANY = 6  # methods, from which on the page has a filter
JPEG_BYTES = 0.6  # a pixel, at quality 85 and at its worst; for photographs too large to be embedded as they are


@dataclass(frozen=True)
class Figure:
    """A figure of the page: the PNG file's bytes and words for those who do not see it."""

    id: str
    title: str
    alt: str
    png: bytes

    @property
    def width(self) -> int:
        """CSS pixels: the size in inches at 96 an inch, from the file's own header (drawn at 160)."""
        return int.from_bytes(self.png[16:20], "big") * 96 // 160

    @property
    def uri(self) -> str:
        return _uri(self.png, "png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=False, compress_level=9)
    return buffer.getvalue()


def encoder(galleries: Iterable[Gallery]) -> Any:
    """array -> data URI: the image as it is (PNG) while all of them fit the budget, else smaller (JPEG)."""
    from PIL import Image

    images = [p.image for g in galleries for row in g.pictures for p in row if p.image is not None]
    files = {id(image): _png(image) for image in images} if sum(i.size for i in images) <= 3 * BUDGET else {}
    whole = bool(files) and sum(map(len, files.values())) <= BUDGET
    side = max(32, int(math.sqrt(BUDGET / JPEG_BYTES / max(1, len(images)))))

    def encode(image: np.ndarray) -> str:
        if whole:
            return _uri(files[id(image)], "png")
        buffer = io.BytesIO()
        picture = Image.fromarray(image)
        picture.thumbnail((side, side))
        picture.save(buffer, "JPEG", quality=85)
        return _uri(buffer.getvalue(), "jpeg")

    return encode


def gallery_panels(galleries: Sequence[Gallery]) -> list[dict[str, Any]]:
    """A block's galleries as the template wants them: a panel a column, the middle one open."""
    encode = encoder(galleries)
    blocks: dict[str, dict[str, Any]] = {}
    for shown in galleries:
        entry = blocks.setdefault(shown.block.key, {"block": shown.block, "panels": []})
        place = f"{shown.block.title}, {shown.block.axis} {shown.column}"
        rows = []
        for name, pictures in zip(shown.ids, shown.pictures, strict=True):
            row = []
            for head, picture in zip(shown.heads, pictures, strict=True):
                alt = f"{head}, image {name}, {place}" + (f", {picture.caption}" if picture.caption else "")
                source = None if picture.image is None else encode(picture.image)
                row.append({"src": source, "alt": alt, "caption": picture.caption})
            rows.append(row)
        strips = [(head, [row[i] for row in rows]) for i, head in enumerate(shown.heads)]
        entry["panels"].append({"column": shown.column, "strips": strips})
    for entry in blocks.values():
        entry["open"] = middle(entry["block"].axis, [panel["column"] for panel in entry["panels"]])
    return list(blocks.values())


def by_reason(skipped: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the plan skipped: (reason, the places it holds for), reasons in the plan's order."""
    reasons: dict[str, list[str]] = {}
    for skip in skipped:
        reasons.setdefault(skip.get("reason", ""), []).append(describe(skip.get("axes") or {}))
    return list(reasons.items())


def provenance(results: Results) -> list[tuple[str, list[str]]]:
    """What made the numbers, each distinct value once: (heading, values)."""
    records = [record.get("provenance", {}) for record in results.records.values()]

    def distinct(values: Iterable[Any]) -> list[str]:
        return sorted({words(value) for value in values if value not in (None, "", [], {})})

    packages = {f"{name} {version}" for r in records for name, version in (r.get("packages") or {}).items()}
    weights = {f"{name}: {sha}" for r in records for name, sha in (r.get("weights") or {}).items()}
    started = distinct(r.get("started") for r in records)
    commits = {f"{r['git_sha']}{' (with local changes)' if r.get('dirty') else ''}" for r in records if "git_sha" in r}
    shown = [
        ("Commit", sorted(commits)),
        ("Packages", sorted(packages)),
        ("Hosts", distinct(r.get("host") for r in records)),
        ("GPU", distinct(r.get("gpu") for r in records)),
        ("Threads", distinct(r.get("torch_threads") for r in records)),
        ("Weights (sha256)", sorted(weights)),
        ("Started", [started[0], f"to {started[-1]}"] if len(started) > 1 else started),
    ]
    return [(heading, values) for heading, values in shown if values]


def describe(axes: Mapping[str, Any]) -> str:
    """A cell's place in words, titles and empty axes left out."""
    named = {name: value for name, value in axes.items() if value is not None and not name.endswith("_title")}
    return ", ".join(f"{name} {words(value)}" for name, value in named.items())


def page(
    results: Results,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    galleries: Sequence[Gallery],
    error: str = "",
) -> str:
    """The whole report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    missing: list[Cell] = [cell for cell in results.cells if cell.status == "missing"]
    places = {cell.id: describe(cell.axes) for cell in results.cells}
    return environment.get_template("report.html.j2").render(
        manifest=results.manifest,
        title=results.manifest.get("title") or results.manifest["name"],
        description=results.manifest.get("description") or "",
        task=results.manifest.get("task") or "–",
        error=error,
        tables=tables,
        figures=figures,
        galleries=gallery_panels(galleries),
        images=int(results.rows["image_id"].nunique()),
        count={status: results.count(status) for status in ("done", "failed", "missing")},
        total=len(results.cells),
        methods=len(results.lines),
        missing=[(cell.id, places[cell.id]) for cell in missing],
        failures=[(i, places[i], failure) for i, failure in results.failures.items()],
        unavailable=sorted((results.manifest.get("unavailable") or {}).items()),
        skipped=by_reason(results.manifest.get("skipped") or []),
        filter=[line.title for line in results.lines] if len(results.lines) > MANY else [],
        provenance=provenance(results),
    )
