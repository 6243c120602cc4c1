import importlib.util

import pytest
import torch

from sidrec.alignment.judge.judge import Judge, JudgeConfig
from sidrec.alignment.judge.local import LocalModel
from sidrec.errors import ConfigError, MissingExtra

SETTINGS = {"backend": "local", "weights": "uniform", "pause_seconds": 0.0, "retries": 0}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="is installed")
def test_a_missing_package_names_its_extra(context):
    with pytest.raises(MissingExtra, match=r"pip install 'sidrec\[llm\]'"):
        Judge.build(context, JudgeConfig(**SETTINGS, model="tiny"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained language model of bytes, saved as any other."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["red wool coat", "candidates"], trainer)
    path = tmp_path_factory.mktemp("tiny_model")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=len(fast), n_positions=4096, n_embd=16, n_layer=1, n_head=2,
            bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
        transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


def test_a_model_that_babbles_is_counted_and_survived(context, rollouts, folder):
    config = JudgeConfig(**SETTINGS, model=folder, max_answer_tokens=8, device="cpu")
    judge = Judge.build(context, config)
    assert judge(rollouts).isnan().all()
    found = judge.counts()
    assert found["calls"] == 3 and found["malformed"] == 3 and found["skipped"] == 9


def test_generation_is_greedy_and_repeats_itself(folder):
    model = LocalModel.open(folder, device="cpu", max_answer_tokens=6)
    messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
    assert model.complete(messages, {}) == model.complete(messages, {})


def test_a_question_too_long_for_the_model_is_a_failure(context, rollouts, folder):
    judge = Judge.build(context, JudgeConfig(**SETTINGS, model=folder, device="cpu"))
    judge.backend.model.network.config.n_positions = 100
    assert judge(rollouts).isnan().all() and judge.counts()["failures"] == 3
    assert "lower judge.prompt_history" in judge.ledger.last_trouble


def test_a_chat_template_is_used_where_there_is_one(folder):
    model = LocalModel.open(folder, device="cpu", max_answer_tokens=2)
    model.tokenizer.chat_template = "{% for m in messages %}#{{ m.content }}{% endfor %}!"
    tokens = model._tokens(({"role": "system", "content": "ab"}, {"role": "user", "content": "c"}))
    assert model.tokenizer.decode(tokens[0]) == "#ab#c!"


def test_a_folder_without_a_model_says_what_to_name(context, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="cannot be loaded as a causal language model"):
        Judge.build(context, JudgeConfig(**SETTINGS, model=str(tmp_path)))
