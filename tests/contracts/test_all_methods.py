"""Every row of `methods.METHODS` through the public checks of its stage, discovered, not listed."""

import importlib
import importlib.util

import pytest

from sidrec import methods
from sidrec.testing.tiny_catalogue import small_config

STAGES = ("embeddings", "tokenizers", "generators", "scorers")


def cases():
    for stage in STAGES:
        if importlib.util.find_spec(f"sidrec.testing.{stage}") is None:
            yield pytest.param(stage, None, None, marks=pytest.mark.skip(reason="no checks yet"))
            continue
        module = importlib.import_module(f"sidrec.testing.{stage}")
        checks = [v for name, v in vars(module).items() if name.startswith("check_")]
        assert checks, f"sidrec.testing.{stage} holds no checks"
        for name in methods.METHODS[stage]:
            for check in checks:
                yield pytest.param(stage, name, check, id=f"{stage}-{name}-{check.__name__}")


@pytest.mark.parametrize(("stage", "name", "check"), list(cases()))
def test_contract(stage, name, check):
    try:
        method_class = methods.resolve(stage, name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("sidrec."):
            pytest.skip(f"{error.name} is not written yet")
        raise
    check(method_class, small_config(method_class.config_class))
