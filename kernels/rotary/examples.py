"""Arguments of the rotation: one layer's queries, with angles for each position (drawn: or for each row too)."""

from __future__ import annotations

import numpy as np

from ..examples import Draw, Example, Shape


def _drawn(d: Draw) -> tuple:
    b, h, t, half = d.size(3), d.size(3), d.size(5), d.size(5)
    shape = d.pick((t, half), (b, t, half), (1, t, half))
    return d.array(b, h, t, 2 * half), d.array(*shape), d.array(*shape)


def _typical(d: Draw, s: Shape) -> tuple:
    half = s.width // s.heads // 2
    angle = d.array(s.tokens, half)
    return d.array(s.batch, s.heads, s.tokens, 2 * half), np.cos(angle), np.sin(angle)


EXAMPLES = {"rotary_forward": Example(_drawn, _typical), "rotary_backward": Example(_drawn, _typical)}
