"""The whole search of `causal` as one ONNX graph: from histories to the best IDs of each request.

The graph computes what `generators.causal` and `decoding.beam` compute on lists of children
(`decoding.children`), level by level, with beam width, batch, history length and catalogue left
open. Weights are constants of the graph; the catalogue's tree and tables, and the rules, are its
inputs, so that new items or another filter need no other graph.

Source:   see `generators.causal` and `decoding.beam`.
Differs:  what a history or the rules remove is found by comparing paths, not by binary search;
          the last block's attention is folded (`encoder_graph`).
          Sums are rounded in another order: scores agree to about 1e-5, and items whose scores are
          that close may change places.
Shapes:   B requests, T history length, X excluded items, R known items of a request (T + X),
          D width, W beams, P children of a request's beams and one place for what is none,
          L levels, V symbols of a level, M nodes of a level, N items.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from sidrec.compiled.encoder_graph import array, cast, encoded, linear, norm
from sidrec.compiled.graph import Graph, Value
from sidrec.decoding.prefix_index import DEAD, ILLEGAL
from sidrec.generators.causal import FETCH, READ, Causal

BIG = 2**62


class Known(NamedTuple):
    """Items of a history, then excluded ones, by their way through the tree."""

    nodes_LBR: list[Value]
    parents_LBR: list[Value]
    """−1 for an item that is not in the index, or that counts for nothing."""
    sizes: Value
    """(2,) T and X, which make up R."""
    ones_BT: Value
    products_BT: Value
    """State · item of the history's distinct items."""
    ones_BX: Value


class Beams(NamedTuple):
    """The prefixes of each request, best first."""

    scores_BW: Value
    nodes_BW: Value
    symbols: list[Value]
    """(B, W) of each level so far."""


class Children(NamedTuple):
    """What may follow them; see `decoding.children`. The last place is nobody's, for all that has
    none; nothing there is real.
    """

    owners_BP: Value
    symbols_BP: Value
    nodes_BP: Value
    within_BP: Value | None
    """Places that some beam has; None where all but the last are."""
    logits_BP: Value
    """Of the code tables alone."""
    met_BP: Value | None
    """State · mean item of each child."""
    places_BR: Value
    """Place of each known item among the children."""
    zeros_BP: Value


def search_graph(generator: Causal) -> bytes:
    """The model for onnxruntime. Inputs and outputs: see `CompiledCausal`."""
    g = Graph()
    items_BT, lengths_B = g.input("items_BT", np.int64, 2), g.input("lengths_B", np.int64, 1)
    excluded_BX = g.input("excluded_BX", np.int64, 2)
    scores_B1, width = g.input("scores_B1", np.float32, 2), g.input("width", np.int64, 1)
    state_BD = encoded(g, generator, items_BT, lengths_B)
    known = known_items(g, generator, items_BT, excluded_BX, state_BD)
    beams = Beams(scores_B1, scores_B1, [])
    for level in range(len(generator.codes)):
        if level:
            children = below_beams(g, generator, level, state_BD, beams, known)
        else:
            children = below_root(g, generator, state_BD, known)
        beams = best(g, generator, level, beams, children, known, width)
    row_of_leaf = g.input("row_of_leaf", np.int64, 1)  # −1 for the sink
    rows_BW = g.op("Gather", row_of_leaf, beams.nodes_BW)
    return g.model(
        [
            ("scores_BW", beams.scores_BW, np.float32),
            ("leaves_BW", beams.nodes_BW, np.int64),
            ("rows_BW", rows_BW, np.int64),
        ]
    )


def known_items(
    g: Graph, generator: Causal, items_BT: Value, excluded_BX: Value, state_BD: Value
) -> Known:
    """Items of the histories, and excluded ones, repeats left out, with their nodes."""
    targets_ND = g.input("targets_ND", np.float32, 2)
    counted_N = g.input("counted_N", bool, 1)  # rows that count as live; the last is false
    seen_BT, excluded_BX = first_places(g, items_BT), first_places(g, excluded_BX)
    items_BTD = g.op("Gather", targets_ND, g.op("Max", seen_BT, 0))
    products_BT = g.op("Squeeze", items_BTD @ g.op("Unsqueeze", state_BD, [2]), [2])
    excluded_BX = g.op("Where", g.op("Gather", counted_N, excluded_BX), excluded_BX, -1)
    rows_BR = g.op("Concat", seen_BT, excluded_BX, axis=1)
    absent_BR = rows_BR < 0
    nodes = [  # the last place, which −1 means, has no node
        g.op("Gather", g.input(f"nodes{level}", np.int64, 1), rows_BR)
        for level in range(len(generator.codes))
    ]
    above = [g.op("Where", absent_BR, -1, nodes_BR) for nodes_BR in nodes[:-1]]
    shapes = [g.op("Shape", rows) for rows in (seen_BT, excluded_BX)]
    sizes = g.op("Concat", *(g.op("Gather", shape, [1]) for shape in shapes), axis=0)
    ones_BT, ones_BX = (g.op("Expand", 1.0, shape) for shape in shapes)
    root = g.op("Where", absent_BR, -1, 0)
    return Known(nodes, [root, *above], sizes, ones_BT, products_BT, ones_BX)


def first_places(g: Graph, rows_BT: Value) -> Value:
    """(B, T) rows at their first place, −1 at repeats."""
    places_T = g.op("Range", 0, g.op("Squeeze", g.op("Shape", rows_BT, start=1)), 1)
    earlier_TT = g.op("Unsqueeze", places_T, [0]) < g.op("Unsqueeze", places_T, [1])
    same_BTT = g.op("Unsqueeze", rows_BT, [2]).equals(g.op("Unsqueeze", rows_BT, [1]))
    again_BT = g.op("ReduceMax", cast(g, same_BTT & earlier_TT, np.float32), [2], keepdims=0)
    return g.op("Where", again_BT > 0.5, -1, rows_BT)


# ------------------------------------------------------------------ one level


def below_root(g: Graph, generator: Causal, state_BD: Value, known: Known) -> Children:
    """All nodes of the first level, for every request."""
    symbols_M = g.input("symbols0", np.int64, 1)
    size_M = g.op("Shape", symbols_M)
    shape = g.op("Concat", g.op("Shape", state_BD, end=1), size_M, axis=0)
    nodes_M = g.op("Range", 0, g.op("Squeeze", size_M), 1)
    logits_BV = code_logits(g, generator, 0, state_BD, [])
    logits_BP = g.op("Gather", logits_BV, symbols_M, axis=1)
    met_BP = None
    if generator.config.node_vectors:
        means_MD = g.input("means0", np.float32, 2)
        met_BP = state_BD @ g.op("Transpose", means_MD, perm=[1, 0])
    places_BR = g.op("Where", known.parents_LBR[0] < 0, g.op("Squeeze", size_M) - 1,
                     known.nodes_LBR[0])  # fmt: skip
    return Children(
        g.op("Expand", 0, shape), g.op("Expand", symbols_M, shape), g.op("Expand", nodes_M, shape),
        None, logits_BP, met_BP, places_BR, g.op("Expand", 0.0, shape),
    )  # fmt: skip


def below_beams(
    g: Graph, generator: Causal, level: int, state_BD: Value, beams: Beams, known: Known
) -> Children:
    """The children of the beams, by beam, then by code."""
    symbols_M = g.input(f"symbols{level}", np.int64, 1)
    counts_BW = g.op("Gather", g.input(f"num_children{level}", np.int64, 1), beams.nodes_BW)
    first_BW = g.op("Gather", g.input(f"first{level}", np.int64, 1), beams.nodes_BW)
    ends_BW = g.op("CumSum", counts_BW, 1)
    starts_BW = ends_BW - counts_BW
    total_B1 = g.op("Gather", ends_BW, [-1], axis=1)
    longest = g.op("Max", g.op("ReduceMax", total_B1, keepdims=0), 1)
    num_places = longest + 1
    places_P = g.op("Range", 0, num_places, 1)
    batch = g.op("Shape", state_BD, end=1)
    shape = g.op("Concat", batch, g.op("Unsqueeze", num_places, [0]), axis=0)
    # a beam begins at its first child: so many have begun, so the last of them is the owner
    ones_BW = g.op("Expand", 1, g.op("Shape", counts_BW))
    marks = g.op(
        "ScatterElements", g.op("Expand", 0, shape), starts_BW, ones_BW, axis=1, reduction="add"
    )
    owners_BP = g.op("CumSum", marks, 1) - 1
    shifts_BW = first_BW - starts_BW
    nodes_BP = places_P + g.op("GatherElements", shifts_BW, owners_BP, axis=1)
    nodes_BP = g.op("Min", nodes_BP, g.op("Squeeze", g.op("Shape", symbols_M)) - 1)
    symbols_BP = g.op("Gather", symbols_M, nodes_BP)
    logits_BWV = code_logits(g, generator, level, g.op("Unsqueeze", state_BD, [1]), beams.symbols)
    at_BP = owners_BP * generator.widths[level] + symbols_BP
    flat = g.op("Flatten", logits_BWV, axis=1)
    logits_BP = g.op("GatherElements", flat, at_BP, axis=1)
    met_BP = None
    if generator.config.node_vectors:
        means_MD = g.input(f"means{level}", np.float32, 2)
        met_BP = node_products(g, means_MD, state_BD, nodes_BP, batch)
    # the beam that a known item lies below, if any, says its place: the children are a slice
    hit_BWR = g.op("Unsqueeze", beams.nodes_BW, [2]).equals(
        g.op("Unsqueeze", known.parents_LBR[level], [1])
    )
    shift_BWR = g.op("Where", hit_BWR, g.op("Unsqueeze", shifts_BW, [2]), BIG)
    shift_BR = g.op("ReduceMin", shift_BWR, [1], keepdims=0)
    places_BR = g.op("Where", shift_BR < BIG, known.nodes_LBR[level] - shift_BR, longest)
    return Children(
        owners_BP, symbols_BP, nodes_BP, places_P < total_B1, logits_BP, met_BP, places_BR,
        g.op("Expand", 0.0, shape),
    )  # fmt: skip


def best(
    g: Graph,
    generator: Causal,
    level: int,
    beams: Beams,
    children: Children,
    known: Known,
    width: Value,
) -> Beams:
    """The best continuations; log-probabilities are among the legal children of a beam."""
    owners_BP, nodes_BP, x_BP = children.owners_BP, children.nodes_BP, children.logits_BP
    of_seen_BT, of_excluded_BX = g.ops(
        "Split", children.places_BR, known.sizes, num_results=2, axis=1
    )

    def summed(places: Value, values: Value) -> Value:
        return g.op("ScatterElements", children.zeros_BP, places, values, axis=1, reduction="add")

    if children.met_BP is not None:
        num_seen = summed(of_seen_BT, known.ones_BT)
        products = summed(of_seen_BT, known.products_BT)
        counts = g.op("Gather", g.input(f"counts{level}", np.float32, 1), nodes_BP)
        lost = float(-torch.expm1(generator.repeat_bias().detach()))
        rest = counts - num_seen * lost
        moved = (counts * children.met_BP - products * lost) / g.op("Max", rest, 1e-3)
        met = g.op("Where", num_seen < counts, moved, children.met_BP)
        x_BP = x_BP + met + g.op("Log", g.op("Max", rest, 1e-6))
    live_BP = g.op("Gather", g.input(f"live{level}", np.float32, 1), nodes_BP)
    real_BP = live_BP > summed(of_excluded_BX, known.ones_BX)
    real_BP = real_BP if children.within_BP is None else real_BP & children.within_BP
    x_BP = g.op("Where", real_BP, x_BP, ILLEGAL)
    if level:
        shape_BW = g.op("Shape", beams.scores_BW)
        none_BW = g.op("Expand", ILLEGAL, shape_BW)
        most_BW = g.op("ScatterElements", none_BW, owners_BP, x_BP, axis=1, reduction="max")
        x_BP = x_BP - g.op("GatherElements", most_BW, owners_BP, axis=1)
        none_BW, odds_BP = g.op("Expand", 0.0, shape_BW), g.op("Exp", x_BP)
        sums_BW = g.op("ScatterElements", none_BW, owners_BP, odds_BP, axis=1, reduction="add")
        before_BW = beams.scores_BW - g.op("Log", sums_BW)
        x_BP = x_BP + g.op("GatherElements", before_BW, owners_BP, axis=1)
    else:
        x_BP = g.op("LogSoftmax", x_BP, axis=1) + beams.scores_BW
    num = g.op("Min", width, g.op("Shape", x_BP, start=1) - 1)
    scores_BW, places_BW = g.ops("TopK", x_BP, num, num_results=2, axis=1)
    nodes_BW, symbols_BW = (
        g.op("GatherElements", of_BP, places_BW, axis=1)
        for of_BP in (nodes_BP, children.symbols_BP)
    )
    symbols = [symbols_BW]
    if beams.symbols:
        parents_BW = g.op("GatherElements", owners_BP, places_BW, axis=1)
        kept = [g.op("GatherElements", s, parents_BW, axis=1) for s in beams.symbols]
        symbols = [*kept, symbols_BW]
    sink = g.op("Squeeze", g.op("Shape", Value(g, f"symbols{level}"))) - 1
    return Beams(scores_BW, g.op("Where", scores_BW < DEAD, sink, nodes_BW), symbols)


def code_logits(
    g: Graph, generator: Causal, level: int, state: Value, symbols: list[Value]
) -> Value:
    """(…, V) logits of the code table; see `DepthLevel`."""
    depth: Any = generator.levels[level]
    moved = state
    for table, chosen in zip(depth.prefix, symbols, strict=True):
        moved = moved + g.op("Gather", array(table.weight), chosen)
    hidden = g.op("Gelu", linear(g, depth.up, norm(g, depth.norm, moved)))
    met = state + linear(g, depth.down, hidden)
    return met @ array(generator.codes[level].T) + array(depth.bias)


def node_products(
    g: Graph, means_MD: Value, state_BD: Value, nodes_BP: Value, batch: Value
) -> Value:
    """(B, P) state · mean item of each node, by the cheaper of two ways; see `dot_products`."""
    size_M, num = g.op("Shape", means_MD, end=1), g.op("Size", nodes_BP)
    every = size_M * (batch + READ) < num * FETCH

    def all_first(g: Graph) -> Value:
        means_DM = g.op("Transpose", means_MD, perm=[1, 0])
        return g.op("GatherElements", g.op("MatMul", state_BD, means_DM), nodes_BP, axis=1)

    def rows_first(g: Graph) -> Value:
        rows_BPD, state_BD1 = g.op("Gather", means_MD, nodes_BP), g.op("Unsqueeze", state_BD, [2])
        return g.op("Squeeze", g.op("MatMul", rows_BPD, state_BD1), [2])

    return g.either(g.op("Squeeze", every), all_first, rows_first)
