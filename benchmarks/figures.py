"""Write and read benchmark figures: one dated JSON a run, in the layout of DESIGN.

`write` adds commit, date, hardware (with a matrix-multiply speed, so that runs can be compared)
and versions to the figures of a run. `read_figures` returns the newest value of every name.
Speed and quality scripts call it at their end:

    from figures import write
    write("index_speed", {"index.build_1m": {"value": 312.0, "unit": "ms"}},
          seeds=[0], command="python benchmarks/index_speed.py", folder="speed")
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
FOLDERS = ("quality", "speed")
REQUIRED = ("what", "command", "commit", "date", "seeds", "hardware", "versions", "figures")
REQUIRED_HARDWARE = ("cpu", "cores", "gpu", "load_1m", "gemm_gflops")
REQUIRED_FIGURE = ("value", "unit")
PACKAGES = (
    "sidrec", "torch", "numpy", "faiss-cpu", "polars", "transformers", "cornac", "onnxruntime",
)  # fmt: skip
STRATUM = re.compile(r"([^.]+\.(?![^.]*_ids\.)[^.]+\.)cold\.")
PATH = re.compile(r"(?<![\w.:/])~?/(?:[\w.+-]+/)*([\w.+-]*)")


def write(
    what: str,
    figures: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Iterable[int],
    command: str,
    folder: str = "quality",
    notes: str | None = None,
    root: Path = ROOT,
) -> Path:
    """Write `benchmarks/<folder>/<what>_<hardware>_<date>.json` and return its path.

    A figure needs `value` and `unit`; `low`, `high`, `n` and others are kept. A run of the same
    name on the same day replaces the file. Paths in texts are cut to their last part.
    """
    machine = hardware()
    record: dict[str, Any] = {
        "what": what,
        "command": without_paths(command),
        **commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "time": datetime.datetime.now(datetime.UTC).strftime("%H:%M:%S"),
        "seeds": list(seeds),
        "hardware": machine,
        "versions": versions(),
        "figures": {name: dict(figure) for name, figure in sorted(figures.items())},
    }
    if notes:
        record["notes"] = without_paths(notes)
    if faults := faults_of(record):
        raise ValueError(f"benchmark {what!r} is not complete: " + "; ".join(faults))
    path = root / folder / f"{what}_{slug(machine)}_{record['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    scratch.replace(path)
    return path


def from_report(report: Any, dataset: str, system: str) -> dict[str, dict[str, Any]]:
    """Figures of a `sidrec.evaluation.Report`, by the names of DESIGN; strata go before metrics."""
    rule = "seen_filtered." if report.protocol.filter_seen else ""
    strata = {"no_events" if s == "cold" else s: f for s, f in report.strata.items()}
    groups = {"": report.figures, **{f"{s}.": f for s, f in strata.items()}}
    return {
        f"{dataset}.{system}.{rule}{stratum}{metric}": _entry(metric, figure)
        for stratum, members in groups.items()
        for metric, figure in members.items()
    }


UNITS = {"popularity": "events", "novelty": "bits", "exposure_entropy": "bits"}


def unit_of(metric: str) -> str:
    """The unit of a metric of a report."""
    return UNITS.get(metric.split("@")[0], "ratio")


def as_figure(figure: Any, unit: str = "ratio") -> dict[str, Any]:
    """A figure of a report as a figure of a benchmark file."""
    plain: dict[str, Any] = {"value": round(figure.value, 5)}
    if figure.low is not None and figure.high is not None:
        plain |= {"low": round(figure.low, 5), "high": round(figure.high, 5)}
    return {**plain, "unit": unit, "n": figure.n}


def as_difference(paired: Any) -> dict[str, Any]:
    """A paired comparison of two reports as a figure of a benchmark file."""
    numbers = {name: round(getattr(paired, name), 5) for name in ("value", "low", "high", "p")}
    return {**numbers, "unit": "difference", "n": paired.n}


def _entry(metric: str, figure: Any) -> dict[str, Any]:
    interval = {} if figure.low is None else {"low": figure.low, "high": figure.high}
    return {"value": figure.value, **interval, "unit": unit_of(metric), "n": figure.n}


def read_figures(root: Path = ROOT, *, gpu: bool | None = None) -> dict[str, dict[str, Any]]:
    """Newest figure of every name, with `file`, `seeds`, `hardware` and `date` of its run added
    (a figure's own `seeds` stand where it has them); names as `meaning` has them.

    `gpu` keeps runs with (True) or without (False) one.
    """
    runs = [(path, json.loads(path.read_text())) for path in files(root)]
    runs.sort(key=lambda run: (run[1]["date"], run[1].get("time", ""), run[0].name))
    newest: dict[str, dict[str, Any]] = {}
    for path, record in runs:
        machine = record["hardware"]
        if gpu is not None and gpu != (machine["gpu"] is not None):
            continue
        origin = {
            "file": path.relative_to(root.parent).as_posix(),
            "seeds": record["seeds"],
            "date": record["date"],
            "hardware": machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
        }
        newest |= {
            meaning(name, record["what"]): {**origin, **figure}
            for name, figure in record["figures"].items()
        }
    return newest


def meaning(name: str, what: str) -> str:
    """The figure's name, where a run of before the stratum was renamed says `cold`: `no_events`.

    `<data>.<system>.cold.<metric>` is of items removed from training and added later, which only
    cold_start.py measures; a target without training events is another question.

    >>> meaning("beauty.causal.cold.recall@10", "beauty")
    'beauty.causal.no_events.recall@10'
    >>> meaning("beauty.causal.cold.recall@10", "beauty_cold_start")
    'beauty.causal.cold.recall@10'
    """
    return name if what.endswith("cold_start") else STRATUM.sub(r"\1no_events.", name, count=1)


def files(root: Path = ROOT) -> list[Path]:
    """Every benchmark file, sorted."""
    return sorted(path for folder in FOLDERS for path in (root / folder).glob("*.json"))


def faults_of(record: Mapping[str, Any]) -> list[str]:
    """What a benchmark record lacks, in words; empty when it is complete."""
    faults = [f"no {key!r}" for key in REQUIRED if key not in record]
    machine = record.get("hardware", {})
    faults += [f"no hardware {key!r}" for key in REQUIRED_HARDWARE if key not in machine]
    for name, figure in record.get("figures", {}).items():
        faults += [f"{name} has no {key!r}" for key in REQUIRED_FIGURE if key not in figure]
        numbers = [figure[key] for key in ("value", "low", "high") if key in figure]
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
            faults.append(f"{name} is not a finite number")
        if len(numbers) == 3 and not numbers[1] <= numbers[0] <= numbers[2]:
            faults.append(f"{name} lies outside its interval")
    if not record.get("figures"):
        faults.append("no figures")
    texts = [str(record.get(key, "")) for key in ("command", "notes")]
    faults += [f"a machine path in {text!r}" for text in texts if without_paths(text) != text]
    return faults


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part, and line ends made spaces.

    >>> without_paths("/opt/venv/bin/python benchmarks/x.py --out=/tmp/y see https://a.b/c")
    'python benchmarks/x.py --out=y see https://a.b/c'
    """
    return PATH.sub(lambda found: found.group(1) or found.group(0).strip("/"), text.strip())


def slug(machine: Mapping[str, Any]) -> str:
    """Short hardware name for file names: `cpu2`, or the GPU's, e.g. `h200`."""
    if machine["gpu"] is None:
        return f"cpu{machine['cores']}"
    words = re.findall(r"[a-z0-9]+", str(machine["gpu"]).lower())
    return next((w for w in words if re.fullmatch(r"[a-z]+\d+[a-z]*", w)), "gpu")


def hardware() -> dict[str, Any]:
    """CPU model, usable cores, GPU, load, and matrix-multiply speed in Gflop/s now."""
    import torch

    has_gpu = torch.cuda.is_available()
    load = os.getloadavg()[0]  # before the multiplications raise it
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "load_1m": round(load, 2),
        "threads": torch.get_num_threads(),
        "gemm_gflops": {
            "fp32": gemm_gflops(torch.float32, "cuda" if has_gpu else "cpu"),
            "bf16": gemm_gflops(torch.bfloat16, "cuda" if has_gpu else "cpu"),
        },
    }


def gemm_gflops(dtype: Any, device: str) -> float:
    """Best of five square multiplications, of width 1,024 on CPU and 8,192 on GPU."""
    import torch

    width = 8192 if device == "cuda" else 1024
    matrix = torch.randn(width, width, device=device).to(dtype)
    best = math.inf
    for _ in range(6):  # the first one warms up and is rarely the best
        start = time.perf_counter()
        _ = matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return float(f"{2 * width**3 / best / 1e9:.3g}")


def cpu_model() -> str:
    """Model name of the processor as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def commit() -> dict[str, Any]:
    """HEAD, and whether tracked files differ from it (`dirty`)."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "--short=12", "HEAD") or "unknown", "dirty": bool(changed)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
