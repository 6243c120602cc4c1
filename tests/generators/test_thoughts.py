"""What thoughts are taught: the identities of the card, and clusters that follow the codes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sidrec.errors import ConfigError
from sidrec.generators.thoughts import (
    CodeClusters,
    Thinking,
    ThoughtConfig,
    align_nats,
    check_thoughts,
    contrast_nats,
    cosines,
    gap,
    kmeans,
    levels_of,
    mean_codes,
    nearest,
    teach,
)

CONFIG = ThoughtConfig(num_clusters=2, refresh_steps=3)


def clusters_of(*tables, config=CONFIG, symbols=None):
    """Clusters of tables of codes that all have an item, or that the given symbols use."""
    most = max(map(len, tables))
    if symbols is None:
        symbols = torch.stack([torch.arange(most) % len(table) for table in tables], dim=1)
    torch.manual_seed(0)
    return CodeClusters("s2gr", tables, symbols, config)


# Losses ------------------------------------------------------------------------------------------


def test_a_thought_orthogonal_to_all_centroids_costs_log_k():
    centroids = torch.eye(5)[:4] * torch.tensor([[1.0], [2], [3], [4]])
    thought = torch.tensor([[0.0, 0, 0, 0, 7]])
    for cluster in range(4):
        nats = align_nats(thought, centroids, torch.tensor([cluster]), 0.1)
        assert nats.item() == pytest.approx(math.log(4), abs=1e-6)


def test_alignment_is_a_softmax_of_cosines_over_the_temperature():
    thoughts = torch.tensor([[1.0, 0], [3, 3]])
    centroids = torch.tensor([[5.0, 0], [0, 0.1]])
    half = math.sqrt(0.5)
    expected = [
        -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)),
        -math.log(math.exp(half / 0.5) / (2 * math.exp(half / 0.5))),
    ]
    nats = align_nats(thoughts, centroids, torch.tensor([0, 1]), 0.5)
    assert nats.item() == pytest.approx(sum(expected) / 2, abs=1e-6)
    live = align_nats(thoughts, centroids, torch.tensor([0, 1]), 0.5, torch.tensor([True, False]))
    assert live.item() == pytest.approx(expected[0] / 2, abs=1e-6)


def test_as_many_clusters_as_codes_are_supervision_by_the_codes_themselves():
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    clusters = clusters_of(table, config=replace(CONFIG, num_clusters=6))
    assert clusters.clusters(0).unique().numel() == 6
    thoughts = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    codes = torch.tensor([3, 1, 4, 1, 5, 0])
    nats = align_nats(thoughts, clusters.centroids(0), clusters.clusters(0)[codes], 0.2)
    directly = F.cross_entropy(cosines(thoughts, table) / 0.2, codes)
    torch.testing.assert_close(nats, directly)


def test_identical_targets_of_different_ids_cost_log_b():
    means = torch.ones(6, 3)
    summaries = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    nats = contrast_nats(summaries, means, torch.arange(6), 0.1)
    assert nats.item() == pytest.approx(math.log(6), abs=1e-5)


def test_the_same_target_elsewhere_in_the_batch_is_no_negative():
    means = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    summaries = torch.tensor([[1.0, 0], [0, 1], [0, 2]])
    other = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    nats = contrast_nats(summaries, means, torch.tensor([7, 7, 2]), 1.0)
    both = math.log(1 + 2 * math.exp(-1))
    assert nats.item() == pytest.approx((other[0] + other[1] + both) / 3, abs=1e-6)
    assert contrast_nats(summaries, means, torch.tensor([1, 1, 1]), 1.0).item() == 0


def test_the_regulariser_is_zero_when_parallel_and_moves_the_thought_alone():
    summaries = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert gap(3.5 * summaries.detach(), summaries).item() == pytest.approx(0, abs=1e-6)
    assert gap(-summaries.detach(), summaries).item() == pytest.approx(2, abs=1e-6)
    thoughts = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gap(thoughts, summaries).backward()
    assert summaries.grad is None
    nearer = thoughts.detach() - 0.1 * thoughts.grad
    assert gap(nearer, summaries) < gap(thoughts, summaries)


def test_a_shorter_id_is_taught_up_to_its_end_and_its_mean_leaves_the_end_out():
    symbols = torch.tensor([[1, 3, 3], [0, 2, 1]])  # 3 ends an ID: one above the codes 0, 1, 2
    real, live = levels_of(symbols, (2, 3, 3))
    assert real.tolist() == [[True, False, False], [True, True, True]]
    assert live.tolist() == [[True, True, False], [True, True, True]]
    tables = [torch.full((4, 2), float(value)) for value in (1, 10, 100)]
    means = mean_codes(symbols, real, tables)
    torch.testing.assert_close(means, torch.tensor([[1.0, 1], [37, 37]]))


def test_the_parts_add_up_with_their_weights():
    tables = [torch.randn(4, 3), torch.randn(4, 3)]
    clusters = clusters_of(*tables)
    passed = Thinking(torch.randn(2, 5, 3), torch.randn(5, 3), torch.randint(4, (5, 2)))
    config = replace(CONFIG, align_weight=2.0, contrast_weight=3.0, regulariser=5.0)
    loss, parts = teach(passed, clusters, tables, (4, 4), config)
    align = parts["align0_nats"] + parts["align1_nats"]
    expected = 2 * align + 3 * parts["contrast_nats"] + 5 * parts["first_thought_gap"]
    torch.testing.assert_close(loss, expected)


def test_cosines_stay_float32_under_autocast():
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines(states, states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.diagonal(), torch.ones(3))


# Clusters ----------------------------------------------------------------------------------------


def directions(*degrees):
    """(V, 2) vectors of these directions, of lengths 1, 2, 3, …"""
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 1 + len(degrees))[:, None]


def degrees_of(vectors):
    """Directions of vectors, ascending, whole degrees."""
    return sorted(torch.atan2(vectors[:, 1], vectors[:, 0]).rad2deg().round().int().tolist())


def test_kmeans_finds_directions_even_from_centroids_that_nobody_is_near():
    points = directions(0, 10, 50, 60, 100, 110)
    centroids = kmeans(points, directions(5, -90, -95), 10)
    assert degrees_of(centroids) == [5, 55, 105]
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3))
    named = nearest(points, directions(5, 55, 105))
    assert named.tolist() == [0, 0, 1, 1, 2, 2]


def test_lengths_do_not_decide_what_belongs_together():
    points = torch.tensor([[0.01, 0], [5, 0.1], [0, 0.01], [0.1, 5]])
    named = nearest(points, kmeans(points, points[[1, 3]], 10))
    assert named[0] == named[1] != named[2] == named[3]


def test_codes_without_items_do_not_pull_centroids_but_have_a_cluster():
    table = directions(0, 10, 80, 90, 140)
    clusters = clusters_of(table, symbols=torch.tensor([[0], [1], [2], [3]]))
    assert degrees_of(clusters.centroids(0)) == [5, 85]
    assert clusters.clusters(0)[4] == clusters.clusters(0)[3]


def test_clusters_are_refreshed_at_the_first_step_and_every_so_many_without_gradient():
    angles = torch.tensor([0.0, 10, 80, 90])
    clusters = clusters_of(directions(*angles).requires_grad_())
    assert not list(clusters.parameters()) and not clusters.centroids(0).requires_grad
    seen = []
    for step in range(1, 8):
        clusters.count_step([directions(*(angles + step)).requires_grad_()])
        seen.append(degrees_of(clusters.centroids(0))[0])
    assert seen == [6, 6, 6, 9, 9, 9, 12]


def test_a_loaded_state_goes_on_counting_where_it_was():
    angles = torch.tensor([0.0, 10, 80, 90])
    first, second = clusters_of(directions(*angles)), clusters_of(directions(*angles))
    for _ in range(2):
        first.count_step([directions(*angles)])
    second.load_state_dict(first.state_dict())
    for expected in (5, 25):
        second.count_step([directions(*(angles + 20))])
        assert degrees_of(second.centroids(0))[0] == expected
    assert second.steps.tolist() == [4]


# Bad input ---------------------------------------------------------------------------------------


def test_fewer_codes_than_clusters_says_how_to_mend_it():
    tables = torch.randn(4, 2), torch.randn(1, 2)
    with pytest.raises(ConfigError, match="is 2, but items hold only 1 codes of level 1; lower"):
        clusters_of(*tables)
    found = clusters_of(*tables, config=replace(CONFIG, num_clusters=(2, 1)))
    assert [len(found.centroids(level)) for level in (0, 1)] == [2, 1]
    with pytest.raises(ConfigError, match=r"lists 3 numbers, the IDs have 2 levels"):
        clusters_of(*tables, config=replace(CONFIG, num_clusters=(2, 1, 1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_clusters", 0),
        ("num_clusters", (2, 0)),
        ("num_clusters", ()),
        ("refresh_steps", 0),
        ("align_temperature", 0.0),
        ("contrast_temperature", -1.0),
        ("contrast_temperature", math.nan),
        ("regulariser", -0.1),
        ("align_weight", math.nan),
    ],
)
def test_settings_that_cannot_be_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"s2gr_tiger\.{name} must"):
        check_thoughts("s2gr_tiger", ThoughtConfig(**{name: value}))
