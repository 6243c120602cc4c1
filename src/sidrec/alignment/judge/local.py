"""A language model in this process: any causal model of Hugging Face, by folder or hub name.

Source:  the `transformers` package (extra `llm`); greedy generation.
Cost:    one generation a context; a model of 0.5B takes about a minute a context on two CPU cores.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Self

import torch

from sidrec.alignment.judge.asking import NoAnswer
from sidrec.alignment.judge.prompt import Message
from sidrec.errors import ConfigError, MissingExtra


@dataclass(frozen=True, eq=False)
class LocalModel:
    """Answers by greedy generation; code that a model brings along is not run."""

    path: str
    tokenizer: Any
    network: Any
    device: str
    max_answer_tokens: int

    @classmethod
    def open(cls, path: str, *, device: str, max_answer_tokens: int) -> Self:
        """Load the model, so that a missing package or model shows now."""
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as cause:
            raise MissingExtra("transformers", "llm", "the judge's local back end") from cause
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            network = transformers.AutoModelForCausalLM.from_pretrained(
                path, trust_remote_code=False
            )
        except (OSError, ValueError) as cause:
            reason = str(cause).splitlines()[0][:200]
            raise ConfigError(
                f"judge.model {path!r} cannot be loaded as a causal language model ({reason}); "
                "name a local folder or a model of the hub"
            ) from cause
        return cls(path, tokenizer, network.eval().to(device), device, max_answer_tokens)

    @property
    def name(self) -> tuple[str, ...]:
        return ("local", self.path, str(self.max_answer_tokens))

    @torch.inference_mode()
    def complete(self, messages: tuple[Message, ...], schema: dict[str, Any]) -> str:
        """The text that follows the messages."""
        tokens = self._tokens(messages).to(self.device)
        limit = getattr(self.network.config, "max_position_embeddings", None)
        room = self.max_answer_tokens if limit is None else limit - tokens.shape[1]
        if room < 1:
            raise NoAnswer(
                f"the question has {tokens.shape[1]} tokens, the model reads {limit}; lower "
                "judge.prompt_history or judge.max_item_chars"
            )
        fill = self.tokenizer.pad_token_id
        made = self.network.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=min(room, self.max_answer_tokens),
            pad_token_id=self.tokenizer.eos_token_id if fill is None else fill,
        )
        return str(self.tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True))

    def _tokens(self, messages: tuple[Message, ...]) -> torch.Tensor:
        """(1, tokens) by the model's chat template, else role by role in plain text."""
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        text = "\n\n".join(f"{m['role']}:\n{m['content']}" for m in messages) + "\n\nassistant:\n"
        return self.tokenizer(text, return_tensors="pt").input_ids
