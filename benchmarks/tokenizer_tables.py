"""Tables of the tokenizers: accuracy, health of IDs, cold start, life of an ID, joint vectors."""

from __future__ import annotations

from cells import COLUMNS, MISSING, Figures, accuracy_cell, markdown, signed, sources
from generator_rows import ROWS
from tokenizer_rows import DEFAULT, METHODS, TRIALS, VARIANTS


def tokenizer_names(figures: Figures, dataset: str, *, variants: bool) -> list[str]:
    """Measured tokenizers in the order of METHODS, or the variants in the order of VARIANTS."""
    order = list(VARIANTS) if variants else list(METHODS)
    return [name for name in order if f"{dataset}.tokenizer.{name}.icr" in figures]


def tokenizer_table(figures: Figures, dataset: str) -> str:
    """Tokenizers × accuracy of the same generator, with intervals and paired differences."""
    rows, used = [], []
    for name in tokenizer_names(figures, dataset, variants=False):
        cells, found = [f"`{name}`"], {}
        for metric in (*(m for _, m in COLUMNS[:4]), "coverage@10"):
            found[metric] = figures.get(f"{dataset}.{name}_ids.{metric}")
            cells.append(accuracy_cell(found[metric], None))
        for baseline in ("residual_kmeans", "rqvae"):
            pair = figures.get(f"{dataset}.{name}_ids_minus_{baseline}_ids.recall@10")
            cells.append(signed(pair) if pair else "–")
        measured = [figure for figure in found.values() if figure]
        used += measured
        cells.append(str(max((len(figure["seeds"]) for figure in measured), default="–")))
        rows.append(cells)
    columns = [title for title, _ in COLUMNS[:4]]
    against = ["R@10 − `residual_kmeans`", "R@10 − `rqvae`"]
    return (
        markdown(["IDs of", *columns, "coverage@10", *against, "seeds"], rows)
        + "\nThe default generator alone, the same vectors and epochs for every row; in brackets "
        "95 % intervals over users, paired for the differences (on the seeds both rows have).\n"
        + sources(used)
    )


def id_table(figures: Figures, dataset: str, *, variants: bool = False) -> str:
    """Tokenizers × health of their IDs before any collision policy, and recall by stratum."""
    rows, used = [], []
    shares = ("icr", "cur", "collision_share")
    for name in tokenizer_names(figures, dataset, variants=variants):
        own = {
            figure: figures[f"{dataset}.tokenizer.{name}.{figure}"]
            for figure in (*shares, "mean_length", "fit_seconds")
        }
        used += list(own.values())
        levels = [f"{dataset}.tokenizer.{name}.entropy_level_{level}" for level in range(1, 9)]
        entropy = [f"{figures[level]['value']:.2f}" for level in levels if level in figures]
        errors = [f"{dataset}.tokenizer.{name}.reconstruction_error_level_{n}" for n in range(1, 9)]
        error = [f"{figures[level]['value']:.3f}" for level in errors if level in figures]
        strata = [
            accuracy_cell(figures.get(f"{dataset}.{name}_ids.{stratum}recall@10"), None)
            for stratum in (*(("",) if variants else ()), "head.", "mid.", "tail.", "cold.")
        ]
        if variants:
            pairs = [
                figures.get(f"{dataset}.{name}_ids_minus_{baseline}_ids.recall@10")
                for baseline in ("residual_kmeans", "plum_rqvae")
            ]
            strata = [*(signed(pair) if pair else "–" for pair in pairs), *strata]
        rows.append(
            [
                f"`{name}`",
                f"{own['icr']['value']:.2%}",
                f"{own['cur']['value']:.4%}",
                f"{own['collision_share']['value']:.1%}",
                " / ".join(entropy),
                error[-1] if error else "–",
                f"{own['mean_length']['value']:.2f}",
                f"{own['fit_seconds']['value']:.0f}",
                *strata,
            ]
        )
    all_users = ["R@10 − `residual_kmeans`", "R@10 − `plum_rqvae`", "R@10"] if variants else []
    header = [
        "IDs of",
        "ICR",
        "CUR",
        "collided",
        "entropy a level (nats)",
        "error",
        "codes an item",
    ]
    header += ["fit (CPU s)", *all_users, "R@10 head", "mid", "tail", "no events"]
    if not rows:
        return MISSING + "\n"
    return (
        markdown(header, rows)
        + "\nICR: distinct IDs / items; CUR: the same / possible IDs; collided: items that share "
        "theirs; error: squared error of the vectors rebuilt from all codes over their variance, "
        "where a tokenizer rebuilds them. All before the collision policy, recall after it; head "
        "targets have over 20 training events, tail ones 1 to 5.\n" + sources(used)
    )


def cold_table(figures: Figures, dataset: str) -> str:
    """Systems × questions whose target no training saw, the others, and all."""
    groups = (("cold", "target was removed"), ("warm_beside_cold", "other targets"))
    groups = (*groups, ("all_with_cold", "all"))
    end = ".all_with_cold.recall@10"
    names = sorted(n.removeprefix(f"{dataset}.").removesuffix(end) for n in figures
                   if n.startswith(f"{dataset}.") and n.endswith(end))  # fmt: skip
    rows, used = [], []
    for name in names:
        system, _, share = name.partition(".new_items_")
        if system in ROWS or "_minus_" in system:  # of the small budget: a table of their own
            continue
        found = [
            figures.get(f"{dataset}.{name}.{group}.{metric}")
            for group, _ in groups
            for metric in ("recall@10", "ndcg@10")
        ]
        used += [figure for figure in found if figure]
        kept = f"{share.removesuffix('pct')} %" if share else "–"
        rows.append([f"`{system}`", kept, *(accuracy_cell(figure, None) for figure in found)])
    header = ["system", "kept for new items"]
    header += [f"{cut}, {words}" for _, words in groups for cut in ("R@10", "N@10")]
    return markdown(header, rows) + "\n" + sources(used) if rows else MISSING + "\n"


def stability_table(figures: Figures, dataset: str) -> str:
    """IDs of a re-fit × share of items whose first codes stayed, and what a generator loses."""
    start = f"{dataset}.id_stability."
    names = sorted({n.removeprefix(start).split(".")[0] for n in figures if n.startswith(start)})
    rows, used = [], []
    for name in names:
        depths = [figures.get(f"{start}{name}.kept_depth{depth}") for depth in (1, 2, 3)]
        used += [figure for figure in depths if figure]
        row = [name.replace("_", " ")]
        row += [f"{figure['value']:.1%}" if figure else "–" for figure in depths]
        for generator in ("causal", "tiger"):
            figure = figures.get(f"{dataset}.{generator}.ids_{name}.recall@10")
            lost = figures.get(f"{dataset}.{generator}.ids_{name}_minus_kept.recall@10")
            used += [f for f in (figure, lost) if f]
            row += [accuracy_cell(figure, None), signed(lost) if lost else "–"]
        rows.append(row)
    header = ["IDs", "first code kept", "first two", "all three"]
    header += [f"`{g}` {words}" for g in ("causal", "tiger") for words in ("R@10", "minus kept")]
    return markdown(header, rows) + "\n" + sources(used) if rows else MISSING + "\n"


def joint_table(figures: Figures, dataset: str) -> str:
    """Vectors of each search weight × recall of search and of recommendation."""
    ends = (".search.recall@10", ".recommendation.recall@10")
    names = sorted({n.removesuffix(end) for n in figures for end in ends
                    if n.startswith(f"{dataset}.") and n.endswith(end)})  # fmt: skip
    rows, used = [], []
    for name in names:
        found = [figures.get(f"{name}{end}") for end in ends]
        used += [figure for figure in found if figure]
        title = name.removeprefix(f"{dataset}.")
        rows.append([f"`{title}`", *(accuracy_cell(figure, None) for figure in found)])
    header = ["vectors", "search R@10", "recommendation R@10"]
    return markdown(header, rows) + "\n" + sources(used) if rows else MISSING + "\n"


PAIRS = (
    ("acrq", "rqvae"),
    ("coba_rqvae", "rqvae"),
    ("coba_rqvae", "residual_kmeans"),
    ("coba_no_graph", "coba_rqvae"),
    ("coba_no_uniformity", "coba_rqvae"),
    ("coba_no_balance", "coba_rqvae"),
    ("plum_rqvae", "residual_kmeans"),
    ("sarq", "residual_kmeans"),
    ("sarq_keep", "residual_kmeans_keep"),
    ("sarq_unweighted", "sarq"),
    ("sarq_normalised", "sarq"),
    ("sarq_keep_normalised", "sarq_keep"),
)


def pair_table(figures: Figures, dataset: str) -> str:
    """Measured pairs of tokenizers × difference of recall@10, of all users and by stratum."""
    rows, used = [], []
    for first, second in PAIRS:
        start = f"{dataset}.{first}_ids_minus_{second}_ids"
        strata = ("", "head.", "mid.", "tail.", "cold.")
        found = [figures.get(f"{start}.{stratum}recall@10") for stratum in strata]
        if not any(found):
            continue
        used += [figure for figure in found if figure]
        rows.append(
            [f"`{first}` − `{second}`", *(signed(figure) if figure else "–" for figure in found)]
        )
    if not rows:
        return MISSING + "\n"
    header = ["R@10 of the IDs", "all", "head", "mid", "tail", "no events"]
    return markdown(header, rows) + "\n" + sources(used)


def tuning_table(figures: Figures, dataset: str) -> str:
    """Settings of each tokenizer × what their IDs are worth on validation."""
    rows, used = [], []
    judges = ("counted", "generator")
    for method, trials in TRIALS.items():
        for trial, options in {DEFAULT: {}, **trials}.items():
            start = {judge: f"{dataset}.tuning.{judge}.{method}.{trial}" for judge in judges}
            found = [figures.get(f"{start[judge]}.ndcg@10") for judge in judges]
            pairs = [figures.get(f"{start[judge]}_minus_{DEFAULT}.ndcg@10") for judge in judges]
            if not any(found):
                continue
            used += [figure for figure in (*found, *pairs) if figure]
            changed = ", ".join(f"{name} = {value}" for name, value in options.items())
            cells = []
            for figure, pair in zip(found, pairs, strict=True):
                cells += [accuracy_cell(figure, None) if figure else "–"]
                cells += [signed(pair) if pair else "–"]
            rows.append([f"`{method}`", f"`{changed}`" if changed else "default", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["IDs of", "setting", "N@10, counted", "− default"]
    header += ["N@10, generator", "− default"]
    return markdown(header, rows) + "\n" + sources(used)


POLICY_ROWS = ("keep", "counter", "sinkhorn", "reassign", "capacity", "capacity_half")


def policy_table(figures: Figures) -> str:
    """Collision policies × what is left of the collisions and what they cost."""
    rows, used = [], []
    for policy in POLICY_ROWS:
        found = {
            name: figures.get(f"collisions.{policy}.{name}")
            for name in ("collision_share", "largest_group", "codes_moved", "prefixes_moved",
                         "quantisation_error", "codes_an_item", "seconds")
        }  # fmt: skip
        if (share := found["collision_share"]) is None:
            continue
        used += [figure for figure in found.values() if figure]
        value = {name: figure["value"] for name, figure in found.items() if figure}
        rows.append(
            [
                f"`{policy}`",
                f"{share['value']:.2%}",
                f"{value['largest_group']:.0f}",
                f"{value['codes_moved']:.1%}",
                f"{value['prefixes_moved']:.1%}",
                f"{value['quantisation_error']:.4f}",
                f"{value['codes_an_item']:.2f}",
                f"{value['seconds']:.2f}",
            ]
        )
    if not rows:
        return MISSING + "\n"
    header = [
        "policy",
        "items that share an ID",
        "largest group",
        "items moved",
        "out of their prefix",
    ]
    header += ["error of the vectors", "codes an item", "CPU s"]
    return (
        markdown(header, rows)
        + "\n`keep` is what the tokenizer gives; `capacity_half` halves the fullest first code. "
        "Error: squared, of the vectors rebuilt from their codes, over their variance.\n"
        + sources(used)
    )


def quantiser_table(figures: Figures) -> str:
    """Other quantisers × reconstruction error of theirs, of ours, and the ratio by seed."""
    end, rows, used = ".error_ratio", [], []
    for name in sorted(n for n in figures if n.startswith("quantiser.") and n.endswith(end)):
        start = name.removesuffix(end)
        ratio, ours, theirs = (figures[f"{start}.{n}"] for n in ("error_ratio", "ours", "theirs"))
        used += [ratio, ours, theirs]
        _, peer, setting = start.split(".")
        low, high = min(ratio["by_seed"]), max(ratio["by_seed"])
        rows.append(
            [
                f"`{peer}`, {setting.replace('_', ' ')}",
                f"{theirs['value']:.4f}",
                f"{ours['value']:.4f}",
                f"{ratio['value']:.3f} ({low:.3f} to {high:.3f})",
            ]
        )
    if not rows:
        return MISSING + "\n"
    header = ["other quantiser", "its error", "ours", "ours / its (seeds)"]
    return markdown(header, rows) + "\n" + sources(used)


def frozen_head_table(figures: Figures, dataset: str) -> str:
    """ACRQ and RQ-VAE × error left by popularity group, and seconds to the same tail error."""
    groups, rows, used = ("head", "torso", "tail"), [], []
    for name in ("rqvae", "acrq", "acrq_minus_rqvae"):
        start = f"{dataset}.tokenizer.{name}"
        errors = [figures.get(f"{start}.{group}.reconstruction_error") for group in groups]
        if errors[-1] is None:
            continue
        used += [error for error in errors if error]
        draw = signed if "_minus_" in name else lambda figure: accuracy_cell(figure, None)
        title = " − ".join(f"`{one}`" for one in name.split("_minus_"))
        seconds = [
            figures.get(f"{start}.{measure}")
            for measure in ("seconds_to_tail_error", "train_seconds")
        ]
        cells = [draw(error) if error else "–" for error in errors]
        rows.append([title, *cells, *(f"{s['value']:.1f}" if s else "–" for s in seconds)])
    if not rows:
        return MISSING + "\n"
    return (
        markdown(["error left", *groups, "CPU s to the same tail error", "CPU s in all"], rows)
        + "\nSquared error of the rebuilt vectors over their variance in the group, with 95 % "
        "intervals; equal numbers of items seen; the tail error is the worse of the two final "
        "ones.\n" + sources(used)
    )


def lengths_table(figures: Figures, dataset: str) -> str:
    """Tokenizers of several lengths × codes of an ID by popularity, and what collides."""
    groups, rows, used = ("head", "mid", "tail", "no_events"), [], []
    for name in ("sarq", "sarq_unweighted", "residual_kmeans"):
        start = f"{dataset}.tokenizer.{name}"
        lengths = [figures.get(f"{start}.{part}mean_length") for part in
                   ("", *(f"{group}." for group in groups))]  # fmt: skip
        shares = [figures.get(f"{start}.{part}collision_share") for part in ("head.", "")]
        if shares[0] is None:
            continue
        used += [figure for figure in (*lengths, *shares) if figure]
        cells = [f"{length['value']:.2f}" if length else "–" for length in lengths]
        cells += [f"{share['value']:.1%}" if share else "–" for share in shares]
        rows.append([f"`{name}`", *cells])
    if not rows:
        return MISSING + "\n"
    header = ["codes of an ID", "all", "head", "mid", "tail", "no events"]
    return (
        markdown([*header, "head items that collide", "all"], rows)
        + "\nBefore any collision policy; head items have over 20 training events, tail ones 1 to "
        "5.\n" + sources(used)
    )
