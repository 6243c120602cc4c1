"""Tables of the scaling study: what every size and share reached, and the laws."""

from __future__ import annotations

from typing import Any

from cells import MISSING, Figures, markdown, number, quantity, ratio, sources

FORMS = ("power_law", "log_law", "constant", "last")
LAWS = (
    ("size", "exponent", "N, whole data"),
    ("data", "exponent", "training events, one size"),
    ("compute", "exponent", "FLOP"),
    ("joint", "size_exponent", "both: of N"),
    ("joint", "data_exponent", "both: of events"),
)


def scaling_table(figures: Figures, dataset: str) -> str:
    """Points × parameters, losses and ranking; then laws × exponent, floor, held-out errors."""
    start, end = f"scaling.{dataset}.", ".loss_nats"
    names = [n.removesuffix(end) for n in figures if n.startswith(start) and n.endswith(end)]
    if not names:
        return MISSING + "\n"
    used, rows = [], []
    for name in sorted(names, key=lambda n: order_of(n, figures[f"{n}{end}"])):
        system, _, place = name.removeprefix(start).partition(".")
        size, _, share = place.partition("-share")
        loss = figures[f"{name}{end}"]
        used.append(loss)
        spread = max(loss["by_seed"]) - min(loss["by_seed"])
        rows.append(
            [
                f"`{system}` {size}",
                f"{float(share):.0%}",
                f"{loss['parameters']:,}",
                f"{loss['embedding_parameters']:,}",
                f"{loss['events']:,}",
                f"{loss['best_epoch']:g} of {loss['epochs']:g}",
                f"{loss['flop']:.1e}",
                f"{loss['table_flop']:.1e}",
                f"{loss['seconds']:.0f}",
                f"{loss['train_loss']:.3f}",
                f"{loss['value']:.3f}" + (f" ± {spread / 2:.3f}" if spread else ""),
                ratio(figures[f"{name}.ndcg@10"]["value"]),
                ratio(figures[f"{name}.recall@10"]["value"]),
                str(len(loss["seeds"])),
            ]
        )
    header = [
        "size", "users", "N", "embeddings", "events", "best epoch", "FLOP", "of tables", "CPU s",
        "train nats", "nats", "N@10", "R@10", "seeds",
    ]  # fmt: skip
    systems = sorted({name.removeprefix(start).split(".")[0] for name in names})
    return (
        markdown(header, rows)
        + "\nValidation part. Nats an item; ± half the range over seeds. N: non-embedding "
        "parameters; FLOP: 6 N and attention, products with item and code tables apart.\n\n"
        + law_rows(figures, start, systems)
        + "".join(f"\n{words_of(figures, start, system)}" for system in systems)
        + "\n"
        + sources(used)
    )


def order_of(name: str, loss: Any) -> tuple[str, bool, int, int]:
    """Systems, then sizes on the whole data, then shares."""
    return name.split(".")[2], not name.endswith("-share1"), loss["parameters"], loss["events"]


def law_rows(figures: Figures, start: str, systems: list[str]) -> str:
    """Laws × exponent, floor and the held-out error of every form."""
    rows = []
    for system in systems:
        for law, exponent, words in LAWS:
            found = figures.get(f"{start}{system}.{law}.{exponent}")
            floor = quantity(figures.get(f"{start}{system}.{law}.floor"))
            errors = [figures.get(f"{start}{system}.{law}.held_out_error.{f}") for f in FORMS]
            shown = [number(error["value"]) if error else "–" for error in errors]
            rows.append([f"`{system}`, {words}", interval_of(found), floor, *shown])
    header = ["loss over", "exponent", "floor", *(f"error, {f.replace('_', ' ')}" for f in FORMS)]
    note = (
        "\nIn brackets 95 % intervals over resampled points. Errors: mean nats off on the two "
        "largest, fitted on the others; `last` repeats the largest that was fitted.\n"
    )
    return markdown(header, rows) + note


def interval_of(figure: Any) -> str:
    """`0.31 [0.22, 0.4]`."""
    if figure is None:
        return MISSING
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def words_of(figures: Figures, start: str, system: str) -> str:
    """What the fits say of themselves: span, over-fitting, and where the law in N stops holding."""
    lines = list(figures.get(f"{start}{system}.runs", {}).get("words", ()))
    lines += list(figures.get(f"{start}{system}.size.exponent", {}).get("words", ()))[1:]
    return f"`{system}`:\n\n" + "".join(f"- {line}\n" for line in lines)
