"""Fusion: weights, missing parts, axes."""

import numpy as np
import pytest

from sidrec.embeddings.collaborative import CollaborativeConfig
from sidrec.embeddings.fusion import Fusion, FusionConfig, Mixer, fuse, ridge_regression
from sidrec.embeddings.lsa import LsaConfig
from sidrec.errors import ConfigError, DataError
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import CatalogueContext, Histories, ItemVectors, as_ids


def views_of(num=200, seed=0):
    """`other` is a rotation of the first 3 of 5 columns of `text`, so it can be predicted."""
    random = np.random.default_rng(seed)
    text = random.standard_normal((num, 5)).astype(np.float32)
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    return {"text": text, "other": (text[:, :3] @ turn).astype(np.float32)}


def config_for(**settings):
    return FusionConfig(views=("text", "other"), **settings)


def test_parts_have_the_length_of_their_weight_and_keep_their_order():
    views = views_of()
    joined, parts = Mixer.fit(views, config_for(weights=(2.0, 0.5))).mix(views)
    assert parts == (("text", 5), ("other", 3))
    np.testing.assert_allclose(np.linalg.norm(joined[:, :5], axis=1), 2.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(joined[:, 5:], axis=1), 0.5, rtol=1e-5)
    text = views["text"] / np.linalg.norm(views["text"], axis=1, keepdims=True)
    np.testing.assert_allclose(joined[:, :5], 2 * text, rtol=1e-5)


def test_standard_scale_centres_and_gives_both_views_the_same_spread():
    views = views_of()
    views["other"] = 100 * views["other"] + 7
    joined, _ = Mixer.fit(views, config_for(scale="standard")).mix(views)
    np.testing.assert_allclose(joined.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(joined[:, :5].var(axis=0).sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(joined[:, 5:].var(axis=0).sum(), 1, rtol=1e-4)


def test_a_missing_part_is_predicted_from_the_other_view():
    views = views_of(600)
    truth = views["other"] / np.linalg.norm(views["other"], axis=1, keepdims=True)
    cold = {name: vectors.copy() for name, vectors in views.items()}
    cold["other"][:50] = 0
    joined, _ = Mixer.fit(cold, config_for()).mix(cold)
    cosines = (joined[:50, 5:] * truth[:50]).sum(axis=1)
    assert cosines.min() > 0.9
    np.testing.assert_allclose(joined[50:, 5:], truth[50:], atol=1e-5)


def test_an_item_no_view_knows_stays_zero():
    views = views_of()
    for vectors in views.values():
        vectors[0] = 0
    joined, _ = Mixer.fit(views, config_for()).mix(views)
    assert not joined[0].any() and joined[1].any()


def test_ridge_regression_equals_the_normal_equations():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((30, 4)), random.standard_normal((30, 2))
    weights, offset = ridge_regression(x.astype("f4"), y.astype("f4"), 3.0)
    augmented = np.vstack([x - x.mean(0), np.sqrt(3.0) * np.eye(4)])
    expected = np.linalg.lstsq(augmented, np.vstack([y - y.mean(0), np.zeros((4, 2))]))[0]
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(x.mean(0) @ expected + offset, y.mean(0), atol=1e-5)


def test_principal_components_keep_the_most_and_whitening_makes_them_even():
    views = views_of(300)
    whole, _ = Mixer.fit(views, config_for()).mix(views)
    kept, parts = Mixer.fit(views, config_for(dim=4)).mix(views)
    variances = np.sort(np.linalg.eigvalsh(np.cov(whole.T, bias=True)))[::-1]
    assert parts == ()
    np.testing.assert_allclose(kept.var(axis=0), variances[:4], rtol=1e-3)
    white, _ = Mixer.fit(views, config_for(dim=4, whiten=True)).mix(views)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-3)


def test_fitted_fusion_fills_cold_items_and_counts_them():
    context = tiny_context()
    warm = Histories.from_lists([[i for i in s if i != 5] for s in map(list, context.train)])
    config = FusionConfig(lsa=LsaConfig(dim=6), collaborative=CollaborativeConfig(dim=5))
    fitted = Fusion.fit(CatalogueContext(context.items, warm), config)
    vectors = fitted.embed(context.items)
    assert dict(fitted.num_filled) == {"lsa": 0, "collaborative": 1}
    (remark,) = fitted.remarks
    assert remark.startswith("1 items have no view 'collaborative'")
    assert [name for name, _ in vectors.views] == ["lsa", "collaborative"]
    other = vectors.vectors[:, vectors.views[0][1] :]
    likeness = other[5] @ other.T
    assert likeness[:5].mean() > likeness[6:].mean() + 0.5, "item 5 is of the first cluster"


def test_fuse_joins_vectors_made_elsewhere():
    ids = as_ids(range(200))
    views = {name: ItemVectors(ids, vectors) for name, vectors in views_of().items()}
    assert fuse(views).views == (("text", 5), ("other", 3))
    views["other"] = ItemVectors(ids[::-1], views["other"].vectors)
    with pytest.raises(DataError, match="'other' lists other items"):
        fuse(views)


def test_wrong_settings_and_empty_views_are_refused():
    for wrong in (
        {"views": ()},
        {"views": ("lsa", "lsa")},
        {"views": ("fusion",)},
        {"weights": (1.0,)},
        {"weights": (1.0, -1.0)},
        {"dim": 0},
        {"whiten": True},
        {"ridge": -1.0},
    ):
        with pytest.raises(ConfigError, match=r"fusion\."):
            FusionConfig(**wrong)
    with pytest.raises(ConfigError, match="no method 'lsx' in embeddings"):
        Fusion.fit(tiny_context(), FusionConfig(views=("lsx",)))
    with pytest.raises(ConfigError, match=r"more than the 8 columns"):
        Mixer.fit(views_of(), config_for(dim=9))
    views = views_of()
    views["other"][:] = 0
    with pytest.raises(DataError, match="'other' knows no item"):
        Mixer.fit(views, config_for())
