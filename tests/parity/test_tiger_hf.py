"""The same weights in `transformers`' T5 give the same numbers and the same beams."""

import itertools
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.generators.tiger import Tiger, TigerConfig
from sidrec.types import CatalogueContext, Histories, HistoryBatch, Items, SemanticIds, as_ids

sys.path.insert(0, str(Path(__file__).parent))
from t5_weights import encoder_input, t5_with_the_weights_of

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("transformers")

NUM_CODES, NUM_ITEMS, BEAMS = (7, 5, 6), 60, 9
HISTORIES = [[3, 17, 41, 9, 20], [5], [58, 2, 33, 33]]


@pytest.fixture(scope="module")
def tiger():
    every = np.array(list(itertools.product(*map(range, NUM_CODES))))
    codes = every[np.random.default_rng(1).permutation(len(every))[:NUM_ITEMS]]
    ids = as_ids(range(NUM_ITEMS))
    context = CatalogueContext(
        Items(ids, pl.DataFrame({"title": [str(i) for i in ids]})),
        Histories.from_lists([[0]]),
        semantic_ids=SemanticIds(ids, codes, NUM_CODES),
    )
    config = TigerConfig(width=24, num_heads=3, head_width=8, feed_forward=40, seed=2)
    return Tiger.build(context, config).eval()


def batch(histories):
    return HistoryBatch.from_histories(Histories.from_lists(histories), max_length=20)


@torch.inference_mode()
def test_logits_equal_those_of_t5(tiger):
    t5 = t5_with_the_weights_of(tiger)
    targets_BL = tiger.codes_NL[[7, 30, 11]]
    tokens_BL = targets_BL + tiger.first_tokens_L
    start = torch.zeros(1, 1, dtype=torch.long)
    ours = tiger.log_probs(batch(HISTORIES), targets_BL[:, None])[:, 0]
    for row, history in enumerate(HISTORIES):
        decoder_input = torch.cat([start, tokens_BL[row : row + 1, :-1]], 1)
        theirs = t5(encoder_input(tiger, history), decoder_input_ids=decoder_input).logits[0]
        state, codes, parents, total = tiger.start(batch([history])), None, None, 0.0
        for level, first in enumerate(tiger.first_tokens):
            band = theirs[level, first : first + NUM_CODES[level]]
            logits, state = tiger.step(state, codes, parents)
            torch.testing.assert_close(logits[0, 0], band, atol=1e-4, rtol=1e-4)
            codes, parents = targets_BL[row, level].view(1, 1), torch.zeros(1, 1, dtype=torch.long)
            total += band.log_softmax(-1)[targets_BL[row, level]]
        torch.testing.assert_close(ours[row], total, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_constrained_beams_equal_those_of_generate(tiger):
    """`renormalize_logits` makes `generate` normalise over legal tokens, as beam search here."""
    t5, codes_NL = t5_with_the_weights_of(tiger), tiger.codes_NL
    tokens_NL = codes_NL + tiger.first_tokens_L
    item_of = {tuple(tokens): row for row, tokens in enumerate(tokens_NL.tolist())}
    children = {}
    for tokens in item_of:
        for level, token in enumerate(tokens):
            children.setdefault(tokens[:level], set()).add(token)
    ids = SemanticIds(as_ids(range(NUM_ITEMS)), codes_NL.numpy(), NUM_CODES)
    ours = beam_search(tiger, batch(HISTORIES), PrefixIndex.build(ids), k=BEAMS, beam_width=BEAMS)
    for row, history in enumerate(HISTORIES):
        input_ids = encoder_input(tiger, history)
        theirs = t5.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            min_new_tokens=len(NUM_CODES),
            max_new_tokens=len(NUM_CODES),
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=0,
            prefix_allowed_tokens_fn=lambda _, seen: sorted(children[tuple(seen.tolist()[1:])]),
            renormalize_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )
        items = [item_of[tuple(tokens)] for tokens in theirs.sequences[:, 1:].tolist()]
        assert items == ours.rows_BK[row].tolist()
        scores = theirs.sequences_scores.numpy()
        np.testing.assert_allclose(scores, ours.scores_BK[row], atol=1e-4)
