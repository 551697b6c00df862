"""Speaking with a bundle through the wheel's own inference."""

import logging
from pathlib import Path

import torch
from pocket_tts import TTSModel

from pocket_arabic.audio import read_audio
from pocket_arabic.model import build_flow_lm, load_config, load_mimi, load_weights, tts_model


class EosWatch(logging.Handler):
    """Counts the chunks that ran into the wheel's length cap; it only says so in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.missed = 0
        logger = logging.getLogger("pocket_tts.models.tts_model")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.missed += "without EOS" in record.getMessage()


def load_bundle(bundle: Path, temperature: float | None = None, steps: int = 1, eos_threshold: float | None = None) -> TTSModel:
    """A bundle -> the wheel's model, strictly loaded. Raises UserError."""
    config = load_config(str(bundle / "arabic.yaml"))
    weights = load_weights(config)
    model = tts_model(config, build_flow_lm(config, weights), load_mimi(config, weights), temperature, steps, eos_threshold)
    # Decoding as many frames as happen to be queued makes the last bits depend on timing.
    model.max_decoder_frames_per_call = 1
    return model


def speak(model: TTSModel, voice: Path, text_model: str, max_tokens: int, seed: int) -> torch.Tensor:
    """Romanised text -> audio [samples], in the voice of a recording. Raises AudioError for an unusable recording."""
    prompt = torch.from_numpy(read_audio(voice, model.sample_rate))[None]
    torch.manual_seed(seed)
    return model.generate_audio(model.get_state_for_audio_prompt(prompt), text_model, max_tokens=max_tokens)
