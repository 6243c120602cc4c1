"""The simulated catalogue: a tree of categories, and items with text, price and margin.

Items of one subcategory share words, items of one category share a few, styles and price tiers
have words of their own; so vectors of the text find the tree. Appeal, price and margin are drawn
independently, so that the most wanted item is rarely the most profitable one.

Shapes: N items, C categories, G subcategories, S styles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sidrec.data.shop.config import ShopConfig
from sidrec.data.shop.words import (
    BRAND_ENDS,
    BRAND_STARTS,
    CATALOGUE,
    DESCRIPTIONS,
    PRICE_WORDS,
    STYLES,
    TITLES,
)
from sidrec.types import Floats, Ints, Items, as_ids

NEVER_NEW = -10_000  # release day of items that were there long before the log


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What the shop sells, and what is true of it."""

    items: Items
    category_names: tuple[str, ...]
    subcategory_names: tuple[str, ...]
    categories_G: Ints
    """Category of each subcategory."""
    subcategories_N: Ints
    styles_N: Ints
    price_levels_N: Floats
    """Price as standard deviations from the (log) mean of the subcategory."""
    margins_N: Floats
    """Money earned when the item is bought."""
    conversions_N: Floats
    """Probability that a click ends in a purchase."""
    release_days_N: Ints
    """First day on sale; far below 0 for items that were always there."""

    @property
    def categories_N(self) -> Ints:
        return self.categories_G[self.subcategories_N]

    def hierarchy(self) -> pl.DataFrame:
        """N rows: item_id, category, subcategory, style, as words."""
        names = np.array(self.subcategory_names)[self.subcategories_N]
        return pl.DataFrame(
            {
                "item_id": self.items.item_ids.astype(str),
                "category": np.array(self.category_names)[self.categories_N],
                "subcategory": names,
                "style": np.array(list(STYLES))[self.styles_N],
            }
        )


def build_catalogue(config: ShopConfig, rng: np.random.Generator) -> Catalogue:
    """A catalogue drawn from the word lists; every subcategory gets an item while N allows."""
    N, G = config.num_items, config.num_leaves
    category_names = tuple(CATALOGUE)[: config.num_categories]
    leaves = [
        (category, name)
        for category in category_names
        for name in list(CATALOGUE[category][1])[: config.num_subcategories]
    ]
    categories_G = np.repeat(np.arange(config.num_categories), config.num_subcategories)
    spread_N = rng.choice(G, N, p=rng.dirichlet(np.full(G, 5.0)))
    subcategories_N = np.where(np.arange(N) < G, np.arange(N), spread_N)[rng.permutation(N)]
    styles_N = rng.integers(len(STYLES), size=N)
    levels_N = rng.standard_normal(N).clip(-2, 2)
    prices_N = np.exp(rng.normal(3.2, 0.5, G)[subcategories_N] + 0.4 * levels_N).round(2)
    margins_N = (prices_N * rng.uniform(0.05, 0.6, N)).round(2)
    num_new = round(config.new_item_share * N)
    release_N = np.full(N, NEVER_NEW)
    release_N[rng.permutation(N)[:num_new]] = rng.integers(1, max(config.num_days, 2), num_new)
    texts = [
        _write(leaves[g], style, level, int(row), rng)
        for row, (g, style, level) in enumerate(
            zip(subcategories_N, styles_N, levels_N, strict=True)
        )
    ]
    attributes = pl.DataFrame(
        {
            "title": [title for title, _, _ in texts],
            "brand": [brand for _, brand, _ in texts],
            "categories": [list(leaves[g]) for g in subcategories_N],
            "description": [description for _, _, description in texts],
            "price": prices_N,
        }
    )
    return Catalogue(
        Items(as_ids(f"item-{row:06d}" for row in range(N)), attributes),
        category_names,
        tuple(name for _, name in leaves),
        categories_G,
        subcategories_N,
        styles_N,
        levels_N.astype(np.float32),
        margins_N.astype(np.float32),
        rng.uniform(0.1, 0.5, N).astype(np.float32),
        release_N,
    )


def _write(
    leaf: tuple[str, str], style: int, level: float, row: int, rng: np.random.Generator
) -> tuple[str, str, str]:
    """Title, brand and description of one item."""
    shared, subcategories = CATALOGUE[leaf[0]]
    nouns, words = (text.split() for text in subcategories[leaf[1]])
    adjectives = list(STYLES.values())[style].split()
    # Brands belong to a category: four starts of the twelve, rotated by the category's place.
    start = BRAND_STARTS[(list(CATALOGUE).index(leaf[0]) + 3 * rng.integers(4)) % len(BRAND_STARTS)]
    brand = start + BRAND_ENDS[rng.integers(len(BRAND_ENDS))]
    word1, word2, word3 = rng.permutation(words)[:3]
    shared1, shared2 = rng.permutation(shared.split())[:2]
    tier = PRICE_WORDS[int(level > -0.6) + int(level > 0.6)].split()[rng.integers(2)]
    parts = {
        "brand": brand,
        "noun": nouns[rng.integers(len(nouns))],
        "style": adjectives[rng.integers(len(adjectives))],
        "number": 10 + row,
        "word1": word1,
        "word2": word2,
        "word3": word3,
        "shared1": shared1,
        "shared2": shared2,
        "tier": tier,
    }
    title = TITLES[rng.integers(len(TITLES))].format(**parts)
    description = DESCRIPTIONS[rng.integers(len(DESCRIPTIONS))].format(**parts)
    return title[0].upper() + title[1:], brand, description[0].upper() + description[1:]
