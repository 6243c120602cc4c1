"""Item vectors as a trained model reads them: centred and scaled as they were in its training.

Centre and scale are part of the weights. A model that is built again for a larger catalogue first
takes those of its own vectors, then, with the weights, those it was trained with; so items that
are added later leave the inputs of all others exactly as they were.

Cost:    the vectors once more in memory; nothing a step.
Shapes:  N items, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sidrec.building import starts_fresh
from sidrec.types import Floats


class ItemInputs(nn.Module):
    """`vectors_ND`, follows `centre_D` and `scale` whenever these are loaded."""

    centre_D: Tensor
    scale: Tensor
    vectors_ND: Tensor
    """(N, D) float32, mean 0 and one common deviation of 1 over the catalogue of the training."""

    def __init__(self, vectors_ND: Floats) -> None:
        super().__init__()
        raw_ND = torch.from_numpy(vectors_ND)
        if starts_fresh():
            centre_D = torch.from_numpy(vectors_ND.mean(0))
            centred_ND = raw_ND - centre_D
            scale = centred_ND.std().clamp_min(1e-6)[None]
            centred_ND /= scale
        else:
            centre_D, scale = torch.zeros(raw_ND.shape[1]), torch.ones(1)
            centred_ND = torch.empty_like(raw_ND)
        self.register_buffer("centre_D", centre_D)
        self.register_buffer("scale", scale)
        self.register_buffer("raw_ND", raw_ND, persistent=False)
        self.register_buffer("vectors_ND", centred_ND, persistent=False)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        torch.sub(self.raw_ND, self.centre_D, out=self.vectors_ND)
        self.vectors_ND /= self.scale
