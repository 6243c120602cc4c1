"""A model small enough to train in a blink; also run as a script by tests of whole processes."""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sidrec.training import TrainConfig, train
from sidrec.types import Histories

NUM_ITEMS = 20


@dataclass(frozen=True)
class TinyConfig:
    dropout: float = 0.2
    width: int = 8


class Tiny(nn.Module):
    """Next item from the last one: an embedding, dropout, a linear layer."""

    max_length = 6

    def __init__(self, dropout=0.2, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.config = TinyConfig(dropout, width)
        self.embedding = nn.Embedding(NUM_ITEMS + 1, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, NUM_ITEMS)

    def loss(self, batch):
        logits_BTN = self.out(self.dropout(self.embedding(batch.items_BT + 1)))
        loss = F.cross_entropy(
            logits_BTN.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-1
        )
        return loss, {"nll": loss.detach()}


def weights(model):
    return b"".join(t.numpy().tobytes() for t in model.state_dict().values())


def histories(num=120, seed=0):
    random = np.random.default_rng(seed)
    return Histories.from_lists(
        [(n + np.arange(random.integers(0, 15))) % NUM_ITEMS for n in range(num)]
    )


def small_config(**changes):
    steady = TrainConfig(
        epochs=6,
        batch_positions=64,
        learning_rate=0.03,
        warmup_steps=4,
        precision="fp32",
        patience=0,
    )
    return replace(steady, **changes)


def validate(model):
    """Log-likelihood of the rule the data follow: the next item is one higher."""
    logits_NN = model.out(model.embedding(torch.arange(NUM_ITEMS) + 1))
    return -float(F.cross_entropy(logits_NN, (torch.arange(NUM_ITEMS) + 1) % NUM_ITEMS))


if __name__ == "__main__":
    run_dir, out, pause, dropout = sys.argv[1:]
    config = small_config(checkpoint_every_seconds=1e-3)
    model = Tiny(dropout=float(dropout))
    result = train(model, histories(), config, validate=validate, run_dir=Path(run_dir),
                   device="cpu", on_event=lambda event: time.sleep(float(pause)))  # fmt: skip
    Path(out).write_text(json.dumps([weights(model).hex(), result.metrics, result.losses]))
