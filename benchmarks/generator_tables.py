"""Tables of the generators: what each is worth at one budget, and what thoughts do for codes."""

from __future__ import annotations

from cells import COLUMNS, MISSING, Figures, accuracy_cell, markdown, number, signed, sources
from generator_rows import BASELINE, CHANGES, OWN_BEAM, ROWS

S2GR_ROWS = {
    "s2gr": (
        "s2gr",
        "s2gr_no_reason",
        "s2gr_no_supervision",
        "s2gr_all_first",
        "s2gr_rqvae",
    ),
    "s2gr_tiger": ("s2gr_tiger", "tiger_coba"),
}
"""Backbone -> its rows: the whole method, and what is taken from it."""


def generator_table(figures: Figures, dataset: str) -> str:
    """Systems × accuracy, cold recall, coverage, size, training seconds, latency."""
    rows, used = [], []
    for name in ROWS:
        found = [figures.get(f"{dataset}.{name}.{metric}") for _, metric in COLUMNS[:4]]
        if not any(found):
            continue
        pair = figures.get(f"{dataset}.{name}_minus_{BASELINE}.recall@10")
        others = [
            figures.get(f"{dataset}.{name}.{metric}")
            for metric in ("tail.recall@10", "no_events.recall@10", "cold.recall@10",
                           "coverage@10")
        ]  # fmt: skip
        costs = [
            figures.get(f"{dataset}.{name}.{cost}")
            for cost in ("parameters", "active_parameters", "train_seconds", "beam20.one_user.p50",
                         "beam50.one_user.p50", "beam20.batch.users_per_second")
        ]  # fmt: skip
        used += [figure for figure in (*found, *others, *costs) if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        cells.append(signed(pair) if pair else "–")
        cells += [accuracy_cell(figure, None) if figure else "–" for figure in others]
        cells += [number(figure["value"]) if figure else "–" for figure in costs]
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["system", *(title for title, _ in COLUMNS[:4]), "R@10 − `causal`"]
    header += [
        "R@10 tail",
        "no events",
        "added later",
        "coverage@10",
        "parameters",
        "active",
        "training s",
    ]
    header += ["p50 ms, beam 20", "beam 50", "users/s, beam 20"]
    return (
        markdown(header, rows)
        + "\nOne budget of processor seconds to train each model; in brackets 95 % intervals over "
        "users, paired for the difference. Parameters and seconds are those of all models that a "
        "system asks; active ones are what one position passes through where experts are routed. "
        "`lite` and `dense` have no beam. Added later: questions whose target left the data before "
        "the training and came back after it, in a fit of its own.\n" + sources(used)
    )


def cold_rows_table(figures: Figures, dataset: str) -> str:
    """Systems of the small budget × questions for items added after training, and the others."""
    rows, used = [], []
    for name in ROWS:
        found = [
            figures.get(f"{dataset}.{name}.{figure}")
            for figure in ("cold.recall@10", "cold.ndcg@10", "cold.new_share@10",
                           "warm_beside_cold.recall@10", "all_with_cold.recall@10")
        ]  # fmt: skip
        if not any(found):
            continue
        pairs = [
            figures.get(f"{dataset}.{name}_minus_{other}.cold.recall@10")
            for other in (BASELINE, OWN_BEAM.get(name))
        ]
        used += [figure for figure in (*found, *pairs) if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        cells[3:3] = [signed(pair) if pair else "–" for pair in pairs]
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["system", "R@10, target was added", "N@10", "places that new items take"]
    header += ["R@10 − `causal`", "R@10 − its own beam", "R@10, other targets", "R@10, all"]
    return markdown(header, rows) + "\n" + sources(used)


def ablation_table(figures: Figures, dataset: str) -> str:
    """Hybrids × what is changed in them, without training again."""
    rows, used = [], []
    for row, changes in CHANGES.items():
        for change in ("whole", "beam_alone", *changes, "either_channel"):
            start = f"{dataset}.{row}_{change}"
            found = [figures.get(f"{start}.{metric}") for _, metric in COLUMNS[2:4]]
            pairs = [figures.get(f"{start}_minus_whole.{metric}") for _, metric in COLUMNS[2:4]]
            if not any(found):
                continue
            used += [figure for figure in (*found, *pairs) if figure]
            cells = [accuracy_cell(figure, None) if figure else "–" for figure in found]
            cells += [signed(pair) if pair else "–" for pair in pairs]
            rows.append([f"`{row}`", change.replace("_", " "), *cells])
    if not rows:
        return MISSING + "\n"
    header = ["system", "change", "R@10", "N@10", "R@10 − `whole`", "N@10 − `whole`"]
    return markdown(header, rows) + "\n" + sources(used)


def s2gr_table(figures: Figures, dataset: str, backbone: str = "s2gr") -> str:
    """S²GR and what is taken from it × accuracy in both protocols, and codes by level."""
    rows, used = [], []
    for name in S2GR_ROWS[backbone]:
        found = [
            figures.get(f"{dataset}.{name}.{protocol}{metric}")
            for protocol in ("", "min10.")
            for metric in ("recall@10", "ndcg@10")
        ]
        if not any(found):
            continue
        pairs = [
            figures.get(f"{dataset}.{backbone}_minus_{name}.{protocol}recall@10")
            for protocol in ("", "min10.")
        ]
        levels = {
            what: [figures.get(f"{dataset}.{name}.{what.format(level)}") for level in (1, 2, 3)]
            for what in ("level{}_accuracy", "thought{}_holds_code", "majority{}_holds_code")
        }
        by_level = [figure for of in levels.values() for figure in of]
        used += [figure for figure in (*found, *pairs, *by_level) if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        cells += [signed(pair) if pair else "–" for pair in pairs]
        cells += [
            " / ".join(f"{figure['value']:.3f}" for figure in of if figure) or "–"
            for of in levels.values()
        ]
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["system", "R@10", "N@10", "R@10, ≥ 10 events", "N@10, ≥ 10 events"]
    header += [f"`{backbone}` − it, R@10", "the same, ≥ 10 events", "code right, by level"]
    header += ["thought names its cluster", "most frequent cluster"]
    return markdown(header, rows) + "\n" + sources(used)


def best_table(figures: Figures, dataset: str) -> str:
    """The best fusion and the default one × accuracy, and the best minus the systems of its run."""
    rows, used = [], []
    for name in ("best", "hybrid"):
        found = [figures.get(f"{dataset}.{name}.{metric}") for _, metric in COLUMNS[:4]]
        if any(found):
            used += [figure for figure in found if figure]
            rows.append([f"`{name}`", *(accuracy_cell(figure, None) for figure in found)])
    for name in ("hybrid", "parallel", "dense", "sasrec", "transition_graph"):
        pairs = [figures.get(f"{dataset}.best_minus_{name}.{metric}") for _, metric in COLUMNS[:4]]
        if any(pairs):
            used += [pair for pair in pairs if pair]
            shown = [signed(pair) if pair else "–" for pair in pairs]
            rows.append([f"`best` − `{name}`", *shown])
    if not rows:
        return MISSING + "\n"
    return markdown(["system", *(title for title, _ in COLUMNS[:4])], rows) + "\n" + sources(used)


def graph_table(figures: Figures) -> str:
    """Exact scoring and walks over the item graph × recall, agreement, latency."""
    end, rows, used = ".one_user.p50", [], []
    timed = [name.removesuffix(end) for name in figures if name.endswith(end)]
    names = sorted(n for n in timed if n.startswith(("parallel.exact", "parallel.graph_")))
    for name in names:
        recall, lost, overlap, p50, ratio = (
            figures.get(f"{name}.{figure}")
            for figure in ("recall@10", "minus_exact.recall@10", "overlap@10", "one_user.p50",
                           "latency_over_exact")
        )  # fmt: skip
        used += [figure for figure in (recall, lost, overlap, p50, ratio) if figure]
        cells = [accuracy_cell(recall, None), signed(lost) if lost else "–"]
        cells += [accuracy_cell(overlap, None) if overlap else "–"]
        cells += [number(p50["value"]) if p50 else "–", number(ratio["value"]) if ratio else "–"]
        rows.append([f"`{name.removeprefix('parallel.')}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["search", "R@10", "− exact", "share of the exact list", "p50 ms", "over exact"]
    return markdown(header, rows) + "\n" + sources(used)
