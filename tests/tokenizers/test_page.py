"""The page is one closed file, text of items stays text, and its explorer finds what is there."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sidrec.errors import DataError
from sidrec.tokenizers.health import health
from sidrec.tokenizers.page import depth_rows, explorer_of, level_rows, page
from sidrec.tokenizers.tree import prefix_names
from sidrec.types import Histories, SemanticIds, as_ids

NASTY = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "q" \u2028 <!--data-->'
STUB = Path(__file__).with_name("page_stub.js")
CODES = np.array([[0, 1], [0, 1], [0, 0], [2, -1], [1, 3]])
IDS = SemanticIds(as_ids("abcde"), CODES, (3, 4))
TITLES = ["red shoe", "blue shoe", "green shoe", NASTY, "brass lamp"]
COUNTS = np.array([5, 7, 0, 2, 1])


def made(ids=IDS, titles=TITLES, counts=COUNTS, **options):
    figures = options.pop("figures", None) or health(ids, train_counts_N=counts)
    tree = prefix_names(ids, titles)
    return page(ids, figures, titles=titles, train_counts_N=counts, tree=tree, **options)


class Reader(HTMLParser):
    """Elements, their attributes, text, and what each script holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
        elif self.open and self.open[-1] != "style":
            self.words.append(text)


def test_text_of_items_cannot_leave_the_data():
    text = made(name=NASTY, facts={"tokenizer": NASTY})
    found = Reader(text)
    assert "alert(1)</script>" not in text and [t for t, _ in found.tags].count("script") == 2
    assert not [t for t, _ in found.tags if t == "img"]
    assert json.loads(found.scripts[0])["titles"][4] == NASTY[:120]
    assert "alert" not in found.scripts[1]
    assert NASTY in found.words, "where it is shown it is shown as written"
    handlers = [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert handlers == []


def test_the_page_asks_the_network_for_nothing_and_forbids_it():
    text = made()
    found = Reader(text)
    names = {(tag, name) for tag, attributes in found.tags for name in attributes}
    assert not {n for n in names if n[1] in ("src", "srcset", "action")}
    assert "url(" not in text and "import" not in found.scripts[1] and "http:" not in text
    (policy,) = [a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_the_policy_admits_exactly_the_script_and_style_of_the_page():
    import base64
    import hashlib

    text = made()
    for tag in ("script", "style"):
        (source,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_every_control_has_a_name_for_keyboards_and_screen_readers():
    found = Reader(made())
    drawings = [a for t, a in found.tags if t == "svg"]
    assert drawings and all(a["role"] == "img" and a["aria-label"] for a in drawings)
    inputs = [t for t, _ in found.tags if t in ("input", "label")]
    assert inputs == ["label", "input"] * 3, "each inside its label"
    assert not [a for _, a in found.tags if int(a.get("tabindex", 0)) > 0]


def test_items_are_sorted_by_id_then_popularity_so_that_prefixes_are_ranges():
    columns = explorer_of(IDS, TITLES, COUNTS, None, 100)
    assert columns["ids"] == ["c", "b", "a", "e", "d"]
    assert columns["codes"] == [[0, 0, 0, 1, 2], [0, 1, 1, 3, -1]]
    assert columns["shared"] == [1, 2, 2, 1, 1] and columns["hidden"] == []


def test_beyond_the_limit_every_prefix_keeps_its_most_popular_and_counts_the_rest():
    codes = np.array([[row % 3, row % 4] for row in range(60)])
    ids = SemanticIds(as_ids(range(60)), codes, (3, 4))
    counts = np.arange(60)
    columns = explorer_of(ids, [""] * 60, counts, None, 6)
    assert sorted(map(int, columns["ids"])) == [54, 55, 56, 57, 58, 59]
    assert sum(sum(items) for _, items, _, _ in columns["hidden"]) == 54
    assert "lists 6 of 60 items" in made(ids, ["x"] * 60, counts, max_items=6)


def test_tables_leave_out_what_was_not_measured_and_say_so():
    figures = health(IDS)
    assert "Gini" in level_rows(figures)[0] and "Gini of traffic" not in level_rows(figures)[0]
    assert [row["depth"] for row in depth_rows(figures)] == [1, 2]
    assert "need the training events" in made(figures=figures)
    both = health(IDS, train=Histories.from_lists([[0, 1], [2, 4]]))
    text = made(figures=both)
    assert "need the training events" not in text and "co-purchase − chance" in text


def test_columns_of_another_catalogue_are_refused():
    with pytest.raises(DataError, match="5 items, 1 titles"):
        page(IDS, health(IDS), titles=["one"], train_counts_N=COUNTS)


@pytest.fixture
def explorer(tmp_path):
    """Run the page's own script on a stub of the document and ask it things."""
    if shutil.which("node") is None:
        pytest.skip("needs node")

    def ask(text, expression):
        data, script = Reader(text).scripts
        program = f"{STUB.read_text()}\nput('data', {json.dumps(data)});\n{script}\n"
        program += f"console.log(JSON.stringify({expression}));"
        path = tmp_path / "page.js"
        path.write_text(program)
        done = subprocess.run(["node", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


def test_the_explorer_counts_prefixes_as_the_tree_does(explorer):
    tree = prefix_names(IDS, TITLES)
    walk = (
        "(function walk(n) { return children(n).flatMap(c => "
        "[[c.path, c.items, c.events, c.twins, nameOf(c)], ...walk(c)]); })(prefix([]))"
    )
    found = {tuple(path): rest for path, *rest in explorer(made(), walk)}
    assert set(found) == set(tree.nodes)
    for path, (items, events, twins, name) in found.items():
        rows = tree.rows(path)
        assert (items, events) == (len(rows), COUNTS[rows].sum())
        assert twins == (IDS.group_sizes_N[rows] > 1).sum()
        if items > 1:
            assert name == ", ".join(tree.nodes[path].words)
    assert found[1,][-1] == "brass lamp", "one item gives its prefix its own title"


def test_the_explorer_counts_items_that_are_not_listed(explorer):
    random = np.random.default_rng(0)
    codes = random.integers(0, 3, (90, 3))
    codes[::4, 2] = -1
    codes[::8, 1] = -1
    ids, counts = SemanticIds(as_ids(range(90)), codes, (3, 3, 3)), random.integers(0, 9, 90)
    ids_text = made(ids, ["word"] * 90, counts, max_items=12)
    walk = (
        "(function walk(n) { return [[n.path, n.items, n.events, n.twins, n.left], "
        "...children(n).flatMap(walk)]; })(prefix([]))"
    )
    found = explorer(ids_text, walk)
    assert sum(left > 0 for *_, left in found) > 5
    for path, items, events, twins, left in found:
        under = (codes[:, : len(path)] == path).all(axis=1)
        assert (items, events) == (under.sum(), counts[under].sum())
        assert twins == (ids.group_sizes_N[under] > 1).sum() and 0 <= left < items


def test_the_explorer_finds_titles_item_ids_and_prefixes(explorer):
    found = explorer(made(), "['SHOE', 'e', '0-1', '0, 1', '9', '<img'].map(search)")
    titles, letters, prefix, listed, none, markup = found
    assert titles["rows"] == [0, 1, 2]
    assert 3 in letters["rows"]
    assert prefix["path"] == listed["path"] == [0, 1]
    assert none == {"rows": []} and markup["rows"] == [4]


def test_the_explorer_draws_columns_items_and_heat(explorer):
    text = made()
    drawn = explorer(
        text,
        "['', '#0', '#0-1', '#7', '#all'].map(h => { location.hash = h; draw(); return ["
        "at('columns').children.map(c => [c.attributes['aria-label'], c.querySelectorAll('a')"
        ".filter(a => a.attributes['aria-current']).map(a => a.attributes.href)]),"
        "at('chosen').text(), location.hash]; })",
    )
    root, zero, whole, unknown, everything = drawn
    assert root[0] == [["Level 0: 3 of 3 codes", []]] and "All items" in root[1]
    assert zero[0] == [
        ["Level 0: 3 of 3 codes", ["#0"]],
        ["Level 1: 2 of 4 codes after 0", []],
    ]
    assert [open_ for _, open_ in whole[0]] == [["#0"], ["#0-1"]]
    assert "ID held by 2 items" in whole[1] and "brass lamp" not in whole[1]
    assert unknown[0] == everything[0] == root[0], "what is not there shows everything"
    heat = explorer(
        text,
        "['items', 'events'].map(h => { heat = h; draw(); return at('columns').children[0]"
        ".querySelectorAll('a').map(a => [a.attributes.href, a.style.heat]); })",
    )
    assert [href for href, _ in heat[0]] == ["#0", "#1", "#2"]
    assert [href for href, _ in heat[1]] == ["#0", "#2", "#1"]
    assert float(heat[1][0][1]) == 0.55 > float(heat[1][1][1]) > float(heat[1][2][1]) > 0


def test_long_lists_come_a_page_at_a_time(explorer):
    codes = np.arange(700)[:, None]
    ids = SemanticIds(as_ids(range(700)), codes, (700,))
    text = made(ids, ["x"] * 700, np.ones(700, dtype=np.int64))
    shown = explorer(
        text,
        "[0, 1, 2].map(() => { const list = at('columns').children[0].children[1].children;"
        "const last = list.at(-1).children[0], n = list.length;"
        "if (last.tagName === 'BUTTON') last.click(); return [n, last.text()]; })",
    )
    assert [n for n, _ in shown] == [301, 601, 700] and shown[0][1] == "400 more"


def test_a_bundle_writes_its_page_with_every_item(tiny, tmp_path):
    recommender = tiny.run.recommender
    figures = recommender.inspect_page(tmp_path / "ids.html", train=tiny.run.split.train)
    data = json.loads(Reader((tmp_path / "ids.html").read_text(encoding="utf-8")).scripts[0])
    assert sorted(data["ids"]) == sorted(map(str, recommender.items.item_ids))
    assert (
        sum(data["events"]) == recommender.train_counts_N.sum() == len(tiny.run.split.train.items_E)
    )
    assert figures.num_pairs and figures.levels[0].prefix_purity is not None
    report = recommender.inspect(train=tiny.run.split.train)
    assert report["health"]["levels"][0]["copurchase_agreement"] is not None
    assert recommender.inspect()["health"]["num_pairs"] is None
