"""Published sets, from a server made on the spot: fetched once, believed by their hash, asked and scored offline."""

import hashlib
import http.server
import threading
from types import SimpleNamespace

import pytest
import tiny_benchmarks
from small_plan import score, small_plan

from emkit.errors import UserError
from emkit.files import write_json
from eval import columns
from eval.columns.kinds import VLMEvalKit
from eval.items import writer
from eval.places import Job
from eval.vlm import client, published


class Sets(http.server.BaseHTTPRequestHandler):
    """``/sets/<file>`` in ranges, ``/moved/<file>`` elsewhere; ``breaks``: so many replies end half-way."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - the tests' own, like the next
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    breaks = 0

    def do_GET(self):
        _, place, name = self.path.split("/")
        wanted = self.headers.get("Range")
        self.asked.append((place, wanted))
        if place == "moved":
            self.send_response(302)
            self.send_header("Location", f"/sets/{name}")
            self.end_headers()
            return
        content = self.files.get(name)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if wanted and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(content[start:])

    def log_message(self, *words):
        pass


def write(asked, split, out):
    """As ``python -m eval data`` does."""
    return writer.write(asked, split, out, published.place)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 5)
    tiny_benchmarks.write_all(tmp_path / "toys")
    Sets.files, Sets.breaks = {file.name: file.read_bytes() for file in (tmp_path / "toys").iterdir()}, 0
    Sets.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sets)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/sets", stop=lambda: _stop(server))
    _stop(server)


def _stop(server):
    server.shutdown()
    server.server_close()


def md5(name: str) -> str:
    return hashlib.md5(Sets.files[name]).hexdigest()


def column(name: str, sets, n: int, **changes) -> VLMEvalKit:
    """A published column of the toy set."""
    said = columns.load(name, "internvl", "paper", {"subtask": None, "seed": None, "validation_n": 0, "max_tiles": 6})
    file = said.file
    given = {"n": n, "url": f"{sets.url}/{file}", "md5": md5(file), **changes}
    return VLMEvalKit.model_validate(said.model_dump() | given)


def protocol(tmp_path, *columns_):
    found = small_plan(tmp_path).protocol
    return found.model_copy(update={"name": "toy", "columns": {each.name: each for each in columns_}})


def test_sets_are_fetched_asked_and_scored_and_then_need_no_network(sets, tmp_path):
    """Three columns of one file; every item answered "7", of which VizWiz's first takes it."""
    grounding = [column(name, sets, n=2) for name in ("RefCOCO", "RefCOCO+", "RefCOCOg")]
    asked = protocol(tmp_path, column("VizWiz", sets, n=3), *grounding)
    manifest = write(asked, "evaluation", tmp_path / "data")
    assert [entry["n"] for entry in manifest["benchmarks"].values()] == [3, 2, 2, 2]
    assert len({entry["sha256"] for entry in manifest["benchmarks"].values()}) == 4
    assert len(Sets.asked) == 2, "a file that three columns share is fetched once"
    sets.stop()
    assert write(asked, "evaluation", tmp_path / "again") == manifest
    prompts = client.prompts(tmp_path / "data", asked.columns["VizWiz"])
    found = client.evaluate(tmp_path / "data", asked.columns["VizWiz"], {prompt.index: "7" for prompt in prompts})
    assert [item["score"] for item in found.items] == [1.0, 0.0, 0.0]


def test_a_broken_connection_goes_on_where_it_was(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64)
    Sets.breaks = 1
    path = published.fetch(f"{sets.url}/GQA_TestDev_Balanced.tsv", md5("GQA_TestDev_Balanced.tsv"), "gqa.tsv")
    assert path.read_bytes() == Sets.files["GQA_TestDev_Balanced.tsv"]
    assert Sets.asked[0][1] is None and Sets.asked[1][1] is not None


def test_what_a_killed_download_left_is_gone_on_with(sets, tmp_path):
    name = "GQA_TestDev_Balanced.tsv"
    part = published.cache() / f"{md5(name)}-gqa.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(Sets.files[name][:100])
    assert published.fetch(f"{sets.url}/{name}", md5(name), "gqa.tsv").read_bytes() == Sets.files[name]
    assert Sets.asked == [("sets", "bytes=100-")] and not part.exists()


def test_redirects_are_followed(sets):
    name = "VizWiz.tsv"
    moved = f"{sets.url.removesuffix('sets')}moved/{name}"
    assert published.fetch(moved, md5(name), name).read_bytes() == Sets.files[name]


def test_another_file_than_the_published_one_is_refused_and_not_kept(sets):
    with pytest.raises(UserError, match="is not the published file: its MD5 is"):
        published.fetch(f"{sets.url}/VizWiz.tsv", "0" * 32, "VizWiz.tsv")
    assert not list(published.cache().glob("[!.]*"))


def test_what_is_not_there_is_one_line(sets):
    with pytest.raises(UserError, match=r"gone\.tsv could not be fetched from .*: the same command goes on"):
        published.fetch(f"{sets.url}/gone.tsv", "0" * 32, "gone.tsv")


def test_a_copy_put_there_by_hand_is_believed_by_its_hash(sets, tmp_path):
    sets.stop()
    wanted = column("VizWiz", sets, n=3)
    kept = published.cache() / f"{wanted.md5}-VizWiz.tsv"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(Sets.files["VizWiz.tsv"][:-5])
    with pytest.raises(UserError, match=r"is not the published VizWiz\.tsv .*: remove it"):
        write(protocol(tmp_path, wanted), "evaluation", tmp_path / "data")
    kept.write_bytes(Sets.files["VizWiz.tsv"])
    assert write(protocol(tmp_path, wanted), "evaluation", tmp_path / "data")["benchmarks"]["VizWiz"]["n"] == 3


def test_a_file_in_the_data_folder_that_is_another_gives_way(sets, tmp_path):
    """Such as one that an older version of the harness had, or that was copied in part."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "VizWiz.tsv").write_text("index\timage\n")
    write(protocol(tmp_path, column("VizWiz", sets, n=3)), "evaluation", tmp_path / "data")
    assert (tmp_path / "data" / "VizWiz.tsv").read_bytes() == Sets.files["VizWiz.tsv"]


@pytest.mark.parametrize("more", [b"", b"and more"])
def test_a_download_that_is_whole_but_not_renamed_yet_or_too_long(more, sets):
    part = published.cache() / f"{md5('VizWiz.tsv')}-VizWiz.tsv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(Sets.files["VizWiz.tsv"] + more)
    found = published.fetch(f"{sets.url}/VizWiz.tsv", md5("VizWiz.tsv"), "VizWiz.tsv")
    assert found.read_bytes() == Sets.files["VizWiz.tsv"] and len(Sets.asked) == (2 if more else 0)


def test_another_number_of_items_than_the_column_says_is_refused(sets, tmp_path):
    with pytest.raises(UserError, match=r"RefCOCO: .* has 2 items of RefCOCO_val, and the column says n: 10"):
        write(protocol(tmp_path, column("RefCOCO", sets, n=10)), "evaluation", tmp_path / "data")


def test_a_published_set_has_no_validation_items(sets, tmp_path):
    with pytest.raises(UserError, match="VizWiz is a published set, which has no validation items"):
        write(protocol(tmp_path, column("VizWiz", sets, n=3)), "validation", tmp_path / "data")


def test_address_and_hash_are_vlmevalkits_own_where_a_column_says_none(tmp_path):
    """Also after a table of that name was opened, which sets the stock hash aside."""
    stock = columns.load("ChartQA", "internvl", "paper", {"subtask": None, "seed": None})
    tiny_benchmarks.write_all(tmp_path / "data")
    expected = (
        "https://opencompass.openxlab.space/utils/VLMEval/ChartQA_TEST.tsv",
        "c902e0aa9be5582a7aad6dcf52734b42",  # ms-vlmeval 0.0.24's vlmeval/dataset/image_vqa.py
    )
    assert client.published(tmp_path / "data", stock) == expected
    client.prompts(tmp_path / "data", stock)
    assert client.published(tmp_path / "data", stock) == expected
    own = stock.model_copy(update={"url": "https://example.org/x.tsv", "md5": "0" * 32})
    assert client.published(tmp_path / "data", own) == ("https://example.org/x.tsv", "0" * 32)


def test_a_score_of_unknown_data_does_not_stand(tmp_path):
    plan, job = small_plan(tmp_path), Job("base", 0)
    score(plan, job, "GQA", 1.0, 0.0)
    assert not plan.manifest("evaluation").is_file() and not plan.is_valid(job, "GQA")
    write_json(plan.manifest("evaluation"), {"benchmarks": {"GQA": {"sha256": "known"}}})
    assert not plan.is_valid(job, "GQA")
    score(plan, job, "GQA", 1.0, 0.0)
    assert plan.is_valid(job, "GQA")
