"""Joint vectors: single tasks at the ends, the loss against NumPy, queries that are held out."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from sidrec import config as configs
from sidrec.embeddings.cache import content_key, fit_embed
from sidrec.embeddings.joint import (
    Joint,
    JointConfig,
    Task,
    _batches,
    co_interactions,
    forward,
    info_nce,
    queries_of,
    start,
    train,
)
from sidrec.embeddings.lsa import LsaConfig
from sidrec.embeddings.queries import made_queries, read_queries
from sidrec.errors import ConfigError, DataError, ServiceError
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import CatalogueContext, Histories, Items, as_ids

SMALL = JointConfig(dim=6, hidden=(8,), num_steps=40, batch_size=16, device="cpu")


def other_events(context):
    """The same catalogue with training sequences in another order."""
    lists = [list(reversed(s)) for s in map(list, context.train)][:20]
    return CatalogueContext(context.items, Histories.from_lists(lists))


def with_queries(tmp_path, pairs, name="queries.parquet"):
    path = tmp_path / name
    table = pl.DataFrame(pairs, schema=["query", "item_id"], orient="row")
    if path.suffix == ".csv":
        table.write_csv(path)
    elif path.suffix == ".jsonl":
        table.write_ndjson(path)
    else:
        table.write_parquet(path)
    return str(path)


def vectors_of(context, config):
    return Joint.fit(context, config).embed(context.items).vectors


def test_weight_one_is_the_search_network_and_weight_zero_the_other_to_the_last_bit():
    context = tiny_context()
    both = Joint.fit(context, replace(SMALL, mode="concatenate"))
    vectors = both.embed(context.items)
    assert vectors.views == (("search", 6), ("recommendation", 6))
    for weight, part in ((1.0, vectors.vectors[:, :6]), (0.0, vectors.vectors[:, 6:])):
        np.testing.assert_array_equal(
            vectors_of(context, replace(SMALL, search_weight=weight)), part
        )
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), np.sqrt(2), rtol=1e-5)


def test_a_task_of_weight_zero_is_not_looked_at(tmp_path):
    context = tiny_context()
    search = replace(SMALL, search_weight=1.0)
    np.testing.assert_array_equal(
        vectors_of(context, search), vectors_of(other_events(context), search)
    )
    alone = CatalogueContext(context.items, Histories.from_lists([[0]]))
    assert "recommendation" not in Joint.fit(alone, search).num_pairs
    recommendation = replace(SMALL, search_weight=0.0)
    path = with_queries(tmp_path, [("steel", "item 7"), ("coat", "item 1")])
    np.testing.assert_array_equal(
        vectors_of(context, recommendation),
        vectors_of(context, replace(recommendation, queries=path)),
    )


def test_between_the_ends_both_tasks_count():
    context = tiny_context()
    half = vectors_of(context, SMALL)
    for weight in (0.0, 0.25, 1.0):
        assert np.abs(half - vectors_of(context, replace(SMALL, search_weight=weight))).max() > 1e-3
    assert np.abs(half - vectors_of(other_events(context), SMALL)).max() > 1e-3


def test_the_loss_equals_numpy_and_is_log_b_where_nothing_can_be_told_apart():
    random = np.random.default_rng(0)
    anchors, items = random.standard_normal((2, 5, 3)).astype(np.float32)
    excluded = random.random((5, 5)) < 0.3
    np.fill_diagonal(excluded, True)  # an anchor's own item always stays
    logits = anchors @ items.T / 0.5
    expected = []
    for row in range(5):
        kept = [c for c in range(5) if c == row or not excluded[row, c]]
        expected.append(np.log(np.exp(logits[row, kept]).sum()) - logits[row, row])
    loss = info_nce(*map(torch.from_numpy, (anchors, items, excluded)), 0.5)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    same = torch.ones(7, 3)
    nothing = torch.zeros(7, 7, dtype=torch.bool)
    assert float(info_nce(same, same, nothing, 0.1)) == pytest.approx(np.log(7), rel=1e-6)


def test_true_pairs_of_a_batch_are_never_negatives():
    pairs = np.array([[0, 1], [0, 2], [3, 1], [1, 4]])
    task = Task(1.0, np.ones((5, 2), np.float32), pairs, same_rows=True)
    pairs_B2, excluded_BB = next(_batches(task, 4, np.random.default_rng(0)))
    for i, (anchor, item) in enumerate(pairs_B2.tolist()):
        for j, (other_anchor, other) in enumerate(pairs_B2.tolist()):
            expected = other in (item, anchor) or other_anchor == anchor
            assert excluded_BB[i, j] == expected
    stream = _batches(task, 2, np.random.default_rng(0))
    seen = np.concatenate([next(stream)[0] for _ in range(2)])
    np.testing.assert_array_equal(np.unique(seen, axis=0), np.unique(pairs, axis=0))


def test_co_interactions_are_those_of_two_loops():
    train_ = Histories.from_lists([[0, 1, 0, 2], [], [3], [2, 2, 1]])
    expected = []
    for sequence in map(list, train_):
        for i, a in enumerate(sequence):
            for j, b in enumerate(sequence):
                if 0 < abs(i - j) <= 2 and a != b:
                    expected.append((a, b))
    assert sorted(map(tuple, co_interactions(train_, 2).tolist())) == sorted(expected)


def test_training_brings_each_task_its_pairs():
    """Queries name a colour; sequences follow groups that no word tells, only items themselves."""
    words = ["red", "blue", "green", "black"]
    titles = [f"{words[row % 4]} u{row}" for row in range(32)]
    items = Items(as_ids(range(32)), pl.DataFrame({"title": titles}))
    random = np.random.default_rng(0)
    groups = [random.permutation(4) + 4 * (user % 8) for user in range(80)]
    context = CatalogueContext(items, Histories.from_lists(groups))
    config = replace(SMALL, num_steps=150, dim=16, learning_rate=0.01, lsa=LsaConfig(min_items=1))

    def share_of_group(vectors):
        likeness = vectors @ vectors.T - 2 * np.eye(32)
        return (likeness.argsort(axis=1)[:, -3:] // 4 == np.arange(32)[:, None] // 4).mean()

    assert share_of_group(vectors_of(context, replace(config, search_weight=0.0))) > 0.95
    fitted = Joint.fit(context, replace(config, search_weight=1.0))
    vectors = fitted.embed(items).vectors
    assert share_of_group(vectors) < 0.3
    found = fitted.encode_queries(words) @ vectors.T
    assert (np.argsort(-found, axis=1)[:, :8] % 4 == np.arange(4)[:, None]).mean() > 0.95


def test_a_whole_title_as_query_lies_where_its_item_does_and_unknown_words_give_zero():
    context = tiny_context()
    for mode in ("multitask", "concatenate"):
        fitted = Joint.fit(context, replace(SMALL, mode=mode))
        vectors = fitted.embed(context.items).vectors
        queries = fitted.encode_queries([*context.items.texts(), "zzz", ""])
        np.testing.assert_array_equal(queries[:-2], vectors)
        assert not queries[-2:].any()
        assert fitted.encode_queries([]).shape == (0, vectors.shape[1])


def test_made_queries_are_runs_of_words_and_do_not_depend_on_other_items():
    table = pl.DataFrame(
        {
            "title": ["Red Wool Coat, size 4", None, "  "],
            "categories": [["Winter wear"], ["Kitchen", "Steel kettles"], None],
        }
    )
    items = Items(as_ids(["a", "b", "c"]), table)
    pairs = made_queries(items, per_item=30, max_words=3, seed=0)
    held = {row: [t for t, r in zip(pairs.texts, pairs.rows_P, strict=True) if r == row]
            for row in range(3)}  # fmt: skip
    assert held[2] == []
    for row, sources in (
        (0, ("red wool coat size 4", "winter wear")),
        (1, ("kitchen steel kettles",)),
    ):
        assert len(held[row]) == len(set(held[row])) > 3
        assert all(any(f" {q} " in f" {s} " for s in sources) for q in held[row])
        assert max(len(q.split()) for q in held[row]) == 3
    long = " ".join(f"w{n}" for n in range(200))
    three = Items(as_ids("abc"), pl.DataFrame({"title": [long] * 3}))
    few = made_queries(three, per_item=3, max_words=3, seed=0)
    alone = made_queries(Items(as_ids("b"), three.attributes[[1]]), per_item=3, max_words=3, seed=0)
    assert list(alone.texts) == [t for t, r in zip(few.texts, few.rows_P, strict=True) if r == 1]
    assert len(set(few.texts)) == len(few), "each item draws its own"
    assert made_queries(items, per_item=30, max_words=3, seed=1).texts != pairs.texts


def test_held_out_queries_are_not_among_the_training_queries():
    items = tiny_context().items
    training = queries_of(items, replace(SMALL, queries_per_item=2))
    held_out = made_queries(items, per_item=6, max_words=4, seed=99).without(training.texts)
    assert len(held_out) > 10 and not set(held_out.texts) & set(training.texts)
    assert len(held_out.rows_P) == len(held_out)


@pytest.mark.parametrize("name", ["q.parquet", "q.csv", "q.jsonl"])
def test_queries_are_read_from_a_file_and_useless_rows_counted(tmp_path, name):
    items = tiny_context().items
    rows = [("red coat", "item 1"), ("  ", "item 2"), (None, "item 2"), ("shoe", "gone"),
            ("shoe", "item 20"), ("qqq", "item 3")]  # fmt: skip
    path = with_queries(tmp_path, rows, name)
    pairs = read_queries(path, items, query_column="query", item_column="item_id")
    assert pairs.texts == ("red coat", "shoe", "qqq") and pairs.rows_P.tolist() == [1, 20, 3]
    assert pairs.num_dropped == 3
    fitted = Joint.fit(tiny_context(), replace(SMALL, queries=path))
    assert fitted.num_pairs["search"] == 2  # nobody knows "qqq"
    assert fitted.num_dropped == {"search": 4, "recommendation": 0}
    assert [remark.split(" were")[0] for remark in fitted.remarks] == ["4 pairs of search"]


def test_files_that_cannot_serve_are_refused(tmp_path):
    context = tiny_context()

    def fit(**changes):
        return Joint.fit(context, replace(SMALL, **changes))

    with pytest.raises(DataError, match="no file"):
        fit(queries=str(tmp_path / "none.csv"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        fit(queries=str(broken))
    (tmp_path / "a.txt").write_text("query")
    with pytest.raises(DataError, match=r"must end in \.parquet, \.csv or \.jsonl"):
        fit(queries=str(tmp_path / "a.txt"))
    path = with_queries(tmp_path, [("red", "gone")])
    with pytest.raises(DataError, match="none of the 1 rows"):
        fit(queries=path)
    with pytest.raises(DataError, match=r"no column 'q', has .*set joint\.query_column"):
        fit(queries=path, query_column="q")
    unknown = with_queries(tmp_path, [("qqq", "item 1")], "unknown.csv")
    with pytest.raises(DataError, match="no query shares a word"):
        fit(queries=unknown)


def test_wrong_settings_and_catalogues_without_pairs_are_refused():
    for wrong in (
        {"search_weight": 1.1},
        {"search_weight": float("nan")},
        {"batch_size": 1},
        {"num_steps": 0},
        {"temperature": 0.0},
        {"hidden": (0,)},
        {"dim": 0},
    ):
        with pytest.raises(ConfigError, match=r"joint\."):
            replace(SMALL, **wrong)
    items = tiny_context().items
    lonely = CatalogueContext(items, Histories.from_lists([[1], [2, 2]]))
    with pytest.raises(DataError, match=r"no training sequence .*search_weight = 1"):
        Joint.fit(lonely, SMALL)
    with pytest.raises(ServiceError, match=r"lower joint\.learning_rate"):
        Joint.fit(tiny_context(), replace(SMALL, learning_rate=1e30))


def test_items_without_text_get_the_zero_vector_and_their_pairs_are_counted():
    context = tiny_context()
    titles = [None, *context.items.attributes["title"].to_list()[1:]]
    items = Items(context.items.item_ids, pl.DataFrame({"title": titles}))
    fitted = Joint.fit(CatalogueContext(items, context.train), SMALL)
    vectors = fitted.embed(items).vectors
    assert not vectors[0].any() and fitted.text.num_without_text == 1
    np.testing.assert_allclose(np.linalg.norm(vectors[1:], axis=1), 1, rtol=1e-5)
    pairs = co_interactions(context.train, SMALL.window)
    assert fitted.num_dropped["recommendation"] == (pairs == 0).any(axis=1).sum() > 0


def test_training_starts_at_the_strongest_directions_of_lsa():
    inputs = torch.randn(9, 10)
    first = inputs[:, :6] / inputs[:, :6].norm(dim=1, keepdim=True)
    torch.testing.assert_close(forward(inputs, start(10, SMALL)), first)


def test_hidden_layers_may_be_left_out():
    context = tiny_context()
    config = replace(SMALL, hidden=())
    assert list(start(5, config)) == ["skip"]
    fitted = Joint.fit(context, config)
    inputs = fitted.text.embed(context.items).vectors
    linear = inputs @ fitted.networks["joint"]["skip"].numpy()
    linear /= np.linalg.norm(linear, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.embed(context.items).vectors, linear, atol=1e-5)


def test_training_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    items = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    pairs = np.array([[0, 1], [2, 3], [4, 5]])
    train(items, {"recommendation": Task(1.0, items, pairs, same_rows=True)}, SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_modes_survive_cache_and_recipe(tmp_path):
    context = tiny_context()
    path = with_queries(tmp_path, [("red coat", "item 1"), ("black shoe", "item 20")], "q.csv")
    for mode in ("multitask", "concatenate"):
        config = replace(SMALL, mode=mode, queries=path, lsa=LsaConfig(dim=5))
        fitted, vectors = fit_embed(Joint, context, config, tmp_path / "cache")
        again, cached = fit_embed(Joint, context, config, tmp_path / "cache")
        np.testing.assert_array_equal(vectors.vectors, cached.vectors)
        assert cached.views == vectors.views
        np.testing.assert_array_equal(
            fitted.encode_queries(["red shoe"]), again.encode_queries(["red shoe"])
        )
        assert json.dumps(again.state()) == json.dumps(fitted.state())
        assert configs.parse(JointConfig, configs.to_dict(config)) == config
    key = content_key(Joint, context, config)
    with_queries(tmp_path, [("red coat", "item 2")], "q.csv")
    assert content_key(Joint, context, config) != key, "other queries are another entry"
