"""The README's promises about the tests: each one that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = sorted(set(re.findall(r"`(tests/\w+\.py)(?:::(\w+))?`", (ROOT / "README.md").read_text())))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_test_that_the_readme_names_is_there(file, test):
    text = (ROOT / file).read_text()
    assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE)


def test_the_readme_names_some():
    assert len(NAMED) > 15
