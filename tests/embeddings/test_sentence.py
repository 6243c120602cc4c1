"""Sentence encoders: the missing extra, and a tiny random model where the packages exist."""

import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from sidrec.embeddings.sentence import SentenceConfig, SentenceEncoder
from sidrec.errors import ConfigError, MissingExtra
from sidrec.testing.tiny_catalogue import tiny_context
from sidrec.types import Items, as_ids


def test_the_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sidrec\[text\]'"):
        SentenceEncoder.fit(tiny_context(), SentenceConfig())


class CharacterModel:
    """Stands in for a model: counts the letters a … h, up to `max_seq_length` of them."""

    max_seq_length = 512
    calls: list[tuple[list[str], int]]

    def __init__(self, name, **options):
        self.name, self.options, self.calls = name, options, []

    def get_sentence_embedding_dimension(self):
        return 8

    def encode(self, texts, *, batch_size, **_):
        self.calls.append((texts, batch_size))
        cut = [text[: self.max_seq_length] for text in texts]
        return np.array([[text.count(c) for c in "abcdefgh"] for text in cut], dtype=np.float32)


@pytest.fixture
def stand_in(monkeypatch):
    module = SimpleNamespace(SentenceTransformer=CharacterModel)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.mark.usefixtures("stand_in")
def test_texts_are_encoded_cut_and_normalised_and_empty_ones_are_zero():
    items = Items(as_ids("xyz"), pl.DataFrame({"title": ["aaab", None, "bbbbbbbbbbc"]}))
    config = SentenceConfig(model="some/model", revision="r1", max_tokens=5, batch_size=7)
    encoder = SentenceEncoder(config)
    vectors = encoder.embed(items).vectors
    expected = np.array([[3, 1], [0, 0], [0, 5]]) / np.array([[10**0.5], [1], [5]])
    np.testing.assert_allclose(vectors[:, :2], expected, rtol=1e-6)
    assert encoder.model.calls == [(["aaab", "bbbbbbbbbbc"], 7)]
    assert encoder.model.options["revision"] == "r1"
    assert encoder.model.options["trust_remote_code"] is False
    raw = SentenceEncoder(SentenceConfig(normalise=False)).embed(items).vectors
    np.testing.assert_array_equal(raw[2, :3], [0, 10, 1])


@pytest.mark.usefixtures("stand_in")
def test_nothing_but_the_config_is_saved():
    fitted = SentenceEncoder.fit(tiny_context(), SentenceConfig())
    assert fitted.arrays() == {} and fitted.state() == {}
    again = SentenceEncoder.from_arrays(fitted.config, {}, {})
    items = tiny_context().items
    np.testing.assert_array_equal(again.embed(items).vectors, fitted.embed(items).vectors)


@pytest.mark.slow
def test_a_real_model_from_a_local_folder(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "wool", "coat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt"))
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    folder = str(tmp_path / "bert")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    whole = st.SentenceTransformer(
        modules=[st.models.Transformer(folder), st.models.Pooling(16)], device="cpu"
    )
    whole.save(str(tmp_path / "sentence"))
    items = Items(as_ids("ab"), pl.DataFrame({"title": ["red wool coat", ""]}))
    config = SentenceConfig(model=str(tmp_path / "sentence"), device="cpu")
    vectors = SentenceEncoder(config).embed(items).vectors
    expected = whole.encode(["red wool coat"], normalize_embeddings=True)[0]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)
    assert not vectors[1].any()


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="max_tokens"):
        SentenceConfig(max_tokens=0)
