"""The graph that `decoding.parallel` walks: from each item to those with the most similar codes.

The similarity of two items is the sum over levels of that of their codes, which the caller gives;
an ID that has ended is like no other at the levels it lacks.

Source:   RPG (arXiv:2506.05781), section 3.3.
Differs:  above `EXACT_GRAPH` items neighbours are looked up among random projections, then ranked
          by the true similarity.
Cost:     O(N^2 L); above `EXACT_GRAPH` items O(N^1.5), and N `PROJECTED` floats while it is made.
Shapes:   N items, L levels, V codes, S columns, K neighbours, R holders, P projected width.
"""

from __future__ import annotations

import faiss
import torch
from torch import Tensor
from torch.nn import functional as F

from sidrec.decoding.parallel import (
    ItemGraph,
    best,
    block_size,
    candidate_sums,
    columns_of,
    item_sums,
)
from sidrec.types import PAD

EXACT_GRAPH = 50_000
"""Catalogues up to this size get exact neighbours."""
PROJECTED = 256
"""Width of the random projections by which larger ones find theirs."""
PROBES = 16
"""Cells of the coarse index that are looked at for each of them."""


def item_graph(
    similarity_LVV: Tensor,
    places_NL: Tensor,
    *,
    num_neighbours: int,
    num_starts: int,
    holders: int = 4,
    seed: int = 0,
    exact_below: int = EXACT_GRAPH,
) -> ItemGraph:
    """The graph of a catalogue. `similarity_LVV` is that of the codes of each level; V columns a
    level make the places. Starts are drawn by `seed`.
    """
    num_items, random = len(places_NL), torch.Generator().manual_seed(seed)
    order_N = torch.randperm(num_items, generator=random).to(places_NL.device)
    find = exact_neighbours if num_items <= exact_below else projected_neighbours
    return ItemGraph(
        find(similarity_LVV, places_NL, num_neighbours),
        order_N[:num_starts],
        holders_of(places_NL, order_N, similarity_LVV.shape[:2].numel() + 1, holders)[:-1],
    )


def similarity_table(similarity_LVV: Tensor, places_BL: Tensor) -> Tensor:
    """(B, S) what each code adds to the similarity with each of B items, in the form of a table."""
    num_levels, width, _ = similarity_LVV.shape
    flat = similarity_LVV.reshape(num_levels * width, width)
    zero_1V = flat.new_zeros(1, width)
    rows_BLV = torch.cat([flat, zero_1V])[places_BL.long()]  # after its end an ID is like no other
    return F.pad(rows_BLV.flatten(1), (0, 1))


def exact_neighbours(similarity_LVV: Tensor, places_NL: Tensor, num_neighbours: int) -> Tensor:
    """(N, K) rows of the most similar other items; ties to the lower row."""
    step, out = block_size(places_NL.device, len(places_NL)), []
    for start in range(0, len(places_NL), step):
        table_BS = similarity_table(similarity_LVV, places_NL[start : start + step])
        scores_BN = item_sums(table_BS, places_NL).T
        itself_B = torch.arange(len(scores_BN), device=scores_BN.device)
        scores_BN[itself_B, itself_B + start] = -torch.inf
        values_BK, rows_BK = best(scores_BN, num_neighbours)
        out.append(rows_BK.masked_fill(values_BK == -torch.inf, PAD))
    return torch.cat(out).int()


def projected_neighbours(
    similarity_LVV: Tensor, places_NL: Tensor, num_neighbours: int, *, seed: int = 0
) -> Tensor:
    """As `exact_neighbours`, from twice as many found near each item's random projection.

    Codes become vectors whose products are the similarity (its symmetric square root); those of an
    item are projected, each level on its own, and added up.
    """
    num_items, (num_levels, width, _) = len(places_NL), similarity_LVV.shape
    values_LV, basis_LVV = torch.linalg.eigh(similarity_LVV.double().cpu())
    codes_LVV = basis_LVV * values_LV.clamp_min(0).sqrt()[:, None]
    random = torch.Generator().manual_seed(seed)
    turns_LVP = torch.randn(num_levels, width, PROJECTED, generator=random, dtype=torch.float64)
    codes_SP = F.pad((codes_LVV @ turns_LVP).flatten(0, 1), (0, 0, 0, 1)).float()
    places = places_NL.cpu()
    points_NP = F.embedding_bag(places, codes_SP / PROJECTED**0.5, mode="sum").numpy()
    cells = int(4 * num_items**0.5)
    index = faiss.index_factory(PROJECTED, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(points_NP)  # pyright: ignore[reportCallIssue]
    index.add(points_NP)  # pyright: ignore[reportCallIssue]
    index.nprobe = PROBES  # pyright: ignore[reportAttributeAccessIssue]
    step, out = block_size(places_NL.device, len(places_NL)), []
    for start in range(0, num_items, step):
        _, found = index.search(points_NP[start : start + step], 2 * num_neighbours + 1)  # pyright: ignore[reportCallIssue]
        rows_BC = torch.from_numpy(found).to(places_NL.device)
        own_B1 = torch.arange(start, start + len(rows_BC), device=rows_BC.device)[:, None]
        rows_BC = rows_BC.masked_fill(rows_BC == own_B1, PAD).sort(dim=1).values
        table_BS = similarity_table(similarity_LVV, places_NL[start : start + step])
        scores_BC = candidate_sums(table_BS, places_NL, rows_BC)
        values_BK, order_BK = best(scores_BC, num_neighbours)
        rows_BK = rows_BC.gather(1, order_BK)
        out.append(rows_BK.masked_fill(values_BK == -torch.inf, PAD))
    return torch.cat(out).int()


def holders_of(places_NL: Tensor, order_N: Tensor, num_columns: int, holders: int) -> Tensor:
    """(S, R) the first items, in the order given, with each code; −1 where there are fewer."""
    columns = columns_of(places_NL[order_N], num_columns)
    starts_S1 = F.pad(columns.starts_S, (0, 1), value=len(columns.items_E)).long()
    taken_SR = starts_S1[:-1, None] + torch.arange(holders, device=starts_S1.device)
    missing_SR = taken_SR >= starts_S1[1:, None]
    items_SR = columns.items_E[taken_SR.clamp_max(len(columns.items_E) - 1)].long()
    return order_N[items_SR].masked_fill(missing_SR, PAD)
