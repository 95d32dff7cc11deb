"""The README and the requirements: what is written down in more than one place."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import MNIST_HandwritingRecognition as mnist

ROOT = Path(__file__).resolve().parent.parent


def read_requirements():
    """The lines for the script, and those under the comment about the tests."""
    text = (ROOT / "requirements.txt").read_text()
    script, tests = re.split(r"(?m)^# .*tests.*\n", text)
    return [
        [line.split("#")[0].strip() for line in part.splitlines() if line[:1].isalpha()]
        for part in (script, tests)
    ]


def test_inline_metadata_names_the_same_packages_and_bounds():
    source = (ROOT / "MNIST_HandwritingRecognition.py").read_text()
    # The expression of https://peps.python.org/pep-0723/
    block = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    content = re.search(block, source)["content"]
    metadata = tomllib.loads(re.sub(r"(?m)^# ?", "", content))
    assert metadata["requires-python"] == ">=3.11,<3.14"
    assert sorted(metadata["dependencies"]) == sorted(read_requirements()[0])


def test_tests_need_pytest():
    assert read_requirements()[1][0].startswith("pytest")


README = (ROOT / "README.md").read_text()
CHANGED = ["git", "-C", ROOT, "diff", "--quiet", "HEAD", "--", "outputs"]
of_committed_outputs = pytest.mark.skipif(
    shutil.which("git") and subprocess.run(CHANGED, check=False).returncode == 1,
    reason="outputs/ is of a run of your own",
)


@of_committed_outputs
def test_five_lines_load_the_model_and_read_digits():
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(list(filter(None, lines.splitlines()))) == 5
    share = float(done.stdout.split()[-1])
    prints = f"It prints {share}, for {share * 480:.0f} of the 480 test images"
    assert prints in README


def test_every_option_that_is_mentioned_exists(capsys):
    with pytest.raises(SystemExit):
        mnist.main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    of_others = {"--seeds", "--control", "--json", "--scaling", "--count", "--keep"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - of_others <= known


@of_committed_outputs
def test_figures_are_those_of_the_committed_run():
    metrics = json.loads((ROOT / "outputs" / "metrics.json").read_text())
    assert metrics["data"]["canonical_mnist"]
    assert f"{metrics['test_accuracy']:.2%}".replace("%", " %") in README
    for name in ("test_loss", "expected_calibration_error"):
        assert f"{metrics[name]:.4f}" in README


def test_ci_runs_the_commands_of_the_readme():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ("python MNIST_HandwritingRecognition.py", "python -m pytest"):
        assert f"\n{command}" in ci
        assert f"\n{command}\n" in README
