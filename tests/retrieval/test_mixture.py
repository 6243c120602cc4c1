from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import sidrec
from sidrec import config
from sidrec.decoding.exact import exact_scores
from sidrec.errors import ConfigError, DataError
from sidrec.recipe import RETRIEVER
from sidrec.retrieval.mixture import Mixture, MixtureConfig, with_item
from sidrec.retrieval.top_items import top_items
from sidrec.types import PAD, HistoryBatch


def mixture(systems, **settings):
    return Mixture.build(systems, MixtureConfig(**settings))


def exact(systems, batch):
    return exact_scores(systems.generator.value, batch, systems.index)


def test_weight_0_ranks_the_retrieved_by_the_generator_and_weight_1_by_the_retriever(
    systems, questions
):
    retrieved = top_items(systems.scores("dense", questions), 15).rows_BK
    by_generator = exact(systems, questions).numpy()
    for rule in ("log_linear", "mixture"):
        first, last = (
            mixture(systems, num_retrieved=15, rule=rule, weight=w).answer(questions, 15).rows_BK
            for w in (0.0, 1.0)
        )
        np.testing.assert_array_equal(last, retrieved)
        for row, found, pool in zip(range(len(first)), first, retrieved, strict=True):
            expected = pool[np.argsort(-by_generator[row, pool], kind="stable")]
            np.testing.assert_allclose(
                by_generator[row, found], by_generator[row, expected], atol=1e-4
            )


def test_scores_are_the_formulas_of_the_docstring(systems, questions):
    weight = 0.3
    asked = mixture(systems, num_retrieved=7, weight=weight, temperature=2.0)
    rows_BP, generated_BP, told_BP = asked.opinions(questions)
    scores_BN = systems.scores("dense", questions)
    p_r = (scores_BN.gather(1, rows_BP) / 2.0).double().softmax(1)
    torch.testing.assert_close(told_BP.double().exp(), p_r, rtol=1e-4, atol=1e-6)
    p_gen = exact(systems, questions).gather(1, rows_BP).double().exp()
    torch.testing.assert_close(generated_BP.double().exp(), p_gen, rtol=1e-3, atol=1e-7)
    _, (log_linear_BP,) = asked.scored(questions, [weight])
    torch.testing.assert_close(
        log_linear_BP.double(), (1 - weight) * p_gen.log() + weight * p_r.log(), rtol=0, atol=1e-3
    )
    asked = mixture(systems, num_retrieved=7, temperature=2.0, rule="mixture")
    _, (mixture_BP,) = asked.scored(questions, [weight])
    shared = (1 - weight) * p_gen / p_gen.sum(1, keepdim=True) + weight * p_r
    torch.testing.assert_close(mixture_BP.double().exp(), shared, rtol=1e-3, atol=1e-6)


def test_evidence_adds_up_the_histories_with_one_retrieved_item_more(systems, questions):
    asked = mixture(systems, num_retrieved=6, rule="evidence", num_evidence=2)
    rows_BP, _, told_BP = asked.opinions(questions)
    _, (scores_BP,) = asked.scored(questions, [1.0])
    total_BP, weights_BP = torch.zeros(scores_BP.shape, dtype=torch.float64), told_BP.exp()
    for j in range(2):
        longer = with_item(questions, rows_BP[:, j])
        given_BP = exact(systems, longer).gather(1, rows_BP).double().softmax(1)
        share_B1 = weights_BP[:, j : j + 1] / weights_BP[:, :2].sum(1, keepdim=True)
        total_BP += share_B1 * given_BP
    torch.testing.assert_close(scores_BP.double().exp(), total_BP, rtol=1e-3, atol=1e-6)


def test_an_item_is_put_after_the_history_and_no_item_changes_nothing():
    batch = HistoryBatch(torch.tensor([[3, 4, 5], [6, PAD, PAD]]), torch.tensor([3, 1]))
    longer = with_item(batch, torch.tensor([9, 8]))
    assert longer.items_BT.tolist() == [[3, 4, 5, 9], [6, 8, PAD, PAD]]
    assert longer.lengths_B.tolist() == [4, 2]
    same = with_item(batch, torch.tensor([PAD, PAD]))
    assert same.lengths_B.tolist() == [3, 1] and same.items_BT[1].tolist() == [6, PAD, PAD, PAD]


def test_items_of_the_generator_can_join(systems, questions):
    rows_BP, *_ = mixture(systems, num_retrieved=5, num_generated=5).opinions(questions)
    dense = top_items(systems.scores("dense", questions), 5).rows_BK
    own = systems.generate(questions, 5).rows_BK
    for row, pool in enumerate(rows_BP.tolist()):
        assert set(pool) - {PAD} == set(dense[row]) | set(own[row])


def test_rules_leave_k_items_where_k_exist(systems, questions):
    num_items, num_requests = len(systems.items), questions.num_requests
    keep_N = np.zeros(num_items, dtype=bool)
    keep_N[:12] = True
    exclude = [np.array([0, 5])] * num_requests
    asked = mixture(systems, num_retrieved=3, weight=0.5)
    found = asked.answer(questions, 10, exclude, keep_N).rows_BK
    for row in found:
        assert sorted(row) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    asked.answer(questions, 14, exclude, keep_N)  # fewer than k: the rest is empty
    assert (asked.answer(questions, 14, exclude, keep_N).rows_BK[:, 10:] == PAD).all()
    nothing = asked.answer(questions, 3, None, np.zeros(num_items, dtype=bool))
    assert (nothing.rows_BK == PAD).all()


def test_the_weight_chosen_is_the_best_of_validation(systems, valid):
    few = valid.take(np.arange(40))
    tuned = mixture(systems, num_retrieved=20).tuned(few)
    batch = HistoryBatch.from_histories(few.histories, max_length=50)

    def ndcg(weight):
        rows_BK = mixture(systems, num_retrieved=20, weight=weight).answer(batch, 10).rows_BK
        hit_BK = rows_BK == few.targets[:, None]
        return (hit_BK / np.log2(np.arange(2, 12))).sum()

    found = {step / 20: ndcg(step / 20) for step in range(21)}
    assert found[tuned.weight] == pytest.approx(max(found.values()), abs=1e-9)
    assert min(found.values()) < max(found.values())
    fixed = MixtureConfig(weight=0.25)
    assert Mixture.build(systems, fixed).tuned(few) == fixed


def test_a_bundle_keeps_its_retrievers(systems, questions, tmp_path):
    chosen = config.method(RETRIEVER, "mixture", weight=0.4, num_retrieved=9)
    more = replace(systems, retrievers=(chosen,))
    assert "mixture" in more.systems
    more.save(tmp_path / "bundle")
    loaded = sidrec.load(tmp_path / "bundle")
    assert loaded.retrievers == (chosen,)
    before, after = (r.answer("mixture", questions, 5).rows_BK for r in (more, loaded))
    np.testing.assert_array_equal(before, after)
    history = [str(systems.items.item_ids[0])]
    assert loaded.recommend(history, k=3, system="mixture")["source"].to_list() == ["mixture"] * 3


def test_bad_settings_say_what_to_do(systems, questions):
    with pytest.raises(DataError, match=r"'easy'.*scorers are .*dense"):
        mixture(systems, retriever="easy")
    with pytest.raises(ConfigError, match=r"weight is not chosen"):
        mixture(systems).answer(questions, 3)
    for bad in ({"weight": 1.5}, {"temperature": 0.0}, {"num_retrieved": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            MixtureConfig(**bad)
