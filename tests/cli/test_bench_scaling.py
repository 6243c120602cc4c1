from __future__ import annotations

import json

import pytest

from sidrec import cli


@pytest.fixture
def sidrec(capfd):
    def call(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_a_recipe_of_ones_own_becomes_points_laws_and_a_file(sidrec, tiny, tmp_path):
    words = (
        "bench", "scaling", tiny.recipe, "--systems", "causal,sasrec", "--sizes", "4,6,8,12",
        "--shares", "1/2", "--seeds", "0,1", "--epochs", 1, "--resamples", 20, "--out", tmp_path,
    )  # fmt: skip
    code, out, err = sidrec(*words)
    assert code == 0, err
    assert "causal, size:" in out and "sasrec, compute:" in out
    assert "held out" in out and "loss: nats an item" in out
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert len(written["systems"]["sasrec"]["points"]) == 7
    assert "plot" in err or (tmp_path / "scaling.png").is_file()
    code, out, err = sidrec(*words, "--json")
    assert code == 0 and err.count("already done") >= 14
    assert json.loads(out)["systems"] == written["systems"]


def test_a_dry_run_lists_the_points_and_writes_nothing(sidrec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = sidrec("bench", "scaling", "--data", "chain", "--dry-run", "--json")
    places = json.loads(out)
    assert code == 0 and len(places) == 3 * 3 + 3 + 4
    assert places[0] == ["causal", "16x1", 1.0, 0] and places[-1] == ["causal", "64x1", 0.5, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "either a recipe or --data"),
        (("r.toml", "--data", "shop"), "either a recipe or --data"),
        (("--data", "shop", "--sizes", "8y"), "64x2, got '8y'"),
        (("--data", "shop", "--seeds", "a"), "--seeds must be a list with commas"),
        (("--data", "shop", "--shares", "1/0"), "--shares must be a list"),
        (("--data", "shop", "--systems", "tiger"), "systems must be some of"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(sidrec, words, message):
    code, _, err = sidrec("bench", "scaling", *words)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_scripts_run_by_their_name_as_before(sidrec, tmp_path):
    (tmp_path / "one.py").write_text("if __name__ == '__main__': print('ran one')\n")
    (tmp_path / "two.py").write_text("if __name__ == '__main__': raise SystemExit(3)\n")
    folder = ("--folder", tmp_path)
    code, out, _ = sidrec("bench", "one", *folder)
    assert (code, out) == (0, "ran one\n")
    assert sidrec("bench", "scripts", "one", *folder)[:2] == (0, "ran one\n")
    assert "two.py failed" in sidrec("bench", *folder)[2]
    assert len(json.loads(sidrec("bench", *folder, "--dry-run", "--json")[1])) == 2
