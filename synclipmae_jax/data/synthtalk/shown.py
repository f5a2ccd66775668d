"""What the face of a clip shows, from its true motion: labels for a multi-label probe.

An action counts where its condition holds in at least the stated share of the frames, or in any frame (share 0). The
directions are those of the picture. A clip of other truth has no such labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# action: (parameter of the truth, side of the threshold, threshold, share of the frames). Angles are in radians. Speech
# opens everybody's jaw: only a mouth that is open more than most is "mouth_open".
SHOWN = {
  "smile": ("ambient/smile", ">", 0.35, 0.25),
  "mouth_corners_down": ("ambient/smile", "<", -0.3, 0.25),
  "smirk": ("ambient/smirk", ">", 0.3, 0.25),
  "brows_raised": ("ambient/brow", ">", 0.4, 0.25),
  "brows_lowered": ("ambient/brow", "<", -0.3, 0.25),
  "inner_brows_raised": ("ambient/brow_slant", ">", 0.4, 0.25),
  "inner_brows_lowered": ("ambient/brow_slant", "<", -0.4, 0.25),
  "eyes_wide": ("ambient/lid", ">", 0.3, 0.25),
  "squint": ("ambient/lid", "<", -0.3, 0.25),
  "blink": ("both_lids", ">", 0.5, 0.0),
  "wink": ("one_lid", ">", 0.5, 0.0),
  "look_left": ("ambient/gaze_x", "<", -0.3, 0.25),
  "look_right": ("ambient/gaze_x", ">", 0.3, 0.25),
  "turn_left": ("ambient/yaw", "<", -0.2, 0.25),
  "turn_right": ("ambient/yaw", ">", 0.2, 0.25),
  "head_up": ("ambient/pitch", "<", -0.1, 0.25),
  "head_down": ("ambient/pitch", ">", 0.1, 0.25),
  "tilt_left": ("ambient/roll", "<", -0.1, 0.25),
  "tilt_right": ("ambient/roll", ">", 0.1, 0.25),
  "mouth_open": ("mouth/jaw", ">", 0.5, 0.125),
}


def shown_actions(truth: np.ndarray, names: Sequence[str]) -> tuple[str, ...] | None:
  """The actions of SHOWN in a clip of `truth` [T, P] with columns `names`; None where the truth is another's."""
  track: Mapping[str, np.ndarray] = dict(zip(names, np.asarray(truth).T, strict=True))
  if not len(truth) or not {"ambient/blink_left", "ambient/blink_right"} <= track.keys():
    return None
  left, right = track["ambient/blink_left"], track["ambient/blink_right"]
  track = {**track, "both_lids": np.minimum(left, right), "one_lid": np.abs(left - right)}
  if not {parameter for parameter, *_ in SHOWN.values()} <= track.keys():
    return None
  return tuple(
    name
    for name, (parameter, side, threshold, share) in SHOWN.items()
    if (held := (track[parameter] > threshold if side == ">" else track[parameter] < threshold).mean())
    and held >= share
  )
