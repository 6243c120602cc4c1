import json

import pytest

from sidrec import cli


@pytest.fixture
def inspect(capfd, tiny):
    def call(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["inspect", str(tiny.run_dir), *map(str, words)])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_tables_hold_the_figures_and_say_what_needs_the_data(inspect):
    code, out, _ = inspect()
    assert code == 0
    assert "ICR (distinct IDs / items)" in out and "Gini of traffic" in out
    assert "not measured" in out and "co-purchase − chance" not in out
    code, out, _ = inspect("--data")
    assert code == 0
    assert "not measured" not in out and "co-purchase − chance" in out


def test_json_has_every_figure_and_the_page_is_written_beside_it(inspect, tiny, tmp_path):
    code, out, err = inspect("--data", "--json", "--html", tmp_path / "new" / "ids.html")
    figures = json.loads(out)["health"]
    assert code == 0 and "wrote" in err
    assert figures["num_items"] == len(tiny.run.recommender.items)
    assert figures["icr"] == 1.0 and figures["levels"][0]["copurchase_agreement"] is not None
    assert (tmp_path / "new" / "ids.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_is_no_place_for_the_page(inspect, tmp_path):
    code, out, err = inspect("--html", tmp_path)
    assert (code, out) == (2, "") and "must name a file" in err


def test_other_data_under_the_same_name_are_refused(inspect, monkeypatch):
    from sidrec import pipeline
    from sidrec.errors import DataError

    def refuse(recommender, dataset):
        raise DataError("content hash differs")

    monkeypatch.setattr(pipeline, "require_same_data", refuse)
    code, _, err = inspect("--data")
    assert code == 2 and "content hash" in err
