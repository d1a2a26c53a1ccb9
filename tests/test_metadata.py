"""What the package says of itself, in one place each."""

import re
import tomllib
from pathlib import Path

import bilevel

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bilevel.__version__"}
    # Setuptools reads the attribute from the source if it is a literal there, and would import torch otherwise.
    assert f'__version__ = "{bilevel.__version__}"\n' in (ROOT / "bilevel" / "__init__.py").read_text()


def test_the_citation_names_this_version_and_licence():
    cited = dict(re.findall(r"^(\w[\w-]*): (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE))
    assert cited["version"] == bilevel.__version__
    assert cited["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_hooks_before_a_commit_run_the_tools_of_make_lint_and_download_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"- repo: (.+)", text) == ["local"]
    assert set(re.findall(r"language: (.+)", text)) == {"system"}
    lint = re.search(r"^lint:.*?\n\n", (ROOT / "Makefile").read_text(), flags=re.MULTILINE | re.DOTALL)[0]
    tools = [entry.replace(" --force-exclude", "") for entry in re.findall(r"entry: (.+)", text)]
    assert tools == [tool.replace(" .", "") for tool in re.findall(r"\$\(BIN\)/(.+)", lint)]
