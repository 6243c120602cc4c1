from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec import config
from sidrec.alignment.log_probs import packed_log_probs
from sidrec.config import Method
from sidrec.data.search.made import made_search
from sidrec.data.search.values import Judgements, Queries, SearchData, Sessions
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError, DataError
from sidrec.generators.causal import CausalConfig
from sidrec.generators.query_decoder import Asked, LessonBatch, QueryBatch
from sidrec.retrieval.search.asking import best
from sidrec.retrieval.search.dual_tower import DualTower, DualTowerConfig
from sidrec.retrieval.search.generative import TOKENIZER, Generative, GenerativeConfig
from sidrec.retrieval.search.preferring import (
    SearchAlignConfig,
    judged_preferences,
    session_preferences,
)
from sidrec.retrieval.search.query_lessons import KnownQueries, LessonBatches, Lessons
from sidrec.search_part import SearchConfig, fit_search
from sidrec.testing.tiny_catalogue import NUM_ITEMS, tiny_context
from sidrec.types import Histories, HistoryBatch, Items, as_ids

SMALL = CausalConfig(
    width=16, num_layers=0, num_heads=2, depth_hidden=8, item_embedding=False, max_length=8,
    dropout=0.0, input_dropout=0.0, depth_dropout=0.0,
)  # fmt: skip
ASKED = ("red wool coat", "steel kettle number 7", "qqqq")
KEEP = config.method(config.Stage("collisions"), "keep")
SHARED = config.method(TOKENIZER, "residual_kmeans", num_codes=3, num_levels=2)
SHORTER = config.method(TOKENIZER, "sarq", num_codes=3, num_levels=3, mean_length=2.0)


def small(**changes):
    values = {"decoder": SMALL, "num_steps": 10, "judged_steps": 5, "batch_size": 8}
    return GenerativeConfig(**values | changes)


@pytest.fixture(scope="module")
def items():
    return tiny_context().items


@pytest.fixture(scope="module")
def judged(items):
    """Two queries with graded answers and non-matches, and one that nothing answers."""
    queries = Queries(as_ids(["q0", "q1", "q2"]), ("red coat", "kettle", "garden"))
    rows = [(0, 0, 3), (0, 1, 2), (0, 6, 0), (0, 7, 1), (1, 6, 3), (1, 0, 0), (2, 3, 0)]
    lists = Judgements.from_lists(*np.array(rows).T, num_queries=3, top_grade=3)
    return SearchData("judged", items, queries, lists)


@pytest.fixture(scope="module")
def found(items):
    return Generative.fit(items, small(), made_search(items))


@pytest.mark.parametrize("tokenizer", [None, SHARED, SHORTER])
def test_the_catalogue_shares_one_probability(items, tokenizer):
    policy = {} if tokenizer is None else {"collisions": KEEP}
    searcher = Generative.fit(items, small(tokenizer=tokenizer, num_steps=3, **policy))
    scores_BN = searcher.scores(searcher.known(ASKED))
    torch.testing.assert_close(scores_BN[:2].exp().sum(1), torch.ones(2))
    assert (scores_BN[2] == -torch.inf).all()
    shared = searcher.ids.group_sizes_N.max() > 1
    assert bool(shared) == (tokenizer is not None)
    assert bool((searcher.ids.codes < 0).any()) == (tokenizer is SHORTER)


@pytest.mark.parametrize("tokenizer", [None, SHORTER])
def test_a_wide_beam_agrees_with_exact_scores(items, tokenizer):
    settings = small(tokenizer=tokenizer, collisions=KEEP, num_steps=3)
    exact = Generative.fit(items, settings)
    beam = replace(exact, config=replace(exact.config, exact_items=0))
    one, other = (best(searcher.ask(ASKED, 10), 10) for searcher in (exact, beam))
    np.testing.assert_array_equal(one.rows_BK, other.rows_BK)
    np.testing.assert_allclose(one.scores_BK, other.scores_BK, atol=1e-4)
    every = torch.arange(NUM_ITEMS).expand(3, -1)
    scores = [searcher.ask(ASKED, 1).log_probs(every) for searcher in (exact, beam)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=0)


def test_rules_are_inside_the_beam(found):
    beam = replace(found, config=replace(found.config, exact_items=0, beam_width=1))
    keep_N = np.zeros(NUM_ITEMS, dtype=bool)
    keep_N[[3, 20]] = True
    rows_BK = best(beam.ask(ASKED[:1], 5, keep_N), 5).rows_BK
    assert set(rows_BK[0]) == {3, 20, -1}


def test_answers_are_drawn_in_proportion_to_their_gains():
    batch = LessonBatch(
        QueryBatch(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long)),
        torch.tensor([[4, 5, -1], [6, -1, -1]]),
        torch.tensor([[7.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    )
    drawn = batch.drawn(4000, torch.Generator().manual_seed(0)).answers_BA
    assert (drawn[0] == 4).float().mean() == pytest.approx(7 / 8, abs=0.02)
    assert (drawn[1] == 6).sum() == 1 and (drawn[1] == -1).sum() == 3999


def test_a_lesson_needs_an_answer_of_the_least_grade(found, judged):
    known = found.known(judged.queries.texts)
    exact = Lessons.judged(known, judged.judgements, 0)
    assert [list(exact.answers[row]) for row in range(len(exact))] == [[0], [6]]
    graded = Lessons.judged(known, judged.judgements, 2)
    assert [list(graded.answers[row]) for row in range(len(graded))] == [[0, 1], [6]]
    np.testing.assert_array_equal(graded.gains_E, [7, 3, 7])


def test_every_kind_of_lesson_has_its_share_of_every_step(found, items, judged):
    few = Lessons.judged(found.known(judged.queries.texts), judged.judgements, 0)
    batches = LessonBatches((few, *found.lessons_of(items)), num_steps=7, batch_size=4)
    steps = batches.epoch(0, 0)
    assert len(steps) == 7
    for rows in steps:
        kinds = np.searchsorted(batches.starts, rows, side="right")
        assert np.bincount(kinds).tolist() == [0, 2, 4, 4]
    batch = batches.build(steps[0])
    assert batch.queries.num_requests == len(batch.answers_BA) == 10
    assert sorted(batch.answers_BA[:2, 0].tolist()) == [0, 6]


def test_lessons_teach_items_apart_that_have_one_vector(items):
    rows = torch.arange(NUM_ITEMS)
    own = []
    for num_steps in (0, 60):
        settings = small(num_steps=num_steps, learning_rate=3e-2, batch_size=24)
        searcher = Generative.fit(items, settings)
        own.append(searcher.scores(searcher.known(items.titles()))[rows, rows].mean())
    assert own[0] == pytest.approx(-np.log(6), abs=1e-3) and own[1] > own[0] + 0.4


def test_preferences_of_judgements_hold_the_best_first(judged):
    made = judged_preferences(judged.judgements, least_grade=2)
    assert made.histories.items_E.tolist() == made.users_R.tolist() == [0, 1]
    assert made.positives[0].tolist() == [0, 1] and set(made.negatives[0]) == {6, 7}
    assert made.positives[1].tolist() == [6] and made.negatives[1].tolist() == [0]
    with pytest.raises(DataError, match="align"):
        judged_preferences(judged.judgements.take(np.array([2])))


def test_preferences_of_sessions_are_clicks_against_what_was_passed_by():
    shown = [[5, 6, 7, 8], [9, 10], [11]]
    clicked = [[0, 1, 1, 0], [0, 0], [1]]
    sessions = Sessions(
        Queries(as_ids(["a", "b"]), ("coat", "shoe")),
        np.array([1, 0, 0]),
        np.concatenate(shown),
        np.concatenate(clicked).astype(bool),
        np.array([0, 4, 6, 7]),
    )
    made = session_preferences(sessions)
    assert made.histories.items_E.tolist() == [1, 0] and made.users_R.tolist() == [0, 2]
    assert made.positives[0].tolist() == [6, 7] and made.negatives[0].tolist() == [5]
    assert made.positives[1].tolist() == [11] and not len(made.negatives[1])


@pytest.mark.parametrize("objective", ["rad_dpo", "s_dpo", "dpo"])
def test_alignment_moves_positives_above_what_was_judged_no_match(found, judged, objective):
    settings = SearchAlignConfig(
        objective=config.method(config.Stage("objectives"), objective), num_steps=20,
        learning_rate=1e-2, fill="none",
    )  # fmt: skip
    aligned = found.aligned(judged, settings)

    def margin(searcher):
        scores_BN = searcher.scores(searcher.known(judged.queries.texts[:2]))
        return float(scores_BN[0, 0] - scores_BN[0, 6] + scores_BN[1, 6] - scores_BN[1, 0])

    before = margin(found)
    assert margin(aligned) > before + 0.5
    assert margin(found) == before  # the taught searcher stays as it was


def test_alignment_moves_items_only_where_asked(found, judged):
    for freeze_items in (True, False):
        settings = SearchAlignConfig(num_steps=3, learning_rate=1e-2, freeze_items=freeze_items)
        aligned = found.aligned(judged, settings).decoder
        same = torch.equal(aligned.item_table(), found.decoder.item_table())
        assert same == freeze_items
        assert all(table.requires_grad for table in aligned.parameters())
        assert not torch.equal(aligned.codes[0], found.decoder.codes[0])


def test_alignment_keeps_the_best_weights_that_validation_saw(found, judged):
    seen: list[float] = []

    def worse_and_worse(decoder):
        seen.append(-len(seen))
        return float(seen[-1])

    aligned = found.aligned(
        judged, SearchAlignConfig(num_steps=6), validate=worse_and_worse, validate_every=2
    )
    assert len(seen) > 2
    for name, weights in found.decoder.state_dict().items():
        assert torch.equal(weights, aligned.decoder.state_dict()[name]), name


def test_a_decoder_over_known_queries_is_a_generator(found):
    queries = found.known(ASKED[:2]).batch()
    asked, rows = Asked(found.decoder, queries), torch.tensor([[1], [0], [1]])
    batch = HistoryBatch(rows, torch.ones(3, dtype=torch.long))
    index = PrefixIndex.build(found.ids)
    codes_BKL = torch.from_numpy(found.ids.codes[None, :4]).expand(3, -1, -1)
    packed = packed_log_probs(asked, batch, codes_BKL, index, renormalise=False)
    expected = found.decoder.log_probs(queries.take(rows[:, 0]), codes_BKL)
    torch.testing.assert_close(packed.token_BKL.sum(-1), expected)
    with torch.no_grad():
        stepped, _ = asked.step(asked.start(batch), None, None)
    torch.testing.assert_close(stepped[0], stepped[2])


def test_ids_of_the_bundle_are_kept_and_new_ones_taken_over(items):
    ids = tiny_context().semantic_ids
    assert ids is not None
    searcher = Generative.fit(items, small(ids="bundle"), ids=ids)
    np.testing.assert_array_equal(searcher.ids.codes, ids.codes)
    titles = [*items.titles(), "a silver kettle"]
    grown = Items(as_ids([*map(str, items.item_ids), "new"]), pl.DataFrame({"title": titles}))
    codes = np.concatenate([ids.codes, [[3, 2, 0]]])
    more = type(ids)(grown.item_ids, codes, ids.num_codes)
    found = searcher.with_items(grown, more)
    assert NUM_ITEMS in best(found.ask(["silver kettle"], 25), 25).rows_BK[0]
    with pytest.raises(ConfigError, match="add_items"):
        searcher.with_items(grown)
    with pytest.raises(ConfigError, match="fit_search"):
        Generative.fit(items, small(ids="bundle"))


def test_attention_over_words_reads_their_order(items):
    settings = small(decoder=replace(SMALL, num_layers=1), num_steps=0)
    searcher = Generative.fit(items, settings)
    for table in (searcher.decoder.words.weight, searcher.decoder.encoder.distance_bias):
        torch.nn.init.normal_(table)  # distances start at no bias at all
    one, other = searcher.scores(searcher.known(["red wool coat", "coat wool red"]))
    assert not torch.allclose(one, other, atol=1e-5)
    alone = searcher.scores(searcher.known(["red wool coat"]))[0]
    torch.testing.assert_close(alone, one)


def test_what_a_free_beam_invents_is_a_share(found):
    shares_B = found.invalid_shares(ASKED[:2], k=4)
    assert shares_B.shape == (2,) and set(shares_B * 4) <= {0, 1, 2, 3, 4}


def test_queries_are_cut_after_the_longest_that_is_read(found):
    long = found.known(["red " * 50 + "kettle"])
    assert long.words.lengths.tolist() == [SMALL.max_length]
    assert isinstance(long, KnownQueries) and np.isfinite(found.scores(long).numpy()).all()


def test_a_recipe_aligns():
    section = {"name": "generative", "align": {"objective": {"name": "s_dpo", "beta": 2.0}}}
    settings = config.parse(SearchConfig, {"searchers": [section]})
    chosen = settings.searchers[0].config
    assert chosen.align.objective.config.beta == 2.0
    again = config.parse(SearchConfig, config.to_dict(settings))
    assert again == settings
    section["align"] = {"objective": {"name": "grpo"}}
    with pytest.raises(ConfigError, match="preferences"):
        config.parse(SearchConfig, {"searchers": [section]})


def test_nothing_to_align_on_is_said(items, judged):
    nothing = judged.take(np.array([2]))
    assert Generative.fit(items, small(), nothing).config.align is None
    with pytest.raises(DataError, match="align"):
        Generative.fit(items, small(align=SearchAlignConfig()), nothing)


def test_histories_of_words_are_ragged():
    lists = Histories.from_lists([[], [1, 2]])
    batch = KnownQueries(np.zeros((2, 3), dtype=np.float32), lists).batch()
    assert batch.words_BW.tolist() == [[-1, -1], [1, 2]] and batch.lengths_B.tolist() == [0, 2]


def with_one_more(items):
    """The catalogue and an item with the text of item 7."""
    attributes = pl.concat([items.attributes, items.attributes[7:8]])
    return Items(as_ids([*items.item_ids, "new"]), attributes)


def test_a_view_of_the_towers_names_old_and_new_items(items):
    towers = DualTower.fit(items, DualTowerConfig(dim=8, hidden=(8,), num_steps=20))
    made, books = {}, {}
    for view in ("item_view", "query_view", "mean_view"):
        settings = small(ids=view, tokenizer=SHARED, collisions=KEEP, num_steps=0)
        made[view] = Generative.fit(items, settings, towers=towers)
        vectors = towers.item_vectors(items, made[view].config.view)
        expected = made[view].tokenizer.encode(vectors).codes
        np.testing.assert_array_equal(made[view].ids.codes, expected)
        books[view] = np.concatenate([a.ravel() for a in made[view].tokenizer.arrays().values()])
    assert not np.allclose(books["item_view"], books["query_view"])
    searcher = made["query_view"]
    twice = with_one_more(items)
    grown = searcher.with_items(twice, towers=towers)
    np.testing.assert_array_equal(grown.ids.codes[-1], searcher.ids.codes[7])
    with pytest.raises(ConfigError, match="list the searcher dual_tower before"):
        Generative.fit(items, searcher.config)
    with pytest.raises(ConfigError, match="list the searcher dual_tower before"):
        searcher.with_items(twice)


def test_a_search_part_hands_its_towers_to_the_searcher_after_them(items):
    tower = Method(stage="searchers", name="dual_tower", config=DualTowerConfig(dim=8, num_steps=5))
    writer = Method(
        stage="searchers", name="generative", config=small(ids="query_view", num_steps=2)
    )
    part = fit_search(items, SearchConfig(searchers=(tower, writer)))
    grown = part.with_items(with_one_more(items)).searchers["generative"].value
    assert len(grown.ids) == NUM_ITEMS + 1
    with pytest.raises(ConfigError, match="list the searcher dual_tower before"):
        fit_search(items, SearchConfig(searchers=(writer, tower)))
