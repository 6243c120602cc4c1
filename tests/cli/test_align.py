"""`sidrec align` and `sidrec admission`: a recipe in, a bundle that names its parent out."""

from __future__ import annotations

import json

import pytest

import sidrec
from sidrec import artifact, cli

RECIPE = """
name = "short"
[contexts]
most = 120
[objective]
name = "grpo"
[rollouts]
size = 4
[[rewards]]
name = "prefix"
[train]
batch_positions = 40
validate_every_epochs = 0.5
"""


def call(capfd, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    return stop.value.code or 0, out, err


def test_a_bundle_is_aligned_measured_and_written(tiny, tmp_path, capfd):
    (tmp_path / "align.toml").write_text(RECIPE)
    words = ("align", tiny.run_dir, tmp_path / "align.toml", "--run-dir", tmp_path / "run")
    code, out, err = call(capfd, *words)
    assert code == 0, err
    assert "validation" in out and "before" in out and "after" in out
    bundle = tmp_path / "run" / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parents"]["aligned_from"] == artifact.load(tiny.run.bundle).hash
    assert sidrec.load(bundle).recommend(tiny.run.example_history()).height == 10
    code, out, err = call(capfd, *words, "--json")
    found = json.loads(out)
    assert code == 0 and found["stopped_because"] == "epochs"
    assert {"before", "after"} == set(found["test"])
    assert [entry["epoch"] for entry in found["curve"]] == [0.0, pytest.approx(2 / 3), 1.0]


def test_all_settings_are_written_where_asked_for_and_read_again(tiny, tmp_path, capfd):
    recipe = tmp_path / "align.toml"
    code, _, err = call(capfd, "align", tiny.run_dir, recipe, "--init", "--objective", "a2po")
    assert code == 0, err
    assert 'name = "a2po"' in recipe.read_text() and "judged_share" in recipe.read_text()
    code, _, err = call(capfd, "align", tiny.run_dir, recipe, "--init")
    assert code == 2 and "exist" in err


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(tiny, tmp_path, capfd):
    (tmp_path / "align.toml").write_text(RECIPE)
    words = ("align", tiny.run_dir, tmp_path / "align.toml", "--run-dir", tmp_path / "run")
    code, out, err = call(capfd, *words, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["contexts"] == 120 and plan["steps"] == 3 and plan["seconds"] > 0
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_is_named(tiny, tmp_path, capfd):
    (tmp_path / "align.toml").write_text("[rollouts]\nsizes = 4\n")
    code, _, err = call(capfd, "align", tiny.run_dir, tmp_path / "align.toml")
    assert code == 2 and "rollouts.size" in err


def test_the_cells_of_admission_cover_all_contexts(tiny, tmp_path, capfd):
    (tmp_path / "align.toml").write_text(RECIPE.replace('"grpo"', '"adagrpo"'))
    words = ("admission", tiny.run_dir, tmp_path / "align.toml", "--most", "60", "--json")
    code, out, err = call(capfd, *words)
    assert code == 0, err
    cells = json.loads(out)
    assert len(cells) == 4
    assert sum(cell["share"] for cell in cells) == pytest.approx(1)
    trained = [cell for cell in cells if cell["recall"] is not None]
    assert trained and all(cell["gradient_norm"] >= 0 for cell in trained)
    code, out, err = call(capfd, "admission", tiny.run_dir, tmp_path / "other.toml")
    assert code == 2
    (tmp_path / "other.toml").write_text(RECIPE)
    code, out, err = call(capfd, "admission", tiny.run_dir, tmp_path / "other.toml")
    assert code == 2 and "adagrpo" in err
