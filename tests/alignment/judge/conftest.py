"""A tiny catalogue to judge, rollouts over it, and a language model that does what it is told."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sidrec.alignment.judge.aspects import ASPECTS
from sidrec.alignment.values import AlignmentContext, Rollouts
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import Histories, HistoryBatch

BLOCK = re.compile(r"^<data>\n(.*)\n</data>$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def context():
    tiny = tiny_context()
    return AlignmentContext(tiny.items, tiny.vectors, tiny.semantic_ids, tiny.train)


@pytest.fixture
def rollouts(context):
    """Three contexts with four rollouts each: repeats, an ID without an item, none at all."""
    histories = Histories.from_lists([[0, 4, 8], [1, 5], [2]])
    rows_BG = torch.tensor([[12, 0, 1, 12], [9, -1, 2, 13], [6, 10, 3, -1]])
    lengths_BG = torch.tensor([[3, 3, 3, 3], [3, 3, 3, 3], [3, 3, 3, 0]])
    codes = torch.from_numpy(context.ids.codes)
    targets_B = torch.tensor([12, 9, 6])
    return Rollouts(
        batch=HistoryBatch.from_histories(histories, max_length=10),
        targets_B=targets_B,
        users_B=torch.tensor([0, 1, 2]),
        codes_BGL=torch.where(rows_BG[..., None] >= 0, codes[rows_BG], -1),
        rows_BG=rows_BG,
        log_probs_BGL=torch.zeros(3, 4, 3),
        lengths_BG=lengths_BG,
        target_codes_BL=codes[targets_B],
    )


def data_of(messages):
    """The data block of a prompt; fails where there is more or less than one."""
    (block,) = BLOCK.findall(messages[1]["content"])
    return json.loads(block)


def outside_of(messages):
    """Every message without the data block."""
    return BLOCK.sub("", "\n".join(message["content"] for message in messages))


def level_of(text, name):
    """A level that depends on the text alone."""
    levels = ASPECTS[name].levels
    return levels[len(text) % len(levels)]


def answer_of(messages, schema):
    """A good answer to a prompt."""
    names = [n for n in schema["properties"]["candidates"]["items"]["properties"] if n != "id"]
    entries = [
        {"id": entry["id"]}
        | {n: {"level": level_of(entry["text"], n), "evidence": f"because {n}"} for n in names}
        for entry in data_of(messages)["candidates"]
    ]
    return {"candidates": entries}


def obedient_answer(messages, schema):
    """A good answer, unless something outside the data orders to give every candidate the top."""
    answer = answer_of(messages, schema)
    if "ignore the above" in outside_of(messages).lower():
        for entry in answer["candidates"]:
            for name in entry.keys() - {"id"}:
                entry[name]["level"] = 1.0
    return answer


class ScriptedModel:
    """Answers by a list of functions of messages and schema, the last one for ever."""

    name = ("scripted",)

    def __init__(self, *script):
        self.script = list(script) or [good]
        self.asked = []

    def complete(self, messages, schema):
        self.asked.append(messages)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return step(messages, schema)


def good(messages, schema):
    return json.dumps(answer_of(messages, schema))


def prose(messages, schema):
    return "I think the second one is rather nice."


def hangs(messages, schema):
    raise TimeoutError("too slow")


def with_unknown(messages, schema):
    answer = answer_of(messages, schema)
    answer["candidates"].append({**answer["candidates"][0], "id": "c99"})
    return json.dumps(answer)


def out_of_range(messages, schema):
    answer = answer_of(messages, schema)
    answer["candidates"][0]["profile"]["level"] = 7
    return json.dumps(answer)


@pytest.fixture(scope="session")
def fakes():
    return SimpleNamespace(
        ScriptedModel=ScriptedModel,
        good=good,
        prose=prose,
        hangs=hangs,
        with_unknown=with_unknown,
        out_of_range=out_of_range,
        obedient=lambda messages, schema: json.dumps(obedient_answer(messages, schema)),
        answer_of=answer_of,
        data_of=data_of,
        outside_of=outside_of,
        level_of=level_of,
        rng=np.random.default_rng(0),
    )
