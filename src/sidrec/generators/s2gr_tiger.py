"""S²GR on the encoder-decoder: a thought before each code, as the paper has it.

The decoder of `tiger` runs over 2L places instead of L. With e_0 the start, s_l the embedding of
the code of level l and p_l a learnt vector of the thinking position,

    t_l = Decoder(e_0, t_1, s_1, ..., t_{l-1}, s_{l-1}) + p_l
    code of level l: softmax of Decoder(e_0, t_1, s_1, ..., t_{l-1}, s_{l-1}, t_l) with the s_l

Training unrolls this: codes are the target's, thoughts the model's own, so the decoder runs L + 1
times, over the places that became known, with the keys and values of those before. What thoughts
are taught is in `thoughts`; its light decoder has half the blocks and reads e_0 and the history.

Source:   S2GR, arXiv:2601.18664, eq. 15 to 24.
Differs:  the blocks, softmax and input are those of `tiger`, without user token. A thought is the
          normalised output of the decoder, which is on the scale of the embeddings that it reads.
          With `first`, places are e_0, t_1, ..., t_L, s_1, ..., s_{L-1}.
Cost:     training: L + 1 decoder passes one after another a bucket of targets, over twice the
          places of `tiger`. Decoding: two places a level and beam, and twice the cache.
Shapes:   B requests, R training rows, K candidates, W beams, L levels, Q places of one pass,
          S source tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from sidrec.errors import ConfigError
from sidrec.generators.thoughts import (
    CodeClusters,
    Thinking,
    ThoughtClusters,
    ThoughtConfig,
    check_thoughts,
    teach,
)
from sidrec.generators.tiger import PAD_TOKEN, Tiger, TigerConfig, TigerState
from sidrec.t5 import DecoderBlock, Memory, RmsNorm, Sizes, initialise
from sidrec.types import HistoryBatch, SemanticIds


@dataclass(frozen=True, kw_only=True)
class S2grTigerConfig(TigerConfig, ThoughtConfig):
    """Settings of `S2grTiger`: those of `tiger`, and those of thoughts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thoughts("s2gr_tiger", self)


class S2grTiger(Tiger):
    """`tiger` with a thought before each code."""

    config_class: ClassVar[type] = S2grTigerConfig
    config: S2grTigerConfig

    def __init__(self, ids: SemanticIds, config: S2grTigerConfig) -> None:
        super().__init__(ids, config)
        self._passes: list[Thinking] | None = None
        if not self.thinks:
            return
        self.positions_LD = nn.Parameter(0.02 * torch.randn(ids.num_levels, config.width))
        if config.supervision:
            sizes = Sizes(
                width=config.width,
                num_heads=config.num_heads,
                head_width=config.head_width,
                feed_forward=config.feed_forward,
                dropout=config.dropout,
            )
            num_blocks = max(1, config.num_decoder_layers // 2)
            self.light = nn.ModuleList(DecoderBlock(sizes) for _ in range(num_blocks))
            self.light_norm = RmsNorm(config.width)
            initialise(self.light, sizes)
        symbols_NL = torch.where(self.codes_NL < 0, self.ends_L, self.codes_NL)
        self.clusters = CodeClusters("s2gr_tiger", self.code_tables(), symbols_NL, config)

    @property
    def thinks(self) -> bool:
        """Whether there are thoughts; `thought_clusters` says what they mean."""
        return self.config.thoughts != "none"

    def code_tables(self) -> list[Tensor]:
        """L tables (V, D): the embeddings of the codes of each level."""
        bands = zip(self.first_tokens, self.widths, strict=True)
        return [self.embedding.weight[first : first + size] for first, size in bands]

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """`tiger`'s loss, plus what the thoughts are taught."""
        if not self.thinks:
            return super().loss(batch)
        if self.training:
            self.clusters.count_step(self.code_tables())
        if not self.config.supervision:
            return super().loss(batch)
        self._passes = []
        try:
            loss, parts = super().loss(batch)
            passes = self._passes
        finally:
            self._passes = None
        passed = Thinking(
            torch.cat([p.thoughts_LPD for p in passes], dim=1),
            torch.cat([p.summaries_PD for p in passes]),
            torch.cat([p.symbols_PL for p in passes]),
        )
        taught, more = teach(passed, self.clusters, self.code_tables(), self.num_codes, self.config)
        return loss + taught, parts | more

    def thought_clusters(self, batch: HistoryBatch, codes_BKL: Tensor) -> ThoughtClusters:
        """What each thought says before each code of the given IDs. ConfigError without any."""
        if not self.thinks:
            raise ConfigError('thought_clusters needs thoughts, got s2gr_tiger.thoughts = "none"')
        symbols_BKL = torch.where(codes_BKL < 0, self.ends_L, codes_BKL)
        tokens_BKL = symbols_BKL + self.first_tokens_L
        x_BSD, mask_B11S = self._encode(self._histories(batch))
        _, thoughts_L = self._unrolled(x_BSD, mask_B11S, tokens_BKL)
        return self.clusters.said(
            thoughts_L, symbols_BKL, num_codes=self.num_codes,
            temperature=self.config.align_temperature,
        )  # fmt: skip

    def _decode(self, x_BSD: Tensor, mask_B11S: Tensor, tokens_BKL: Tensor) -> Tensor:
        if not self.thinks:
            return super()._decode(x_BSD, mask_B11S, tokens_BKL)
        x_BKLD, thoughts_L = self._unrolled(x_BSD, mask_B11S, tokens_BKL)
        if self._passes is not None:  # one candidate a row: the target
            symbols_RL = (tokens_BKL - self.first_tokens_L)[:, 0].clamp_min(0)
            thoughts_LRD = torch.stack(thoughts_L)[:, :, 0]
            summaries_RD = self._summaries(x_BSD, mask_B11S)
            self._passes.append(Thinking(thoughts_LRD, summaries_RD, symbols_RL))
        return x_BKLD

    def _unrolled(
        self, x_BSD: Tensor, mask_B11S: Tensor, tokens_BKL: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, K, L, D) outputs that the given codes are scored by, and L thoughts (B, K, D)."""
        num_levels, num_places = tokens_BKL.shape[2], 2 * tokens_BKL.shape[2]
        bias_HPP = self._causal_bias(num_places)
        memory = [block.cross.remember(x_BSD) for block in self.decoder_blocks]
        pasts: list[Memory | None] = [None] * len(self.decoder)
        codes_BKLD = self.dropout(self.embedding(tokens_BKL[..., :-1]))
        place = 0

        def passed(x_BKQD: Tensor) -> Tensor:
            """The decoder's outputs at the next Q places, which read x."""
            nonlocal place
            end = place + x_BKQD.shape[2]
            bias_HQP = bias_HPP[:, place:end, :end]
            for number, block in enumerate(self.decoder_blocks):
                x_BKQD, pasts[number] = block.extend(
                    x_BKQD, pasts[number], bias_HQP, *memory[number], mask_B11S
                )
            place = end
            return self.dropout(self.decoder_norm(x_BKQD))

        start_BK1D = self.embedding(torch.full_like(tokens_BKL[..., :1], PAD_TOKEN))
        thought = passed(self.dropout(start_BK1D)) + self.positions_LD[0]
        thoughts_L, written = [thought[:, :, 0]], []
        for level in range(num_levels):
            if self.config.thoughts == "stepwise":
                x = passed(torch.cat([thought, codes_BKLD[:, :, level : level + 1]], dim=2))
                written.append(x[:, :, :1])
                thought = x[:, :, 1:] + self.positions_LD[min(level + 1, num_levels - 1)]
            elif level + 1 < num_levels:
                thought = passed(thought) + self.positions_LD[level + 1]
            else:
                written.append(passed(torch.cat([thought, codes_BKLD], dim=2)))
            if level + 1 < num_levels:
                thoughts_L.append(thought[:, :, 0])
        return torch.cat(written, dim=2), thoughts_L

    def _summaries(self, x_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        """(B, D) v, what the light decoder makes of e_0 and the history."""
        tokens_B11 = torch.full((len(x_BSD), 1, 1), PAD_TOKEN, device=x_BSD.device)
        x_B11D = self.dropout(self.embedding(tokens_B11))
        alone = x_BSD.new_zeros(1, 1, 1)
        blocks: list[DecoderBlock] = list(self.light)  # type: ignore[arg-type]
        for block in blocks:
            x_B11D = block(x_B11D, alone, *block.cross.remember(x_BSD), mask_B11S)
        return self.light_norm(x_B11D)[:, 0, 0]

    # ------------------------------------------------------------------ generation

    @torch.no_grad()
    def step(
        self, state: TigerState, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, TigerState]:
        """Logits (B, W, V) of the next level, from the thought that each beam makes first."""
        if not self.thinks:
            return super().step(state, codes_BW, parents_BW)
        level = state.level
        state, x_BWD = self._last_code(state, codes_BW, parents_BW)
        due = [level]
        if self.config.thoughts == "first":
            due = [] if level else list(range(len(self.num_codes)))
        for thinking in due:
            state, x_BWD = self._next_place(state, x_BWD)
            x_BWD = x_BWD + self.positions_LD[thinking]
        state, x_BWD = self._next_place(state, x_BWD)
        return self._logits(x_BWD, level), replace(state, level=level + 1)
