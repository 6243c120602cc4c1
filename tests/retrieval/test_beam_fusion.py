"""IDs from the beam, items below them by a predicted vector, and the product of both shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import sidrec
from sidrec import config, pipeline, recipe
from sidrec.bundle import serving_context
from sidrec.errors import ConfigError, DataError
from sidrec.fitted import Fitted
from sidrec.generators.cobra import Cobra, CobraConfig
from sidrec.recipe import COLLISIONS, GENERATOR, RETRIEVER, TOKENIZER, HybridConfig
from sidrec.retrieval import beam_fusion
from sidrec.retrieval.beam_fusion import BeamFusion, BeamFusionConfig, distinct_ids, filled
from sidrec.retrieval.top_items import top_items
from sidrec.transformer import distinct
from sidrec.types import PAD, Candidates, HistoryBatch, SemanticIds

PAPER = {"tau": 0.9, "psi": 16.0}


@pytest.fixture(scope="module")
def bundle(tiny):
    """A small fit with coarse IDs: 3 codes a level, several items an ID."""
    settings = replace(
        recipe.load_config(tiny.recipe),
        tokenizer=config.method(TOKENIZER, "residual_kmeans", num_levels=2, num_codes=3),
        collisions=config.method(COLLISIONS, "keep"),
        generator=config.method(
            GENERATOR, "cobra", width=16, depth_hidden=16, dense_hidden=16, num_layers=1,
            train={"epochs": 2, "batch_positions": 256},
        ),
        scorers=(),
        retrievers=(config.method(RETRIEVER, "beam_fusion"),),
        hybrid=HybridConfig(members=()),
    )  # fmt: skip
    return pipeline.fit(tiny.run.dataset, settings)


def with_codes(bundle, codes_NL, num_codes):
    """The bundle with an untrained, shaken model of other IDs."""
    ids = SemanticIds(bundle.items.item_ids, codes_NL.astype(np.int64), num_codes)
    settings = CobraConfig(width=16, depth_hidden=16, dense_hidden=16, num_layers=1)
    model = Cobra.build(serving_context(bundle.items, bundle.vectors, ids), settings)
    with torch.no_grad():
        torch.manual_seed(3)
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    fitted = Fitted(stage="generators", name="cobra", config=settings, value=model.eval())
    return replace(bundle, ids=ids, generator=fitted, index_override=None)


def fusion(systems, **settings):
    return BeamFusion.build(systems, BeamFusionConfig(**(PAPER | settings)))


def cosines(systems, batch, row_of_id):
    """(B, N) cosine of every item with the vector predicted for the ID of `row_of_id`."""
    model, items_ND = systems.generator.value, systems.generator.value.dense_items()
    with torch.inference_mode():
        symbols_B1L = model.symbols_NL[row_of_id].expand(batch.num_requests, 1, -1)
        users_BD = model.dense_states(batch, symbols_B1L)[:, 0]
        rows_N = torch.arange(len(items_ND))
        logits_BN = model.dense.logits(users_BD, items_ND, rows_N, distinct(batch))
        return logits_BN * model.dense.temperature()


def test_one_id_for_all_items_is_dense_retrieval(bundle, questions):
    systems = with_codes(bundle, np.zeros((len(bundle.items), 1)), (1,))
    expected = top_items(cosines(systems, questions, 0), 12).rows_BK
    for num_per_id in (5, 60):  # the first is too few for the list and is filled up
        found = fusion(systems, num_per_id=num_per_id).answer(questions, 12)
        np.testing.assert_array_equal(found.rows_BK, expected)
    everywhere = fusion(systems, within_ids=False).answer(questions, 12)
    np.testing.assert_array_equal(everywhere.rows_BK, expected)


def test_with_an_id_for_each_item_the_order_is_the_beams(bundle, questions):
    num_items = len(bundle.items)
    codes_NL = np.stack([np.arange(num_items) // 8, np.arange(num_items) % 8], axis=1)
    systems = with_codes(bundle, codes_NL, (-(-num_items // 8), 8))
    expected = systems.generate(questions, 12)
    for settings in ({}, {"fusion": False}, {"tau": 0.1, "psi": 50.0}):
        found = fusion(systems, **settings).answer(questions, 12)
        np.testing.assert_array_equal(found.rows_BK, expected.rows_BK)


def test_the_whole_catalogue_is_compared_given_an_id_that_the_rules_leave(bundle, questions):
    """Two IDs, one of them forbidden: the vector is that of the other, for every request."""
    codes_N1 = (np.arange(len(bundle.items)) % 2)[:, None]
    systems = with_codes(bundle, codes_N1, (2,))
    for left in (0, 1):
        keep_N = codes_N1[:, 0] == left
        found = fusion(systems, within_ids=False).answer(questions, 12, keep_N=keep_N)
        logits_BN = cosines(systems, questions, left)
        expected = top_items(logits_BN, 12, None, keep_N).rows_BK
        np.testing.assert_array_equal(found.rows_BK, expected)
    nothing = np.zeros(len(bundle.items), dtype=bool)
    assert (
        fusion(systems, within_ids=False).answer(questions, 3, keep_N=nothing).rows_BK == PAD
    ).all()


def test_a_score_is_the_product_of_both_shares(bundle, questions):
    asked = fusion(bundle, num_ids=4, num_per_id=3)
    found = asked.answer(questions, 6)
    codes_NL = bundle.ids.codes
    beams = BeamFusion.compared(asked, questions, 4, len(bundle.items))
    for request in range(questions.num_requests):
        scores, phis = {}, []
        for m in range(4):
            phi = beams.phi_BM[request, m].item()
            if phi == -np.inf:
                continue
            carrier = int(beams.rows_BMA[request, m, 0])
            below = np.flatnonzero((codes_NL == codes_NL[carrier]).all(axis=1))
            one = HistoryBatch(
                questions.items_BT[request : request + 1], questions.lengths_B[request, None]
            )
            near = cosines(bundle, one, carrier)[0, below].double()
            nearest = near.argsort(descending=True)[:3]
            shares = (16.0 * near[nearest]).softmax(0)
            phis.append(phi)
            scores |= {
                int(below[i]): (m, share.item()) for i, share in zip(nearest, shares, strict=True)
            }
        of_id = (0.9 * torch.tensor(phis).double()).softmax(0)
        expected = {item: (of_id[m] * share).item() for item, (m, share) in scores.items()}
        best = sorted(expected, key=lambda item: -expected[item])[:6]
        np.testing.assert_allclose(
            np.exp(found.scores_BK[request]), [expected[item] for item in best], rtol=1e-3
        )
        assert set(found.rows_BK[request].tolist()) <= set(expected)


def test_phi_is_the_log_probability_of_the_whole_id(bundle, questions):
    beams = fusion(bundle).compared(questions, 4, 2)
    carriers_BM = beams.rows_BMA[..., 0]
    real_BM = carriers_BM != PAD
    generated = bundle.generate(questions, len(bundle.items))
    total = np.zeros((questions.num_requests, len(bundle.items)))
    np.put_along_axis(total, generated.rows_BK, np.exp(generated.scores_BK), axis=1)
    codes_NL = bundle.ids.codes
    for request, m in real_BM.nonzero().tolist():
        same = (codes_NL == codes_NL[int(carriers_BM[request, m])]).all(axis=1)
        whole = total[request, same].sum()
        assert np.exp(beams.phi_BM[request, m].item()) == pytest.approx(whole, rel=1e-3)


def test_without_fusion_ids_follow_each_other_and_the_nearest_come_first(bundle, questions):
    asked = fusion(bundle, fusion=False, num_ids=3, num_per_id=2)
    beams = asked.compared(questions, 3, 2)
    found = asked.answer(questions, 6)
    for request, rows in enumerate(found.rows_BK[:, :4].tolist()):
        listed = [row for row in beams.rows_BMA[request].flatten().tolist() if row != PAD]
        assert rows == listed[:4]


def test_a_larger_tau_lists_fewer_ids(bundle, questions):
    means = [
        distinct_ids(fusion(bundle, tau=tau).answer(questions, 8).rows_BK, bundle.ids.codes).mean()
        for tau in (0.01, 1.0, 30.0)
    ]
    assert means[0] > means[1] > means[2]


def test_distinct_ids_counts_each_id_once_and_no_item_never():
    codes_NL = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
    rows_BK = np.array([[0, 1, 2], [1, 0, PAD], [3, 2, 0], [PAD, PAD, PAD]])
    assert distinct_ids(rows_BK, codes_NL).tolist() == [2, 1, 3, 0]


def test_rules_hold_and_k_items_come_back_whenever_k_exist(bundle, questions):
    num_items = len(bundle.items)
    keep_N = np.arange(num_items) % 3 != 0
    exclude = [np.arange(row, row + 9) for row in range(questions.num_requests)]
    for settings in (
        {"num_ids": 1, "num_per_id": 1},
        {},
        {"fusion": False, "num_ids": 2, "num_per_id": 2},
        {"within_ids": False},
    ):
        found = fusion(bundle, **settings).answer(questions, num_items, exclude, keep_N)
        for row, forbidden in zip(found.rows_BK, exclude, strict=True):
            allowed = set(np.flatnonzero(keep_N).tolist()) - set(forbidden.tolist())
            real = row[row != PAD]
            assert set(real.tolist()) == allowed and len(real) == len(allowed)
    nothing = fusion(bundle).answer(questions, 3, None, np.zeros(num_items, dtype=bool))
    assert (nothing.rows_BK == PAD).all()


def test_filling_up_keeps_the_list_and_adds_what_it_lacks():
    found = Candidates(
        np.array([[4, 2, PAD, PAD], [1, 2, 3, 4]]),
        np.array([[-0.5, -2.0, -np.inf, -np.inf], [0, -1, -2, -3]], dtype=np.float32),
    )
    more = Candidates(
        np.array([[2, 9, 4, 7]]), np.array([[-0.1, -0.2, -0.3, -0.4]], dtype=np.float32)
    )
    both = filled(found, np.array([0]), more)
    assert both.rows_BK.tolist() == [[4, 2, 9, 7], [1, 2, 3, 4]]
    assert both.scores_BK.tolist() == [[-0.5, -2.0, -3.0, -4.0], [0, -1, -2, -3]]
    none = Candidates(np.full((1, 2), PAD), np.full((1, 2), -np.inf, dtype=np.float32))
    assert filled(none, np.array([0]), none).rows_BK.tolist() == [[PAD, PAD]]


def test_a_request_does_not_depend_on_the_others_of_its_batch(bundle, questions):
    asked = fusion(bundle, num_ids=2, num_per_id=2)
    together = asked.answer(questions, 4)
    for row in range(6):
        one = HistoryBatch(questions.items_BT[row : row + 1], questions.lengths_B[row : row + 1])
        alone = asked.answer(one, 4)
        np.testing.assert_array_equal(alone.rows_BK[0], together.rows_BK[row])


def test_tau_and_psi_are_the_best_of_validation(bundle, valid, monkeypatch):
    monkeypatch.setattr(beam_fusion, "TAUS", (0.2, 2.0))
    monkeypatch.setattr(beam_fusion, "PSIS", (1.0, 30.0))
    few = valid.take(np.arange(40))
    batch = HistoryBatch.from_histories(few.histories, max_length=50)
    told = []
    tuned = BeamFusion.build(bundle, BeamFusionConfig(num_ids=9)).tuned(
        few, lambda done, total: told.append((done, total))
    )

    def ndcg(tau, psi):
        rows_BK = fusion(bundle, num_ids=9, tau=tau, psi=psi).answer(batch, 10).rows_BK
        return ((rows_BK == few.targets[:, None]) / np.log2(np.arange(2, 12))).sum()

    found = {(tau, psi): ndcg(tau, psi) for tau in (0.2, 2.0) for psi in (1.0, 30.0)}
    assert found[tuned.tau, tuned.psi] == pytest.approx(max(found.values()), abs=1e-6)
    assert min(found.values()) < max(found.values()) and told == [(40, 40)]
    half = BeamFusion.build(bundle, BeamFusionConfig(tau=0.7)).tuned(few)
    assert half.tau == 0.7 and half.psi in (1.0, 30.0)
    fixed = BeamFusionConfig(fusion=False)
    assert BeamFusion.build(bundle, fixed).tuned(few) == fixed


def test_a_bundle_keeps_it_and_an_added_item_can_be_found(bundle, questions, tmp_path):
    (chosen,) = bundle.retrievers
    assert chosen.config.tau is not None and chosen.config.psi is not None  # the fit chose them
    bundle.save(tmp_path / "bundle")
    loaded = sidrec.load(tmp_path / "bundle")
    assert loaded.retrievers == (chosen,)
    before, after = (r.answer("beam_fusion", questions, 5) for r in (bundle, loaded))
    np.testing.assert_array_equal(before.rows_BK, after.rows_BK)
    like = bundle.items.attributes.row(int(bundle.train_counts_N.argmax()), named=True)
    more = loaded.add_items(pl.DataFrame([{**like, "item_id": "brand-new"}]))
    row = len(bundle.items)
    every = more.answer("beam_fusion", questions, row + 1)
    assert ((every.rows_BK == row).sum(axis=1) == 1).all()
    only_N = np.zeros(row + 1, dtype=bool)
    only_N[row] = True
    only = more.answer("beam_fusion", questions, 2, keep_N=only_N)
    assert only.rows_BK.tolist() == [[row, PAD]] * questions.num_requests


def test_bad_settings_say_what_to_do(systems, bundle, questions):
    with pytest.raises(DataError, match=r"a vector given an ID, got 'causal'.*name to cobra"):
        fusion(systems)
    with pytest.raises(ConfigError, match=r"tau and psi are not chosen; set them, or tune"):
        BeamFusion.build(bundle, BeamFusionConfig()).answer(questions, 3)
    for bad in ({"num_ids": 0}, {"num_per_id": 0}, {"tau": 0.0}, {"psi": -1.0}):
        with pytest.raises(ConfigError, match=f"beam_fusion.{next(iter(bad))} must be"):
            BeamFusionConfig(**bad)
