"""Pocket TTS, speaking Classical Arabic: what the three scripts share."""

__version__ = "0.1.0"
