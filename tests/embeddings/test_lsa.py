"""LSA against scikit-learn and against small worlds; what it says of bad texts."""

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.errors import ConfigError, DataError
from sidrec.types import CatalogueContext, Histories, Items, as_ids

TEXTS = [
    "red wool coat coat",
    "red wool scarf",
    "blue wool coat",
    "steel kettle",
    "steel pot and kettle",
    "copper kettle pot",
]


def context_of(texts):
    items = Items(as_ids(range(len(texts))), pl.DataFrame({"title": texts}))
    return CatalogueContext(items, Histories.from_lists([[0]]))


def lsa(texts, **settings):
    context = context_of(texts)
    embedder = Lsa.fit(context, LsaConfig(**settings))
    return embedder, embedder.embed(context.items).vectors


def test_with_every_direction_kept_cosines_are_those_of_scikit_learns_tfidf():
    _, vectors = lsa(TEXTS, min_items=1, max_items_ratio=1.0, spectrum_power=1.0, max_words=2)
    oracle = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    weighted = oracle.fit_transform(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, (weighted @ weighted.T).toarray(), atol=1e-5)


def test_items_about_the_same_things_lie_together():
    _, vectors = lsa(TEXTS, dim=2)
    cosines = vectors @ vectors.T
    assert cosines[:3, :3].min() > 0.7 and cosines[3:, 3:].min() > 0.7
    assert cosines[:3, 3:].max() < 0.3


def test_items_without_text_get_zero_and_are_counted():
    embedder, vectors = lsa([*TEXTS, "", None, "  "])
    assert embedder.num_without_text == 3
    assert not vectors[6:].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[:6], axis=1), 1, atol=1e-5)


def test_identical_texts_get_identical_vectors():
    _, vectors = lsa([*TEXTS, TEXTS[0]])
    np.testing.assert_array_equal(vectors[0], vectors[6])


def test_unseen_items_use_the_words_learnt():
    embedder, vectors = lsa(TEXTS)
    new = Items(as_ids(["n1", "n2"]), pl.DataFrame({"title": ["wool coat, red!", "zebra"]}))
    found = embedder.embed(new).vectors
    assert (found[0] @ vectors[:3].T).max() > 0.8 and not found[1].any()


def test_words_too_rare_or_too_common_do_not_count():
    texts = [f"item {word}" for word in ("a1 b1", "a1 b1", "a1", "c1", "d1", "e1")]
    embedder, _ = lsa(texts, min_items=2, max_items_ratio=0.5)
    assert embedder.features == ("a1", "b1")
    embedder, _ = lsa(texts, min_items=1, max_items_ratio=1.0, max_features=2)
    assert embedder.features == ("a1", "item")


def test_words_of_other_scripts_and_single_letters_count():
    embedder, vectors = lsa(
        ["カメラ 白", "カメラ 黒", "x кофта", "x кофта 🙂"], max_items_ratio=0.6
    )
    assert {"カメラ", "кофта", "x"} <= set(embedder.features)
    assert vectors[0] @ vectors[1] > 0.9 > 0.1 > vectors[0] @ vectors[2]


def test_the_seed_decides_the_result():
    texts = [
        f"{w} {v} thing{i % 7}"
        for i, (w, v) in enumerate(zip("abcd" * 20, "efghi" * 16, strict=True))
    ]
    first, second = (lsa(texts, dim=3, seed=4)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["", None], "none of the 2 items has text; add a title"),
        (["!!", "?"], "hold no words"),
        (["one", "two"], "lower lsa.min_items"),
        (["same words"] * 5, "raise lsa.max_items_ratio"),
    ],
)
def test_texts_that_cannot_be_used_are_named(texts, message):
    with pytest.raises(DataError, match=message):
        lsa(texts)


def test_settings_out_of_range_are_refused():
    for wrong in ({"dim": 0}, {"max_words": 0}, {"max_items_ratio": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LsaConfig(**wrong)
