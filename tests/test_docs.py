"""Every example in the documentation runs, against real servers; those that do not say why."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import blocks, run

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = {name: blocks(page) for name, page in PAGES.items()}

# What pages are about besides this library; in requirements-dev.txt, and so not in every environment of the tests.
NEEDS = {
    "leases.md": ("prometheus_client", "opentelemetry"),
    "recipes.md": ("apscheduler", "celery", "django", "fastapi", "httpx"),
}


def addresses(servers):
    return [f"{server.host}:{server.port}" for server in servers]


@pytest.mark.parametrize("name", [name for name, found in BLOCKS.items() if any(not each.reason for each in found)])
def test_the_examples_of_a_page_run(name, masters):
    for module in NEEDS.get(name, ()):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is in requirements-dev.txt, and not in this environment")
    run(PAGES[name], addresses(masters(5)))


@pytest.mark.parametrize(
    "block",
    [block for found in BLOCKS.values() for block in found if block.reason],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_an_example_that_is_not_run_says_why(block):
    pytest.skip(block.reason)


@pytest.mark.parametrize(
    "wrong",
    [
        "```python\nassert False\n```",
        "    ```python\n    1 / 0\n    ```",
        "<!-- python\nassert False\n-->",
        "```sh\nfalse | true\n```",
        "<!-- raises: KeyError -->\n```python\n1\n```",
        "<!-- raises: KeyError -->\n```python\n1 / 0\n```",
        "```python\nawait undefined()\n```",
        "```python\n1",
        "<!-- not run: there is no such example -->",
    ],
)
def test_a_page_that_is_wrong_fails(wrong, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{wrong}\n")
    with pytest.raises(AssertionError):
        run(page, [])


def test_blocks_go_on_from_those_before_at_the_masters_that_they_name(masters, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nfrom redlock import Redlock\ndlm = Redlock(['redis://b:6379'])\n```\n"
        "<!-- raises: LookupError -->\n```python\ndlm.lock('r', 60_000)\nraise KeyError\n```\n"
        "<!-- python\nimport asyncio\nawait asyncio.sleep(0)\n-->\n"
    )
    servers = masters(2)
    run(page, addresses(servers))
    assert [server.get("r") is None for server in servers] == [True, False]


def test_the_figures_are_those_that_their_script_makes(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "figures.py", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made
    assert made == {name: (ROOT / "docs" / "img" / name).read_text() for name in made}
