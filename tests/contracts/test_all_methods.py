"""Every row of `methods.METHODS` through the public checks of its stage, discovered, not listed."""

import importlib

import pytest

from sidrec import methods
from sidrec.testing.tiny_catalogue import small_config

STAGES = ("embeddings", "tokenizers", "generators", "scorers", "objectives", "rewards", "searchers")


def cases():
    for stage in STAGES:
        module = importlib.import_module(f"sidrec.testing.{stage}")
        checks = [v for name, v in vars(module).items() if name.startswith("check_")]
        assert checks, f"sidrec.testing.{stage} holds no checks"
        for name in methods.METHODS[stage]:
            for check in checks:
                yield pytest.param(stage, name, check, id=f"{stage}-{name}-{check.__name__}")


@pytest.mark.parametrize(("stage", "name", "check"), list(cases()))
def test_contract(stage, name, check):
    method_class = methods.resolve(stage, name)
    check(method_class, small_config(method_class.config_class))
