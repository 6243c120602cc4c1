"""Time `tiger` against Hugging Face `generate` on the same T5 weights, one user, beam 20.

    python benchmarks/versus_hf_generate.py [--users 30] [--repeats 5] [--threads 2]

Both search the same catalogue of Beauty's size with the paper's model: 4 + 4 blocks of width 128,
IDs of three codes and a counter, at most 20 items read, random weights. `generate` gets
`prefix_allowed_tokens_fn` over a dictionary of prefixes and `renormalize_logits=True`, which is the
score that `beam_search` uses: probabilities over legal continuations. (Without it `generate` masks
log-probabilities of the whole vocabulary, where codes of other levels take a share.) Items and
scores must agree before any time counts; the two take turns, all users at a time. The figure is for
users with 20 items or more, the input that the paper's model is made for; `.any_user` for users
drawn at random, most of whom have fewer. Needs `transformers`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import beauty, finish, seconds_of

from sidrec.decoding.beam import beam_search
from sidrec.decoding.prefix_index import PrefixIndex
from sidrec.generators.tiger import Tiger, TigerConfig
from sidrec.types import Candidates, Histories, HistoryBatch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))
from t5_weights import encoder_input, t5_with_the_weights_of

BEAM = 20


class Generate:
    """`generate` of the peer, held to the catalogue by a prefix function."""

    def __init__(self, tiger: Tiger) -> None:
        self.t5, self.tiger = t5_with_the_weights_of(tiger), tiger
        children: dict[tuple[int, ...], set[int]] = {}
        for tokens in (tiger.codes_NL + tiger.first_tokens_L).tolist():
            for level, token in enumerate(tokens):
                children.setdefault(tuple(tokens[:level]), set()).add(token)
        self.children = {prefix: sorted(tokens) for prefix, tokens in children.items()}

    def allowed(self, _: int, seen: torch.Tensor) -> list[int]:
        return self.children[tuple(seen.tolist()[1:])]

    @torch.inference_mode()
    def __call__(self, input_ids: torch.Tensor) -> Any:
        return self.t5.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            num_beams=BEAM,
            num_return_sequences=BEAM,
            min_new_tokens=len(self.tiger.num_codes),
            max_new_tokens=len(self.tiger.num_codes),
            do_sample=False,
            length_penalty=0.0,
            pad_token_id=0,
            prefix_allowed_tokens_fn=self.allowed,
            renormalize_logits=True,
            output_scores=True,
            return_dict_in_generate=True,
        )


def assert_same(ours: Candidates, theirs: Any, tiger: Tiger) -> None:
    """The same items in the same order (but for ties), with the same scores."""
    scores = theirs.sequences_scores.numpy()
    np.testing.assert_allclose(ours.scores_BK[0], scores, atol=1e-3)
    tokens = (tiger.codes_NL + tiger.first_tokens_L)[ours.rows_BK[0]]
    differs = (tokens != theirs.sequences[:, 1:]).any(1).numpy()
    gaps = np.abs(np.diff(scores, prepend=np.inf, append=-np.inf))
    tied = np.minimum(gaps[1:], gaps[:-1]) < 1e-4
    tied[-1] = True  # its rival may lie just outside the beam
    assert not (differs & ~tied).any(), "sidrec and generate disagree"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dry", action="store_true", help="print, write no file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    work = beauty("counter")
    tiger = Tiger.build(work.context, PAPER).eval()
    index, generate = PrefixIndex.build(work.context.semantic_ids), Generate(tiger)

    def search(user: Histories) -> Candidates:
        batch = HistoryBatch.from_histories(user, max_length=tiger.max_length)
        return beam_search(tiger, batch, index, k=BEAM, beam_width=BEAM)

    full = np.flatnonzero(work.histories.lengths >= tiger.max_length)
    figures, notes = {}, []
    for suffix, rows in (("", full[: chosen.users]), (".any_user", np.arange(chosen.users))):
        users = [work.histories.take(rows[u : u + 1]) for u in range(len(rows))]
        inputs = [encoder_input(tiger, u.items_E[-tiger.max_length :]) for u in users]
        for user, input_ids in zip(users, inputs, strict=True):
            assert_same(search(user), generate(input_ids), tiger)
        print(f"same items and scores for {len(users)} users; load {os.getloadavg()[0]:.2f}")
        ours = np.zeros((chosen.repeats, len(users)))
        theirs = np.zeros_like(ours)
        for turn in range(chosen.repeats):
            theirs[turn] = [seconds_of(generate, input_ids) for input_ids in inputs]
            ours[turn] = [seconds_of(search, user) for user in users]
        ratios = np.median(theirs, 1) / np.median(ours, 1)
        figures[f"versus.hf_generate.tiger.beam20_latency{suffix}"] = {
            "value": round(float(np.median(theirs) / np.median(ours)), 2),
            "unit": "x",
            "low": round(float(ratios.min()), 2),
            "high": round(float(ratios.max()), 2),
            "n": ours.size,
            "sidrec_ms": round(1e3 * float(np.median(ours)), 2),
            "generate_ms": round(1e3 * float(np.median(theirs)), 2),
        }
        items = np.mean([min(len(u.items_E), tiger.max_length) for u in users])
        notes.append(
            f"{len(users)} users of {items:.1f} items x {chosen.repeats} turns: sidrec "
            f"{1e3 * np.median(ours):.2f} ms, generate {1e3 * np.median(theirs):.2f} ms"
        )
    finish("versus_hf_generate", figures, f"{work.source}, medians; " + "; ".join(notes),
           chosen.dry)  # fmt: skip


PAPER = TigerConfig(
    width=128,
    num_encoder_layers=4,
    num_decoder_layers=4,
    num_heads=6,
    head_width=64,
    feed_forward=1024,
    max_length=20,
)

if __name__ == "__main__":
    main()
