"""Measure the time and memory of a report of many rows: `python tests/scale_report.py [ROWS] [FOLDER]`.

It writes a store of cells with 1,000 images each: 10 methods x 4 corruptions x 5 severities x as many seeds as needed.
Then it builds the report in a separate process and prints its wall seconds, processor seconds and peak resident memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.store import Store

ROOT = Path(__file__).resolve().parent.parent
IMAGES, METHODS, SEVERITIES = 1000, 10, 5
CORRUPTIONS = ("random mask", "block mask", "Gaussian blur", "Gaussian noise")


def synthesise(folder: Path, rows: int) -> int:
    """Write about `rows` rows, and return their exact number."""
    seeds = max(1, round(rows / (IMAGES * METHODS * len(CORRUPTIONS) * SEVERITIES)))
    store, rng = Store(folder), np.random.default_rng(0)
    names = [f"scenes/test/{i:06d}" for i in range(IMAGES)]
    difficulty = rng.normal(0, 2, IMAGES)
    pixels = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    cells: list[dict[str, Any]] = []
    for corruption in CORRUPTIONS:
        for severity in range(1, SEVERITIES + 1):
            for seed in range(seeds):
                sums = [hashlib.sha256(f"{corruption}{severity}{seed}{i}".encode()).hexdigest() for i in range(IMAGES)]
                for method in range(METHODS):
                    axes = {
                        "method": f"m{method}", "model": "scenes_vp",
                        "dataset": "scenes", "task": "restore", "corruption": corruption, "severity": severity,
                        "steps": 10, "guidance": 1.0, "seed": seed,
                    }  # fmt: skip
                    name = f"m{method}-{corruption.replace(' ', '_')}-s{severity}-seed{seed}"
                    cells.append({"id": name, "axes": axes})
                    score = 32 - 3 * severity + method / 3 + difficulty + rng.normal(0, 1, IMAGES)
                    _write(store, name, axes, _columns(name, axes, names, score, sums, rng), pixels, names)
    titles = {"method": {f"m{method}": f"Method {method}" for method in range(METHODS)}}
    store.write_manifest("scale", {"title": "Many rows", "task": "restore", "titles": titles, "cells": cells})
    return len(cells) * IMAGES


def _columns(
    name: str, axes: dict[str, Any], names: list[str], score: np.ndarray, sums: list[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Return the columns that a run writes."""
    constant = {key: [value] * IMAGES for key, value in axes.items()}
    return {
        "cell_id": [name] * IMAGES, "image_id": names, **constant, "outcome": ["ok"] * IMAGES, "psnr": score,
        "ssim": score / 50, "mse": 10 ** (-score / 10), "input_psnr": score - 3, "input_ssim": (score - 3) / 50,
        "latent_std": rng.normal(1, 0.05, IMAGES), "latent_kurtosis": rng.normal(3, 0.05, IMAGES),
        "state_bytes": [12288] * IMAGES, "nfe": [20] * IMAGES, "nfe_grad": [0] * IMAGES,
        "seconds": rng.uniform(0.1, 0.2, IMAGES), "peak_mib": [300.0] * IMAGES, "y_sha256": sums,
        "sigma01": [0.05] * IMAGES, "snr_db": rng.normal(20, 1, IMAGES),
        "details": [json.dumps({"kept": float(value)}) for value in score],
    }  # fmt: skip


def _write(
    store: Store, name: str, axes: dict[str, Any], columns: dict[str, Any], pixels: np.ndarray, names: list[str]
) -> None:
    """Write a cell as `Store.write` does, but do not wait for the disk."""
    folder = store.root / "cells" / name
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "rows.parquet", compression="zstd")
    np.savez_compressed(folder / "samples.npz", ids=np.array(names[:4]), truth=pixels, input=pixels, output=pixels)
    (folder / "cell.json").write_text(json.dumps({"id": name, "config": axes, "provenance": {"host": "made up"}}))


def measure(folder: Path) -> tuple[float, float, float]:
    """Return wall seconds, processor seconds and peak MiB of one build."""
    command = [sys.executable, "-m", "reports.build", "sweep=scale", f"store={folder}", "quiet=true"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=sys.stderr)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(scratch)
        if not (folder / "sweeps").is_dir():
            rows = synthesise(folder, rows)
        wall, processor, peak = measure(folder)
    print(f"{rows:,} rows: {wall:.1f} s, {processor:.1f} s of processor, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
