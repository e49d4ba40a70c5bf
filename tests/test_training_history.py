"""What a trainer tells of its epochs: taken in any usual form, and never a figure that is none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dnnbench.training.history import learned, of_passes

TWO = [{"loss": 2.0, "accuracy": 0.25}, {"loss": 1.0, "accuracy": 0.5}]
COLUMNS = {"loss": [2.0, 1.0], "accuracy": [0.25, 0.5], "lr": [1, 1]}


@pytest.mark.parametrize(
    "history",
    [
        TWO,
        tuple(TWO),
        COLUMNS,
        SimpleNamespace(history=COLUMNS),  # as Keras's fit returns it
        [{"loss": torch.tensor(2.0), "accuracy": np.float32(0.25)}, {"loss": np.float64(1), "accuracy": 0.5}],
        [{**TWO[0], "epoch": 1, "note": "x"}, TWO[1]],
    ],
)
def test_every_usual_form_gives_the_same_numbers(history):
    numbers = learned(history, "Mine")
    assert numbers == TWO
    assert all(type(value) is float for entry in numbers for value in entry.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("history", "expected"), [([], []), ({}, []), ([{}], [{}]), ([{"loss": None}], [{}])])
def test_nothing_told_is_nothing_wrong(history, expected):
    assert learned(history, "Mine") == expected


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"loss": "low"}, "'low' is no number"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": float("inf")}, "loss is inf"),
        ({"loss": [1, 2]}, "is no number"),
        ({"accuracy": 95.2}, "not between 0 and 1"),
        ({"accuracy": -0.1}, "not between 0 and 1"),
    ],
)
def test_what_is_no_figure_is_left_out_with_a_warning(entry, problem):
    with pytest.warns(UserWarning, match=f"Mine.*{problem}"):
        assert learned([{"loss": 1.5} | entry | {"accuracy": entry.get("accuracy", 0.5)}], "Mine") in (
            [{"accuracy": 0.5}],
            [{"loss": 1.5}],
        )


@pytest.mark.parametrize("history", [None, 3, [1.0, 2.0], "text", [None]])
def test_a_history_of_another_kind_is_left_out_with_a_warning(history):
    with pytest.warns(UserWarning, match="Mine: history is no list"):
        assert learned(history, "Mine") == []


def test_each_pass_has_its_entry_where_there_are_as_many():
    assert of_passes(TWO, 2) == TWO


@pytest.mark.parametrize("passes", [1, 3, 4])
def test_otherwise_only_the_last_is_known_to_be_the_last(passes):
    assert of_passes(TWO, passes) == [{}] * (passes - 1) + [TWO[1]]
    assert of_passes([], passes) == [{}] * passes
