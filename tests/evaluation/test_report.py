import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec.errors import ArtifactError, ConfigError, DataError
from sidrec.evaluation import (
    EvaluationContext,
    Report,
    average_seeds,
    compare,
    compare_all,
    evaluate,
    overlap,
    table,
)
from sidrec.evaluation.strata import by_history_length, by_training_count
from sidrec.testing.evaluation import random_examples, scorer_of
from sidrec.types import Examples, Histories, Split

N, Q = 30, 80
COUNTS = np.array([0] * 5 + [3] * 10 + [9] * 10 + [50] * 5)


def examples_of(seed=0):
    rng = np.random.default_rng(seed)
    histories = Histories.from_lists([[u % N, u // N, u % 7] for u in range(Q)])
    return Examples(np.arange(Q), histories, rng.integers(0, N, Q))


def scores_of(strength, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(Q, N)).astype(np.float32)
    scores[np.arange(Q), examples_of().targets] += strength
    return scores


def report(name="system", strength=1.0, seed=1, context=None, **changes):
    rng = np.random.default_rng(9)
    context = context or EvaluationContext(
        train_counts_N=COUNTS,
        split_rule="leave-one-out",
        part="test",
        data_hash="abc",
        vectors_ND=rng.normal(size=(N, 4)).astype(np.float32),
        codes_NL=rng.integers(0, 3, (N, 2)),
    )
    examples = examples_of()
    return evaluate(
        name,
        examples,
        context=context,
        scores=scorer_of(scores_of(strength, seed), examples),
        max_length=20,
        seed=seed,
        resamples=200,
        **changes,
    )


def test_a_report_holds_the_means_of_its_per_user_values_and_of_every_stratum():
    r = report()
    for metric, values in r.per_user.items():
        assert r.figures[metric].value == pytest.approx(values.mean())
        parts = [r.strata[name][metric] for name in ("cold", "tail", "mid", "head")]
        assert sum(f.n for f in parts) == Q
        assert sum(f.n * f.value for f in parts) / Q == pytest.approx(values.mean())
    assert r.figures["hit@10"] == r.figures["recall@10"]
    assert r.figures["sid_recall@10"].value >= r.value("recall@10")
    assert 0 < r.value("collision_share") <= 1 and r.figures["coverage@10"].low is None


def test_a_report_goes_to_json_and_back_exactly():
    r = report(extra={"invalid_share": 0.125})
    back = Report.from_json(r.to_json())
    assert back.figures == r.figures and back.strata == r.strata
    assert back.protocol == r.protocol and back.seeds == (1,)
    assert compare(r, back, "ndcg@10").value == 0
    assert back.value("invalid_share") == 0.125
    assert "no seen filter" in json.loads(r.to_json())["protocol_line"]
    with pytest.raises(ArtifactError, match="evaluate again"):
        Report.from_json('{"name": "x"}')


def test_a_stronger_system_wins_the_paired_test_and_holm_keeps_the_family_honest():
    strong, weak = report("strong", 2.5), report("weak", 0.5, seed=2)
    difference = compare(strong, weak, "recall@10")
    assert difference.low > 0 and difference.p < 0.01
    assert difference.value == pytest.approx(strong.value("recall@10") - weak.value("recall@10"))
    rows = compare_all([strong, weak], weak, "recall@10")
    assert rows[0].p == pytest.approx(min(1, 2 * difference.p)) and rows[1].p == 1


def test_reports_under_another_rule_or_on_other_users_are_not_compared():
    r = report()
    with pytest.raises(DataError, match="differ in filter_seen: False and True"):
        compare(r, report(filter_seen=True), "ndcg@10")
    with pytest.raises(DataError, match="differ in part"):
        table([r, replace(r, protocol=replace(r.protocol, part="valid"))])
    with pytest.raises(DataError, match="other examples"):
        compare(r, replace(r, targets=r.targets[::-1]), "ndcg@10")
    with pytest.raises(DataError, match="no per-user 'recall@7'"):
        compare(r, r, "recall@7")


def test_seeds_are_averaged_per_user_before_users_are_resampled():
    seeds = [report(seed=s) for s in (1, 2, 3)]
    mean = average_seeds(seeds)
    assert mean.seeds == (1, 2, 3)
    for metric in mean.per_user:
        assert mean.value(metric) == pytest.approx(np.mean([r.value(metric) for r in seeds]))
        assert mean.seed_means[metric] == tuple(r.value(metric) for r in seeds)
    one, three = seeds[0].figures["ndcg@10"], mean.figures["ndcg@10"]
    assert three.high - three.low < one.high - one.low
    method = average_seeds(seeds, resample_seeds=True).figures["ndcg@10"]
    assert method.high - method.low > three.high - three.low


def test_the_oracle_union_counts_users_that_either_system_hits():
    a, b = report("a", 1.0), report("b", 1.0, seed=2)
    hits_a, hits_b = a.per_user["recall@10"] > 0, b.per_user["recall@10"] > 0
    shared = overlap(a, b)
    assert shared.union.value == pytest.approx((hits_a | hits_b).mean())
    assert shared.only_first.value == pytest.approx((hits_a & ~hits_b).mean())
    total = shared.both.value + shared.only_first.value + shared.only_second.value
    assert total == pytest.approx(shared.union.value)


def test_every_table_prints_its_protocol_and_its_intervals():
    t = table([report("a"), report("b", seed=2, ks=(5, 10), beam=20)])
    text = t.to_markdown()
    assert "leave-one-out; test part, 80 examples; full ranking over 30 items" in text
    assert "ties averaged" in text and "95 % bootstrap" in text
    assert t.rows[1][-3:] == ("20", "20", "1") and t.rows[0][-2] == "–"
    assert "[" in t.rows[0][1]
    assert table([report()], stratum="cold").protocol_line.startswith("stratum cold")


def test_strata_follow_their_written_edges():
    counts = np.array([0, 1, 5, 6, 20, 21])
    chosen = by_training_count(np.arange(6), counts)
    assert {k: np.flatnonzero(v).tolist() for k, v in chosen.items()} == {
        "cold": [0],
        "tail": [1, 2],
        "mid": [3, 4],
        "head": [5],
    }
    lengths = by_history_length(np.array([0, 4, 5, 9, 10, 19, 20, 99]))
    assert {k: np.flatnonzero(v).tolist() for k, v in lengths.items()} == {
        "history_0_4": [0, 1],
        "history_5_9": [2, 3],
        "history_10_19": [4, 5],
        "history_20_up": [6, 7],
    }


def test_settings_that_would_falsify_a_figure_are_refused():
    with pytest.raises(ConfigError, match="would cap recall"):
        report(beam=5)
    with pytest.raises(ConfigError, match="needs the semantic IDs"):
        bare = EvaluationContext(train_counts_N=COUNTS, split_rule="x", part="test")
        report(context=bare, shared_codes=True)
    with pytest.raises(DataError, match="has no 'recall@3'"):
        report().value("recall@3")


def test_the_context_of_a_split_counts_training_events_only():
    train = Histories.from_lists([[0, 0], [1]])
    examples = random_examples(np.random.default_rng(0), 3, 4)
    split = Split(train, examples, examples, 4, "leave-one-out")
    context = EvaluationContext.of(split, part="valid")
    assert context.train_counts_N.tolist() == [2, 1, 0, 0] and context.part == "valid"
    with pytest.raises(ConfigError, match="'valid' or 'test'"):
        EvaluationContext.of(split, part="all")


def test_progress_is_reported_until_the_last_example():
    seen = []
    report(on_batch=lambda done, total: seen.append((done, total)), batch_size=32)
    assert seen == [(32, Q), (64, Q), (80, Q)]


def test_scores_on_integers_are_ranked_as_numbers():
    context = EvaluationContext(train_counts_N=COUNTS, split_rule="x", part="test")
    counts = torch.arange(N)
    r = evaluate(
        "ints",
        examples_of(),
        context=context,
        scores=lambda batch: counts.expand(batch.num_requests, -1),
        max_length=5,
    )
    assert r.value("recall@10") == pytest.approx((examples_of().targets >= N - 10).mean())
