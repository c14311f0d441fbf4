"""The documentation: it builds without a warning, its code runs, and a browser shows every page whole."""

import functools
import http.server
import importlib
import pathlib
import re
import shutil
import subprocess
import sys
import threading
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.slow  # it starts processes, or takes long

ROOT = pathlib.Path(__file__).parent.parent
API = ROOT / "docs" / "api.md"
CODE = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in (ROOT / "docs").glob("*.md")}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", out]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def address(site):
    """Where the pages are served."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("page", sorted(page for page in CODE if CODE[page]), ids=lambda page: page.stem)
def test_every_python_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in CODE[page]:
        exec(compile(block, page.name, "exec"), namespace)


def test_the_error_that_the_page_shows_is_the_one_that_is_raised(capsys, tmp_path, monkeypatch):
    page = ROOT / "docs" / "shapes.md"
    test_every_python_block_of_a_page_runs(page, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert said.startswith("gru: expected x of shape")
    assert said in page.read_text()


def test_every_link_leads_to_a_page_and_a_place_on_it(site):
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    names = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    for name, text in pages.items():
        for href in re.findall(r'<a [^>]*href="([^"]*)"', text):
            target = urlsplit(urljoin(name, href))
            if target.scheme or not href or href == "#":
                continue
            assert (site / unquote(target.path)).is_file(), f"{name}: {href}"
            place = unquote(target.fragment)
            if place and target.path in names:
                assert place in names[target.path], f"{name}: {href}"


def test_every_public_name_is_in_the_reference(site):
    import gru_jax

    reference = (site / "api.html").read_text()
    names = [f"gru_jax.{name}" for name, value in vars(gru_jax).items() if callable(value)]
    names += [f"gru_jax.{module}.{name}" for module in ("linen", "nnx") for name in ("GRU", "GRUCell", "QuantizedGRU")]
    assert [name for name in names if f'id="{name}"' not in reference] == []


def test_every_entry_of_the_reference_has_a_runnable_example():
    module, without = "gru_jax", []
    for kind, name in re.findall(r"\.\. (currentmodule|autofunction|autoclass):: (\S+)", API.read_text()):
        if kind == "currentmodule":
            module = name
            continue
        place, _, name = (name if name.startswith("gru_jax.") else f"{module}.{name}").rpartition(".")
        if ">>>" not in getattr(importlib.import_module(place), name).__doc__:
            without.append(f"{place}.{name}")
    assert without == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_a_browser_shows_every_page_whole(screen, scheme, site, address):
    width, height = SCREENS[screen]
    complaints: list[str] = []
    drawn = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab = context.new_page()
        tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("response", lambda response: complaints.append(response.url) if response.status >= 400 else None)
        here = (address, "data:")
        tab.on("request", lambda asked: None if asked.url.startswith(here) else complaints.append(asked.url))
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            tab.goto(address + name)
            broken = tab.eval_on_selector_all(
                "img", "all => all.filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"
            )
            complaints += [f"{name}: a broken image, {source}" for source in broken]
            page_width = tab.evaluate("document.documentElement.scrollWidth")
            if page_width > width:
                complaints.append(f"{name}: {page_width} pixels wide on a screen of {width}")
            formulas = tab.eval_on_selector_all("math", "all => all.map(m => m.getBoundingClientRect().height)")
            drawn += len(formulas)
            if not all(height > 5 for height in formulas):
                complaints.append(f"{name}: a formula is not drawn")
            colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            if (sum(map(int, re.findall(r"\d+", colour)[:3])) < 3 * 128) != (scheme == "dark"):
                complaints.append(f"{name}: its background is {colour}")
        browser.close()
    assert not complaints, complaints
    assert drawn > 50
