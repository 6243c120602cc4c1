"""Two real users in words: what the judge looks at for whom, and what it makes of two items each.

    python benchmarks/judge_users.py --data amazon_office

Of the test users with four to eight events, those for whom the judge weighs the likely next item
least and most. Each is asked about the event that came next and a random item of like popularity,
under the own weights and under those of the other one. Titles are cut short. Figures:
`judge.users.<data>.<least|most>.{weight_<aspect>,next,other}`, with words beside the numbers, from
which the table `judge_users` of the docs is drawn.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from figures import write
from judge import Task, load, pairs

from sidrec.alignment.judge.histories import last_events
from sidrec.alignment.judge.judge import Judge, JudgeConfig
from sidrec.alignment.judge.weights import HISTORY_FEATURES, history_features
from sidrec.types import Ints

FEWEST, MOST = 4, 8
TITLE_CHARS = 36
LOOKS_AT = {
    "profile": "what the whole history is about",
    "future": "what tends to come next",
    "novelty": "what is new to the user",
    "context": "the last few events",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="amazon_office")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    task = load(arguments.data)
    context = task.context(arguments.seed)
    judge = Judge.build(context, JudgeConfig())
    test = task.parts.test
    lengths_Q = test.histories.lengths
    asked = np.flatnonzero((lengths_Q >= FEWEST) & (lengths_Q <= MOST))
    weights_QA = judge.weights(test.histories)
    future_Q = weights_QA[asked, judge.aspects.index("future")]
    chosen = {"least": int(asked[future_Q.argmin()]), "most": int(asked[future_Q.argmax()])}
    rows_Q2 = pairs(test, context.train_counts_N, np.random.default_rng(arguments.seed))
    figures: dict[str, dict[str, Any]] = {}
    for name, question in chosen.items():
        other = next(q for q in chosen.values() if q != question)
        prefix = f"judge.users.{task.name}.{name}"
        mean_A = weights_QA.mean(axis=0)
        words = in_words(judge, task, question, weights_QA, mean_A)
        history = shortened(task, test.histories[question])
        for place, aspect in enumerate(judge.aspects):
            figures[f"{prefix}.weight_{aspect}"] = {
                "value": round(float(weights_QA[question, place]), 4),
                "mean": round(float(mean_A[place]), 4),
                "unit": "ratio",
                "words": words,
                "history": history,
            }
        one = test.take(np.array([question]))
        evidence = judge.evidence(one.histories, rows_Q2[question][None])
        for place, which in enumerate(("next", "other")):
            scores_A = evidence.scores_BGA[0, place]
            figures[f"{prefix}.{which}"] = {
                "value": round(float(scores_A @ weights_QA[question]), 4),
                "swapped": round(float(scores_A @ weights_QA[other]), 4),
                "unit": "ratio",
                "title": title(task, int(rows_Q2[question, place])),
                "aspects": {
                    aspect: round(float(score), 3)
                    for aspect, score in zip(judge.aspects, scores_A, strict=True)
                },
            }
        print(name, words, history)
    for key, figure in figures.items():
        print(key, figure["value"], figure.get("title", ""), figure.get("aspects", ""))
    path = write(
        "judge_users",
        figures,
        seeds=[arguments.seed],
        command=" ".join(["python", *sys.argv]),
        notes=f"embedded judge; users with {FEWEST} to {MOST} events; the test event and a random "
        "item of like popularity",
    )
    print(f"wrote {path.name}")


def in_words(
    judge: Judge, task: Task, question: int, weights_QA: np.ndarray, mean_A: np.ndarray
) -> str:
    """What the judge looks at for this user, against the mean user, and the habit it goes by."""
    weights_A = weights_QA[question]
    order = np.argsort(-weights_A)
    parts = [
        f"{LOOKS_AT[judge.aspects[a]]} ({weights_A[a]:.2f}; the mean user {mean_A[a]:.2f})"
        for a in order
    ]
    items_BT = last_events(task.parts.test.histories, judge.config.embedded.max_history)
    features_BF = history_features(judge.embedded, items_BT)
    weights_of = judge.weights_of
    standard_F = (features_BF[question] - weights_of.mean_F) / weights_of.deviation_F
    maps_AF = weights_of.maps_AVF[:, 0]
    moved = int(np.abs(weights_A - mean_A).argmax())
    pushes_F = (
        (maps_AF[moved] - mean_A @ maps_AF) * standard_F * np.sign(weights_A[moved] - mean_A[moved])
    )
    habit = int(pushes_F.argmax())
    side = "high" if standard_F[habit] > 0 else "low"
    return (
        f"looks first at {parts[0]}, then at {', then at '.join(parts[1:])}; mostly because "
        f"{HISTORY_FEATURES[habit].replace('_', ' ')} is {side} in this history "
        f"({standard_F[habit]:+.1f} deviations)"
    )


def shortened(task: Task, rows: Ints) -> str:
    """Titles of a history, oldest first; those that read the same are counted."""
    titles = [title(task, int(row)) for row in rows]
    counts = {one: titles.count(one) for one in titles}
    return "; ".join(one + (f" (×{num})" if num > 1 else "") for one, num in counts.items())


def title(task: Task, row: int) -> str:
    """The beginning of an item's title, without characters that tables are made of."""
    whole = " ".join(task.dataset.items.titles()[row].replace("|", "/").split())
    return whole if len(whole) <= TITLE_CHARS else whole[: TITLE_CHARS - 1].rstrip(" ,-") + "…"


if __name__ == "__main__":
    main()
