import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import cells  # noqa: E402
import figures  # noqa: E402
import tables  # noqa: E402


def test_every_generated_table_shows_the_newest_figures():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "tables.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", figures.files(), ids=lambda path: path.name)
def test_every_benchmark_file_is_complete_and_named_by_its_run(path):
    record = json.loads(path.read_text())
    assert figures.faults_of(record) == []
    assert path.stem == f"{record['what']}_{figures.slug(record['hardware'])}_{record['date']}"


MACHINE = {
    "cpu": "c", "cores": 2, "gpu": None, "load_1m": 0.1, "gemm_gflops": {"fp32": 1, "bf16": 2},
}  # fmt: skip


def record(**changes):
    return {
        "what": "w",
        "command": "python x.py",
        "commit": "c",
        "date": "2026-01-01",
        "seeds": [0],
        "hardware": MACHINE,
        "versions": {},
        "figures": {"a.b": {"value": 1.0, "unit": "ms"}},
        **changes,
    }


def test_faults_name_what_a_record_lacks():
    assert figures.faults_of(record()) == []
    lacking = record(figures={"a.b": {"value": 1.0}})
    del lacking["commit"]
    assert figures.faults_of(lacking) == ["no 'commit'", "a.b has no 'unit'"]
    outside = record(figures={"a": {"value": 1, "low": 2, "high": 3, "unit": "ms"}})
    assert "outside its interval" in figures.faults_of(outside)[0]
    assert "machine path" in figures.faults_of(record(command="/opt/x/python y.py"))[0]


def test_paths_are_cut_to_their_last_part_and_web_addresses_kept():
    text = "/a/b/python benchmarks/x.py --out=/tmp/y ~/data/z at https://a.b/c and 1/2"
    assert (
        figures.without_paths(text) == "python benchmarks/x.py --out=y z at https://a.b/c and 1/2"
    )


def test_a_written_run_is_read_back_and_the_newest_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "hardware", lambda: MACHINE)
    root = tmp_path / "benchmarks"
    path = figures.write(
        "w", {"a.b": {"value": 2.0, "unit": "ms"}}, seeds=[0, 1], command="/x/python y", root=root
    )
    assert path.name.startswith("w_cpu2_") and json.loads(path.read_text())["command"] == "python y"
    older = record(figures={"a.b": {"value": 9, "unit": "ms"}, "c": {"value": 3, "unit": "ms"}})
    (root / "speed").mkdir()
    (root / "speed" / "w_cpu2_2026-01-01.json").write_text(json.dumps(older))
    found = figures.read_figures(root)
    assert found["a.b"]["value"] == 2 and found["a.b"]["seeds"] == [0, 1]
    assert found["c"]["file"] == "benchmarks/speed/w_cpu2_2026-01-01.json"
    assert figures.read_figures(root, gpu=True) == {}


def test_cold_figures_come_from_the_cold_start_run_alone(tmp_path):
    """Whatever was written last: elsewhere the name meant targets without a training event."""
    cold, ids = "d.causal.cold.recall@10", "d.rqvae_ids.cold.recall@10"
    for what, time, value in (("d_cold_start", "01:00:00", 0.1), ("d", "02:00:00", 0.2)):
        (tmp_path / "quality").mkdir(exist_ok=True)
        found = {cold: {"value": value, "unit": "ratio"}, ids: {"value": value, "unit": "ratio"}}
        written = record(what=what, time=time, figures=found)
        (tmp_path / "quality" / f"{what}_cpu2_2026-01-01.json").write_text(json.dumps(written))
    read = figures.read_figures(tmp_path)
    assert read[cold]["value"] == 0.1 and read[cold]["file"].endswith(
        "d_cold_start_cpu2_2026-01-01.json"
    )
    assert read["d.causal.no_events.recall@10"]["value"] == 0.2
    assert read[ids]["value"] == 0.2


def test_an_incomplete_figure_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "hardware", lambda: MACHINE)
    with pytest.raises(ValueError, match="a has no 'unit'"):
        figures.write("w", {"a": {"value": 1.0}}, seeds=[], command="x", root=tmp_path)
    assert list(tmp_path.rglob("*.json")) == []


def entry(value, **changes):
    return {
        "value": value, "unit": "ratio", "n": 7, "seeds": [0, 1, 2], "date": "2026-01-01",
        "hardware": "cpu", "file": "benchmarks/quality/w.json", **changes,
    }  # fmt: skip


def test_the_accuracy_table_bolds_the_best_measured_and_says_what_is_not_measured():
    shown = tables.accuracy_table(
        {
            "amazon_beauty.causal.recall@10": entry(0.08, low=0.07, high=0.09),
            "amazon_beauty.hybrid.recall@10": entry(0.0951),
        },
        "amazon_beauty",
    )
    rows = {line.split("|")[1].strip(): line for line in shown.splitlines() if "|" in line}
    assert ".0800 [.0700, .0900]" in rows["`causal`"] and "**" not in rows["`causal`"]
    assert "**.0951**" in rows["`hybrid`"] and rows["`hybrid`"].rstrip(" |").endswith("3")
    assert rows["`sasrec`"].count("not measured") == 5
    assert ".0454 | .0321 | .0648 | .0384" in rows["*TIGER (arXiv:2305.05065)*, published"]


@pytest.mark.parametrize(
    ("target", "figure", "expected"),
    [
        ({"floor": 5, "aim": 20}, entry(21), "aim met"),
        ({"floor": 5, "aim": 20}, entry(7), "floor met"),
        ({"floor": 5, "aim": 20}, entry(4), "**floor missed by 20%**"),
        ({"floor": 8, "aim": 2, "lower_is_better": True}, entry(9), "**floor missed by 12%**"),
        ({"floor": 8, "aim": 2, "lower_is_better": True}, entry(1), "aim met"),
        ({"aim": 0.1}, entry(0.09), "aim missed by 10%"),
        ({"band": (0.0114, 0.001)}, entry(0.0155), "**missed**"),
        ({"above_zero": True}, entry(0.1, low=-0.01), "**missed**"),
        ({"above_zero": True}, entry(0.1, low=0.01), "met"),
        ({"floor": 1}, None, "not measured"),
    ],
)
def test_verdicts_say_whether_a_figure_reaches_its_floor_and_aim(target, figure, expected):
    assert tables.verdict(tables.Target(figure="x", **target), figure) == expected


def test_ratios_within_sidrec_are_not_ratios_to_other_software(monkeypatch):
    speed = {"file": "benchmarks/speed/w.json"}
    found = {name: entry(0.4, **speed) for name in ("versus.self.a.latency", "versus.peer.a.rate")}
    monkeypatch.setattr(tables, "read_figures", lambda gpu: {} if gpu else found)
    assert "versus.self.a.latency" in tables.speed_table(found)
    assert "versus.peer" not in tables.speed_table(found)
    assert "peer" in tables.versus_table(found) and "`self`" not in tables.versus_table(found)


def test_an_unknown_table_is_named():
    with pytest.raises(KeyError, match="no table 'bogus'"):
        tables.rendered("<!-- table:bogus -->\n<!-- /table -->", {})


def test_numbers_keep_three_digits_and_no_exponent():
    assert [cells.number(v) for v in (0, 0.0123456, 3.14159, 52.31, 1234.5, 0.00002)] == [
        "0", "0.0123", "3.14", "52.3", "1,234", "0.000020",
    ]  # fmt: skip
