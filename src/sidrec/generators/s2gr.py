"""S²GR: think before each code, and learn to think of the cluster that the code is in.

Stepwise latent reasoning on the default backbone (`causal`). Its depth decoder, which makes a
vector from the state h and the codes so far, runs twice a level: first to make a thought, then,
having read it, to write the code. p_l is a learnt vector of the thinking position, A_lj a matrix:

    t_l = depth_l(h, c_1..c_{l-1}; sum over j < l of A_lj t_j) + p_l
    y_l = depth_l(h, c_1..c_{l-1}; sum over j <= l of A_lj t_j)        c_l as `causal` writes it

so a thought is an input of its own code and of all later ones. What thoughts are taught, and from
what, is in `thoughts`. A thought follows from its prefix, so it does not branch the beam.

Source:   S2GR, arXiv:2601.18664, eq. 15 to 24; the encoder-decoder of the paper is `s2gr_tiger`.
Differs:  the backbone, with its item softmax and node vectors, which read no thoughts; the history
          state stands for the encoder's output, and thoughts reach a level through one matrix each
          instead of attention. The light decoder is a perceptron of half the depth decoder's width
          on that state. `first` has L - l matrices a level more than `stepwise`.
Cost:     twice the depth decoder of `causal`; see `thoughts` for the teaching. Decoding keeps the
          L thoughts of each beam.
Shapes:   B requests, W beams, K given IDs, P targets, L levels, D width; … any shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.decoding.children import Children
from sidrec.errors import ConfigError
from sidrec.generators.causal import Causal, CausalConfig, Seen, State
from sidrec.generators.depth_decoder import DepthLevel
from sidrec.generators.thoughts import (
    CodeClusters,
    Thinking,
    ThoughtClusters,
    ThoughtConfig,
    check_thoughts,
    teach,
)
from sidrec.transformer import FastDropout
from sidrec.types import Floats, HistoryBatch, SemanticIds


@dataclass(frozen=True, kw_only=True)
class S2grConfig(CausalConfig, ThoughtConfig):
    """Settings of `S2gr`: those of `causal`, and those of thoughts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thoughts("s2gr", self)


class ThinkingState(NamedTuple):
    """`causal`'s state, and the thoughts of its beams."""

    state: State
    thoughts_l: tuple[Tensor, ...]
    """Each (B, W, D), or (B, 1, D) where all beams of a request share it."""


class Summary(nn.Module):
    """The light decoder: what the history alone says of the target. Only training uses it."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.dropout = FastDropout(dropout)
        self.down = nn.Linear(hidden, width)

    def forward(self, states_PD: Tensor) -> Tensor:
        """(P, D) v."""
        return states_PD + self.down(self.dropout(F.gelu(self.up(self.norm(states_PD)))))


class S2gr(Causal):
    """`causal` with a thought before each code."""

    config_class: ClassVar[type] = S2grConfig
    config: S2grConfig

    def __init__(self, ids: SemanticIds, vectors_ND: Floats, config: S2grConfig) -> None:
        super().__init__(ids, vectors_ND, config)
        self._passes: list[Thinking] | None = None
        if not self.thinks:
            return
        width, num_levels = config.width, ids.num_levels
        self.positions_LD = nn.Parameter(0.02 * torch.randn(num_levels, width))
        read_L = [num_levels if config.thoughts == "first" else n + 1 for n in range(num_levels)]
        self.readers = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(num_read, width, width)) for num_read in read_L
        )
        if config.supervision:
            hidden = max(1, config.depth_hidden // 2)
            self.summary = Summary(width, hidden, config.depth_dropout)
        self.clusters = CodeClusters("s2gr", list(self.codes), self.symbols_NL, config)

    @property
    def thinks(self) -> bool:
        """Whether there are thoughts; `thought_clusters` says what they mean."""
        return self.config.thoughts != "none"

    # ------------------------------------------------------------------ thoughts

    def heard(self, level: int, thoughts_l: Sequence[Tensor]) -> Tensor | None:
        """(…, D) what the depth decoder of a level reads of the thoughts so far."""
        heard = None
        for reader_DD, thoughts in zip(self.readers[level], thoughts_l, strict=False):
            one = F.linear(thoughts, reader_DD)
            heard = one if heard is None else heard + one
        return heard

    def thought(
        self, level: int, states: Tensor, symbols: Tensor, thoughts_l: Sequence[Tensor]
    ) -> Tensor:
        """(…, D) t_l, from the codes (…, level or fewer) and the thoughts so far."""
        depth: DepthLevel = self.levels[level]  # type: ignore[assignment]
        return depth(states, symbols, self.heard(level, thoughts_l)) + self.positions_LD[level]

    def path_thoughts(self, states: Tensor, symbols: Tensor) -> list[Tensor]:
        """L thoughts (…, D) along given IDs (…, L)."""
        thoughts_l: list[Tensor] = []
        for level in range(len(self.codes)):
            known = symbols[..., : 0 if self.config.thoughts == "first" else level]
            thoughts_l.append(self.thought(level, states, known, thoughts_l))
        return thoughts_l

    def thought_clusters(self, batch: HistoryBatch, codes_BKL: Tensor) -> ThoughtClusters:
        """What each thought says before each code of the given IDs. ConfigError without any."""
        if not self.thinks:
            raise ConfigError('thought_clusters needs thoughts, got s2gr.thoughts = "none"')
        ends_L = torch.tensor(self.num_codes, device=codes_BKL.device)
        symbols_BKL = torch.where(codes_BKL < 0, ends_L, codes_BKL)
        states_B1D = self.history_states(batch)[:, None]
        thoughts_L = self.path_thoughts(states_B1D, symbols_BKL)
        return self.clusters.said(
            thoughts_L, symbols_BKL, num_codes=self.num_codes,
            temperature=self.config.align_temperature,
        )  # fmt: skip

    # ------------------------------------------------------------------ training

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """`causal`'s loss, plus what the thoughts are taught."""
        if not self.thinks:
            return super().loss(batch)
        if self.training:
            self.clusters.count_step(list(self.codes))
        if not self.config.supervision:
            return super().loss(batch)
        self._passes = []
        try:
            loss, parts = super().loss(batch)
            passed = self._passes[0]  # the first pass is along the targets
        finally:
            self._passes = None
        taught, more = teach(passed, self.clusters, list(self.codes), self.num_codes, self.config)
        return loss + taught, parts | more

    def path_logits(
        self,
        states_PD: Tensor,
        symbols_PL: Tensor,
        parents_L: list[Tensor],
        nodes_L: list[Tensor],
        seen: Seen,
    ) -> list[Tensor]:
        """As in `causal`, with the thoughts along these IDs."""
        if not self.thinks:
            return super().path_logits(states_PD, symbols_PL, parents_L, nodes_L, seen)
        thoughts_L = self.path_thoughts(states_PD, symbols_PL)
        if self._passes is not None and not self._passes:
            stacked_LPD = torch.stack(thoughts_L)
            self._passes.append(Thinking(stacked_LPD, self.summary(states_PD), symbols_PL))
        return [
            self.logits(
                level, states_PD, symbols_PL[..., :level], parents_L[level], nodes_L, seen,
                self.heard(level, thoughts_L),
            )
            for level in range(len(self.codes))
        ]  # fmt: skip

    # ------------------------------------------------------------------ generation

    def start(self, batch: HistoryBatch) -> Any:
        """Encode each history once; with all thoughts first, make them now."""
        state = super().start(batch)
        if not self.thinks:
            return state
        if self.config.thoughts == "stepwise":
            return ThinkingState(state, ())
        no_codes_B10 = self.symbols_NL.new_empty(len(state.states_B1D), 1, 0)
        return ThinkingState(state, tuple(self.path_thoughts(state.states_B1D, no_codes_B10)))

    def step(
        self,
        state: State | ThinkingState,
        codes_BW: Tensor | None,
        parents_BW: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """Logits (B, W, V) of the next level, from the thought that each beam makes first."""
        if isinstance(state, State):
            return super().step(state, codes_BW, parents_BW)
        (inner, thoughts_l), symbols_BWl = self.thought_on(state, codes_BW, parents_BW)
        level = symbols_BWl.shape[-1]
        logits_BWV = self.logits(
            level, inner.states_B1D, symbols_BWl, inner.nodes_BW, inner.means_L, inner.seen,
            self.heard(level, thoughts_l),
        )  # fmt: skip
        return logits_BWV, ThinkingState(inner, thoughts_l)

    def step_children(
        self,
        state: State | ThinkingState,
        codes_BW: Tensor | None,
        parents_BW: Tensor | None,
        children: Children,
    ) -> tuple[Tensor, Any]:
        """As `step`, of the beams' children alone."""
        if isinstance(state, State):
            return super().step_children(state, codes_BW, parents_BW, children)
        state, symbols_BWl = self.thought_on(state, codes_BW, parents_BW)
        heard = self.heard(symbols_BWl.shape[-1], state.thoughts_l)
        return self.children_logits(state.state, symbols_BWl, children, heard), state

    def thought_on(
        self, state: ThinkingState, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[ThinkingState, Tensor]:
        """State and symbols of the beams with these codes, and the thoughts they lead to."""
        inner, symbols_BWl = self.extended(state.state, codes_BW, parents_BW)
        level, thoughts_l = symbols_BWl.shape[-1], state.thoughts_l
        if parents_BW is not None:
            thoughts_l = tuple(of_parents(thoughts, parents_BW) for thoughts in thoughts_l)
        if self.config.thoughts == "stepwise":
            thought = self.thought(level, inner.states_B1D, symbols_BWl, thoughts_l)
            thoughts_l = (*thoughts_l, thought)
        return ThinkingState(inner, thoughts_l), symbols_BWl


def of_parents(thoughts_BWD: Tensor, parents_BW: Tensor) -> Tensor:
    """The thoughts of the beams that are extended; those that all beams share stay as they are."""
    if thoughts_BWD.shape[1] == 1:
        return thoughts_BWD
    return thoughts_BWD.gather(1, parents_BW[..., None].expand(-1, -1, thoughts_BWD.shape[-1]))
