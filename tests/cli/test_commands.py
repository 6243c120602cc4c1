from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sidrec import cli
from sidrec.cli.recommend import explanation_table
from sidrec.errors import ServiceError


@pytest.fixture
def sidrec(capfd):
    """Run one command in this process: (exit code, stdout, stderr)."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, err = capfd.readouterr()
        code = stop.value.code
        return (0 if code is None else code), out, err

    return call


def test_help_and_import_load_nothing_heavy_and_take_under_half_a_second():
    """Processor time, so that a busy machine does not decide."""
    program = (
        "import sys, time, sidrec, sidrec.cli\n"
        "try: sidrec.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'sklearn', 'polars', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0 if time.process_time() < 0.5 else 'slow')"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_five_commands_lead_from_files_to_recommendations(sidrec, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = sidrec(
        "init", tiny.folder / "interactions.parquet", tiny.folder / "items.parquet"
    )
    assert code == 0
    assert "wrote recipe.toml" in out
    code, out, _ = sidrec("fit", tiny.recipe, "--run-dir", tiny.run_dir)
    assert code == 0
    assert "hybrid" in out and f"sidrec recommend {tiny.run.bundle}" in out
    code, out, _ = sidrec("evaluate", tiny.run_dir, "--system", "popularity", "--exclude-seen")
    assert code == 0
    assert "seen items filtered" in out
    history = ",".join(tiny.run.example_history())
    code, out, _ = sidrec("recommend", tiny.run_dir, "--history", history, "-k", 3)
    assert code == 0
    assert len(out.strip().splitlines()) == 2 + 3
    code, out, _ = sidrec("inspect", tiny.run_dir)
    assert code == 0
    assert "collisions: none" in out and "perplexity" in out


def test_a_written_recipe_is_explained_and_reads_back(sidrec, tiny, tmp_path):
    path = tmp_path / "r.toml"
    sidrec("init", tiny.folder / "interactions.parquet", "--recipe", path, "--map", "user=user_id")
    assert "# The one seed of every stage." in path.read_text()
    code, out, _ = sidrec("config", "show", path)
    assert code == 0
    assert out.strip() == path.read_text().strip()
    code, out, err = sidrec("init", tiny.folder / "interactions.parquet", "--recipe", path)
    assert code == 2
    assert "--force" in err


def test_json_output_is_one_json_value_and_nothing_else(sidrec, tiny):
    history = ",".join(tiny.run.example_history())
    calls = [
        ("config", "show", "--json"),
        ("fit", tiny.recipe, "--run-dir", tiny.run_dir, "--json"),
        ("fit", tiny.recipe, "--dry-run", "--json"),
        ("evaluate", tiny.run_dir, "--system", "popularity", "--json"),
        ("recommend", tiny.run_dir, "--history", history, "--json"),
        ("inspect", tiny.run_dir, "--json"),
        ("bench", "--dry-run", "--json"),
    ]
    for words in calls:
        code, out, _ = sidrec(*words)
        assert code == 0, words
        json.loads(out)


def test_a_dry_run_writes_nothing(sidrec, tiny, tmp_path):
    code, out, _ = sidrec("fit", tiny.recipe, "--run-dir", tmp_path / "run", "--dry-run")
    assert code == 0
    assert "parameters" in out
    assert list(tmp_path.iterdir()) == []


def test_fresh_forgets_the_former_run(sidrec, tiny, tmp_path):
    words = ("fit", tiny.recipe, "--run-dir", tmp_path / "run", "--no-evaluate", "--fresh")
    for _ in range(2):
        code, _, err = sidrec(*words)
        assert code == 0
        assert "already done" not in err


def test_a_file_of_requests_gives_one_json_line_a_recommendation(sidrec, tiny, tmp_path):
    history = tiny.run.example_history()
    path = tmp_path / "requests.jsonl"
    lines = [{"user_id": "a/b 🎸", "history": history}, {"history": history[:1]}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    code, out, _ = sidrec("recommend", tiny.run_dir, "--input", path, "-k", 2)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["user_id"] for row in rows] == ["a/b 🎸"] * 2 + ["2"] * 2


def test_a_filter_on_the_command_line_is_kept(sidrec, tiny):
    history = ",".join(tiny.run.example_history())
    tree = json.dumps({"field": "title", "op": "contains", "value": "zzz"})
    code, out, _ = sidrec(
        "recommend", tiny.run_dir, "--history", history, "--where", tree, "--json"
    )
    assert (code, json.loads(out)) == (0, [])


def test_doctor_checks_the_machine_and_the_data(sidrec, tiny):
    code, out, _ = sidrec("doctor", "--data", tiny.recipe, "--json")
    names = [check["check"] for check in json.loads(out)]
    assert code in (0, 1)
    assert {"torch", "threads", "disk", "load", "data"} <= set(names)


def test_the_demo_runs_on_the_simulated_shop_and_says_so(sidrec, tmp_path, monkeypatch):
    from sidrec.data import shop

    small = shop.ShopConfig(
        num_users=60, num_items=50, num_days=20, num_categories=3, num_subcategories=2
    )
    world = shop.simulate(small)
    monkeypatch.setattr(shop, "simulate", lambda: world)
    monkeypatch.setattr("sidrec.data.load_named", refuse)
    code, out, err = sidrec("demo", "--run-dir", tmp_path / "run", "--seconds", 5)
    assert code == 0, err
    assert "SIMULATED shop" in err
    assert "recommended:" in out
    assert "hybrid" in out and "sidrec recommend" in out
    assert (tmp_path / "run" / "bundle" / "manifest.json").is_file()


def refuse(name):
    from sidrec.errors import DataError

    raise DataError(f"{name} is not at hand and there is no network")


def test_what_broke_exits_1_and_a_users_mistake_exits_2(sidrec, monkeypatch, tmp_path):
    assert sidrec("recommend", tmp_path, "--history", "a")[0] == 2
    assert sidrec("fit", tmp_path / "none.toml")[0] == 2
    assert sidrec("fit", "--no-such-option")[0] == 2

    def broken(**_):
        raise ServiceError("it broke\nbadly")

    monkeypatch.setattr(cli.app, "__call__", broken, raising=False)
    monkeypatch.setattr(cli, "app", broken)
    code, _, err = sidrec("doctor")
    assert (code, err) == (1, "error: it broke badly\n")
    with pytest.raises(ServiceError):
        cli.main(["doctor", "--debug"])


def test_migrate_prints_the_churn_and_writes_the_map(sidrec, tiny, tmp_path):
    code, out, err = sidrec("migrate", tiny.run_dir, tiny.run.bundle, "--out", tmp_path / "map")
    assert (code, err) == (0, "")
    assert "share of items that keep a prefix" in out and "1.0000" in out
    written = json.loads((tmp_path / "map" / "churn.json").read_text())
    code, out, _ = sidrec("migrate", tiny.run_dir, tiny.run_dir, "--json")
    assert code == 0 and json.loads(out).items() <= written.items()
    assert (tmp_path / "map" / "item_map.parquet").is_file()
    code, _, err = sidrec("migrate", tiny.run_dir, tmp_path)
    assert code != 0 and "manifest.json" in err


def test_what_of_a_history_was_not_read_and_why_a_list_is_empty_is_said(sidrec, tiny):
    events = tiny.run.recommender.items.item_ids.tolist() * 2
    history = ",".join(events)
    code, _, err = sidrec(
        "recommend", tiny.run_dir, "--history", history, "--system", "causal", "--include-seen"
    )
    assert code == 0 and "1 histories have over" in err
    code, _, err = sidrec("recommend", tiny.run_dir, "--history", history)  # all are seen
    assert code == 0 and "1 lists are empty" in err and "--include-seen" in err


def test_a_tree_of_no_rows_is_refused(sidrec, tiny):
    code, _, err = sidrec("inspect", tiny.run_dir, "--limit", "0")
    assert code == 2 and "--limit" in err


def test_the_end_of_a_shorter_id_is_called_so_in_an_explanation(capsys):
    levels = [{"code": 7, "log_prob": -0.25}, {"code": 8, "log_prob": -0.5}]  # 8 codes: 8 ends
    explained = {"log_prob": -0.75, "levels": levels}
    explanation_table({"rank": 1, "title": "cup", "semantic_id": [7], "explanation": explained})
    printed = capsys.readouterr().out
    assert "end" in printed and " 8 " not in printed and " 7 " in printed
