"""Named sets: local folders, verified downloads from a server on this machine, honest failures."""

import gzip
import hashlib
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import polars as pl
import pytest

from sidrec.data import NAMED, load_named, named, named_vectors
from sidrec.data.download import Origin, fetch
from sidrec.errors import ConfigError, DataError

CONTENT = b"forty-two bytes of perfectly good content.\n"


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `files`; a path in `broken` announces more bytes than it sends."""

    files: dict[str, bytes]
    broken: set[str]
    requests: list[str]

    def do_GET(self):
        type(self).requests.append(self.path)
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        announced = len(content) + (100 if self.path in self.broken else 0)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Here", (Site,), {"files": {}, "broken": set(), "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_is_checked_kept_and_not_repeated(site, tmp_path):
    site.files["/good.txt"] = CONTENT
    md5 = hashlib.md5(CONTENT).hexdigest()
    origin = Origin(url=f"{site.url}/good.txt", md5=md5, size_bytes=len(CONTENT))
    assert fetch(origin, tmp_path / "new").read_bytes() == CONTENT
    assert fetch(origin, tmp_path / "new").read_bytes() == CONTENT
    assert site.requests == ["/good.txt"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["good.txt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"md5": "0" * 32}, r"expected MD5 0{32}, got \w{32}; delete"),
        ({"sha256": "0" * 64}, r"expected SHA-256 0{64}"),
        ({"size_bytes": 7}, r"expected bytes 7, got 43"),
    ],
)
def test_a_wrong_checksum_leaves_nothing_behind(site, tmp_path, wrong, message):
    site.files["/bad.txt"] = CONTENT
    with pytest.raises(DataError, match=message):
        fetch(Origin(url=f"{site.url}/bad.txt", **wrong), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_transfer_leaves_nothing_behind(site, tmp_path):
    site.files["/half.txt"] = CONTENT
    site.broken.add("/half.txt")
    with pytest.raises(DataError, match=r"half\.txt.*(broke off|could not be downloaded)"):
        fetch(Origin(url=f"{site.url}/half.txt"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_pages_and_other_protocols_are_named(site, tmp_path):
    with pytest.raises(DataError, match=r"none\.txt could not be downloaded: HTTP Error 404"):
        fetch(Origin(url=f"{site.url}/none.txt"), tmp_path)
    with pytest.raises(DataError, match=r"expected an http\(s\) address"):
        fetch(Origin(url="file:///etc/hostname"), tmp_path)
    with pytest.raises(DataError, match="allow the download"):
        fetch(Origin(url=f"{site.url}/none.txt"), tmp_path, download=False)


def test_without_a_published_checksum_the_first_download_is_remembered(site, tmp_path):
    site.files["/plain.txt"] = CONTENT
    origin = Origin(url=f"{site.url}/plain.txt")
    path = fetch(origin, tmp_path)
    recorded = (tmp_path / "plain.txt.sha256").read_text()
    assert recorded == f"{hashlib.sha256(CONTENT).hexdigest()}  plain.txt\n"
    path.write_bytes(CONTENT.replace(b"good", b"bad!"))
    with pytest.raises(DataError, match="SHA-256 of the first download"):
        fetch(origin, tmp_path)


REVIEWS = [("u2", "B", 30), ("u1", "A", 10), ("u1", "B", 20), ("u2", "A", 40), ("u1", "C", 20)]


def amazon_set(site, counts=(2, 3, 5)):
    reviews = [{"reviewerID": u, "asin": a, "unixReviewTime": 86_400 * (15_000 + t), "overall": 5.0,
                "reviewText": "x"} for u, a, t in REVIEWS]  # fmt: skip
    meta = ["{'asin': 'B', 'title': 'It\\'s'}", "{'asin': 'Z', 'title': 'no'}", "{'asin': 'A'}"]
    site.files["/reviews.json.gz"] = gzip.compress("\n".join(map(json.dumps, reviews)).encode())
    site.files["/meta.json.gz"] = gzip.compress("\n".join(meta).encode())
    origins = tuple(Origin(url=f"{site.url}/{n}.json.gz") for n in ("reviews", "meta"))
    return named.NamedSet(name="toy", about="toy set", origins=origins, counts=counts)


def test_an_amazon_origin_becomes_a_dataset_of_the_items_with_events(site, tmp_path):
    dataset = named.load_from_origin(amazon_set(site), tmp_path)
    assert dataset.items.item_ids.tolist() == ["A", "B", "C"]
    assert dataset.items.texts() == ["", "It's", ""]
    events = dataset.interactions
    assert dataset.items.item_ids[events.items_E].tolist() == ["B", "A", "A", "B", "C"]
    assert events.has_clock and events.weights_E.tolist() == [5.0] * 5
    assert "toy set, downloaded from http" in dataset.notes[0]
    assert "ties='shuffle'" in dataset.notes[-1]


def test_counts_other_than_the_published_ones_are_refused(site, tmp_path):
    with pytest.raises(DataError, match=r"expected \(2, 3, 6\).*got \(2, 3, 5\)"):
        named.load_from_origin(amazon_set(site, counts=(2, 3, 6)), tmp_path)


def test_a_movielens_zip_is_verified_and_read(site, tmp_path, monkeypatch):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("ml-1m/ratings.dat", "1::10::5::978300760\n2::20::3::978300761\n")
        out.writestr("ml-1m/movies.dat", "10::Café (1995)::Drama\n20::B::War\n".encode("latin-1"))
        out.writestr("ml-1m/../../../escape.txt", "must not be written")
    content = archive.getvalue()
    site.files["/ml-1m.zip"] = content
    origin = Origin(url=f"{site.url}/ml-1m.zip", md5=hashlib.md5(content).hexdigest())
    toy = named.NamedSet(name="movielens_1m", about="toy", origins=(origin,), counts=(2, 2, 2))
    monkeypatch.setitem(NAMED, "movielens_1m", toy)
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    monkeypatch.delenv("SIDREC_DATA", raising=False)
    dataset = load_named("movielens_1m")
    assert dataset.items.titles() == ["Café (1995)", "B"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["ml-1m.zip", "movielens_1m"]


def test_a_local_folder_comes_first_and_carries_its_vectors(tmp_path, monkeypatch):
    folder = tmp_path / "amazon_beauty"
    folder.mkdir()
    events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": ["x", "y", "x"], "position": [0, 1, 0]})
    events.write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": ["y", "x"], "title": ["Why", "Ex"]}).write_parquet(
        folder / "items.parquet"
    )
    monkeypatch.setenv("SIDREC_DATA", str(tmp_path))
    dataset = load_named("amazon_beauty", download=False)
    assert dataset.name == "amazon_beauty" and dataset.items.titles() == ["Why", "Ex"]
    assert named_vectors("amazon_beauty") is None
    np.save(folder / "item_vectors_minilm.npy", np.array([[1, 2], [3, 4]], dtype=np.float16))
    vectors = named_vectors("amazon_beauty", data_dir=tmp_path)
    assert vectors.item_ids.tolist() == ["y", "x"]
    assert vectors.vectors.dtype == np.float32 and vectors.vectors.tolist() == [[1, 2], [3, 4]]


def test_where_nothing_is_at_hand_the_error_says_what_to_do(site, tmp_path, monkeypatch):
    monkeypatch.delenv("SIDREC_DATA", raising=False)
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"downloading is off; set SIDREC_DATA.*simulated shop"):
        load_named("amazon_sports", download=False)
    gone = named.NamedSet(name="amazon_sports", about="", origins=(Origin(url=f"{site.url}/no"),))
    monkeypatch.setitem(NAMED, "amazon_sports", gone)
    with pytest.raises(
        DataError, match=r"could not be downloaded.*set SIDREC_DATA.*simulated shop"
    ):
        load_named("amazon_sports")
    with pytest.raises(ConfigError, match="no data set 'beauty'"):
        load_named("beauty")
