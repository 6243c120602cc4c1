"""A judge that asks a language model: one call a context, answers checked, cached and counted.

A malformed answer is answered with what is wrong with it, a timeout or server error with the same
question, up to `retries` times; what could be read is kept, the other candidates stay without a
score. Nothing here ends a run but a server that refuses the model or the key.

Source:  stage A of S-GRec (arXiv:2602.10606).
Differs: any model that follows instructions, not one trained for the task; no training here.
Cost:    a call a context; one after the other.
Shapes:  B contexts, G candidates, A aspects.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from sidrec.alignment.judge.answers import Answer, answer_schema, read_answer
from sidrec.alignment.judge.aspects import ASPECTS, WITHOUT_CONTEXT, Evidence
from sidrec.alignment.judge.cache import AnswerCache
from sidrec.alignment.judge.ledger import Ledger
from sidrec.alignment.judge.prompt import Message, Prompt, build_prompt
from sidrec.types import Floats, Histories, Ints, Items

if TYPE_CHECKING:
    from sidrec.alignment.judge.judge import JudgeConfig


class NoAnswer(Exception):
    """A call brought no text: server error, no connection, refused, cut off."""


class LanguageModel(Protocol):
    """What can be asked."""

    @property
    def name(self) -> tuple[str, ...]:
        """Back end, model and settings that change its answers: a part of the cache key."""
        ...

    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any]) -> str:
        """The text of the answer. TimeoutError or NoAnswer where there is none."""
        ...


@dataclass(frozen=True, eq=False)
class AskingJudge:
    """Back end for any language model."""

    model: LanguageModel
    texts: tuple[str, ...]
    """N item texts, as prompts show them."""
    config: JudgeConfig
    cache: AnswerCache
    ledger: Ledger

    @classmethod
    def of(cls, items: Items, model: LanguageModel, config: JudgeConfig, ledger: Ledger) -> Self:
        """Ready to ask."""
        known = zip(items.texts(), items.titles(), strict=True)
        texts = tuple(text or title for text, title in known)
        return cls(model, texts, config, AnswerCache.open(config.cache, ledger), ledger)

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(ASPECTS) if self.config.embedded.session_length else WITHOUT_CONTEXT

    def evidence(
        self, histories: Histories, rows_BG: Ints, *, with_texts: bool = False
    ) -> Evidence:
        """Levels (B, G, A) and reasons; NaN where a row is −1 or has no verdict."""
        scores_BGA = np.full((*rows_BG.shape, len(self.aspects)), np.nan, dtype=np.float32)
        nothing = ("",) * len(self.aspects)
        texts: list[tuple[tuple[str, ...], ...]] = []
        for b, rows_G in enumerate(rows_BG):
            verdicts, reasons = self._context(histories[b], np.unique(rows_G[rows_G >= 0]))
            for g, row in enumerate(rows_G):
                if int(row) in verdicts:
                    scores_BGA[b, g] = verdicts[int(row)]
            texts.append(tuple(reasons.get(int(row), nothing) for row in rows_G))
        return Evidence(self.aspects, scores_BGA, tuple(texts) if with_texts else ())

    def prompt(self, history: Ints, rows: Ints) -> Prompt:
        """The question about catalogue rows after a history of rows."""
        return build_prompt(
            [self.texts[row] for row in history[-self.config.prompt_history :]],
            [self.texts[row] for row in rows],
            self.aspects,
            max_chars=self.config.max_item_chars,
            session_length=self.config.embedded.session_length,
        )

    def _context(
        self, history: Ints, rows: Ints
    ) -> tuple[dict[int, Floats], dict[int, tuple[str, ...]]]:
        """Row -> levels, and row -> reasons, of the candidates that were judged."""
        if not len(rows):
            return {}, {}
        prompt = self.prompt(history, rows)
        answer = self._answered(prompt)
        places = {name: int(row) for name, row in zip(prompt.ids, rows, strict=True)}
        levels = {places[n]: np.array(s, dtype=np.float32) for n, s in answer.scores.items()}
        return levels, {places[name]: texts for name, texts in answer.texts.items()}

    def _answered(self, prompt: Prompt) -> Answer:
        """What is known after the cache, the budget and the retries."""
        ledger, key = self.ledger, prompt.digest(*self.model.name)
        if key in self.cache.answers:
            answer = read_answer(self.cache.answers[key], prompt.ids, prompt.aspects)
            if not answer.complaints:
                ledger.cache_hits += 1
                return answer
        scores: dict[str, tuple[float, ...]] = {}
        texts: dict[str, tuple[str, ...]] = {}
        if ledger.silent_contexts >= self.config.give_up_after:
            ledger.given_up += len(prompt.ids)
            return Answer(scores, texts, (), 0)
        schema = answer_schema(prompt.ids, prompt.aspects)
        messages = prompt.messages
        for attempt in range(self.config.retries + 1):
            if not ledger.may_call():
                ledger.over_budget += len(prompt.ids) - len(scores)
                return Answer(scores, texts, (), 0)
            text = self._called(messages, schema, attempt)
            if text is None:
                continue
            answer = read_answer(text, prompt.ids, prompt.aspects)
            ledger.unknown_items += answer.unknown
            scores |= answer.scores
            texts |= answer.texts
            if not answer.complaints:
                self.cache.put(key, text)
                break
            ledger.malformed += 1
            ledger.last_trouble = answer.complaint
            messages = prompt.after(answer.complaint)
        ledger.silent_contexts = 0 if scores else ledger.silent_contexts + 1
        ledger.skipped += len(prompt.ids) - len(scores)
        return Answer(scores, texts, (), 0)

    def _called(
        self, messages: tuple[Message, ...], schema: dict[str, Any], attempt: int
    ) -> str | None:
        """The text of one call, None where it brought none; counted either way."""
        ledger = self.ledger
        ledger.calls += 1
        ledger.retries += attempt > 0
        try:
            return self.model.complete(messages, schema)
        except TimeoutError as trouble:
            ledger.timeouts += 1
            ledger.last_trouble = str(trouble) or "timed out"
        except NoAnswer as trouble:
            ledger.failures += 1
            ledger.last_trouble = str(trouble)
            if attempt < self.config.retries and ledger.may_call():
                time.sleep(self.config.pause_seconds * 2**attempt)
        return None
