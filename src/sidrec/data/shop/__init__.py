"""Worlds with known answers: the simulated shop, a tiny checkerboard, a chain of known entropy."""

from sidrec.data.shop.chain import Chain, chain
from sidrec.data.shop.checkerboard import Checkerboard, checkerboard
from sidrec.data.shop.config import ShopConfig
from sidrec.data.shop.log import Impressions
from sidrec.data.shop.logger import draw_lists, exposures
from sidrec.data.shop.shop import Reward, Shop, simulate
from sidrec.data.shop.tastes import ASPECTS, Tastes
from sidrec.data.shop.world import Response, Visits

__all__ = [
    "ASPECTS",
    "Chain",
    "Checkerboard",
    "Impressions",
    "Response",
    "Reward",
    "Shop",
    "ShopConfig",
    "Tastes",
    "Visits",
    "chain",
    "checkerboard",
    "draw_lists",
    "exposures",
    "simulate",
]
