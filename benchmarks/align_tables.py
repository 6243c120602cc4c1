"""Tables of alignment: the shop's frontier, S-GRec's fusions, preferences, the judge."""

from __future__ import annotations

from collections.abc import Sequence

from cells import MISSING, Figures, accuracy_cell, markdown, signed, sources

SHOP_ROWS = (
    "sft",
    "mix_0.1",
    "mix_0.3",
    "mix_1.0",
    "mix_3.0",
    "adagrpo",
    "adagrpo_3.0",
    "gate_difficulty",
    "gate_discriminability",
    "gate_random",
)
NOISY_ROWS = ("sft", "mix_1.0", "mix_3.0", "adagrpo", "gate_random")
FUSION_ROWS = (
    "sft",
    "grpo_business",
    "reward_sum",
    "advantage_sum",
    "a2po",
    "a2po_judge5",
    "reward_sum_conflict",
    "a2po_conflict",
)
PREFERENCE_ROWS = (
    "sft",
    "dpo",
    "simpo",
    "s_dpo",
    "s_dpo_sft",
    "rad_dpo",
    "rad_dpo_no_tlgd",
    "rad_dpo_no_rdrw",
    "rad_dpo_no_mlgc",
    "rad_dpo_sdpo_form",
)
CHECKPOINTS = ("best", "final")


def alignment_table(
    figures: Figures,
    data: str,
    rows: Sequence[str],
    metrics: Sequence[str],
    baseline: str,
    compared: Sequence[str] = ("recall@10",),
) -> str:
    """Objectives × metrics of the best and the final checkpoint, and what is gained by them."""
    shown, used = [], []
    for name in rows:
        found = [
            figures.get(f"{data}.{name}.{which}.{metric}")
            for which in CHECKPOINTS
            for metric in metrics
        ]
        if not any(found):
            continue
        pairs = [
            figures.get(f"{data}.{name}_minus_{baseline}.{which}.{metric}")
            for which in CHECKPOINTS
            for metric in metrics
            if metric in compared
        ]
        used += [figure for figure in found if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        cells += [signed(pair) if pair else "–" for pair in pairs]
        shown.append([f"`{name}`", *cells])
    if not shown:
        return MISSING + "\n"
    header = ["row"]
    header += [f"{metric}, {which}" for which in CHECKPOINTS for metric in metrics]
    header += [
        f"{metric} − `{baseline}`, {which}"
        for which in CHECKPOINTS
        for metric in metrics
        if metric in compared
    ]
    return (
        markdown(header, shown)
        + "\nAll rows start from the same weights and train for the same processor seconds. `best` "
        "is the checkpoint that validated best, the start among them; `final` the last one. In "
        "brackets 95 % intervals, paired for differences.\n" + sources(used)
    )


def judge_table(figures: Figures) -> str:
    """Back ends × how well they tell what came next."""
    rows, used = [], []
    for backend in ("embedded", "similarity", "endpoint", "local"):
        for data in ("", "amazon_industrial.", "amazon_office.", "shop."):
            pair = figures.get(f"judge.{backend}.{data}pair_auc")
            point = figures.get(f"judge.{backend}.{data}point_accuracy")
            if pair is None:
                continue
            used += [figure for figure in (pair, point) if figure]
            cells = [accuracy_cell(pair, None), accuracy_cell(point, None) if point else "–"]
            rows.append([f"`{backend}`", data.rstrip(".") or "all users", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["back end", "data", "pair AUC", "point accuracy"]
    return markdown(header, rows) + "\n" + sources(used)


def cells_table(figures: Figures) -> str:
    """The 2 x 2 analysis in the shop."""
    rows, used = [], []
    for name in (
        "difficult_discriminable",
        "difficult_not_discriminable",
        "easy_discriminable",
        "easy_not_discriminable",
    ):
        share = figures.get(f"shop.cell.{name}.share")
        if share is None:
            continue
        changes = [figures.get(f"shop.cell.{name}.{metric}") for metric in ("recall@10", "ndcg@10")]
        used += [share, *(figure for figure in changes if figure)]
        cells = [signed(figure) if figure else "–" for figure in changes]
        rows.append([name.replace("_", " "), f"{share['value']:.1%}", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["contexts", "share", "R@10, change on validation", "N@10"]
    return markdown(header, rows) + "\n" + sources(used)
