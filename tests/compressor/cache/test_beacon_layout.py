"""What each position of a window sees, drawn by hand, and the operation that takes it as ranges."""

import pytest
import torch
from attention_parts import assert_near, heads
from beacon_parts import config_of

from kompakt.compressor.cache.beacon_layout import WindowStep, causal, lay_out
from kompakt.kernels.beacon_attention import beacon_attention
from kompakt.kernels.range_attention import masked_attention_reference

STEPS = {
    # context of one, tokens 0 to 3, beacons of tokens 0 and 1, and of all
    "append-steps": (
        {"placement": "append", "attention": "step-expansion"},
        WindowStep(n_context=1, n_tokens=4, ratio=2, n_appended=2),
        ["xx.....", "xxx....", "xxxx...", "xxxxx..", "xxx..x.", "xxxxxxx"],
    ),
    "append-steps-alone": (
        {"placement": "append", "attention": "step-expansion", "attend_previous": False},
        WindowStep(n_context=1, n_tokens=4, ratio=2, n_appended=2),
        ["xx.....", "xxx....", "xxxx...", "xxxxx..", "xxx..x.", "xxxxx.x"],
    ),
    "append-behind-held": (
        {"placement": "append", "attention": "step-expansion"},
        WindowStep(n_context=0, n_held=3, n_tokens=1, ratio=2, n_appended=2),
        ["xxxx..", "xx..x.", "xxxxxx"],
    ),
    # token, token, beacon, token, token, beacon
    "hidden-beacons": (
        {"attention": "step-expansion", "attend_previous": False},
        WindowStep(n_context=1, n_tokens=4, ratio=2),
        ["xx.....", "xxx....", "xxxx...", "xxx.x..", "xxx.xx.", "xxx.xxx"],
    ),
    "hidden-held-beacons": (
        {"attention": "step-expansion", "attend_previous": False},
        WindowStep(n_context=1, beacons=(1,), n_held=3, n_tokens=2, remainder=1, ratio=4),
        ["xx.xx.", "xx.xxx"],
    ),
    "as-released": (
        {"attention": "step-expansion", "attend_previous": False, "as_released": True},
        WindowStep(n_context=1, n_tokens=4, ratio=2),
        ["xx.....", "x.x....", "x..x...", "x..xx..", "x..xxx.", "x..xxxx"],
    ),
}
CASES = pytest.mark.parametrize(("options", "step", "drawing"), list(STEPS.values()), ids=list(STEPS))


@CASES
def test_what_is_seen_is_as_drawn(options, step, drawing):
    layout = lay_out(config_of(**options), step)
    assert ["".join("x" if seen else "." for seen in row) for row in layout.visible.tolist()] == drawing


@CASES
def test_the_ranges_can_be_attended_to(options, step, drawing):
    layout = lay_out(config_of(**options), step)
    inputs = heads(len(drawing), layout.n_keys)
    seen = torch.tensor([[mark == "x" for mark in row] for row in drawing])
    expected = masked_attention_reference(*inputs, seen)
    assert_near(beacon_attention(*inputs, ranges=layout.ranges, hidden=layout.hidden), expected)


@pytest.mark.parametrize(
    ("options", "ratio"),
    [({}, 2), ({"placement": "append"}, 2), ({"attention": "step-expansion", "attend_previous": False}, 0)],
    ids=["interleave", "append", "no-beacons"],
)
def test_where_all_that_is_before_is_seen_there_is_no_mask(options, ratio):
    layout = lay_out(config_of(**options), WindowStep(n_context=1, n_tokens=4, ratio=ratio))
    assert layout.visible is None
    assert layout.n_keys == 1 + len(layout.positions)


def test_causal_sight_ends_at_each_position():
    assert causal(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
