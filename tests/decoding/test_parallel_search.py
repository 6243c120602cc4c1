"""Searches over sums of codes, held against plain sums over the catalogue."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidrec.decoding.item_graph import exact_neighbours, item_graph, projected_neighbours
from sidrec.decoding.parallel import (
    Question,
    Sharing,
    best,
    columns_of,
    exact_scores,
    exact_search,
    graph_search,
    item_sums,
)
from sidrec.errors import DataError

LEVELS, WIDTH = 4, 6
COLUMNS = LEVELS * WIDTH + 1


def make_places(num_items, seed=0):
    """Items around a few prototypes, so that neighbours share codes; some IDs end early."""
    random = np.random.default_rng(seed)
    prototypes = random.integers(0, WIDTH, (5, LEVELS))
    codes = prototypes[random.integers(0, 5, num_items)]
    codes = np.where(
        random.random(codes.shape) < 0.4, random.integers(0, WIDTH, codes.shape), codes
    )
    places = codes + np.arange(LEVELS) * WIDTH
    places[: num_items // 6, -1] = COLUMNS - 1
    return torch.from_numpy(places).int()


def make_question(num_requests, num_items, seed=1, **changes):
    random = torch.Generator().manual_seed(seed)
    logits_BLV = 2 * torch.randn(num_requests, LEVELS, WIDTH, generator=random)
    table_BS = F.pad(logits_BLV.log_softmax(-1).flatten(1), (0, 1))
    seen_BT = torch.stack([torch.randperm(num_items, generator=random)[:3]] * num_requests)
    seen_BT[0, 1:] = -1
    return Question(table_BS, seen_BT, torch.tensor([-1.5]), **changes)


def plain_scores(question, places_NL):
    scores_BN = question.table_BS[:, places_NL.long()].sum(2)
    for row, seen in enumerate(question.seen_BT.tolist()):
        for item in seen:
            if item >= 0:
                scores_BN[row, item] += question.bonus[0]
    return scores_BN


def plain_ranking(question, places_NL, k):
    """Rows by Python's sort: allowed ones, best first, then lower rows; and their log-softmax."""
    out = []
    for row, scores in enumerate(plain_scores(question, places_NL).double().tolist()):
        banned = set() if question.excluded_BX is None else set(question.excluded_BX[row].tolist())
        allowed = [
            item
            for item in range(len(scores))
            if item not in banned and (question.allowed_N is None or question.allowed_N[item])
        ]
        total = np.logaddexp.reduce([scores[i] for i in allowed]) if allowed else 0.0
        ordered = sorted(allowed, key=lambda i: (-round(scores[i], 5), i))[:k]
        out.append([(item, scores[item] - total) for item in ordered])
    return out


def assert_equals_plain(found, expected, k):
    assert found.rows_BK.shape == found.scores_BK.shape == (len(expected), k)
    for rows, scores, listed in zip(found.rows_BK, found.scores_BK, expected, strict=True):
        assert rows.tolist() == [item for item, _ in listed] + [-1] * (k - len(listed))
        np.testing.assert_allclose(scores[: len(listed)], [s for _, s in listed], atol=1e-4)
        assert (scores[len(listed) :] == -np.inf).all()


RULES = {
    "none": {},
    "predicate": {"allowed_N": torch.arange(90) % 3 != 0},
    "exclusions": {"excluded_BX": torch.tensor([[0, 7, -1, 500]] * 40)},
    "both": {
        "allowed_N": torch.arange(90) < 12,
        "excluded_BX": torch.arange(40)[:, None] % 12,
    },
    "nothing left": {"allowed_N": torch.zeros(90, dtype=torch.bool)},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("k", [1, 10, 90, 95])
def test_exact_search_sorts_all_sums_that_the_rules_leave(rules, k):
    places_NL = make_places(90)
    question = make_question(40, 90, **rules)  # more requests than one block
    found = exact_search(question, places_NL, k)
    assert_equals_plain(found, plain_ranking(question, places_NL, k), k)


@pytest.mark.parametrize("num_requests", [1, 5, 33])
def test_sums_of_any_number_of_requests_equal_plain_sums(num_requests):
    places_NL, question = make_places(50), make_question(num_requests, 50)
    plain_BN = question.table_BS[:, places_NL.long()].sum(2)
    torch.testing.assert_close(item_sums(question.table_BS, places_NL).T, plain_BN)
    torch.testing.assert_close(exact_scores(question, places_NL), plain_scores(question, places_NL))


def test_ties_at_the_cut_keep_the_lower_places():
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 1.0], [0.0, -torch.inf, 2.0, 2.0, 2.0, 0.0]])
    values, places = best(scores, 3)
    assert places.tolist() == [[1, 3, 0], [2, 3, 4]]
    assert values.tolist() == [[3.0, 3.0, 1.0], [2.0, 2.0, 2.0]]
    many = torch.zeros(1, 5000)
    assert best(many, 20)[1].tolist() == [list(range(20))]


def test_items_of_one_id_divide_its_probability_among_those_that_may_be_returned():
    places_NL = torch.tensor([[0, 4], [0, 4], [1, 5], [0, 4]]).int()
    table_BS = torch.tensor([[0.5, 0.5, 1, 1, 0.5, 0.5, 1, 1, 1.0]]).log().expand(2, -1)
    nobody_BT = torch.full((2, 1), -1)
    sharing = Sharing(torch.tensor([0, 0, 1, 0]), torch.tensor([1.0, 2.0, 5.0, 3.0]))
    excluded_BX = torch.tensor([[-1, -1], [3, -1]])
    question = Question(
        table_BS, nobody_BT, torch.zeros(1), excluded_BX=excluded_BX, sharing=sharing
    )
    allowed_N = torch.tensor([True, True, True, True])
    graph = item_graph(torch.eye(4).expand(2, 4, 4), places_NL, num_neighbours=3, num_starts=1)
    for asked in (question, replace(question, allowed_N=allowed_N)):
        walked = graph_search(asked, places_NL, graph, 4, beam_width=4, num_steps=4)
        for found in (exact_search(asked, places_NL, 4), walked):
            assert found.rows_BK.tolist() == [[2, 3, 1, 0], [2, 1, 0, -1]]
            expected = [[1 / 2, 3 / 12, 2 / 12, 1 / 12], [1 / 2, 2 / 6, 1 / 6, 0]]
            np.testing.assert_allclose(np.exp(found.scores_BK), expected, rtol=1e-5)
    without_two = replace(question, allowed_N=torch.tensor([True, False, True, True]))
    found = exact_search(without_two, places_NL, 4)
    assert found.rows_BK.tolist() == [[2, 3, 0, -1], [0, 2, -1, -1]]
    np.testing.assert_allclose(np.exp(found.scores_BK[0, :3]), [1 / 2, 3 / 8, 1 / 8], rtol=1e-5)
    whole_id = torch.tensor([[0, 1, 3], [3, -1, -1]])  # nobody is left of the first request's ID
    asked = replace(question, excluded_BX=whole_id)
    walked = graph_search(asked, places_NL, graph, 4, beam_width=4, num_steps=4)
    for found in (exact_search(asked, places_NL, 4), walked):
        assert found.rows_BK.tolist() == [[2, -1, -1, -1], [2, 1, 0, -1]]
        np.testing.assert_allclose(np.exp(found.scores_BK[:, 0]), [1, 1 / 2], rtol=1e-5)


def test_columns_list_the_items_that_hold_each_code():
    places_NL = make_places(40)
    columns = columns_of(places_NL, COLUMNS)
    ends = [*columns.starts_S.tolist()[1:], len(columns.items_E)]
    for column, (start, end) in enumerate(zip(columns.starts_S.tolist(), ends, strict=True)):
        holders = (places_NL == column).any(1).nonzero()[:, 0]
        assert columns.items_E[start:end].tolist() == holders.tolist()


def similarity(seed=3):
    codes_LVD = torch.randn(LEVELS, WIDTH, 5, generator=torch.Generator().manual_seed(seed))
    return codes_LVD @ codes_LVD.transpose(1, 2)


def plain_similarities(similarity_LVV, places_NL):
    num_items = len(places_NL)
    total = torch.zeros(num_items, num_items)
    for level in range(LEVELS):
        codes_N = places_NL[:, level].long() - level * WIDTH
        ended_N = codes_N >= WIDTH
        part = similarity_LVV[level][codes_N.clamp_max(WIDTH - 1)][:, codes_N.clamp_max(WIDTH - 1)]
        total += part.masked_fill(ended_N | ended_N[:, None], 0.0)
    return total


def test_neighbours_are_the_most_similar_other_items():
    places_NL, similarity_LVV = make_places(70), similarity()
    plain_NN = plain_similarities(similarity_LVV, places_NL).fill_diagonal_(-torch.inf)
    found_NK = exact_neighbours(similarity_LVV, places_NL, 9).long()
    assert (found_NK != torch.arange(70)[:, None]).all()
    torch.testing.assert_close(plain_NN.gather(1, found_NK), plain_NN.topk(9).values)
    everything = exact_neighbours(similarity_LVV, places_NL[:4], 9)
    assert (everything[:, 3:] == -1).all() and (everything[:, :3] >= 0).all()


def test_projections_find_nearly_the_same_neighbours():
    places_NL, similarity_LVV = make_places(1500), similarity()
    plain_NN = plain_similarities(similarity_LVV, places_NL).fill_diagonal_(-torch.inf)
    found_NK = projected_neighbours(similarity_LVV, places_NL, 10).long()
    assert (found_NK != torch.arange(1500)[:, None]).all()
    values_NK = plain_NN.gather(1, found_NK)
    assert (values_NK.diff(dim=1) <= 1e-5).all()
    ratio = values_NK.mean() / plain_NN.topk(10).values.mean()
    assert 0.97 < ratio <= 1 + 1e-6


def test_a_complete_graph_finds_what_exact_scoring_finds():
    places_NL = make_places(90)
    graph = item_graph(similarity(), places_NL, num_neighbours=89, num_starts=5)
    for rules in RULES.values():
        question = make_question(40, 90, **rules)
        found = graph_search(question, places_NL, graph, 10, beam_width=10, num_steps=3)
        exact = exact_search(question, places_NL, 10)
        np.testing.assert_array_equal(found.rows_BK, exact.rows_BK)


def alike_question(num_requests, num_items):
    """As a model asks: codes that are alike have scores that are alike."""
    random = torch.Generator().manual_seed(8)
    codes_LVD = F.normalize(torch.randn(LEVELS, WIDTH, 5, generator=random), dim=-1)
    states_BD = 3 * torch.randn(num_requests, 5, generator=random)
    logits_BLV = torch.einsum("bd,lvd->blv", states_BD, codes_LVD)
    question = make_question(num_requests, num_items)
    table_BS = F.pad(logits_BLV.log_softmax(-1).flatten(1), (0, 1))
    return replace(question, table_BS=table_BS), codes_LVD @ codes_LVD.transpose(1, 2)


def raw_scores_of(found, question, places_NL):
    scores_BN = plain_scores(question, places_NL)
    rows_BK = torch.from_numpy(found.rows_BK)
    return scores_BN.gather(1, rows_BK.clamp_min(0)).masked_fill(rows_BK < 0, -torch.inf)


def test_no_graph_search_beats_exact_scoring_at_any_rank_and_steps_only_help():
    places_NL = make_places(2000).unique(dim=0)  # copies would have each other as neighbours
    question, alike_LVV = alike_question(40, len(places_NL))
    question = replace(question, excluded_BX=torch.arange(80).view(40, 2))
    graph = item_graph(alike_LVV, places_NL, num_neighbours=12, num_starts=10)
    exact_BK = raw_scores_of(exact_search(question, places_NL, 10), question, places_NL)
    before_BK, shares = torch.full_like(exact_BK, -torch.inf), []
    for num_steps in (0, 1, 2, 6):
        found = graph_search(question, places_NL, graph, 10, beam_width=20, num_steps=num_steps)
        for rows, banned in zip(found.rows_BK, question.excluded_BX, strict=True):
            assert len(set(rows.tolist()) - set(banned.tolist())) == 10
        scores_BK = raw_scores_of(found, question, places_NL)
        assert (scores_BK <= exact_BK + 1e-5).all()
        assert (scores_BK >= before_BK - 1e-5).all()
        before_BK = scores_BK
        shares.append(float((scores_BK >= exact_BK - 1e-5).float().mean()))
    assert shares[0] + 0.2 < shares[-1] > 0.5, shares


def test_a_walk_goes_through_forbidden_items_and_k_come_back_when_k_exist():
    places_NL = make_places(900)
    graph = item_graph(similarity(), places_NL, num_neighbours=6, num_starts=10)
    allowed_N = torch.zeros(900, dtype=torch.bool)
    allowed_N[::50] = True
    question = make_question(7, 900, allowed_N=allowed_N)
    found = graph_search(question, places_NL, graph, 18, beam_width=20, num_steps=2)
    assert all(sorted(rows) == list(range(0, 900, 50)) for rows in found.rows_BK.tolist())
    few = graph_search(question, places_NL, graph, 25, beam_width=20, num_steps=2)
    assert (few.rows_BK[:, 18:] == -1).all() and (few.rows_BK[:, :18] >= 0).all()


def test_the_answer_to_a_request_does_not_depend_on_the_others():
    places_NL = make_places(300)
    graph = item_graph(similarity(), places_NL, num_neighbours=5, num_starts=10)
    question = make_question(40, 300)
    together = graph_search(question, places_NL, graph, 10, beam_width=12, num_steps=4)
    for row in (0, 17, 39):
        alone = graph_search(
            question.part(slice(row, row + 1)), places_NL, graph, 10, beam_width=12, num_steps=4
        )
        assert alone.rows_BK[0].tolist() == together.rows_BK[row].tolist()


def test_nan_scores_are_refused():
    places_NL = make_places(30)
    question = make_question(2, 30)
    question.table_BS[1, 2] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        exact_search(question, places_NL, 5)
