"""One articulatory state per phone. The same row of this table defines the mouth and the sound."""

from __future__ import annotations

import numpy as np

# The visible mouth. opening < 0 presses the lips together; tuck pulls the lower lip under the upper teeth (f, v).
MOUTH = ("jaw", "opening", "width", "rounding", "teeth", "tongue", "tuck")
# The sound: formants in Hz, voicing and friction as linear gains, friction centre and half-width in Hz.
SOUND = ("f1", "f2", "f3", "voicing", "friction", "friction_hz", "friction_bandwidth")
COLUMNS = MOUTH + SOUND + ("duration", "stop")  # duration in seconds; a stop is silent until its burst

_ROWS = """
sil  .04 -.02  .00 .00 .00 .10 .0   500 1500 2500  .00 .00 2500 1500  .20 0
p    .10 -.35  .00 .10 .00 .10 .0   400 1100 2300  .00 .45 1200  900  .09 1
b    .10 -.30  .00 .10 .00 .10 .0   350 1000 2300  .35 .15  900  700  .08 1
m    .08 -.28  .00 .05 .00 .10 .0   280 1000 2200  .45 .00 1000  700  .08 0
f    .14  .10  .10 .00 .55 .10 1.   400 1400 2400  .00 .22 6000 2600  .10 0
v    .14  .10  .10 .00 .50 .10 .9   350 1300 2400  .40 .10 5500 2600  .07 0
th   .18  .22  .15 .00 .30 .95 .0   400 1500 2600  .00 .20 6500 2300  .10 0
dh   .18  .22  .15 .00 .30 .90 .0   350 1400 2500  .40 .08 6000 2300  .06 0
t    .16  .20  .15 .00 .70 .60 .0   400 1800 2700  .00 .55 4800 1700  .08 1
d    .16  .20  .15 .00 .65 .60 .0   350 1700 2700  .35 .25 4300 1700  .07 1
n    .18  .22  .15 .00 .50 .65 .0   300 1600 2600  .50 .00 2500 1000  .07 0
s    .10  .16  .45 .00 1.0 .20 .0   400 1700 2700  .00 .55 6300 1200  .11 0
z    .10  .16  .40 .00 1.0 .20 .0   300 1700 2700  .35 .32 6200 1200  .08 0
k    .26  .30  .05 .00 .10 .30 .0   400 1900 2500  .00 .50 2200  800  .09 1
g    .26  .28  .05 .00 .10 .30 .0   320 1900 2500  .35 .22 2000  800  .08 1
l    .28  .34  .20 .00 .15 .85 .0   380 1150 2700  .60 .00 2500 1000  .07 0
r    .20  .22 -.15 .45 .10 .40 .0   420 1250 1650  .60 .00 2000 1000  .07 0
w    .12  .12 -.35 .95 .00 .10 .0   310  700 2300  .55 .00 1000  800  .07 0
y    .16  .18  .50 .00 .35 .45 .0   290 2200 3000  .60 .00 3000 1000  .06 0
iy   .18  .22  .80 .00 .40 .45 .0   290 2300 3050  .90 .00 3000 1000  .11 0
ih   .30  .34  .45 .00 .25 .35 .0   400 1950 2600  .95 .00 3000 1000  .08 0
eh   .48  .52  .40 .00 .15 .30 .0   560 1800 2550  1.0 .00 3000 1000  .10 0
ae   .72  .78  .50 .00 .10 .25 .0   690 1680 2450  1.0 .00 3000 1000  .11 0
aa   .95  1.0  .05 .00 .00 .15 .0   740 1150 2500  1.0 .00 3000 1000  .12 0
ah   .55  .58  .05 .05 .05 .20 .0   610 1220 2450  1.0 .00 3000 1000  .09 0
ao   .66  .64 -.25 .60 .00 .10 .0   560  850 2450  1.0 .00 3000 1000  .12 0
uw   .22  .20 -.30 1.0 .00 .10 .0   310  880 2250  .90 .00 3000 1000  .12 0
"""
_FIELDS = [line.split() for line in _ROWS.split("\n") if line]
NAMES = tuple(fields[0] for fields in _FIELDS)
TABLE = np.array([[float(value) for value in fields[1:]] for fields in _FIELDS])
SILENCE = NAMES.index("sil")


def column(name: str) -> np.ndarray:
  """[phones] values of one column of the table."""
  return TABLE[:, COLUMNS.index(name)]
