"""Every guarantee that a docstring of the privacy folder names has a test of the same name."""

import re
from pathlib import Path

import fedcar.privacy


def test_every_guarantee_has_a_test_of_the_same_name():
    named = set()
    for file in Path(fedcar.privacy.__file__).parent.glob("*.py"):
        for block in re.findall(
            r"Formal guarantees?: (.*?)(?:\"\"\"|\n\n|\. [A-Z]|\n {4,}`|\.\n)", file.read_text(), re.S
        ):
            named |= set(re.findall(r"\b[A-Za-z]+(?:_[A-Za-z]+){2,}\b", re.sub(r"\(.*?\)", "", block, flags=re.S)))
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 20
    assert sorted(name for name in named if f"def test_{name}(" not in tests) == []
