"""What the process that forks the scripts has done before: import them, and call once what compiles when it is first
called. librosa's pitch and time warping take as long for it as torch for its import."""

import numpy as np

import data_prep  # noqa: F401
import generate_sample  # noqa: F401
import train  # noqa: F401
from pocket_arabic.evaluation import Sound, distances

buzz = Sound.of(np.sin(np.arange(24000) * 0.03) ** 9, 24000)
distances(buzz, buzz)
