"""The issue's table of bad input, through the command line: one line, exit code 2, no traces."""

from __future__ import annotations

import polars as pl
import pytest

from sidrec import cli

EVENTS = {
    "user_id": [u for u in "abcdefgh" for _ in range(4)],
    "item_id": [f"i{(3 * u + t) % 9}" for u in range(8) for t in range(4)],
    "timestamp": [1_700_000_000 + 60 * t for _ in range(8) for t in range(4)],
}


def call(capfd, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    out, err = capfd.readouterr()
    return stop.value.code or 0, out, err


def changed(**columns):
    return {**EVENTS, **columns}


BAD = {
    "empty file": ("events.csv", "", "empty"),
    "header only": ("events.csv", "user_id,item_id,timestamp\n", "no rows|empty|at least one"),
    "missing column": ("events.csv", "user_id,when\na,1\nb,2\n", "item"),
    "wrong type": (
        "events.csv",
        "user_id,item_id,timestamp\na,x,noon\nb,y,later\n",
        "timestamp",
    ),
    "NaN times": (
        "events.parquet",
        changed(timestamp=[float("nan"), *map(float, EVENTS["timestamp"][1:])]),
        "timestamp",
    ),
    "one user": ("events.parquet", changed(user_id=["a"] * 32), "one user|two users"),
    "one item": ("events.parquet", changed(item_id=["x"] * 32), "one item|two items"),
}


@pytest.mark.parametrize("command", ["init", "fit"])
@pytest.mark.parametrize("case", BAD)
def test_bad_events_stop_with_one_line_and_nothing_written(
    case, command, tmp_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name, content, cause = BAD[case]
    if isinstance(content, dict):
        pl.DataFrame(content).write_parquet(name)
    else:
        (tmp_path / name).write_text(content)
    words = ["init", name]
    before = {name}
    if command == "fit":
        (tmp_path / "recipe.toml").write_text(f'[data]\ninteractions = "{name}"\n')
        words, before = ["fit", "recipe.toml"], {name, "recipe.toml"}
    code, out, err = call(capfd, *words)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err + out
    assert any(word in errors[0].lower() for word in cause.lower().split("|")), errors[0]
    assert {path.name for path in tmp_path.iterdir()} == before


TITLES = {
    "no text": [None] * 9,
    "identical texts": ["the same guitar"] * 9,
    "texts": [
        f"guitar {w}"
        for w in ["red", "blue", "green", "red", "blue", "green", "red", "blue", "green"]
    ],
}
STRANGE = ["../x", "a/b", "c d", "🎸", "%2e%2e", "-rf", "a,b", "001", "'; --"]


@pytest.mark.parametrize("titles", TITLES)
def test_odd_but_usable_data_are_fitted(titles, tmp_path, capfd):
    """Ids with slashes, spaces, emoji and dots are kept; texts may be missing or all equal."""
    ids = dict(zip((f"i{n}" for n in range(9)), STRANGE, strict=True))
    events = pl.DataFrame(changed(item_id=[ids[i] for i in EVENTS["item_id"]]))
    twice = pl.concat([events, events.head(3)])  # duplicate events are told, and used once
    twice.write_parquet(tmp_path / "events.parquet")
    items = pl.DataFrame(
        {"item_id": STRANGE, "title": TITLES[titles]}, schema_overrides={"title": pl.String}
    )
    items.write_parquet(tmp_path / "items.parquet")
    words = ("init", tmp_path / "events.parquet", tmp_path / "items.parquet")
    code, out, err = call(capfd, *words, "--recipe", tmp_path / "recipe.toml", "--on-error", "skip")
    assert code == 0, err
    recipe = tmp_path / "recipe.toml"
    shorter = recipe.read_text().replace("epochs = ", "epochs = 1 # ")
    recipe.write_text(shorter)
    run_dir = tmp_path / "run"
    code, out, err = call(capfd, "fit", recipe, "--run-dir", run_dir)
    assert "Traceback" not in err + out
    assert code == 0, err
    code, out, err = call(capfd, "recommend", run_dir, "--history", "../x,🎸", "--json", "-k", "9")
    assert code == 0, err
    assert all(f'"{item}"' in out for item in STRANGE if item not in ("../x", "🎸", "'; --"))
    code, out, err = call(capfd, "recommend", run_dir, "--history", "../../etc/passwd")
    assert (code, out) == (2, "")
    assert "../../etc/passwd" in err


@pytest.mark.parametrize(
    ("option", "value", "cause"),
    [("--device", "gpu", "no device 'gpu'"), ("--device", "mps", "no device 'mps'"),
     ("--seed", "-1", "seed must be")],
)  # fmt: skip
def test_a_bad_option_stops_a_fit_with_one_line(option, value, cause, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(EVENTS).write_parquet("events.parquet")
    (tmp_path / "recipe.toml").write_text('[data]\ninteractions = "events.parquet"\n')
    code, out, err = call(capfd, "fit", "recipe.toml", option, value)
    assert code == 2 and cause in err and "Traceback" not in err + out
    assert {path.name for path in tmp_path.iterdir()} == {"events.parquet", "recipe.toml"}


def test_events_of_unknown_items_stop_with_one_line_and_their_rows(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.DataFrame(EVENTS).write_parquet("events.parquet")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(8)]}).write_parquet("items.parquet")
    code, out, err = call(capfd, "init", "events.parquet", "items.parquet")
    assert code == 2 and "Traceback" not in err + out
    assert "['i8']" in err and "rows" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("nme = 'x'\n", "did you mean 'name'"),
        ("[generator]\nname = 'causl'\n", "did you mean 'causal'"),
        ("[generator.train]\nepochs = 'ten'\n[data]\nname='shop'\n", "generator"),
        ("[data]\n", "either name"),
        ("x =", "not valid TOML"),
        ("[data]\nname = 'amazon_beuty'\n", "amazon_beauty"),
    ],
)
def test_a_bad_recipe_stops_with_one_line(text, cause, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(text)
    code, _, err = call(capfd, "fit", "recipe.toml")
    assert code == 2
    assert cause in err and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
