"""The page of `wae app`: its server without a browser, and the page in a real headless Chromium."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from benches import packaged, result_files
from wae import cli
from wae.data import photos
from wae.storage.weights_file import WEIGHTS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
ROOT = Path(__file__).resolve().parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WEB = 60_000  # ms that the browser waits, on a machine that may be busy

# The command, with a report of every address outside this machine that it connects to or looks up.
SERVER = """
import socket, sys
from wae import cli

connect, look_up = socket.socket.connect, socket.getaddrinfo

def watched(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("connects to", address, file=sys.stderr, flush=True)
    return connect(self, address)

def watched_names(host, *options, **more):
    if host not in ("127.0.0.1", "::1", "localhost"):
        print("looks up", host, file=sys.stderr, flush=True)
    return look_up(host, *options, **more)

socket.socket.connect, socket.getaddrinfo = watched, watched_names
sys.exit(cli.main(sys.argv[1:]))
"""


class Served:
    """A running `wae app`."""

    def __init__(self, *arguments: str | Path) -> None:
        words = [sys.executable, "-c", SERVER, "app", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        if not self.said:
            raise AssertionError(self.process.communicate()[1])
        self.address = self.said.split()[0]

    def end(self) -> str:
        """Stop it; returns what it wrote to standard error."""
        self.process.send_signal(signal.SIGINT)
        try:
            said = self.process.communicate(timeout=60)[1]
        finally:
            self.process.kill()
        assert self.process.returncode == 130
        return said


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    served = Served("--weights", WEIGHTS / "fashion-mnist.safetensors", "--max-pixels", "400000")
    yield served
    said = served.end()
    assert "connects to" not in said
    assert "Traceback" not in said


def answered(server: Served, path: str | Path) -> str:
    """The server's answer if the page's script asks for the parts of the file ``path``."""
    name = Path(path).stem
    config = json.loads(fetched(f"{server.address}config")[0])
    show = next(found["id"] for found in config["dependencies"] if found["api_name"] == "_show")
    file = {"path": str(path), "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    question = json.dumps({"data": [file, False], "fn_index": show, "session_hash": name})
    request = urllib.request.Request(
        f"{server.address}gradio_api/queue/join", question.encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()
    return fetched(f"{server.address}gradio_api/queue/data?session_hash={name}")[0]


def fetched(address: str, **headers: str) -> tuple[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
        return answer.read().decode(), answer.headers


# ----------------------------------------------------------------------------------- without a browser


@pytest.mark.slow
def test_it_listens_on_this_machine_only(server: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", server.said)
    port = urlsplit(server.address).port
    assert port is not None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            assert local.partition(":")[0] == "0100007F"
            break
    else:
        pytest.fail("it does not listen")


@pytest.mark.slow
def test_the_served_page_loads_nothing_from_other_hosts(server: Served) -> None:
    """Gradio's `og:` entries, for previews of links, do name its own host, but browsers do not load them."""
    page, headers = fetched(server.address)
    style, _ = fetched(f"{server.address}theme.css")
    loaded = re.findall(r"""<(?:script|link|img)[^>]*?(?:src|href)=["']([^"']+)""", page)
    loaded += re.findall(r"""url\(["']?([^"')]+)|@import ["']([^"']+)""", style)
    assert loaded
    assert not [address for address in loaded if re.match(r"(?:https?:)?//", str(address))]
    config = re.search(r"window\.gradio_config = (\{.*?\});</script>", page)
    assert config is not None
    assert json.loads(config[1])["analytics_enabled"] is False
    assert "fonts.googleapis" not in page + style
    assert headers["Content-Security-Policy"].startswith("default-src 'self' ")


@pytest.mark.slow
def test_requests_for_another_host_name_are_refused(server: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetched(server.address, Host="evil.example")
    refused.value.close()
    assert refused.value.code == 400


@pytest.mark.slow
@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin"])
def test_uploads_from_pages_of_other_origins_are_refused(server: Served, site: str) -> None:
    form = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nbytes\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Sec-Fetch-Site": site}
    request = urllib.request.Request(f"{server.address}gradio_api/upload", form.encode(), headers)
    if site == "same-origin":
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        return
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 403


@pytest.mark.slow
def test_a_file_that_was_not_uploaded_is_not_read(tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    Image.new("RGB", (60, 40)).save(private)
    server = Served()
    try:
        refused = answered(server, private)
        example = answered(server, photos.photo_path("chelsea"))
    finally:
        said = server.end()
    assert "60 x 40" not in refused
    assert "InvalidPathError" in said
    assert "300 x 451 pixels" in example


@pytest.mark.slow
def test_an_address_in_place_of_a_file_is_not_fetched() -> None:
    """Nor is its host name looked up, for which Gradio would ask a server of its own choice."""
    server = Served()
    try:
        for address in ("http://93.184.215.14/one.png", "https://huggingface.co/two.png"):
            assert "process_completed" in answered(server, address)
            with pytest.raises(urllib.error.HTTPError) as refused:
                fetched(f"{server.address}gradio_api/file={address}")
            refused.value.close()
            assert refused.value.code == 403
    finally:
        said = server.end()
    assert said.count("nothing is fetched from other hosts") >= 2
    assert "connects to" not in said
    assert "looks up" not in said


def test_wrong_arguments_are_refused_before_serving(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["app", "--stock", "x"]) == 2
    assert "--stock: needs --weights" in capsys.readouterr().err
    assert cli.main(["app", "--model", "mine:network"]) == 2
    assert "--model: needs --weights" in capsys.readouterr().err
    assert cli.main(["app", "--weights", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
    assert cli.main(["app", "--weights", str(WEIGHTS / "autoencoder.safetensors")]) == 1
    assert "no checkpoint of a network" in capsys.readouterr().err


# The command, ended by each signal at several times after it starts to listen.
ENDED = """
import os, signal, sys, threading
from wae import cli
from wae.integrations import server

serve = server.serve
for sent in signal.SIGINT, signal.SIGTERM:
    for pause in 0, 0.001, 0.01, 0.1, 0.5:
        end = threading.Timer(pause, os.kill, (os.getpid(), sent))
        server.serve = lambda *arguments: serve(*arguments[:-1], lambda address: end.start())
        assert cli.main(["app", "--port", "0"]) == 128 + sent, (sent, pause)
"""


@pytest.mark.slow
def test_a_signal_at_any_time_ends_the_command_with_its_status() -> None:
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_signal_during_a_request_is_one_line() -> None:
    server = Served()
    stream = urllib.request.urlopen(f"{server.address}gradio_api/heartbeat/mine", timeout=60)
    assert stream.readline() == b"data: ALIVE\n"
    assert server.end() == "wae: interrupted\n"
    stream.close()


@pytest.mark.slow
def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "wae", "app", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch("wae: .* in use.*\n", done.stderr)


def test_the_measurements_in_the_package_are_those_in_the_result_files(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results").symlink_to(ROOT / "docs" / "results")
    packaged.keep(result_files.shown(ROOT / "benches" / "results"), tmp_path)
    kept = (ROOT / packaged.FILE).read_text(encoding="utf-8")
    assert (tmp_path / packaged.FILE).read_text(encoding="utf-8") == kept, (
        "python -m benches.report writes it"
    )


# ---------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    """The page in a new tab. Afterwards, its requests and its error messages are checked."""
    opened = browser.new_page(viewport={"width": 1200, "height": 1400})
    opened.set_default_timeout(WEB)
    requests, complaints = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda message: complaints.append(message.text) if "Content Security" in message.text else None,
    )
    opened.goto(server.address)
    opened.get_by_text("Choose an image.").wait_for()
    yield opened
    opened.close()
    hosts = {urlsplit(url).hostname for url in requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}
    assert complaints == []


def upload(page: Any, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(str(path))


def pixels(page: Any, alt: str) -> str:
    """The address of a picture, which changes with its pixels."""
    image = page.locator(f'img[alt^="{alt}"]')
    image.wait_for()
    return str(image.get_attribute("src"))


@pytest.mark.slow
def test_a_photo_is_decomposed_and_classified(page: Any, tmp_path: Path) -> None:
    upload(page, photos.photo_path("chelsea"))
    said = page.get_by_role("status").filter(has_text="300 x 451 pixels")
    said.wait_for()
    psnr = re.search(r"PSNR of (\d+\.\d+) dB", said.inner_text())
    assert psnr is not None
    assert float(psnr[1]) > 48
    for network in ("wae_small_vgg", "small_vgg"):
        page.get_by_text(re.compile(rf"\b{network}, [\d.]+ ms")).wait_for()
    page.get_by_text("time only").wait_for()
    assert page.get_by_text(re.compile(r"^\d+%$")).count() >= 2  # probabilities

    before = {
        alt: pixels(page, alt) for alt in ("low:", "high:", "error:", "the image,", "the reconstruction,")
    }
    assert len(set(before.values())) == 5
    amplified = page.get_by_role("slider", name=re.compile("high is amplified by"))
    amplified.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "([alt, old]) => document.querySelector(`img[alt^='${alt}']`).src != old",
        arg=["high:", before["high:"]],
    )
    assert pixels(page, "error:") == before["error:"]

    page.get_by_label("Swap light and dark").check()
    second = tmp_path / "second.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(second)
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    upload(page, second)
    page.get_by_role("status").filter(has_text="40 x 60 pixels").wait_for()
    assert pixels(page, "low:") != before["low:"]


@pytest.mark.slow
def test_the_border_moves_by_keyboard(page: Any) -> None:
    upload(page, photos.photo_path("chelsea"))
    border = page.get_by_role("slider", name=re.compile("^Border: "))
    border.wait_for()
    assert border.input_value() == "50"
    shown = page.locator("figure.divided")
    border.focus()
    page.keyboard.press("End")
    assert border.input_value() == "100"
    assert shown.evaluate("figure => getComputedStyle(figure.querySelectorAll('img')[1]).clipPath").endswith(
        "100%)"
    )


@pytest.mark.slow
def test_unusable_images_are_reported_in_a_line(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos.photo_path("coffee").read_bytes()[:50_000])
    upload(page, broken)
    said = page.get_by_role("alert").filter(has_text="broken.png")
    said.wait_for()
    assert "broken.png: the file cannot be read" in said.inner_text()
    assert str(tmp_path) not in said.inner_text()
    assert "wae-app-" not in said.inner_text()

    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    large = tmp_path / "large.png"
    Image.new("RGB", (2000, 1000)).save(large)
    upload(page, large)
    page.get_by_role("alert").filter(has_text="1000 x 2000 pixels exceed the limit of 400,000").wait_for()


@pytest.mark.slow
def test_the_measurements_are_plots_and_numbers(page: Any) -> None:
    page.get_by_role("tab", name="Measured").click()
    page.get_by_role("graphics-document").or_(page.locator("canvas, svg.marks")).first.wait_for()
    page.get_by_text(re.compile(r"commit [0-9a-f]{10}")).first.wait_for()
    page.get_by_label("Network, images at once, machine").wait_for()
    page.locator(".role-legend-label").first.wait_for(state="attached")
    seen = """labels => labels.map(label => label.getBoundingClientRect().bottom
        <= label.closest(".block").getBoundingClientRect().bottom)"""
    assert set(page.locator(".role-legend-label").evaluate_all(seen)) == {True}


@pytest.mark.slow
def test_every_control_has_an_accessible_name(page: Any) -> None:
    upload(page, photos.photo_path("chelsea"))
    page.get_by_role("status").filter(has_text="300 x 451 pixels").wait_for()
    for role in ("slider", "checkbox", "tab", "button", "spinbutton"):
        for element in page.get_by_role(role).all():
            if element.is_visible():
                assert element.evaluate(
                    "e => e.ariaLabel || e.title || e.innerText.trim() || (e.labels && e.labels.length)"
                    " || e.getAttribute('aria-labelledby') || e.querySelector('img[alt]:not([alt=\"\"])')"
                ), element.evaluate("e => e.outerHTML")
