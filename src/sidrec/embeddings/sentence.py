"""Sentence encoders: item vectors from text by a pretrained transformer.

Runs any sentence-transformers model, by name or from a local folder; nothing is trained.

Source:  Reimers & Gurevych 2019, arXiv:1908.10084.
Differs: items with no text get the zero vector instead of the model's vector of "".
Cost:    one forward pass an item; about 100 texts a second for MiniLM on two CPU cores.
Shapes:  N items, D width of the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from sidrec.embeddings.vectors import unit_rows
from sidrec.errors import ConfigError, MissingExtra
from sidrec.types import CatalogueContext, Items, ItemVectors


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """Settings of `SentenceEncoder`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Name on the Hugging Face hub, or a local folder."""
    revision: str | None = None
    """Commit or tag of a hub model; None takes the newest."""
    max_tokens: int = 128
    """Longer texts are cut."""
    batch_size: int = 64
    """Texts a forward pass."""
    normalise: bool = True
    """Scale vectors to length 1."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, …"""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"sentence.{name} must be at least 1, got {value}")


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A pretrained text encoder; nothing of it is saved but its name."""

    config_class: ClassVar[type] = SentenceConfig
    config: SentenceConfig

    @classmethod
    def fit(cls, context: CatalogueContext, config: SentenceConfig) -> Self:
        """Load the model, so that a missing package or model shows now."""
        encoder = cls(config)
        _ = encoder.model
        return encoder

    @cached_property
    def model(self) -> Any:
        """The sentence-transformers model, loaded on first use."""
        try:
            sentence_transformers = importlib.import_module("sentence_transformers")
        except ImportError as cause:
            raise MissingExtra("sentence-transformers", "text", "the sentence embedding") from cause
        model = sentence_transformers.SentenceTransformer(
            self.config.model,
            revision=self.config.revision,
            device=None if self.config.device == "auto" else self.config.device,
            trust_remote_code=False,
        )
        model.max_seq_length = min(self.config.max_tokens, model.max_seq_length or 10**9)
        return model

    def embed(self, items: Items) -> ItemVectors:
        """Vectors (N, D); zero where the item has no text."""
        texts = items.texts()
        rows = [row for row, text in enumerate(texts) if text]
        dim = int(self.model.get_sentence_embedding_dimension())
        vectors_ND = np.zeros((len(texts), dim), dtype=np.float32)
        if rows:
            encoded = self.model.encode(
                [texts[row] for row in rows],
                batch_size=self.config.batch_size,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            vectors_ND[rows] = encoded
        return ItemVectors(
            items.item_ids, unit_rows(vectors_ND) if self.config.normalise else vectors_ND
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing: the model is named, not copied."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing beyond the config."""
        return {}

    @classmethod
    def from_arrays(
        cls, config: SentenceConfig, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]
    ) -> Self:
        """The same encoder; the model is loaded when first needed."""
        return cls(config)
