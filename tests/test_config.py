from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from sidrec import config
from sidrec.config import Method, Stage
from sidrec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Train:
    epochs: int = 10
    """Passes over the
    training data."""
    rate: float = 0.1


TRAINED = Stage("scorers", lambda _: Train(epochs=7))
TOY = Method(stage="scorers", name="toy", train=Train(epochs=7))


@dataclass(frozen=True, kw_only=True)
class Run:
    title: str = 'a "quoted" \\ tést\n'
    """What it is called."""
    rule: Literal["one", "two"] = "one"
    limit: int | None = None
    flag: bool = False
    ratio: float = 0.5
    widths: tuple[int, ...] = (1, 2)
    columns: dict[str, str] = field(default_factory=dict)
    where: Path | None = None
    train: Train = Train()
    """How to train."""
    generator: Annotated[Method, TRAINED] = TOY
    others: tuple[Annotated[Method, Stage("scorers")], ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    width: int = 8
    """Units."""
    seed: int = 0


class Toy:
    config_class = ToyConfig


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    toy_row = {"toy": "test_config:Toy"}
    monkeypatch.setitem(config.methods.METHODS, "scorers", toy_row)
    monkeypatch.setattr(
        config.methods.importlib,
        "import_module",
        lambda _: __import__("types").SimpleNamespace(Toy=Toy),
    )


def toy_method(**keys):
    return Method(stage="scorers", name="toy", config=ToyConfig(**keys))


def test_a_config_written_as_toml_reads_back_equal(tmp_path):
    before = Run(
        rule="two",
        limit=3,
        flag=True,
        widths=(),
        columns={"user": "u d"},
        where=Path("a/b"),
        train=Train(epochs=3, rate=1e-5),
        others=(toy_method(width=2), toy_method(width=3)),
        generator=Method(stage="scorers", name="toy", config=ToyConfig(width=5), train=Train()),
    )
    for comments in (True, False):
        (tmp_path / "run.toml").write_text(config.to_toml(before, comments=comments))
        assert config.load(Run, tmp_path / "run.toml") == before
    assert config.parse(Run, config.to_dict(before)) == before


def test_toml_carries_the_docstring_of_each_field_as_one_comment():
    text = config.to_toml(Run())
    assert "# What it is called.\ntitle = " in text
    assert "# Passes over the training data.\nepochs = 10" in text
    assert "# limit = (not set)" in text


def test_an_unknown_key_names_the_file_the_place_and_the_nearest_key(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\nepoch = 3\n")
    with pytest.raises(ConfigError, match=r"run\.toml: train\.epoch is not .*mean 'epochs'"):
        config.load(Run, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": "3"}, "limit must be int, got '3'"),
        ({"limit": True}, "limit must be int, got True"),
        ({"ratio": True}, "ratio must be float, got True"),
        ({"flag": 1}, "flag must be bool, got 1"),
        ({"rule": "tow"}, "did you mean 'two'"),
        ({"widths": [1, "2"]}, r"widths\[1\] must be int"),
        ({"widths": 3}, "widths must be"),
        ({"columns": {"user": 3}}, "columns.user must be str"),
        ({"train": 3}, "train must be a section"),
        ({"generator": {"width": 3}}, "generator must name a method"),
        ({"generator": {"name": "toi"}}, "did you mean 'toy'"),
        ({"generator": {"name": "toy", "seed": 3}}, "set `seed` once"),
        ({"generator": {"name": "toy", "widht": 3}}, "generator.widht .*mean 'width'"),
        ({"others": [{"name": "toy", "train": {}}]}, "not trained by the loop"),
    ],
)
def test_a_wrong_value_says_where_expected_and_got(values, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(Run, values)


def test_a_method_section_keeps_the_training_defaults_it_does_not_name():
    run = config.parse(Run, {"generator": {"name": "toy", "train": {"rate": 1}}})
    assert run.generator.train == Train(epochs=7, rate=1.0)
    assert run.generator.config == ToyConfig()


def test_the_seed_of_a_run_reaches_only_configs_that_have_one():
    assert config.with_seed(ToyConfig(), 5) == ToyConfig(seed=5)
    assert config.with_seed(Train(), 5) == Train()
    assert config.with_seed(None, 5) is None


def test_broken_toml_and_missing_files_are_config_errors(tmp_path):
    (tmp_path / "bad.toml").write_text("a = ")
    for name in ("bad.toml", "absent.toml", "."):
        with pytest.raises(ConfigError):
            config.load(Run, tmp_path / name)
