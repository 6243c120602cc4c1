"""Tables of the generators: what each is worth at one budget, and what thoughts do for codes."""

from __future__ import annotations

from cells import COLUMNS, MISSING, Figures, accuracy_cell, markdown, number, signed, sources
from generator_rows import BASELINE, ROWS

S2GR_ROWS = (
    "s2gr",
    "s2gr_no_reason",
    "s2gr_no_supervision",
    "s2gr_all_first",
    "s2gr_rqvae",
)


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
            for metric in ("no_events.recall@10", "coverage@10")
        ]
        costs = [
            figures.get(name_of)
            for name_of in (
                f"{dataset}.{name}.parameters",
                f"{dataset}.{name}.train_seconds",
                f"generators.{name}.beam20.one_user.p50",
                f"generators.{name}.beam50.one_user.p50",
                f"generators.{name}.beam20.batch.users_per_second",
            )
        ]
        used += [figure for figure in (*found, *others, *costs) if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        cells.append(signed(pair) if pair else "–")
        cells += [f"{figure['value']:.3f}" if figure else "–" for figure in others]
        cells += [number(figure["value"]) if figure else "–" for figure in costs]
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["system", *(title for title, _ in COLUMNS[:4]), "R@10 − `causal`"]
    header += ["R@10 no events", "coverage@10", "parameters", "training s"]
    header += ["p50 ms, beam 20", "beam 50", "users/s, beam 20"]
    return (
        markdown(header, rows)
        + "\nOne budget of processor seconds to train each model; in brackets 95 % intervals over "
        "users, paired for the difference. Parameters and seconds are those of all models that a "
        "system asks. `lite` and `dense` have no beam.\n" + sources(used)
    )


def s2gr_table(figures: Figures, dataset: str) -> str:
    """S²GR and what is taken from it × accuracy in both protocols, and codes by level."""
    rows, used = [], []
    for name in S2GR_ROWS:
        found = [
            figures.get(f"{dataset}.{name}.{protocol}{metric}")
            for protocol in ("", "min10.")
            for metric in ("recall@10", "ndcg@10")
        ]
        if not any(found):
            continue
        pairs = [
            figures.get(f"{dataset}.s2gr_minus_{name}.{protocol}recall@10")
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
    header += ["`s2gr` − it, R@10", "the same, ≥ 10 events", "code right, by level"]
    header += ["thought names its cluster", "most frequent cluster"]
    return markdown(header, rows) + "\n" + sources(used)
