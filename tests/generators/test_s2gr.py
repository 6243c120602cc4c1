"""Thoughts before codes, on both backbones, against plain readings of their formulas."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from sidrec.decoding.levels import level_accuracy, thought_accuracy
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.errors import ConfigError
from sidrec.fitted import grow
from sidrec.generators.causal import Causal, CausalConfig
from sidrec.generators.s2gr import S2gr, S2grConfig
from sidrec.generators.s2gr_tiger import S2grTiger, S2grTigerConfig
from sidrec.generators.tiger import Tiger, TigerConfig
from sidrec.testing import generators as contract
from sidrec.testing.tiny_catalogue import (
    eight_sequences,
    small_config,
    tiny_batch,
    tiny_context,
)
from sidrec.types import (
    CatalogueContext,
    Examples,
    Histories,
    HistoryBatch,
    Items,
    ItemVectors,
    SemanticIds,
    as_ids,
)

PAIRS = {
    "s2gr": (S2gr, S2grConfig, Causal, CausalConfig),
    "s2gr_tiger": (S2grTiger, S2grTigerConfig, Tiger, TigerConfig),
}
BOTH = pytest.mark.parametrize("name", PAIRS)


def built(name, **changes):
    """A model on the tiny catalogue whose logits differ clearly between histories."""
    model_class, config_class, *_ = PAIRS[name]
    return contract.built(model_class, small_config(config_class, **changes))


def every_logit(model, codes_BKL):
    """L x (B, K, V) logits by cached steps."""
    return contract.stepped_logits(model, tiny_batch(), codes_BKL)


def shortened(context, rows=(3, 4), level=1):
    """The same catalogue with some shorter IDs."""
    codes = context.semantic_ids.codes.copy()
    codes[list(rows), level:] = -1
    ids = SemanticIds(context.items.item_ids, codes, context.semantic_ids.num_codes)
    return replace(context, semantic_ids=ids)


# The backbone and its thoughts -------------------------------------------------------------------


@BOTH
def test_without_thoughts_it_is_the_backbone(name):
    model_class, config_class, backbone_class, backbone_config = PAIRS[name]
    config = small_config(config_class, thoughts="none")
    backbone = contract.built(backbone_class, small_config(backbone_config))
    model = model_class.build(tiny_context(), config).eval()
    plain = backbone_class.build(tiny_context(), small_config(backbone_config))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)
    model.load_state_dict(backbone.state_dict())
    codes_BKL = contract.random_codes(5, 4)
    for mine, theirs in zip(
        every_logit(model, codes_BKL), every_logit(backbone, codes_BKL), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert torch.equal(
        contract.all_log_probs(model, tiny_batch()), contract.all_log_probs(backbone, tiny_batch())
    )
    assert torch.equal(model.loss(eight_sequences())[0], backbone.loss(eight_sequences())[0])
    with pytest.raises(ConfigError, match=rf'{name}.thoughts = "none"'):
        model.thought_clusters(tiny_batch(), codes_BKL)


@BOTH
def test_thoughts_without_teaching_cost_nothing_in_the_loss(name):
    batch = eight_sequences()
    taught, plain = built(name), built(name, supervision=False)
    plain.load_state_dict(taught.state_dict(), strict=False)
    assert not any("summary" in key or "light" in key for key in plain.state_dict())
    loss, parts = taught.loss(batch)
    more = {key: part for key, part in parts.items() if key not in plain.loss(batch)[1]}
    assert list(more) == ["align0_nats", "align1_nats", "align2_nats", "contrast_nats",
                          "first_thought_gap"]  # fmt: skip
    regulariser = taught.config.regulariser
    weighted = sum(more.values()) + (regulariser - 1) * more["first_thought_gap"]
    torch.testing.assert_close(loss, plain.loss(batch)[0] + weighted)


def test_a_thought_is_the_decoders_own_output_and_is_read_by_this_and_later_codes():
    model, batch = built("s2gr"), tiny_batch()
    codes_BKL = contract.random_codes(5, 1)
    states = model.history_states(batch)
    depth = list(model.levels)
    none = codes_BKL[:, 0, :0]
    assert [len(weights) for weights in model.readers] == [1, 2, 3]
    a, p = [list(weights) for weights in model.readers], model.positions_LD
    t1 = depth[0](states, none) + p[0]
    t2 = depth[1](states, codes_BKL[:, 0, :1], t1 @ a[1][0].T) + p[1]
    heard = t1 @ a[2][0].T + t2 @ a[2][1].T
    t3 = depth[2](states, codes_BKL[:, 0, :2], heard) + p[2]
    found = model.path_thoughts(states, codes_BKL[:, 0])
    for mine, expected in zip(found, (t1, t2, t3), strict=True):
        torch.testing.assert_close(mine, expected)
    y3 = depth[2](states, codes_BKL[:, 0, :2], heard + t3 @ a[2][2].T)
    plain = F.linear(y3, model.codes[2], depth[2].bias)
    quiet = F.linear(depth[2](states, codes_BKL[:, 0, :2]), model.codes[2], depth[2].bias)
    with torch.no_grad():
        logits = every_logit(model, codes_BKL)[2][:, 0]
        for weights in model.readers:
            weights.zero_()
        silent = every_logit(model, codes_BKL)[2][:, 0]
    torch.testing.assert_close(logits - silent, (plain - quiet).detach(), rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("thoughts", ["stepwise", "first"])
def test_a_thinking_position_reaches_its_own_code_and_later_ones(name, thoughts):
    model, codes_BKL = built(name, thoughts=thoughts), contract.random_codes(5, 2)
    before = every_logit(model, codes_BKL)
    for level in range(3):
        with torch.no_grad():
            model.positions_LD[level] += 1.0
        after = every_logit(model, codes_BKL)
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        first_moved = 0 if thoughts == "first" else level
        assert moved == [number >= first_moved for number in range(3)]
        before = after


@BOTH
def test_thoughts_made_first_know_no_code_and_stepwise_ones_know_those_before(name):
    batch, codes = tiny_batch(), contract.random_codes(5, 2)
    codes[:, 1] = codes[:, 0]
    codes[:, 1, 1] = (codes[:, 0, 1] + 1) % 3
    for thoughts, same in (("first", [True, True, True]), ("stepwise", [True, True, False])):
        model = built(name, thoughts=thoughts)
        with torch.no_grad():
            probs_BKL = model.thought_clusters(batch, codes).probs_BKL
        assert [torch.equal(*probs_BKL[..., level].unbind(1)) for level in range(3)] == same


@BOTH
@pytest.mark.parametrize(
    "check",
    [
        contract.check_steps_multiply_to_whole_ids,
        contract.check_beams_follow_their_parents,
        contract.check_a_full_beam_ranks_as_exact_scoring,
        contract.check_state_dict_carries_the_whole_model,
    ],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("changes", [{"thoughts": "first"}, {"supervision": False}], ids=str)
def test_cached_beams_equal_reading_everything_again_in_every_variant(name, check, changes):
    model_class, config_class, *_ = PAIRS[name]
    check(model_class, small_config(config_class, **changes))


def test_two_layers_of_the_encoder_decoder_are_unrolled_as_they_are_cached():
    changes = {"num_encoder_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
    config = small_config(S2grTigerConfig, **changes)
    contract.check_steps_multiply_to_whole_ids(S2grTiger, config)
    assert len(S2grTiger.build(tiny_context(), config).light) == 1


def test_the_unrolled_decoder_equals_one_pass_over_its_own_thoughts():
    model = built("s2gr_tiger", num_decoder_layers=2)
    batch, codes_BKL = tiny_batch(), contract.random_codes(5, 1)
    tokens = codes_BKL + model.first_tokens_L
    with torch.no_grad():
        x, mask = model._encode(model._histories(batch))
        written, thoughts = model._unrolled(x, mask, tokens)
        codes = model.embedding(tokens)
        start = model.embedding(torch.zeros_like(tokens[..., :1]))
        places = [start]
        for level in range(3):
            places += [thoughts[level][:, :, None], codes[:, :, level : level + 1]]
        y = torch.cat(places[:-1], dim=2)
        bias = model._causal_bias(6)
        for block in model.decoder_blocks:
            y = block(y, bias, *block.cross.remember(x), mask)
        y = model.decoder_norm(y)
    torch.testing.assert_close(y[:, :, 1::2], written, rtol=1e-4, atol=1e-5)
    again = y[:, :, 0::2] + model.positions_LD
    torch.testing.assert_close(again, torch.stack(thoughts, dim=2), rtol=1e-4, atol=1e-5)


# Teaching ----------------------------------------------------------------------------------------


@BOTH
def test_only_the_contrast_trains_the_light_decoder_and_nothing_trains_the_centroids(name):
    light = "summary" if name == "s2gr" else "light"
    for contrast, trained in ((0.0, False), (1.0, True)):
        model = built(name, contrast_weight=contrast, regulariser=3.0)
        model.loss(eight_sequences())[0].backward()
        grads = [w.grad for key, w in model.named_parameters() if key.startswith(light)]
        assert any(g is not None and bool(g.any()) for g in grads) == trained
        assert model.positions_LD.grad.abs().sum() > 0
        assert not any("centroids" in key for key, _ in model.named_parameters())


@BOTH
def test_teaching_makes_thoughts_name_the_cluster_of_the_next_code(name):
    model_class, config_class, *_ = PAIRS[name]
    model, batch = model_class.build(tiny_context(), small_config(config_class)), eight_sequences()
    asked = Examples(
        np.arange(8),
        Histories.from_lists([row.tolist() for row in batch.items_BT]),
        batch.targets_BT[:, -1].numpy(),
    )
    untaught = thought_accuracy(model.eval(), asked, contract.tiny_index())
    optimiser = torch.optim.Adam(model.train().parameters(), lr=0.01)
    for _ in range(50):
        optimiser.zero_grad()
        model.loss(batch)[0].backward()
        optimiser.step()
    taught = thought_accuracy(model.eval(), asked, contract.tiny_index())
    assert np.mean(taught) > 0.8 > 0.3 + np.mean(untaught)


@BOTH
def test_clusters_follow_the_codes_in_training_and_stay_in_evaluation(name):
    model = built(name, refresh_steps=1)
    table = model.codes[0] if name == "s2gr" else model.embedding.weight
    before = model.clusters.centroids(0).clone()
    with torch.no_grad():
        table += 50.0
    model.eval().loss(eight_sequences())
    assert torch.equal(model.clusters.centroids(0), before)
    model.train().loss(eight_sequences())
    assert (model.clusters.centroids(0) > 0.9 * 16**-0.5).all()


@BOTH
def test_shorter_ids_are_thought_of_and_taught_up_to_their_end(name):
    model_class, config_class, *_ = PAIRS[name]
    context = shortened(tiny_context())
    model = model_class.build(context, small_config(config_class)).eval()
    loss, parts = model.loss(eight_sequences())
    assert loss.isfinite() and all(part.isfinite() for part in parts.values())
    codes_BKL = torch.from_numpy(context.semantic_ids.codes[[3, 5]])[None].expand(5, -1, -1)
    with torch.no_grad():
        said = model.thought_clusters(tiny_batch(), codes_BKL)
    assert said.contains_BKL.shape == (5, 2, 3) and not said.contains_BKL[:, 0, 2].any()
    examples = Examples(np.arange(2), Histories.from_lists([[1, 2], [5]]), np.array([3, 5]))
    index = PrefixIndex.build(context.semantic_ids)
    assert len(thought_accuracy(model, examples, index)) == 3


# What they say, and what they are part of --------------------------------------------------------


@BOTH
def test_what_a_thought_says_is_the_nearest_centroid_in_angle(name):
    model, batch, codes = built(name), tiny_batch(), contract.random_codes(5, 3)
    with torch.no_grad():
        said = model.thought_clusters(batch, codes)
        for level, named_BK in enumerate(said.clusters_BKL.unbind(-1)):
            held = model.clusters.clusters(level)[codes[..., level]] == named_BK
            assert torch.equal(held, said.contains_BKL[..., level])
            model.clusters.centroids(level).neg_()
        turned = model.thought_clusters(batch, codes)
    assert (said.probs_BKL > 0.5).all()  # of two clusters, the nearer one
    assert torch.equal(turned.clusters_BKL, 1 - said.clusters_BKL)


def test_level_accuracy_counts_the_true_codes_that_come_first():
    context, index = tiny_context(), contract.tiny_index()
    model = built("s2gr")
    examples = Examples(
        np.arange(6), Histories.from_lists([[0], [7, 8], [3], [9], [12, 1], [20]]),
        np.array([1, 9, 22, 3, 13, 5]),
    )  # fmt: skip
    right = np.zeros(3)
    for history, target in zip(
        [examples.histories[i] for i in range(6)], examples.targets, strict=True
    ):
        batch = HistoryBatch.from_histories(Histories.from_lists([history]), max_length=6)
        codes = torch.from_numpy(context.semantic_ids.codes[target])[None, None]
        logits = contract.stepped_logits(model, batch, codes)
        for level in range(3):
            legal = {
                int(c[level])
                for c in context.semantic_ids.codes
                if (c[:level] == codes[0, 0, :level].numpy()).all()
            }
            best = max(sorted(legal), key=lambda v, x=logits[level][0, 0]: x[v].item())
            right[level] += best == codes[0, 0, level]
    assert level_accuracy(model, examples, index, batch_size=4) == pytest.approx(right / 6)


def test_thought_accuracy_of_a_generator_without_thoughts_says_what_to_take():
    model = contract.built(Causal, small_config(CausalConfig))
    examples = Examples(np.arange(1), Histories.from_lists([[0]]), np.array([1]))
    with pytest.raises(ConfigError, match="got Causal without any; take s2gr"):
        thought_accuracy(model, examples, contract.tiny_index())


@BOTH
def test_a_grown_catalogue_keeps_thoughts_and_clusters(name):
    context = tiny_context()
    model, config = built(name), PAIRS[name][1]
    assert context.vectors is not None and context.semantic_ids is not None
    more = [str(item) for item in context.items.item_ids] + ["new 1", "new 2"]
    rows = np.array([*range(24), 2, 9])
    larger = CatalogueContext(
        Items(as_ids(more), pl.DataFrame({"title": more})),
        context.train,
        ItemVectors(as_ids(more), context.vectors.vectors[rows]),
        SemanticIds(
            as_ids(more),
            np.concatenate([context.semantic_ids.codes, [[0, 0, 1], [3, 2, 0]]]),
            context.semantic_ids.num_codes,
        ),
    )
    with torch.no_grad():
        model.clusters.centroids(0).add_(3.0)
    grown = grow(
        model, PAIRS[name][0].build(larger, small_config(config)), 24, np.array([[2], [9]])
    )
    codes_BKL = contract.random_codes(5, 4)
    with torch.no_grad():
        for before, after in zip(
            model.thought_clusters(tiny_batch(), codes_BKL),
            grown.thought_clusters(tiny_batch(), codes_BKL),
            strict=True,
        ):
            torch.testing.assert_close(after, before)


def test_bad_settings_are_said_of_the_method_that_has_them():
    with pytest.raises(ConfigError, match=r"s2gr\.align_temperature must be above 0, got 0"):
        S2grConfig(align_temperature=0.0)
    with pytest.raises(ConfigError, match=r"s2gr_tiger\.num_clusters must be at least 1"):
        S2grTigerConfig(num_clusters=0)
    with pytest.raises(ConfigError, match="num_heads"):
        S2grConfig(width=10, num_heads=3)
    with pytest.raises(ConfigError, match="hold only 2 codes of level 2; lower it to at most 2"):
        S2gr.build(tiny_context(), small_config(S2grConfig, num_clusters=3))
