"""Typed settings: every mistake is one line that names the place, the value and what would be right."""

from typing import Literal

import pytest
from pydantic import Field

from emkit.config import Settings, Text, about, check, default, layered, option, parse
from emkit.errors import UserError


class Optimiser(Settings):
    name: Literal["adamw", "adam"] = option("adamw", "which one")
    lr: float = option(0.1, "the rate", "ours: any", ge=0)


class Options(Settings):
    initial: float | dict[str, float] | Literal["scale of task_arithmetic"] = option(..., "where the fit starts")
    gamma: float = option(
        0.8, "the weight of R", "paper, Appendix B.2", by_backbone={"internvl": (5.0, "paper, InternVL2.5")}, ge=0
    )
    optimiser: Optimiser = Optimiser()
    seeds: list[int] = Field([0], min_length=1)
    clip: float | None = option(None, "bound of the gradient", ge=0)
    files: dict[str, Text] = option({}, "a file for each expert")


def test_a_whole_number_is_a_number_and_nothing_else_is_converted():
    found = parse(Options, {"initial": 1, "clip": None}, "r.yaml: ")
    assert found.initial == 1.0 and isinstance(found.gamma, float) and found.optimiser.lr == 0.1
    with pytest.raises(UserError, match="'1' is not a number"):
        parse(Options, {"initial": 0.1, "gamma": "1"}, "r.yaml: ")


def test_an_option_says_what_it_is_about_and_where_its_default_is_from():
    field = Options.model_fields["gamma"]
    assert about(field) == "the weight of R" and default(field) == (0.8, "paper, Appendix B.2")
    assert default(field, "mistral") == default(field) and default(field, "internvl") == (5.0, "paper, InternVL2.5")
    assert default(Options.model_fields["initial"]) == (..., "")


def test_layers_stand_over_each_other_and_groups_are_merged_key_by_key():
    first, second = {"initial": {"a": 1.0, "b": 2.0}, "optimiser": {"lr": 0.5}}, {"initial": {"a": 3.0}, "gamma": 1}
    found = parse(Options, layered(Options, first, second, {"optimiser": {"name": "adam"}}, backbone="internvl"), "x")
    assert found.initial == {"a": 3.0} and found.gamma == 1.0 and found.optimiser == Optimiser(name="adam", lr=0.5)
    assert parse(Options, layered(Options, first, backbone="internvl"), "x").gamma == 5.0
    assert layered(Options, {"optimiser": 3})["optimiser"] == 3  # refused when it is parsed


def test_a_part_is_checked_without_what_it_leaves_out():
    check(Options, {"gamma": 1.0}, "r.yaml: ")
    with pytest.raises(UserError, match=r"^r\.yaml: gamma: -1 is less than 0$"):
        check(Options, {"gamma": -1}, "r.yaml: ")


@pytest.mark.parametrize(
    "data, said",
    [
        ({}, "r.yaml: the key 'initial' is missing"),
        ({"intial": 0.1}, "r.yaml: unknown key 'intial': did you mean 'initial'?"),
        ({"initial": 0.1, "gamma": -1}, "r.yaml: gamma: -1 is less than 0"),
        ({"initial": 0.1, "gamma": True}, "r.yaml: gamma: True is not a number"),
        ({"initial": 0.1, "gamma": float("nan")}, "r.yaml: gamma: nan is not a finite number"),
        ({"initial": "scale"}, "r.yaml: initial: 'scale' is not a number"),
        ({"initial": {"a": "x"}}, "r.yaml: initial.a: 'x' is not a number"),
        ({"initial": 0.1, "optimiser": {"nam": "adam"}}, "r.yaml: optimiser: unknown key 'nam': did you mean 'name'?"),
        ({"initial": 0.1, "optimiser": {"name": "adan"}}, "r.yaml: optimiser.name: unknown value 'adan': did you mean"),
        ({"initial": 0.1, "optimiser": []}, "r.yaml: optimiser: [] is not a mapping"),
        ({"initial": 0.1, "seeds": []}, "r.yaml: seeds: [] is empty"),
        ({"initial": 0.1, "seeds": [0, 1.5]}, "r.yaml: seeds[1]: 1.5 is not a whole number"),
        ({"initial": 0.1, "clip": "a"}, "r.yaml: clip: 'a' is not a number"),
        ({"initial": 0.1, "files": {1: "a"}}, "r.yaml: files: the key 1 is not text: quote it"),
        ({"initial": 0.1, "files": {"a": " "}}, "r.yaml: files.a: the text is empty"),
        (None, "r.yaml: None is not a mapping"),
    ],
)
def test_a_mistake_is_one_line(data, said):
    with pytest.raises(UserError) as error:
        parse(Options, data, "r.yaml: ")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_mistake_below_is_placed_by_the_whole_path():
    with pytest.raises(UserError, match=r"^r\.yaml: methods\.x\.optimiser\.lr: -1 is less than 0$"):
        parse(Options, {"initial": 0.1, "optimiser": {"lr": -1}}, "r.yaml: methods.x")
