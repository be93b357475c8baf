"""The page in a real browser: by keyboard alone, beside hostile text, while it works, and without a word to anyone."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import torch

from hostile import complaints
from unmemorize.app.page import listen
from unmemorize.core.errors import UserError
from unmemorize.data.pictures import save_image

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{7*7}}"
MINUTE = 60_000


@pytest.fixture(scope="module")
def address(tiny_folder, tmp_path_factory):
    """The command itself, serving the random pipeline, with training pictures of hostile names and captions."""
    folder = tmp_path_factory.mktemp("training")
    for seed, caption in enumerate([HOSTILE, "noise"]):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)), folder / f"{seed}<b>.png")
        (folder / f"{seed}<b>.txt").write_text(caption)
    options = ["--references", folder, "--seeds", "2", "--pictures", "2", "--steps", "500", "--port", "0"]
    command = [sys.executable, "-m", "unmemorize", "inspect", tiny_folder, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            found = server.stdout.readline().strip()
            assert found.startswith("http://127.0.0.1:"), "the command ended before it served"
            yield found
        finally:
            server.terminate()


@pytest.fixture
def page(browser, address):
    """The open page; afterwards, what it logged and whom it asked."""
    opened = browser.new_page()
    complaints, asked = [], set()
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.add(urlsplit(request.url)))
    opened.set_default_timeout(2 * MINUTE)
    opened.goto(address)
    opened.get_by_label("Prompt").wait_for()
    yield opened
    opened.close()
    assert complaints == []
    assert {url.hostname for url in asked if url.scheme not in ("data", "blob")} == {"127.0.0.1"}


def focused(page):
    """What the element that has the focus is called."""
    return page.evaluate("document.activeElement.innerText || document.activeElement.closest('label')?.innerText")


def tab_to(page, name):
    for _ in range(12):
        page.keyboard.press("Tab")
        if name in (focused(page) or ""):
            return
    pytest.fail(f"no tab stop is called {name!r}")


def ask(page, prompt):
    page.get_by_label("Prompt").fill(prompt)
    page.keyboard.press("Enter")
    page.get_by_role("cell", name=prompt, exact=True).wait_for()


def test_a_prompt_is_judged_drawn_and_guarded_by_keyboard_alone(page):
    assert focused(page).startswith("Prompt")
    page.keyboard.type("a green bicycle")
    page.keyboard.press("Enter")
    page.get_by_role("cell", name="a green bicycle", exact=True).wait_for()
    verdict = page.get_by_role("status", name="Verdict")
    assert "threshold" in verdict.inner_text()
    assert verdict.get_by_role("meter").get_attribute("aria-valuetext")
    tab_to(page, "Make pictures")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Without the guard").wait_for()
    assert page.get_by_alt_text("Made by the model").count() == 2
    assert page.get_by_alt_text("Nearest training picture").count() == 2

    # Only now: while it was typed, the words were those of its beginnings.
    words = page.get_by_label("Words").get_by_role("listitem")
    words.get_by_text("bicycle", exact=True).wait_for()
    assert [text.split()[0] for text in words.all_inner_texts()] == ["a", "green", "bicycle"]
    assert all(re.search(r"\d\.\d+", text) for text in words.all_inner_texts())
    shades = {word.evaluate("e => getComputedStyle(e).backgroundColor") for word in page.locator(".word").all()}
    assert len(shades) == 3

    tab_to(page, "With the guard")
    page.keyboard.press("Space")
    page.get_by_role("heading", name="With the guard").wait_for()
    assert page.get_by_alt_text("Made by the model").count() == 4
    widths = page.get_by_role("img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert widths == [32] * 8
    page.keyboard.press("Space")
    page.get_by_role("heading", name="With the guard").wait_for(state="detached")
    assert page.get_by_alt_text("Made by the model").count() == 2


def test_prompts_are_kept_with_their_scores(page):
    ask(page, "a green bicycle")
    ask(page, "a bicycle")
    rows = page.locator(".tried tbody tr")
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == ["a bicycle", "a green bicycle"]
    assert page.get_by_text("lowest").count() == 1
    page.get_by_label("Prompt").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("Type a prompt and press Enter.").wait_for()
    assert rows.count() == 2


def test_hostile_text_is_shown_as_text(page):
    ask(page, HOSTILE)
    page.get_by_label("Words").get_by_text("onerror=alert(1)>").wait_for()
    page.get_by_role("button", name="Make pictures").click()
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert page.locator('img:not([src^="data:"]), .pair b').count() == 0


def test_the_page_answers_while_pictures_are_made(page):
    page.get_by_label("Prompt").fill("an owl on a fence")
    page.get_by_role("button", name="Make pictures").click()
    page.locator(".progress-text, .progress-level").first.wait_for()
    ask(page, "the old harbour")
    assert page.get_by_role("heading", name="Without the guard").count() == 0
    page.get_by_role("heading", name="an owl on a fence").wait_for()


def test_a_name_that_is_not_its_own_is_refused(page):
    answer = page.request.get(page.url, headers={"Host": "elsewhere.example"})
    assert answer.status == 400
    assert "connect-src" in page.request.get(page.url).headers["content-security-policy"]


CLOSED = [
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/file=/etc/hostname"),
    ("GET", "/gradio_api/proxy=https://x.example/"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/monitoring"),
    ("POST", "/login"),
    ("POST", "/gradio_api/call/judge"),
    ("POST", "/gradio_api/api/judge"),
    ("POST", "/gradio_api/run/judge"),
    ("PUT", "/gradio_api/queue/join"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_the_page_does_not_use_is_closed(page, method, path):
    """Uploads, files, proxied addresses and the API without the page have no route."""
    answer = page.request.fetch(page.url.rstrip("/") + path, method=method, headers={"Origin": page.url.rstrip("/")})
    assert (answer.status, answer.text()) == (404, "The page has no such address.\n")


def test_only_the_page_itself_may_ask(page):
    """A question needs the page's own origin, and is small; what cannot be answered is a line."""
    ask, own = page.url + "gradio_api/queue/join", page.url.rstrip("/")
    question = {"data": ["a", None], "fn_index": 0, "session_hash": "abc"}
    for origin in ({}, {"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Origin": "http://[x"}):
        answer = page.request.post(ask, data=question, headers=origin)
        assert (answer.status, answer.text()) == (403, "Only the page itself may ask this.\n")
    large = page.request.post(ask, data=question | {"data": ["a" * 100_000, None]}, headers={"Origin": own})
    assert (large.status, large.text()) == (413, "The request has more than 65536 bytes.\n")
    for body in ({"fn_index": 99, "session_hash": "abc", "data": []}, {"session_hash": "abc", "data": None}):
        broken = page.request.post(ask, data=body, headers={"Origin": own})
        assert broken.status >= 400
        assert "Internal Server Error" not in broken.text()
        assert len(broken.text().splitlines()) == 1


@pytest.mark.enable_socket
def test_a_port_in_use_is_one_line(tiny_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "unmemorize", "inspect", tiny_folder, "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"port {port}" in done.stderr
    assert len(complaints(done.stderr)) == 1


@pytest.mark.enable_socket
@pytest.mark.parametrize("host", ["\ud800", "x" * 300, "256.256.256.256", "a b"])
def test_what_cannot_be_a_host_is_one_line(host):
    with pytest.raises(UserError, match="or --host") as refused:
        listen(host, 0)
    assert len(str(refused.value).splitlines()) == 1


def test_without_gradio_the_extra_is_named():
    check = "import sys; sys.modules['gradio'] = None; sys.argv = ['unmemorize', 'inspect']; "
    check += "from unmemorize.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert 'pip install "unmemorize[app]"' in done.stderr
