"""The health of semantic IDs and their tree as one HTML page that needs nothing else.

`page` makes the text: tables and charts of `health`, and an explorer whose items travel as columns
of one JSON value, sorted by ID, so that a prefix is a range of rows and its children are found when
it is opened. No network, no library: the page forbids itself both (Content-Security-Policy). Text
of items reaches the page only as JSON with `<`, `>` and `&` escaped, and the document only as text.

Cost:    O(N * L) and about 100 bytes an item; above `MAX_ITEMS` items the least popular of every
         prefix stay out and are counted.
Shapes:  N items, L levels, V codes of a level.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from sidrec.config import field_docs
from sidrec.errors import DataError
from sidrec.tokenizers.health import Health, LevelHealth, prefix_groups
from sidrec.tokenizers.tree import IdTree
from sidrec.types import Ints, SemanticIds

MAX_ITEMS = 200_000
"""Most items that a page lists."""
TITLE_CHARS = 120
"""Longer titles are cut."""
CURVE_POINTS = 128
"""Points of a curve; larger codebooks are sampled."""
WHOLE = {
    "num_items": "items",
    "num_ids": "distinct IDs",
    "icr": "ICR",
    "cur": "CUR",
    "collision_share": "share of colliding items",
    "num_alone": "items alone on their ID",
    "largest_group": "largest group",
    "mean_length": "mean codes of an ID",
    "num_pairs": "co-purchased pairs",
}
"""Field of `Health` -> its name in tables."""
USE = {
    "num_codes": "codes",
    "num_used": "used",
    "num_dead": "dead",
    "entropy_nats": "entropy",
    "perplexity": "perplexity",
    "gini": "Gini",
    "traffic_gini": "Gini of traffic",
    "traffic_top_share": "traffic on top tenth",
}
"""The same for `LevelHealth`: how codes are used."""
DEPTH = {
    "num_items": "items",
    "num_prefixes": "prefixes",
    "reconstruction_error_ratio": "error left",
    "neighbour_agreement": "neighbours",
    "neighbour_agreement_gain": "neighbours − chance",
    "prefix_purity": "purity",
    "prefix_purity_gain": "purity − shuffled",
    "copurchase_agreement": "co-purchase",
    "copurchase_agreement_gain": "co-purchase − chance",
}
"""The same: what prefixes down to a level say."""


def page(
    ids: SemanticIds,
    figures: Health,
    *,
    titles: Sequence[str],
    train_counts_N: Ints,
    tree: IdTree | None = None,
    facts: Mapping[str, Any] | None = None,
    name: str = "semantic IDs",
    max_items: int = MAX_ITEMS,
) -> str:
    """The HTML text. `tree` gives prefixes their names, `facts` are rows of the first table."""
    if not len(ids) == len(titles) == len(train_counts_N) == figures.num_items:
        raise DataError(
            f"page needs a title and a training count an item and their health: {len(ids)} items, "
            f"{len(titles)} titles, {len(train_counts_N)} counts, health of {figures.num_items}"
        )
    explored = explorer_of(ids, titles, train_counts_N, tree, max_items)
    left_out = len(ids) - len(explored["ids"])
    parts = [f"<h1>{escape(name)}</h1>"]
    if left_out:
        parts.append(
            f"<p class=note>The explorer lists {max_items:,} of {len(ids):,} items; the "
            f"{left_out:,} least popular of their prefixes are counted but not listed.</p>"
        )
    if facts:
        parts.append(table("Where these IDs come from", ["", ""], [[k, facts[k]] for k in facts]))
    parts.append(table("The whole", ["", ""], [[WHOLE[k], getattr(figures, k)] for k in WHOLE]))
    for title, rows in (
        ("Use of the codes", level_rows(figures)),
        ("Meaning of the prefixes", depth_rows(figures)),
    ):
        parts.append(table(title, list(rows[0]), [list(row.values()) for row in rows]))
    if figures.num_pairs is None:
        parts.append("<p class=note>Co-purchase figures need the training events.</p>")
    parts += [glossary(), charts(ids, figures, train_counts_N)]
    template = resources.files("sidrec.tokenizers").joinpath("page.html").read_text("utf-8")
    for tag in ("style", "script"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        template = template.replace(f"<!--{tag}-hash-->", f"'sha256-{digest}'")
    for mark, text in (
        ("name", escape(name)),
        ("body", "\n".join(parts)),
        ("data", script_json(explored)),
    ):
        template = template.replace(f"<!--{mark}-->", text)
    return template


def level_rows(figures: Health) -> list[dict[str, Any]]:
    """How each level, from 0, uses its codes; what was not measured at any is left out."""
    return [{"level": n, **row} for n, row in enumerate(_measured(figures, USE))]


def depth_rows(figures: Health) -> list[dict[str, Any]]:
    """What prefixes of 1, 2, … codes say; what was not measured at any depth is left out."""
    return [{"depth": n, **row} for n, row in enumerate(_measured(figures, DEPTH), 1)]


def _measured(figures: Health, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    levels = figures.levels
    known = [f for f in columns if any(getattr(level, f) is not None for level in levels)]
    return [{columns[f]: getattr(level, f) for f in known} for level in levels]


def explorer_of(
    ids: SemanticIds,
    titles: Sequence[str],
    train_counts_N: Ints,
    tree: IdTree | None,
    max_items: int,
) -> dict[str, Any]:
    """What the explorer reads: columns over the listed items, sorted by ID, then by popularity.

    `hidden` is that of `unlisted`.
    """
    order = np.lexsort((-train_counts_N, *ids.codes.T[::-1]))
    shared_N = ids.group_sizes_N
    kept_N = np.ones(len(ids), dtype=bool)
    if len(ids) > max_items:
        kept_N[:] = False
        kept_N[most_popular_of_prefixes(ids, train_counts_N)[:max_items]] = True
    rows = order[kept_N[order]]
    names = {} if tree is None else tree.nodes
    return {
        "sizes": list(ids.num_codes),
        "codes": ids.codes[rows].T.tolist(),
        "ids": [str(ids.item_ids[row]) for row in rows],
        "titles": [titles[row][:TITLE_CHARS] for row in rows],
        "events": train_counts_N[rows].tolist(),
        "shared": shared_N[rows].tolist(),
        "names": {
            "-".join(map(str, prefix)): ", ".join(node.words)
            for prefix, node in names.items()
            if node.words and node.num_items > 1
        },
        "hidden": unlisted(ids, rows, train_counts_N, shared_N),
    }


def unlisted(
    ids: SemanticIds, rows: Ints, train_counts_N: Ints, shared_N: Ints
) -> list[list[list[int]]]:
    """What the listed `rows` leave out, for depth 0 … L: places, items, training events, colliding
    items; [] where all are listed.

    An item that is not listed counts at the first place of the longest prefix that it has in common
    with a listed one, so a prefix of depth d holds all that depths d … L put inside its range.
    """
    out = np.setdiff1d(np.arange(len(ids)), rows)
    if not len(out):
        return []
    depth_H, place_H = np.zeros(len(out), dtype=np.int64), np.zeros(len(out), dtype=np.int64)
    for level, groups_N in enumerate(prefix_groups(ids).T):
        listed, first = np.unique(groups_N[rows], return_index=True)
        at = np.searchsorted(listed, groups_N[out]).clip(max=len(listed) - 1)
        same = listed[at] == groups_N[out]
        depth_H[same], place_H[same] = level + 1, first[at[same]]
    hidden = []
    for depth in range(ids.num_levels + 1):
        chosen = out[depth_H == depth]
        places, at = np.unique(place_H[depth_H == depth], return_inverse=True)
        amounts = (np.ones(len(chosen)), train_counts_N[chosen], shared_N[chosen] > 1)
        columns = [np.bincount(at, weights=amount).astype(np.int64) for amount in amounts]
        hidden.append([column.tolist() for column in (places, *columns)])
    return hidden


def most_popular_of_prefixes(ids: SemanticIds, train_counts_N: Ints) -> Ints:
    """All rows (N,): the most bought item of every prefix of L − 1 codes, then the second, …."""
    inner_NL = ids.codes[:, : max(ids.num_levels - 1, 1)]
    order = np.lexsort((-train_counts_N, *inner_NL.T[::-1]))
    first = np.append(True, (inner_NL[order][1:] != inner_NL[order][:-1]).any(axis=1))
    starts = np.flatnonzero(first)
    rank_N = np.empty(len(ids), dtype=np.int64)
    rank_N[order] = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
    return np.lexsort((-train_counts_N, rank_N))


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>` or `&` in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; numbers to the right."""

    def cell(value: Any) -> str:
        kind = " class=number" if isinstance(value, (int, float)) else ""
        return f"<td{kind}>{escape(shown(value))}</td>"

    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>"
    return f"<div class=wide><table>{caption}{head}<tbody>{body}</tbody></table></div>"


def glossary() -> str:
    """What every figure means, from the docstrings of `health`."""
    whole, level = field_docs(Health), field_docs(LevelHealth)
    level["num_dead"] = "Codes that no item holds."
    entries = [(WHOLE[f], whole[f]) for f in WHOLE]
    entries += [(label, level[f]) for columns in (USE, DEPTH) for f, label in columns.items()]
    body = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in entries)
    return f"<details><summary>What the figures mean</summary><dl>{body}</dl></details>"


def charts(ids: SemanticIds, figures: Health, train_counts_N: Ints) -> str:
    """Use of every level, sizes of groups, and what each depth rebuilds and groups."""
    parts = []
    for level, num_codes in enumerate(ids.num_codes):
        held = ids.codes[:, level] >= 0
        codes, events = ids.codes[held, level], train_counts_N[held]
        items_V = np.bincount(codes, minlength=num_codes)
        events_V = np.bincount(codes, weights=events, minlength=num_codes)
        parts.append(curves(f"Level {level}: codes, most used first", items_V, events_V))
    few, many = figures.group_sizes[:7], figures.group_sizes[7:]
    groups = [(str(size), number) for size, number in few]
    if many:
        groups.append((f"{many[0][0]}+", sum(number for _, number in many)))
    heights = [float(np.log1p(number)) for _, number in groups]
    parts.append(
        bars("IDs by the number of items on them (log)", [g for g, _ in groups], heights,
             [f"{number:,}" for _, number in groups])
    )  # fmt: skip
    for field in (
        "reconstruction_error_ratio",
        "neighbour_agreement_gain",
        "prefix_purity_gain",
        "copurchase_agreement_gain",
    ):
        values = [(str(depth), getattr(lv, field)) for depth, lv in enumerate(figures.levels, 1)]
        values = [(depth, value) for depth, value in values if value is not None]
        if values:
            labels, heights = zip(*values, strict=True)
            parts.append(bars(f"{DEPTH[field]}, by depth", labels, heights, map(shown, heights), 1))
    return f"<div class=charts>{''.join(parts)}</div>"


def curves(title: str, items_V: Ints, events_V: Any) -> str:
    """Items and training events a code, each falling, as shares of the largest."""
    lines = []
    for kind, counts in (("items", items_V), ("events", events_V)):
        falling = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
        places = np.unique(np.linspace(0, len(falling) - 1, CURVE_POINTS).astype(int))
        high = 90 * falling[places] / max(falling[0], 1)
        across = 8 + 224 * places / max(len(falling) - 1, 1)
        points = " ".join(f"{x:.1f},{100 - y:.1f}" for x, y in zip(across, high, strict=True))
        lines.append(f'<polyline class={kind} points="{points}"/>')
    label = f"{title}: {int((items_V > 0).sum())} of {len(items_V)} used"
    key = '<text x=232 y=14 class="key end items">items</text>'
    key += '<text x=232 y=28 class="key end events">training events</text>'
    return figure(label, "".join(lines) + key)


def bars(
    title: str,
    labels: Sequence[str],
    heights: Sequence[float],
    texts: Iterable[str],
    top: float | None = None,
) -> str:
    """One bar a label; `top` is the height of a full one, by default the largest."""
    top, step, parts = top or max([*heights, 1e-9]), 224 / max(len(labels), 1), []
    for place, (label, height, text) in enumerate(zip(labels, heights, texts, strict=True)):
        tall, x = 76 * min(max(height / top, 0), 1), 8 + place * step
        middle = x + step / 2
        parts.append(
            f'<rect x="{x + 2:.1f}" y="{100 - tall:.1f}" width="{step - 4:.1f}" '
            f'height="{tall:.1f}"/><text x="{middle:.1f}" y="{95 - tall:.1f}" class=middle>'
            f'{escape(text)}</text><text x="{middle:.1f}" y=112 class=middle>{escape(label)}</text>'
        )
    return figure(title, "".join(parts))


def figure(title: str, inside: str) -> str:
    """A captioned drawing."""
    drawing = f'<svg viewBox="0 0 240 116" role=img aria-label="{escape(title)}">{inside}</svg>'
    return f"<figure>{drawing}<figcaption>{escape(title)}</figcaption></figure>"
