"""Chunks and the coefficient file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emkit.coefficients import Coefficients, chunk_bounds
from emkit.errors import UserError


@given(st.integers(1, 10_000), st.data())
def test_contiguous_chunks_cover_every_element_once(numel, data):
    m = data.draw(st.integers(1, numel))
    bounds = chunk_bounds(numel, m)
    owner = [s for s in range(m) for _ in range(bounds[s], bounds[s + 1])]
    assert len(bounds) == m + 1 and bounds[0] == 0 and bounds[-1] == numel
    assert owner == sorted(owner) and len(owner) == numel and set(owner) == set(range(m))
    sizes = np.diff(bounds)
    assert sizes.max() - sizes.min() <= 1


def test_more_chunks_than_elements_is_refused():
    with pytest.raises(UserError, match="5 elements cannot be split into 6 chunks"):
        chunk_bounds(5, 6)


def example() -> Coefficients:
    values = {"x": np.array([[0.1, 0.2, 1 / 3], [1e-17, -2.5, 4.0]]), "y": np.array([[0.7], [0.9]])}
    return Coefficients(("A", "B"), values, frozenset({"y"}))


def test_the_file_reads_back_exactly_and_in_order(tmp_path):
    example().save(tmp_path / "c.json")
    found = Coefficients.load(tmp_path / "c.json")
    assert found.experts == ("A", "B") and found.fixed == {"y"} and list(found.values) == ["x", "y"]
    for name, value in example().values.items():
        assert found.values[name].tobytes() == value.tobytes()


def test_broken_files_are_one_line(tmp_path):
    for content in ("", "{}", '{"experts": ["A"], "tensors": [{"name": "x", "fixed": false, "values": [[NaN]]}]}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(UserError, match=r"c.json .*fit them again"):
            Coefficients.load(tmp_path / "c.json")


def test_flat_holds_the_trainable_ones_only():
    c = example()
    assert c.trainable == {"x": True, "y": False}
    np.testing.assert_array_equal(c.flat(), [0.1, 0.2, 1 / 3, 1e-17, -2.5, 4.0])
    np.testing.assert_array_equal(c.flat_experts(), [0, 0, 0, 1, 1, 1])
    changed = c.with_flat(np.arange(6.0))
    np.testing.assert_array_equal(changed.values["x"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(changed.values["y"], c.values["y"])
    with pytest.raises(ValueError):
        c.with_flat(np.arange(7.0))


def test_expand_gives_each_element_the_coefficient_of_its_chunk():
    expanded = example().expand("x", 7)
    np.testing.assert_array_equal(expanded[1], [1e-17] * 2 + [-2.5] * 2 + [4.0] * 3)
    assert example().expand("y", 4).tolist() == [[0.7] * 4, [0.9] * 4]
