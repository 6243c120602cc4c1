"""A small fitted run that tests of the doors share: made once a process, in about a second."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest

RECIPE = """
name = "tiny"
[data]
interactions = "{folder}/interactions.parquet"
items = "{folder}/items.parquet"
[embedding]
name = "lsa"
dim = 16
[tokenizer]
name = "residual_kmeans"
num_codes = 8
[generator]
name = "causal"
width = 16
depth_hidden = 16
[generator.train]
epochs = 2
batch_positions = 256
[[scorers]]
name = "popularity"
[[scorers]]
name = "transition_graph"
[[scorers]]
name = "dense"
width = 16
[scorers.train]
epochs = 2
batch_positions = 256
[hybrid]
members = ["generator", "dense", "transition_graph"]
[decoding]
beam_width = 20
"""


def write_tables(dataset, folder):
    """The dataset as the two files a user would bring."""
    events, items = dataset.interactions, dataset.items
    pl.DataFrame(
        {
            "user_id": events.user_ids[events.users_E].tolist(),
            "item_id": items.item_ids[events.items_E].tolist(),
            "timestamp": events.times_E // 1_000_000,
        }
    ).write_parquet(folder / "interactions.parquet")
    ids = pl.Series("item_id", items.item_ids.tolist())
    items.attributes.with_columns(ids).write_parquet(folder / "items.parquet")


def taught(model, steps=60):
    """The model after some steps on the sequences of `testing.tiny_catalogue`, each item the target
    of those before it.
    """
    import torch

    from sidrec.testing.tiny_catalogue import tiny_context
    from sidrec.types import HistoryBatch

    batch = HistoryBatch.from_histories(tiny_context().train, max_length=6)
    ends = torch.full((batch.num_requests, 1), -1)
    targets = torch.cat([batch.items_BT[:, 1:], ends], dim=1)
    batch = HistoryBatch(batch.items_BT, batch.lengths_B, targets)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            optimiser.zero_grad()
            model.loss(batch)[0].backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`folder` with the two files and `recipe`, `run_dir`, and the finished `run`."""
    from sidrec import pipeline, recipe
    from sidrec.data.shop import ShopConfig, simulate

    folder = tmp_path_factory.mktemp("tiny")
    shop = simulate(
        ShopConfig(num_users=80, num_items=60, num_days=20, num_categories=3, num_subcategories=2)
    )
    write_tables(shop.dataset, folder)
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(folder=folder))
    run = pipeline.run(recipe.load_config(path), run_dir=folder / "run")
    return SimpleNamespace(folder=folder, recipe=path, run_dir=folder / "run", run=run)
