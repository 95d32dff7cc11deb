"""The budgets of script and README, and what is written in more than one place."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import MNIST_HandwritingRecognition as mnist

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = Path(mnist.__file__).read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.xfail(strict=True, reason="142 lines over: pages, never agreed to")
def test_script_keeps_its_budget():
    assert SCRIPT.count("\n") <= 1000


def test_script_grows_no_further_and_readme_keeps_its_budget():
    assert SCRIPT.count("\n") <= 1142
    assert len(README.split()) <= 1500


@pytest.mark.parametrize(
    "function",
    [node for node in ast.walk(ast.parse(SCRIPT)) if isinstance(node, ast.FunctionDef)],
    ids=lambda node: node.name,
)
def test_function_is_short_typed_and_explained(function):
    """At most 40 lines, a type for all that goes in and out, a docstring."""
    assert function.end_lineno - function.lineno < 40
    arguments = [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    assert {x.arg for x in arguments if not x.annotation} <= {"self"}
    assert function.returns and ast.get_docstring(function)


def test_inline_metadata_names_the_same_packages_and_bounds():
    """As requirements.txt; the tests need pytest besides."""
    # The expression of https://peps.python.org/pep-0723/
    block = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    content = re.search(block, SCRIPT)["content"]
    metadata = tomllib.loads(re.sub(r"(?m)^# ?", "", content))
    requirements = (ROOT / "requirements.txt").read_text()
    script, tests = re.split(r"(?m)^# .*tests.*\n", requirements)
    lines = [line.split("#")[0].strip() for line in script.splitlines()]
    assert sorted(metadata["dependencies"]) == sorted(filter(None, lines))
    assert "pytest" in tests


def test_commands_options_and_links_exist(capsys):
    """Commands can be run, options are the script's or those of programs in tests/."""
    commands = re.findall(r"(?:python|uv run) (\S+\.py)([^\n`#|&]*)", README)
    for file, arguments in commands:
        assert (ROOT / file).exists(), file
        if file == Path(mnist.__file__).name and "--help" not in arguments:
            mnist.parse_arguments(shlex.split(arguments))
    with pytest.raises(SystemExit):
        mnist.main(["--help"])
    texts = [file.read_text() for file in Path(__file__).parent.glob("*.py")]
    texts += [capsys.readouterr().out, "--requirement --with --with-requirements"]
    known = set(re.findall(r"--[a-z-]+", " ".join(texts)))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / link).exists(), link
    assert len(commands) > 3


def test_accuracies_are_those_of_the_committed_run():
    """With and without test-time augmentation; of yours, until you commit it, too."""
    texts = [(ROOT / "outputs" / "metrics.json").read_text()]
    if shutil.which("git"):
        show = ["git", "-C", ROOT, "show", "HEAD:outputs/metrics.json"]
        texts += [subprocess.run(show, check=False, capture_output=True).stdout]
    stated = []
    for metrics in map(json.loads, filter(None, texts)):
        pair = metrics["test_accuracy"], metrics["single_view"]["test_accuracy"]
        stated.append(all(f"{x:.2%}" in README.replace(" %", "%") for x in pair))
    assert any(stated)
