"""The README's code runs, from top to bottom in one namespace."""

import pathlib
import re

import pytest

pytestmark = pytest.mark.slow  # it starts processes, or takes long

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_python_block_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["losses"].shape == (16,)
    assert namespace["bias_hessian"].shape == (60, 60)


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)]*)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []
