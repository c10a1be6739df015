"""Bounds of a field, and the line that says them."""

import pytest

from tvjax.errors import UserError
from tvjax.settings import INT, Bounds


@pytest.mark.parametrize(
    ("bounds", "wrong", "line"),
    [
        ({"least": 1}, 0, "1 or more"),
        ({"above": 0}, 0, "more than 0"),
        ({"below": 2}, 2, "less than 2"),
        ({"most": 5}, 6, "at most 5"),
        ({"least": 0, "most": 5.0}, 6, "0 to 5.0"),
        ({"least": 0, "most": INT}, -1, r"0 to 2\^31 - 1"),
        ({"least": 0, "below": 1}, 1, "0 up to, not including, 1"),
        ({"above": 0, "most": 5.0}, 6.0, "more than 0, at most 5.0"),
        ({"above": 0, "below": 1}, 1, "more than 0, less than 1"),
    ],
)
def test_the_line_says_every_bound(bounds, wrong, line):
    with pytest.raises(UserError, match=rf"config\.x\.y: given {wrong}; accepted: {line}$"):
        Bounds(**bounds).check(wrong, "config.x.y")
    with pytest.raises(UserError, match=rf"accepted: .*numbers, each {line}$"):
        Bounds(**bounds).check((wrong,), "config.x.y")
