"""The live page: what it shows, whom it answers, and that it finds nothing but its own files."""

import http.client
import json
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resobj_d2.data.coco_json import read_coco_content
from resobj_d2.report import plots, samples
from resobj_d2.report.samples import SampleHook, draw_samples
from resobj_d2.report.watch import LiveRun, main, make_server

from .conftest import CONTENT, RESULTS


@pytest.fixture
def folder(tmp_path):
    """A run with two lines of scalars and a picture, in a folder whose name means harm."""
    folder = tmp_path / "<i>run"
    (folder / "samples").mkdir(parents=True)
    lines = [{"iteration": 19, "total_loss": 3.0, "lr": 0.01}, {"iteration": 39, "total_loss": 2.0}]
    (folder / "metrics.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    Image.new("RGB", (8, 8)).save(folder / "samples" / "0000040_val.jpg")
    (folder / "config.yaml").write_text("SECRET")
    (folder / "samples" / "linked.jpg").symlink_to(folder / "config.yaml")
    return folder


@pytest.fixture
def server(folder):
    server = make_server(LiveRun(folder), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_pages_and_pictures(server, folder):
    assert server.server_address[0] == "127.0.0.1"
    answer, body = ask(server, "/")
    text = body.decode()
    assert (
        answer.status == 200 and "script-src 'sha256-" in answer.headers["Content-Security-Policy"]
    )
    assert "&lt;i&gt;run" in text and "<i>" not in text
    assert "<dd>40</dd>" in text and "<dd>2</dd>" in text  # iteration and loss
    assert "after iteration 40, val" in text
    answer, body = ask(server, "/samples/0000040_val.jpg?1")
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert body == (folder / "samples" / "0000040_val.jpg").read_bytes()
    before = json.loads(ask(server, "/state.json")[1])
    assert before == json.loads(ask(server, "/state.json")[1]) and "ago" in before["text"]
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": 59, "total_loss": 1.25, "bbox/AP": 12.5}) + "\n")
    assert json.loads(ask(server, "/state.json")[1])["version"] != before["version"]
    text = ask(server, "/content.html")[1].decode()
    assert "<dd>60</dd>" in text and "<dd>1.25</dd>" in text and "<dd>12.5</dd>" in text


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml", "/samples/../config.yaml", "/samples/..%2fconfig.yaml", "/samples/",
        "/samples/linked.jpg", "//etc/passwd", "/samples//etc/passwd", "/samples/%00",
        "/metrics.json",
    ],
)  # fmt: skip
def test_other_files_are_not_found(server, path):
    answer, body = ask(server, path)
    assert answer.status == 404 and b"SECRET" not in body


def test_other_hosts_and_methods_are_refused(server):
    assert ask(server, "/", host="evil.example:80")[0].status == 403
    assert ask(server, "/", host=f"localhost:{server.server_port}")[0].status == 200
    for host in ("localhost", "127.0.0.1"):  # as of port 80
        assert ask(server, "/", host=host)[0].status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", ":80"):
        assert ask(server, "/", host=host)[0].status == 403
    assert ask(server, "/", method="POST")[0].status == 501
    answer, body = ask(server, "/", method="HEAD")
    assert answer.status == 200 and body == b""


def test_plots_are_drawn_one_at_a_time(folder, monkeypatch):
    """Matplotlib's style belongs to the process, and requests are threads."""
    run, at_work, most = LiveRun(folder), [], []

    def draw(*_, **__):
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        return ""

    monkeypatch.setattr(plots, "lines", draw)
    threads = [threading.Thread(target=run.content) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_run_that_has_not_begun(tmp_path, server):
    run = LiveRun(tmp_path)
    assert "There are no scalars yet" in run.content() and "no pictures yet" in run.content()
    assert run.state()["text"] == "nothing has been written yet"
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        LiveRun(tmp_path / "nothing")
    with pytest.raises(OSError, match=f"port {server.server_port} cannot be used"):
        main([str(tmp_path), "--port", str(server.server_port)])


def test_the_open_page_follows_the_run(browser, server, folder):
    browser.errors.clear()
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    wait(browser, "document.querySelector('.sample').naturalWidth === 8")  # it loads by itself
    shown = "document.getElementById('content').textContent.includes('12.5')"
    # The page has asked once before the file changes.
    asked = "document.getElementById('state').textContent.includes('ago')"
    wait(browser, asked)
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": 59, "bbox/AP": 12.5}) + "\n")
    wait(browser, shown)
    assert browser.errors == []


def wait(browser, expression, seconds=30):
    deadline = time.monotonic() + seconds
    while not browser.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.1)


@pytest.fixture
def record(make_dump):
    folder = make_dump().parent
    files = {"images": [{**x, "file_name": str(folder / "images" / x["file_name"])}
                        for x in CONTENT["images"]]}  # fmt: skip
    return read_coco_content({**CONTENT, **files}), folder


def test_samples_show_what_was_found(record):
    record, folder = record
    drawn = np.asarray(draw_samples(record, folder / "results.json", number=9))
    # Two pictures have objects; each is enlarged to 480 x 360, side by side with its detections.
    assert 2 * 480 < drawn.shape[1] < 2 * 480 + 40 and 2 * 360 < drawn.shape[0] < 2 * 360 + 80
    (folder / "none.json").write_text("[]")
    empty = np.asarray(draw_samples(record, folder / "none.json", number=9))
    different = (drawn != empty).any(axis=2).any(axis=0)
    assert not different[:480].any() and different[500:].any()


def test_the_hook_draws_after_each_evaluation(record, tmp_path, monkeypatch):
    record, data = record
    monkeypatch.setattr(samples, "dataset_record", lambda name: record)
    cfg = SimpleNamespace(
        TEST=SimpleNamespace(SAMPLE_PICTURES=1),
        OUTPUT_DIR=str(tmp_path),
        DATASETS=SimpleNamespace(TEST=("my/val",)),
    )
    results = tmp_path / "inference" / "my/val" / "coco_instances_results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps(RESULTS))
    put = []
    hook = SampleHook(cfg)
    storage = SimpleNamespace(put_image=lambda name, image: put.append((name, image.shape[0])))
    hook.trainer = SimpleNamespace(iter=0, max_iter=20, storage=storage)
    hook.before_train()
    hook.after_step()  # what an earlier run has left is not drawn
    assert put == []
    hook.trainer.iter = 9
    shutil.copy(data / "results.json", results)
    for _ in range(2):
        hook.after_step()
    assert put == [("samples/my_val", 3)]
    hook.trainer.iter = 20
    results.write_text("[")  # broken: a warning, no failed training
    hook.after_train()
    assert [x.name for x in (tmp_path / "samples").iterdir()] == ["0000010_my_val.jpg"]
