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


TASTE_ROWS = {
    "embedded judge, weights learned from shown lists": ("embedded", ""),
    "… from drawn negatives": ("embedded", "weights_sampled."),
    "… by importance levels": ("embedded", "weights_levels."),
    "… by importance levels, the mean user's for all": ("embedded", "weights_levels_mean."),
    "… learned, the mean user's for all": ("embedded", "weights_mean."),
    "… uniform": ("embedded", "weights_uniform."),
    "its aspect profile alone": ("embedded", "profile."),
    "its aspect future alone": ("embedded", "future."),
    "its aspect novelty alone": ("embedded", "novelty."),
    "`similarity` (for tests)": ("similarity", ""),
    "a reward model of the same shown lists": ("preference_model", ""),
    "popularity": ("truth", "popularity."),
    "the true aspects, uniform weights": ("truth", "weights_uniform."),
    "the true aspects, the mean user's weights": ("truth", "weights_mean."),
}
TASTE_METRICS = {
    "pair AUC": "pair_auc",
    "clear pairs": "clear.pair_auc",
    "one category": "same_category.pair_auc",
    "point accuracy": "point_accuracy",
    "pair AUC of clicks": "clicks.pair_auc",
}


def tastes_table(figures: Figures) -> str:
    """Ways to judge × how well they order items as the shop's users would."""
    rows, used = [], []
    for label, (backend, variant) in TASTE_ROWS.items():
        prefix = f"judge.{backend}.shop_tastes."
        names = [m for m in TASTE_METRICS.values() if not variant or m == "pair_auc"]
        found = [
            figures.get(f"{prefix}{variant}{metric}") if metric in names else None
            for metric in TASTE_METRICS.values()
        ]
        if not any(found):
            continue
        used += [figure for figure in found if figure]
        less = figures.get(f"{prefix}{variant.rstrip('.')}_minus_learned.pair_auc")
        cells = [accuracy_cell(figure, None) if figure else "–" for figure in found]
        rows.append([label, *cells, signed(less) if less else "–"])
    if not rows:
        return MISSING + "\n"
    text = markdown(["judge", *TASTE_METRICS, "pair AUC − learned"], rows)
    kinds = {"learned": "", "sampled": "weights_sampled.", "levels": "weights_levels."}
    for kind, variant in kinds.items():
        prefix = f"judge.embedded.shop_tastes.{variant}weight_"
        found = {
            name: figures.get(f"{prefix}{name}.correlation")
            for name in ("profile", "future", "novelty")
        }
        used += [figure for figure in found.values() if figure]
        cells = [f"{name} {accuracy_cell(one, None)}" for name, one in found.items() if one]
        if cells:
            label = {"sampled": "learned from drawn negatives"}.get(kind, kind)
            text += f"\nCorrelation of users' weights with the true ones, {label}: "
            text += ", ".join(cells) + ".\n"
    return text + "\n" + sources(used)


def judge_users_table(figures: Figures) -> str:
    """Two users in words, with the judge's scores of two items each."""
    marks = [name for name in figures if name.startswith("judge.users.") and ".weight_" in name]
    if not marks:
        return MISSING + "\n"
    data = marks[0].split(".")[2]
    lines, rows, used = [], [], []
    for number, name in enumerate(("least", "most"), start=1):
        prefix = f"judge.users.{data}.{name}."
        weight = next(figures[mark] for mark in marks if mark.startswith(prefix))
        lines.append(f"- **User {number}** took: {weight['history']}. The judge {weight['words']}.")
        for which in ("next", "other"):
            one = figures[prefix + which]
            aspects = [f"{value:.2f}" for value in one["aspects"].values()]
            label = "came next" if which == "next" else "a random one as popular"
            scores = [f"{one['value']:.3f}", f"{one['swapped']:.3f}"]
            rows.append([f"{number}, {label}: {one['title']}", *aspects, *scores])
            used.append(one)
    header = ["user, item", *one["aspects"], "score", "by the other user's weights"]
    return "\n".join(lines) + "\n\n" + markdown(header, rows) + "\n" + sources(used)


RLHF_ROWS = ("start", "sft", "ppo_kl_0.5", "ppo", "ppo_no_kl")
RLHF_METRICS = ("model_reward", "true_click", "true_reward", "recall@10", "kl")


def rlhf_table(figures: Figures) -> str:
    """Policies × what the reward model and the shop say of them, at the end of training."""
    rows, used = [], []
    for name in RLHF_ROWS:
        found = [figures.get(f"shop_rlhf.{name}.final.{metric}") for metric in RLHF_METRICS]
        if not any(found):
            continue
        used += [figure for figure in found if figure]
        cells = [accuracy_cell(figure, None) for figure in found]
        for metric in ("true_click", "true_reward", "recall@10"):
            less = figures.get(f"shop_rlhf.{name}_minus_start.final.{metric}")
            cells.append(signed(less) if less else "–")
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["row", *RLHF_METRICS]
    header += [f"{metric} − `start`" for metric in ("true_click", "true_reward", "recall@10")]
    text = markdown(header, rows)
    model = [figures.get(f"shop_rlhf.reward_model.{m}") for m in ("pair_accuracy", "true_pair_auc")]
    if model[0] and model[1]:
        used += [figure for figure in model if figure]
        text += (
            f"\nThe reward model orders {accuracy_cell(model[0], None)} of the pairs in lists "
            "shown to users it has not seen as they clicked, and "
            f"{accuracy_cell(model[1], None)} of random pairs by the true probability of a click.\n"
        )
    return text + "\n" + sources(used)


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
