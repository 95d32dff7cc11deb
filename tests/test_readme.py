"""The requirements, which are written down in more than one place."""

import re
import tomllib
from pathlib import Path

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
    assert metadata["requires-python"] == ">=3.11"
    assert sorted(metadata["dependencies"]) == sorted(read_requirements()[0])


def test_tests_need_pytest_alone():
    (requirement,) = read_requirements()[1]
    assert requirement.startswith("pytest")
