"""No function of the library takes more than eight parameters, and what is taken by name is what the settings hold."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import fedcar
from fedcar.collection.collection import Collection
from fedcar.federation.simulate.federate import federate
from fedcar.federation.simulate.settings import (
    FederationOptions,
    FederationSettings,
    NoisedFederation,
    NoisedOptions,
    PlainFederation,
    PlainOptions,
)
from fedcar.training.settings import TrainingOptions, TrainingSettings
from fedcar.training.train import plan, train

MOST = 8
PACKAGE = Path(fedcar.__file__).parent


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many there are: self and cls are none, *rest and **options one each."""
    names = function.args
    places = [*names.posonlyargs, *names.args]
    own = bool(places) and places[0].arg in ("self", "cls")
    return len(places) - own + len(names.kwonlyargs) + (names.vararg is not None) + (names.kwarg is not None)


def too_long(source: str) -> list[str]:
    found = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [f"{one.name}: {parameters(one)}" for one in found if parameters(one) > MOST]


def test_no_function_outside_the_commands_has_more_than_eight_parameters() -> None:
    modules = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "cli"]
    assert len(modules) > 100
    found = {str(file.relative_to(PACKAGE)): too_long(file.read_text(encoding="utf-8")) for file in modules}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_the_count_sees_every_kind_of_parameter() -> None:
    assert too_long("def f(a, b, /, c, d, *e, g, h, i, **j): ...") == ["f: 9"]
    assert too_long("class C:\n def f(self, a, b, c, d, e, g, h, i): ...") == []
    assert too_long("async def f(a, b, c, d, e, g, h, i, j): ...") == ["f: 9"]


@pytest.mark.parametrize(
    ("options", "settings", "left_out"),
    [
        (TrainingOptions, TrainingSettings, set()),
        (FederationOptions, FederationSettings, set()),
        (PlainOptions, PlainFederation, set()),
        (NoisedOptions, NoisedFederation, {"target"}),
    ],
)
def test_what_is_taken_by_name_is_what_the_settings_hold(options: Any, settings: Any, left_out: set[str]) -> None:
    """The dictionary is there for the type checker alone, so it must not drift away from the dataclass."""
    hints = get_type_hints(settings)
    held = {field.name: hints[field.name] for field in fields(settings) if field.name not in left_out}
    assert get_type_hints(options) == held


def test_settings_and_their_fields_by_name_are_one() -> None:
    nobody = Collection("nobody", (), {}, {})
    for function in (train, plan):
        with pytest.raises(Exception, match="--epochs 0") as by_name:
            function(nobody, epochs=0)
        with pytest.raises(type(by_name.value), match=str(by_name.value)):
            function(nobody, TrainingSettings(epochs=0))
        with pytest.raises(type(by_name.value), match=str(by_name.value)):
            function(nobody, TrainingSettings(epochs=3), epochs=0)


def test_an_unknown_option_is_named(tmp_path: Path) -> None:
    nobody = Collection("nobody", (), {}, {})
    with pytest.raises(TypeError, match="'epoch'"):
        train(nobody, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'client'"):
        federate(nobody, run=tmp_path / "run", client=3)  # type: ignore[call-arg]
