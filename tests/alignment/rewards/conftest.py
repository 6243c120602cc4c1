"""A small shop without position bias, so that what is clicked says what is liked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidrec.alignment.preferences import of_shop
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.data import split
from sidrec.data.shop import ShopConfig, simulate
from sidrec.embeddings.lsa import Lsa, LsaConfig
from sidrec.types import CatalogueContext, Histories, HistoryBatch, SemanticIds


@pytest.fixture(scope="package")
def shop_world():
    """`shop`, its training `context`, and `users` who have a history."""
    shop = simulate(
        ShopConfig(
            num_users=400, num_items=100, num_categories=4, num_days=30, position_bias=0, seed=5
        )
    )
    train = split(shop.dataset).train
    items = shop.dataset.items
    vectors = Lsa.fit(CatalogueContext(items, train), LsaConfig(dim=16)).embed(items)
    ids = SemanticIds(items.item_ids, np.arange(100)[:, None], (100,))
    context = AlignmentContext(items, vectors, ids, train, of_shop(shop, train))
    users = np.flatnonzero(shop.dataset.interactions.histories.lengths > 0)
    return SimpleNamespace(shop=shop, context=context, users=users)


@pytest.fixture(scope="package")
def every_item():
    """A function: histories and users to rollouts of the whole catalogue, an ID for each item."""

    def rollouts(histories: Histories, users_B, num_items: int = 100) -> Rollouts:
        B = len(histories)
        rows_BN, zeros_B = torch.arange(num_items).expand(B, -1), torch.zeros(B, dtype=torch.long)
        return Rollouts(
            batch=HistoryBatch.from_histories(histories, max_length=50),
            targets_B=zeros_B,
            users_B=torch.as_tensor(users_B),
            codes_BGL=rows_BN[..., None],
            rows_BG=rows_BN,
            log_probs_BGL=torch.zeros(B, num_items, 1),
            lengths_BG=torch.ones_like(rows_BN),
            target_codes_BL=zeros_B[:, None],
        )

    return rollouts
