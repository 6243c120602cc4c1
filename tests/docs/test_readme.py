"""The README and the pages under docs are executed, checked for links, and never stale."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from sidrec import cli, config, recipe
from sidrec.cli import reference
from sidrec.search_part import load_search_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"<!-- snippet: python -->\n```python\n(.*?)```", re.DOTALL)
TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\s*(sidrec .*?)(?:\s+#.*)?$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture
def shop(tiny, tmp_path, monkeypatch):
    """A folder as the pages assume it: two files, a small recipe, a run, a bundle, known ids."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(tiny.run_dir, tmp_path / "runs" / "recipe")
    old = [str(item) for item in tiny.run.recommender.items.item_ids]
    names = {f"ITEM_{n}": old[n] for n in range(1, 10)}
    for name in ("interactions.parquet", "items.parquet"):
        pl.read_parquet(tiny.folder / name).write_parquet(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return names


def with_ids(text, names):
    return re.sub(r"ITEM_\d", lambda match: names[match.group()], text)


def snippets():
    return [
        pytest.param(page, code, id=f"{page.name}-{number}")
        for page in PAGES
        for number, code in enumerate(SNIPPET.findall(page.read_text()))
    ]


@pytest.mark.parametrize(("page", "code"), snippets())
def test_every_marked_python_snippet_runs(page, code, shop, tiny, monkeypatch):
    import sidrec

    small = recipe.load_config(tiny.recipe)
    fit = sidrec.fit
    monkeypatch.setattr(sidrec, "fit", lambda data: fit(data, small), raising=False)
    priced = tiny.run.recommender.items.attributes
    if "price" not in priced.columns:
        code = re.sub(r"where=\{[^}]*\}", 'where={"field": "title", "op": "exists"}', code)
    if "sidrec.load(" in code and ".save(" not in code.split("sidrec.load(")[0]:
        tiny.run.recommender.save("bundle")
    exec(compile(with_ids(code, shop), str(page), "exec"), {})


def commands(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in blocks for line in COMMAND.findall(block)]


@pytest.mark.parametrize("page", [PAGES[0], ROOT / "docs" / "guide.md"], ids=lambda p: p.name)
def test_every_command_of_the_pages_runs_in_order(page, shop, tiny, capfd):
    request = {"user_id": "ann", "history": [shop["ITEM_1"]]}
    Path("requests.jsonl").write_text(json.dumps(request))
    found = commands(page)
    assert len(found) >= 5
    for line in found:
        words = shlex.split(with_ids(line.split(" > ")[0], shop))[1:]
        if words[0] == "demo":
            continue
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code in (0, None), (line, capfd.readouterr().err)
        if words[0] == "init":  # the recipe it wrote is right, but takes minutes to train
            assert recipe.load_config("recipe.toml").name == "recipe"
            Path("recipe.toml").write_text(tiny.recipe.read_text().replace('"tiny"', '"recipe"'))


def test_every_toml_example_is_a_valid_recipe(tmp_path):
    examples = [text for page in PAGES for text in TOML.findall(page.read_text())]
    assert examples
    for text in examples:
        (tmp_path / "example.toml").write_text(text)
        load = load_search_config if "searchers" in text else recipe.load_config
        load(tmp_path / "example.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_reads_and_reads_back(path):
    settings = recipe.load_config(path)
    assert config.parse(recipe.RunConfig, config.to_dict(settings)) == settings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    for link in LINK.findall(page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_pages_are_not_stale(name):
    stale = f"docs/{name}.md is stale; run: make docs"
    assert (ROOT / "docs" / f"{name}.md").read_text() == reference.PAGES[name](), stale


def test_the_readme_has_the_parts_in_the_order_promised():
    text = PAGES[0].read_text()
    order = [
        "# sidrec",
        "## Two commands",
        "## Your own data in five commands",
        "## Five lines of Python",
        "<!-- table:beauty -->",
        "## The folders",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    five = text[places[2] : places[3]]
    assert len(COMMAND.findall(five)) == 5
