"""What fedcar offers as a library and no command uses: the examples in its docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import fedcar

PACKAGE = Path(fedcar.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("fedcar", *file.relative_to(PACKAGE).with_suffix("").parts))
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run_as_they_stand(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_the_library_has_examples() -> None:
    assert {"fedcar.privacy.clip", "fedcar.privacy.correlated_noise", "fedcar.federation.sums.additive"} <= set(
        WITH_EXAMPLES
    )
