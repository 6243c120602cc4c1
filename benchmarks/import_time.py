"""Time `import sidrec` in fresh interpreters: seconds beyond an interpreter that imports nothing.

python benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from figures import write

TURNS = 9


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    pairs = [(seconds("import sidrec"), seconds("pass")) for _ in range(TURNS)]
    value = statistics.median(full - empty for full, empty in pairs)
    figures = {"import.sidrec.seconds": {"value": round(value, 4), "unit": "s", "n": TURNS}}
    path = write(
        "import", figures, seeds=[0], command="python benchmarks/import_time.py", folder="speed"
    )
    print(f"{value:.4f} s; wrote {path.name}")


if __name__ == "__main__":
    main()
