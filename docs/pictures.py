"""Draw the picture of alignment in the shop from its measurement: what each row trades.

    python docs/pictures.py

Reads benchmarks/quality/align_shop_*.json (the curves of its first seed); writes
docs/images/align_shop.png. Needs matplotlib (the extra `report`).
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
AGAINST = {"invalid_share": "share of free-beam IDs of no item", "true_reward": "true reward"}


def main() -> None:
    """Two panels, a line a row of the table."""
    newest = sorted((ROOT / "benchmarks" / "quality").glob("align_shop_cpu*.json"))[-1]
    curves = json.loads(json.loads(newest.read_text())["notes"])["curves of the first seed"]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for panel, (name, words) in zip(panels, AGAINST.items(), strict=True):
        for number, (row, points) in enumerate(curves.items()):
            across = [point[name] for point in points]
            up = [point["ndcg@10"] for point in points]
            panel.plot(across, up, "-", color=f"C{number}", linewidth=1, alpha=0.6)
            panel.plot(across[-1], up[-1], "o", color=f"C{number}", label=row)
        panel.set_xlabel(words)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation NDCG@10")
    panels[1].legend(fontsize=7, title="dot: the end of training", title_fontsize=7)
    figure.savefig(ROOT / "docs" / "images" / "align_shop.png", dpi=90)


if __name__ == "__main__":
    main()
