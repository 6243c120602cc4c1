"""TIGER: an encoder-decoder that reads the codes of the last items and writes the next item's.

The last `max_length` items, flattened to codes, pass a bidirectional T5 encoder; a decoder writes
the L codes of the next semantic ID one by one, attending to all of them. Each level has its own
band of the vocabulary and its own softmax, so a code of another level can never be generated.

Source:   Rajput et al. 2023, section 3.2 and appendix (arXiv:2305.05065); the blocks are those of
          T5 1.0, Raffel et al. 2020 (arXiv:1910.10683): RMS norm before each part, one relative
          position bias a stack, ReLU feed-forward, no biases, output tied to the code embeddings.
Differs:  no user token (a history has no user here; the paper's Recall@10 is the same without it);
          softmax over the codes of one level instead of the whole vocabulary; code embeddings can
          start at item vectors (`start_from_vectors`); an empty history is one padding token.
Cost:     training encodes every history prefix anew: O(targets * S) tokens through the encoder,
          about the mean prefix length times the work of `causal`. Decoding encodes once a request;
          a beam keeps L * layers * 2 * heads * head_width floats.
Shapes:   B requests, R training rows, T items, S source tokens, K candidates, W beams, L levels,
          V codes of a level, P places decoded at once, D width, H heads, C width of one head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidrec.errors import ConfigError, DataError
from sidrec.generators.depth_decoder import code_centroids, symbols_of
from sidrec.linear import Linear, linear
from sidrec.t5 import DecoderBlock, EncoderBlock, RelativeBias, RmsNorm, Sizes, initialise
from sidrec.transformer import FastDropout
from sidrec.types import CatalogueContext, HistoryBatch, ItemVectors, SemanticIds

PAD_TOKEN = 0  # also starts the decoder, as in T5; codes of level l begin at 1 + sum of V below


@dataclass(frozen=True, kw_only=True)
class TigerConfig:
    """Sizes are the paper's; a recipe lowers them where a CPU has to train."""

    width: int = 128
    """D, width of the model."""
    num_encoder_layers: int = 4
    """Blocks of the encoder."""
    num_decoder_layers: int = 4
    """Blocks of the decoder."""
    num_heads: int = 6
    """Attention heads."""
    head_width: int = 64
    """Width of one head; heads need not add up to `width`."""
    feed_forward: int = 1024
    """Inner width of the feed-forward part."""
    dropout: float = 0.1
    """Share of activations dropped in training, in [0, 1)."""
    tied: bool = True
    """Score a code by its embedding (T5 1.0); otherwise by a vector of its own."""
    start_from_vectors: bool = False
    """Start code embeddings at projected mean vectors of their items; the paper does not."""
    max_length: int = 20
    """Items of a history that are read, the last ones."""
    targets_per_sequence: int | None = None
    """Targets drawn from each training sequence a step; left out: all (sliding window)."""
    seed: int = 0
    """Seeds the first weights."""

    def __post_init__(self) -> None:
        sizes = ("width", "num_heads", "head_width", "feed_forward", "max_length")
        for name in ("num_encoder_layers", "num_decoder_layers", *sizes):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"tiger.{name} must be at least 1, got {value}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"tiger.dropout must be in [0, 1), got {self.dropout}")
        if self.targets_per_sequence is not None and self.targets_per_sequence < 1:
            raise ConfigError(
                "tiger.targets_per_sequence must be at least 1, "
                f"got {self.targets_per_sequence}; leave it out to use all"
            )


@dataclass(frozen=True, eq=False)
class TigerState:
    """What decoding keeps: the encoded history once a request, and a short cache a beam."""

    memory: list[tuple[Tensor, Tensor]]
    """Keys and values (B, H, S, C) of the history for each decoder block, shared by all beams."""
    mask_B11S: Tensor
    """0 where the history has a token, −inf where it is padding."""
    cache: Tensor
    """(blocks, 2, B * W, P, H * C) keys and values of the places decoded so far."""
    level: int = 0
    """The level whose logits come next."""


class Tiger(nn.Module):
    """Encoder-decoder generator; a `sidrec.contracts.Generator`."""

    config_class: ClassVar[type] = TigerConfig
    codes_NL: Tensor
    ends_L: Tensor
    first_tokens_L: Tensor

    def __init__(self, ids: SemanticIds, config: TigerConfig) -> None:
        super().__init__()
        self.config, self.num_codes, self.max_length = config, ids.num_codes, config.max_length
        _, self.widths = symbols_of(ids)
        """(L,) symbols of each level: its codes, and one that ends a shorter ID where one can."""
        starts = torch.tensor([1, *self.widths]).cumsum(0)
        self.first_tokens = starts[:-1].tolist()
        """(L,) token of code 0 of each level."""
        ends = [v if w > v else -1 for v, w in zip(ids.num_codes, self.widths, strict=True)]
        self.register_buffer("ends_L", torch.tensor(ends), persistent=False)
        self.register_buffer("first_tokens_L", starts[:-1], persistent=False)
        self.register_buffer("codes_NL", torch.from_numpy(ids.codes), persistent=False)
        vocabulary, width = int(starts[-1]), config.width
        sizes = Sizes(
            width=width,
            num_heads=config.num_heads,
            head_width=config.head_width,
            feed_forward=config.feed_forward,
            dropout=config.dropout,
        )
        self.embedding = nn.Embedding(vocabulary, width)  # unit variance, as in T5
        self.head = None if config.tied else Linear(width, vocabulary, bias=False)
        self.dropout = FastDropout(config.dropout)
        self.encoder_bias = RelativeBias(config.num_heads, bidirectional=True)
        self.decoder_bias = RelativeBias(config.num_heads, bidirectional=False)
        self.encoder = nn.ModuleList(EncoderBlock(sizes) for _ in range(config.num_encoder_layers))
        self.decoder = nn.ModuleList(DecoderBlock(sizes) for _ in range(config.num_decoder_layers))
        self.encoder_norm = RmsNorm(width)
        self.decoder_norm = RmsNorm(width)
        initialise(self, sizes)

    @classmethod
    def build(cls, context: CatalogueContext, config: TigerConfig) -> Self:
        """A model seeded by `config.seed`; needs semantic IDs, vectors only to start from them."""
        ids = context.semantic_ids
        if ids is None:
            raise DataError("tiger needs semantic IDs, got none; run a tokenizer first")
        if config.start_from_vectors and context.vectors is None:
            raise DataError("tiger.start_from_vectors needs item vectors, got none; embed first")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(config.seed)
            model = cls(ids, config)
            if config.start_from_vectors and context.vectors is not None:
                model.embedding.weight[1:] = code_vectors(ids, context.vectors, config.width)
            return model

    @property
    def decoder_blocks(self) -> list[DecoderBlock]:
        """The blocks of the decoder, first to last."""
        return list(self.decoder)  # type: ignore[arg-type]

    def loss(self, batch: HistoryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats of a whole semantic ID, over every (or sampled) target of the batch.

        Each target gets its own encoder row; rows of like length run together, so little is padded.
        """
        if batch.targets_BT is None:
            raise DataError("tiger.loss needs targets_BT, got a batch without targets")
        rows_R, places_R = (batch.targets_BT >= 0).nonzero(as_tuple=True)
        some = self.config.targets_per_sequence
        if self.training and some is not None:
            keep = sample_per_row(rows_R, batch.num_requests, some)
            rows_R, places_R = rows_R[keep], places_R[keep]
        if not len(rows_R):
            raise DataError("tiger.loss got a batch in which no position has a target")
        targets_RL = self.codes_NL[batch.targets_BT[rows_R, places_R]]
        nats_L = torch.zeros(len(self.num_codes), device=targets_RL.device)
        for chosen in buckets_by_length(places_R.clamp(max=self.max_length - 1)):
            items_RT = last_items(
                batch.items_BT, rows_R[chosen], places_R[chosen] + 1, self.max_length
            )
            log_probs_RL = self._token_log_probs(items_RT, targets_RL[chosen][:, None])[:, 0]
            nats_L = nats_L - log_probs_RL.sum(0)
        nats_L = nats_L / len(rows_R)
        parts = {f"nats_level_{level}": nats for level, nats in enumerate(nats_L.detach())}
        return nats_L.sum(), parts

    def log_probs(self, batch: HistoryBatch, codes_BKL: Tensor) -> Tensor:
        """(B, K) natural log-probability of whole IDs, a shorter one's end included."""
        return self._token_log_probs(self._histories(batch), codes_BKL).sum(-1)

    def along(self, batch: HistoryBatch, symbols_BKL: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits and states along given IDs; see `contracts.Generator`.

        The state after the last code is that before it plus the code's embedding.
        """
        tokens_BKL = symbols_BKL + self.first_tokens_L
        x_BKLD = self._decode(*self._encode(self._histories(batch)), tokens_BKL)
        num_levels = len(self.num_codes)
        logits_L = [self._logits(x_BKLD[:, :, level], level).float() for level in range(num_levels)]
        last_BKD = x_BKLD[:, :, -1] + self.embedding(tokens_BKL[..., -1])
        return logits_L, torch.cat([x_BKLD, last_BKD[:, :, None]], dim=2)

    def start(self, batch: HistoryBatch) -> TigerState:
        """Encode each history once and lay out keys and values for every decoder block."""
        x_BSD, mask_B11S = self._encode(self._histories(batch))
        memory = [block.cross.remember(x_BSD) for block in self.decoder_blocks]
        inner = self.config.num_heads * self.config.head_width
        cache = mask_B11S.new_zeros(len(self.decoder), 2, batch.num_requests, 0, inner)
        return TigerState(memory, mask_B11S, cache)

    @torch.no_grad()
    def step(
        self, state: TigerState, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[Tensor, TigerState]:
        """Logits (B, W, V) of the next level, to be read: the caches, which follow the surviving
        beams, are written in place.
        """
        state, x_BWD = self._last_code(state, codes_BW, parents_BW)
        state, x_BWD = self._next_place(state, x_BWD)
        return self._logits(x_BWD, state.level), replace(state, level=state.level + 1)

    def _last_code(
        self, state: TigerState, codes_BW: Tensor | None, parents_BW: Tensor | None
    ) -> tuple[TigerState, Tensor]:
        """The state of the beams that go on, and the embedding (B, W, D) of their last token."""
        num_requests, rows = state.mask_B11S.shape[0], state.cache.shape[2]
        if codes_BW is None or parents_BW is None:
            tokens_BW = torch.full(
                (num_requests, 1), PAD_TOKEN, dtype=torch.long, device=state.cache.device
            )
        else:
            tokens_BW = codes_BW + self.first_tokens[state.level - 1]
            first_rows = torch.arange(num_requests, device=parents_BW.device)[:, None]
            parents = (parents_BW + first_rows * (rows // num_requests)).flatten()
            state = replace(state, cache=state.cache.index_select(2, parents))
        return state, self.embedding(tokens_BW)

    def _next_place(self, state: TigerState, x_BWD: Tensor) -> tuple[TigerState, Tensor]:
        """The state with one more place a beam, which reads x, and the decoder's output there."""
        blocks, _, rows, places, inner = state.cache.shape
        cache = state.cache.new_empty(blocks, 2, rows, places + 1, inner)
        cache[..., :places, :] = state.cache
        bias_HP = self.decoder_bias(places + 1)[:, -1]
        for block, memory, kept in zip(self.decoder_blocks, state.memory, cache, strict=True):
            x_BWD = block.step(x_BWD, bias_HP, kept, *memory, state.mask_B11S)
        return replace(state, cache=cache), self.decoder_norm(x_BWD)

    def _histories(self, batch: HistoryBatch) -> Tensor:
        rows_B = torch.arange(batch.num_requests, device=batch.items_BT.device)
        return last_items(batch.items_BT, rows_B, batch.lengths_B, self.max_length)

    def _encode(self, items_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The encoded history (B, S, D), and its padding mask (B, 1, 1, S)."""
        codes_BTL = self.codes_NL[items_BT.clamp(min=0)]
        real_BTL = (items_BT >= 0)[..., None] & (codes_BTL >= 0)
        tokens_BS = torch.where(real_BTL, codes_BTL + self.first_tokens_L, PAD_TOKEN).flatten(1)
        seen_BS = real_BTL.flatten(1)
        seen_BS[:, 0] = True  # an empty history is one padding token
        x_BSD = self.dropout(self.embedding(tokens_BS))
        mask_B11S = torch.zeros(seen_BS.shape, device=x_BSD.device, dtype=x_BSD.dtype)
        mask_B11S = mask_B11S.masked_fill(~seen_BS, -math.inf)[:, None, None]
        bias_BHSS = self.encoder_bias(tokens_BS.shape[1]) + mask_B11S
        for block in self.encoder:
            x_BSD = block(x_BSD, bias_BHSS)
        return self.dropout(self.encoder_norm(x_BSD)), mask_B11S

    def _token_log_probs(self, items_BT: Tensor, codes_BKL: Tensor) -> Tensor:
        """(B, K, L) log-probability of each code given the history and the codes before it."""
        x_BSD, mask_B11S = self._encode(items_BT)
        num_rows, num_candidates, num_levels = codes_BKL.shape
        symbols_BKL = torch.where(codes_BKL < 0, self.ends_L, codes_BKL)
        tokens_BKL = torch.where(symbols_BKL < 0, PAD_TOKEN, symbols_BKL + self.first_tokens_L)
        ended_BKL = F.pad(codes_BKL[..., :-1], (1, 0)) < 0
        targets_BKL = symbols_BKL.masked_fill(ended_BKL, -1)  # what follows an end is certain
        x_BKLD = self._decode(x_BSD, mask_B11S, tokens_BKL)
        nats = []
        for level in range(num_levels):
            logits = self._logits(x_BKLD[:, :, level], level).float().flatten(0, 1)
            targets = targets_BKL[..., level].flatten()
            nats.append(F.cross_entropy(logits, targets, ignore_index=-1, reduction="none"))
        return -torch.stack(nats, -1).view(num_rows, num_candidates, num_levels)

    def _decode(self, x_BSD: Tensor, mask_B11S: Tensor, tokens_BKL: Tensor) -> Tensor:
        """(B, K, L, D) the decoder's output that each of the given codes is scored by."""
        inputs_BKL = F.pad(tokens_BKL[..., :-1], (1, 0), value=PAD_TOKEN)
        x_BKLD = self.dropout(self.embedding(inputs_BKL))
        bias_HLL = self._causal_bias(x_BKLD.shape[2])
        for block in self.decoder_blocks:
            x_BKLD = block(x_BKLD, bias_HLL, *block.cross.remember(x_BSD), mask_B11S)
        return self.dropout(self.decoder_norm(x_BKLD))

    def _causal_bias(self, num_places: int) -> Tensor:
        """(H, P, P) relative bias of the decoder; −inf for what comes later."""
        bias_HPP = self.decoder_bias(num_places)
        return bias_HPP + torch.full_like(bias_HPP[0], -math.inf).triu(1)

    def _logits(self, x: Tensor, level: int) -> Tensor:
        first, size = self.first_tokens[level], self.widths[level]
        if self.head is not None:
            return linear(x, self.head.weight[first : first + size])
        return linear(x * self.config.width**-0.5, self.embedding.weight[first : first + size])


def code_vectors(ids: SemanticIds, vectors: ItemVectors, width: int) -> Tensor:
    """(sum of V, D) random projections of code centroids, of unit variance at every level."""
    symbols_NL, widths = symbols_of(ids)
    centred_ND = vectors.vectors - vectors.vectors.mean(0)
    projection = torch.randn(centred_ND.shape[1], width)
    levels = [
        torch.from_numpy(c) @ projection for c in code_centroids(symbols_NL, widths, centred_ND)
    ]
    return torch.cat([level / level.std().clamp_min(1e-6) for level in levels])


def last_items(items_BT: Tensor, rows_R: Tensor, ends_R: Tensor, max_length: int) -> Tensor:
    """(R, T') the items before place `ends_R` of row `rows_R`, at most `max_length`, −1 after."""
    lengths_R = ends_R.clamp(max=max_length)
    places = torch.arange(max(int(lengths_R.max()), 1), device=items_BT.device)
    index = (ends_R - lengths_R)[:, None] + places
    taken = items_BT[rows_R[:, None], index.clamp(max=items_BT.shape[1] - 1)]
    return torch.where(places < lengths_R[:, None], taken, -1)


def buckets_by_length(lengths_R: Tensor) -> list[Tensor]:
    """Row indices in groups of like length: at most a quarter of the longest is padding."""
    sorted_lengths, order = lengths_R.sort(stable=True)
    groups = (sorted_lengths.float() + 1).log2().mul(3).floor()
    sizes = groups.unique_consecutive(return_counts=True)[1].tolist()
    return list(order.split(sizes))


def sample_per_row(rows_R: Tensor, num_rows: int, some: int) -> Tensor:
    """Indices into `rows_R` (ascending rows) of at most `some` random entries of each row."""
    order = (rows_R + torch.rand(len(rows_R), device=rows_R.device, dtype=torch.float64)).argsort()
    counts = rows_R.bincount(minlength=num_rows)
    first_R = (counts.cumsum(0) - counts)[rows_R]
    rank = torch.arange(len(rows_R), device=rows_R.device) - first_R
    return order[rank < some].sort().values
