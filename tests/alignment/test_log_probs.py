"""Many IDs after one history, in one pass: equal to one by one, and to what decoding gives them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec import methods
from sidrec.alignment.log_probs import id_lengths, packed_log_probs
from sidrec.decoding.exact import item_log_probs
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import DataError
from sidrec.testing.generators import built, tiny_index
from sidrec.testing.tiny_catalogue import small_config, tiny_batch, tiny_context
from sidrec.types import SemanticIds

GENERATORS = ("causal", "tiger", "s2gr", "s2gr_tiger", "parallel", "liger", "cobra", "barge")


def model_of(name):
    method_class = methods.resolve("generators", name)
    return built(method_class, small_config(method_class.config_class))


def codes_of(index, rows_BK):
    symbols = index.codes(rows_BK)
    return torch.where(symbols >= torch.tensor(index.num_codes), -1, symbols)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_a_pack_equals_separate_passes(name, renormalise):
    model, batch, index = model_of(name), tiny_batch(), tiny_index()
    codes_BKL = codes_of(index, torch.arange(20).view(5, 4))
    packed = packed_log_probs(model, batch, codes_BKL, index, renormalise=renormalise).token_BKL
    for k in range(4):
        alone = packed_log_probs(
            model, batch, codes_BKL[:, k : k + 1], index, renormalise=renormalise
        ).token_BKL
        torch.testing.assert_close(packed[:, k : k + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_sums_are_the_scores_of_decoding(name):
    model, batch, index = model_of(name), tiny_batch(), tiny_index()
    rows_BK = torch.arange(20).view(5, 4)
    codes_BKL = codes_of(index, rows_BK)
    legal = packed_log_probs(model, batch, codes_BKL, index, renormalise=True).token_BKL.sum(-1)
    with torch.no_grad():
        expected = item_log_probs(model, batch, index, rows_BK)
    torch.testing.assert_close(legal, expected, rtol=1e-4, atol=1e-4)
    free = packed_log_probs(model, batch, codes_BKL, index, renormalise=False).token_BKL.sum(-1)
    torch.testing.assert_close(free, model.log_probs(batch, codes_BKL), rtol=1e-4, atol=1e-4)
    assert (legal >= free - 1e-4).all()


def test_the_order_of_a_pack_carries_no_signal():
    model, batch, index = model_of("causal"), tiny_batch(), tiny_index()
    codes_BKL, order = codes_of(index, torch.arange(20).view(5, 4)), [2, 0, 3, 1]
    packed = packed_log_probs(model, batch, codes_BKL, index, renormalise=True).token_BKL
    moved = packed_log_probs(model, batch, codes_BKL[:, order], index, renormalise=True).token_BKL
    torch.testing.assert_close(moved, packed[:, order], rtol=1e-6, atol=1e-6)


def test_no_id_has_no_log_probability_and_no_gradient():
    model, batch, index = model_of("causal"), tiny_batch(), tiny_index()
    codes_BKL = codes_of(index, torch.arange(10).view(5, 2))
    codes_BKL[:, 1] = -1
    packed = packed_log_probs(model, batch, codes_BKL, index, renormalise=True).token_BKL
    assert (packed[:, 1] == 0).all()
    packed[:, 1].sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_an_id_nobody_has_is_refused_over_legal_codes_and_scored_over_all():
    model, batch, index = model_of("causal"), tiny_batch(), tiny_index()
    held = {tuple(codes) for codes in tiny_context().semantic_ids.codes.tolist()}
    nobody = next(c for c in np.ndindex(4, 3, 2) if c not in held)
    codes_BKL = torch.tensor(nobody).expand(5, 1, -1)
    with pytest.raises(DataError, match="renormalise"):
        packed_log_probs(model, batch, codes_BKL, index, renormalise=True)
    found = packed_log_probs(model, batch, codes_BKL, index, renormalise=False)
    assert (found.token_BKL < 0).all()


def test_the_end_of_a_shorter_id_is_a_code_of_it():
    context = tiny_context()
    codes = context.semantic_ids.codes.copy()
    codes[3, 2] = -1
    codes[7, 1:] = -1
    ids = SemanticIds(context.items.item_ids, codes, context.semantic_ids.num_codes)
    method_class = methods.resolve("generators", "causal")
    model = method_class.build(
        replace(context, semantic_ids=ids), small_config(method_class.config_class)
    ).eval()
    index, batch = PrefixIndex.build(ids), tiny_batch()
    rows_BK = torch.tensor([[3, 7, 0]]).expand(5, -1)
    codes_BKL = torch.from_numpy(codes)[rows_BK]
    assert id_lengths(codes_BKL, index.widths, index.num_codes)[0].tolist() == [3, 2, 3]
    packed = packed_log_probs(model, batch, codes_BKL, index, renormalise=True).token_BKL
    expected = item_log_probs(model, batch, index, rows_BK)
    torch.testing.assert_close(packed.sum(-1), expected, rtol=1e-4, atol=1e-4)
