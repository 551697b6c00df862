"""A base -> a trainable model: loading, rows, the objective.

Shapes: B rows, T audio frames (80 ms each), C = 32 latent dimensions, D model width, L text tokens, V prompt frames,
K draws per position (K' for the distillation term), N valid positions of a batch (the sum of its rows' frames).
"""

import hashlib
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from pocket_tts import TTSModel
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import MimiModel, build_mimi
from pocket_tts.models.tts_model import stamp_state_names
from pocket_tts.modules.stateful_module import StatefulModule, init_states
from pocket_tts.modules.text_conditioner import JsonTokenizer, Tokenizer, build_tokenizer
from pocket_tts.utils.config import CONFIGS_DIR, Config
from pocket_tts.utils.utils import download_if_necessary
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.optimize import nnls
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pocket_arabic import text
from pocket_arabic.cache import LATENT_DIM
from pocket_arabic.run import ROOT, UserError, atomic_write

GATED = "accept the terms at https://huggingface.co/kyutai/pocket-tts, then log in: hf auth login"


# --- loading ----------------------------------------------------------------------------------------------------------


def beside(address: str) -> str:
    """The file's name in an hf:// address or path, without revision."""
    return address.rsplit("/", 1)[-1].split("@")[0]


def load_config(base: str, bundled: bool = False) -> Config:
    """`demo`, a language of the wheel (`english`), or a YAML file -> its config, local paths made absolute.

    Paths in a YAML resolve against its own folder. `bundled`: hub addresses do too, for a bundle whose files are checked.
    Raises UserError.
    """
    if base == "demo":
        path = ROOT / "demo" / "base.yaml"
    elif base.endswith((".yaml", ".yml")):
        path = Path(base)
    else:
        path = CONFIGS_DIR / f"{base}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CONFIGS_DIR.glob("*.yaml") if "_" not in p.stem))
        raise UserError(f"base {base}: no such config; give demo, a language ({known}) or a CONFIG.yaml")
    try:
        config = Config(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError, TypeError) as error:
        raise UserError(f"{path}: not a Pocket TTS config ({str(error).splitlines()[0]})") from None

    def absolute(location: str | None) -> str | None:
        location = beside(location) if location and bundled else location
        if location is None or "://" in location:
            return location
        file = path.parent / location
        if not file.is_file():
            raise UserError(f"{file}: named in {path.name} and missing; restore it, or give another base or bundle")
        return str(file.resolve())

    config.weights_path = absolute(config.weights_path)
    config.flow_lm.weights_path = absolute(config.flow_lm.weights_path)
    config.mimi.weights_path = absolute(config.mimi.weights_path)
    config.flow_lm.lookup_table.tokenizer_path = str(fetch(absolute(config.flow_lm.lookup_table.tokenizer_path)))
    if config.flow_lm.flow.type != "lsd" or config.mimi.quantizer.dimension != LATENT_DIM:
        raise UserError(
            f"base {base}: its head is {config.flow_lm.flow.type} on {config.mimi.quantizer.dimension} dimensions; this trains lsd on {LATENT_DIM}, for example english"
        )
    return config


def arabic_config(config: Config, substitutes: dict[str, str] | None = None, phonemes: str | None = None) -> Config:
    """The config of a model that reads Arabic script in stock tools: the whole romanisation as `replace_characters`.

    A model of phonemes has none: stock tools can't make them, and give it IPA as it is.
    """
    config = config.model_copy(deep=True)
    config.capitalize_first_letter = False  # "salAm" is not "SalAm": س would become ص
    config.append_terminal_punctuation = True
    config.remove_semicolons = False
    config.replace_characters = {} if phonemes else text.replace_characters(substitutes)
    return config


def fetch(location: str) -> Path:
    """A local path, or a file of a hub or web address, downloaded once. Raises UserError."""
    try:
        return download_if_necessary(location)
    except GatedRepoError:
        raise UserError(f"{location} is gated: {GATED}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"cannot get {location} ({type(error).__name__}); check the network, and the login: {GATED}") from None


def load_strict(module: nn.Module, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the tensors named `prefix`*, all of the module's and no other. Raises UserError."""
    try:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"the base's weights do not fit its config ({detail}); give weights and config of one model") from None


def load_weights(config: Config) -> dict[str, torch.Tensor]:
    """All tensors the config names, keyed `flow_lm.*` and `mimi.*`. Downloads what is on a hub; never the variant
    without voice cloning, whose encoder is zero. Raises UserError."""
    state: dict[str, torch.Tensor] = {}
    for location in (config.weights_path, config.flow_lm.weights_path, config.mimi.weights_path):
        if location:
            try:
                state |= load_file(fetch(location))
            except SafetensorError as error:
                raise UserError(f"{location}: not a whole safetensors file ({error}); restore or download it again") from None
    if not any(k.startswith("mimi.") for k in state):
        raise UserError("the base has no codec weights: its config must name weights_path or mimi.weights_path")
    return state


def load_mimi(config: Config, weights: dict[str, torch.Tensor]) -> MimiModel:
    """The base's own codec, frozen. Raises UserError for an encoder of zeros (the weights without voice cloning)."""
    mimi = build_mimi(config.mimi)
    load_strict(mimi, weights, "mimi.")
    if all(not v.any() for v in mimi.encoder.state_dict().values()):
        raise UserError(f"the base's codec encoder is all zeros (weights without voice cloning), so it would cache silence; {GATED}")
    return mimi.eval().requires_grad_(False)


def load_moshi_mimi(num_codebooks: int, location: str | None, device: str) -> nn.Module:
    """Moshi's Mimi, whose RVQ gives discrete codes [B, K, T]: another checkpoint than a Pocket TTS codec, same frames.
    `location`: a file or hf:// address; default moshi's own. Raises UserError."""
    from moshi.models import loaders

    path = fetch(location or f"hf://{loaders.DEFAULT_REPO}/{loaders.MIMI_NAME}")
    try:
        return loaders.get_mimi(path, device=device, num_codebooks=num_codebooks)
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise UserError(f"--codes-weights {path}: not moshi's Mimi weights ({' '.join(str(error).split())[:120]}); leave it out for the hub's") from None


@torch.no_grad()
def decode_latents(mimi: MimiModel, latents: torch.Tensor) -> np.ndarray:
    """Raw latents [T, C] -> audio [samples]."""
    for name, module in mimi.named_modules():  # by these names streaming modules find their state
        if isinstance(module, StatefulModule):
            module._module_absolute_name = name
    steps = int(mimi.encoder_frame_rate / mimi.frame_rate)
    return mimi.decode_from_latent(latents[None], init_states(mimi, 1, len(latents) * steps))[0, 0].cpu().numpy()


def encoder_hash(mimi: MimiModel) -> str:
    """SHA-256 of what turns audio into latents; latents of two encoders never mix."""
    digest = hashlib.sha256()
    for module in (mimi.encoder, mimi.encoder_transformer, mimi.downsample):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def build_flow_lm(config: Config, weights: dict[str, torch.Tensor] | None) -> FlowLMModel:
    """The FlowLM with `weights` (strict), or freshly initialised if None. Raises UserError if they lack flow_lm.*."""
    flow_lm = FlowLMModel.from_pydantic_config(config.flow_lm, config.mimi.quantizer.dimension, config.flow_lm.insert_bos_before_voice)
    width = config.flow_lm.transformer.d_model
    # The wheel creates this one when it loads weights. Scale of a linear layer with 32 inputs.
    flow_lm.speaker_proj_weight = nn.Parameter(torch.randn(width, config.mimi.inner_dim or config.mimi.seanet.dimension) * 32**-0.5)
    if weights is not None:
        if not any(k.startswith("flow_lm.") for k in weights):
            raise UserError("the base has a codec but no FlowLM weights, so there is nothing to start from; train with --init scratch")
        load_strict(flow_lm, weights, "flow_lm.")
    else:
        with torch.no_grad():
            # adaLN-zero (DiT, arXiv 2212.09748): blocks start as identity and the head's first output is zero.
            for block in flow_lm.flow_net.res_blocks:
                block.adaLN_modulation[-1].weight.zero_()
                block.adaLN_modulation[-1].bias.zero_()
            flow_lm.flow_net.final_layer.linear.weight.zero_()
            flow_lm.flow_net.final_layer.linear.bias.zero_()
    return flow_lm


def tts_model(config: Config, flow_lm: FlowLMModel, mimi: MimiModel, temperature: float | None = None, steps: int = 1, eos_threshold: float | None = None) -> TTSModel:
    """The wheel's own inference around modules that are already in memory."""
    model = TTSModel(
        flow_lm,
        temp=config.default_temperature if temperature is None else temperature,
        sampler_decode_steps=steps,
        noise_clamp=None,
        eos_threshold=config.default_eos_threshold if eos_threshold is None else eos_threshold,
        config=config,
        pad_with_spaces_for_short_inputs=config.pad_with_spaces_for_short_inputs,
        model_recommended_frames_after_eos=config.model_recommended_frames_after_eos,
        remove_semicolons=config.remove_semicolons,
        append_terminal_punctuation=config.append_terminal_punctuation,
        capitalize_first_letter=config.capitalize_first_letter,
        replace_characters=config.replace_characters,
    )
    model.mimi = mimi
    stamp_state_names(model)
    return model.eval()


def load_tokenizer(config: Config) -> Tokenizer:
    """Raises UserError if the config's n_bins is not the tokenizer's size."""
    table = config.flow_lm.lookup_table
    try:
        return build_tokenizer(table.n_bins, table.tokenizer_path, table.tokenizer)
    except Exception as error:  # tokenizers raises bare ones
        raise UserError(f"{table.tokenizer_path}: {' '.join(str(error).split())[:120]}; give weights, config and tokenizer of one model") from None


def fresh_tokenizer(texts: list[str], num_pieces: int, path: Path) -> None:
    """Write a BPE tokenizer of at most `num_pieces` over romanised texts, in the format of the released ones.

    Pieces join any Buckwalter symbols, letters or not (SentencePiece's default keeps ' | > & < } * $ ~ { apart), but no
    punctuation, by which stock tools split long texts. The word mark in front (Metaspace) is dropped by them there.
    """
    tokenizer = HFTokenizer(models.BPE(unk_token="<unk>"))
    stops = pre_tokenizers.Split(Regex("[.,;:!?]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="always"), stops])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [c for c in text.FROM_MODEL if c != " "]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=num_pieces, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False))
    with atomic_write(path) as tmp:
        tokenizer.save(str(tmp))


def use_tokenizer(config: Config, weights: dict[str, torch.Tensor], path: Path, seed: int) -> tuple[Config, dict[str, torch.Tensor]]:
    """The base with another tokenizer, and so with a fresh text embedding, of the old one's deviation."""
    config, weights = config.model_copy(deep=True), dict(weights)
    table = config.flow_lm.lookup_table
    table.tokenizer, table.tokenizer_path = "tokenizers", str(path)
    table.n_bins = HFTokenizer.from_file(str(path)).get_vocab_size()
    name = "flow_lm.conditioner.embed.weight"
    if name in weights:
        noise = torch.randn(table.n_bins + 1, weights[name].shape[1], generator=torch.Generator().manual_seed(seed))
        weights[name] = noise * weights[name].float().std()
    return config, weights


def pieces(tokenizer: Tokenizer, text_model: str) -> list[str]:
    """The tokenizer's pieces of a text, as written in its vocabulary."""
    ids = tokenizer.encode(text_model)
    if isinstance(tokenizer, JsonTokenizer):
        return [tokenizer.tokenizer.id_to_token(i) for i in ids]
    return [tokenizer.sp.id_to_piece(i) for i in ids]


def audit(tokenizer: Tokenizer, symbols: str) -> dict[str, dict]:
    """For each symbol its pieces inside a word ("b?b"), and whether the tokenizer can spell it: an unknown piece does
    not decode back, a byte-fallback piece (<0x..>) has an embedding no text has trained."""
    table = {}
    for symbol in symbols:
        word = f"b{symbol}b"
        found = pieces(tokenizer, word)
        known = tokenizer.decode(tokenizer.encode(word)).strip() == word and not any(p.startswith("<0x") for p in found)
        table[symbol] = {"pieces": found, "known": known}
    return table


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One utterance with every random choice made: a pure function of (seed, epoch, utterance), see `draw_prefix` and `draw_row`."""

    latents: torch.Tensor  # [T, C], raw
    tokens: torch.Tensor  # [L] int64, empty if the text is dropped
    token_times: torch.Tensor  # [L, 2] first and last frame each token is expected in, for guided steps; else empty
    prompt: torch.Tensor  # [V, C] raw latents of another utterance, empty if the voice is dropped
    noise: torch.Tensor  # [K, T, C] for the diagonal term
    time_logits: torch.Tensor  # [K, T, 1]
    distill_noise: torch.Tensor  # [K', T, C] for the distillation term
    distill_time_logits: torch.Tensor  # [K', T, 2]


NFC_ORDER = re.compile("(~)([FNKaui])")


def draw_text(rng: np.random.Generator, text_model: str, mark_dropout: float, stop_dropout: float, nfc_share: float) -> str:
    """The text as a careless writer might give it: without marks, with some of them, without its last stop, or with marks in
    Unicode's order.

    With probability `mark_dropout` marks go: all of them in half of these rows, a random share in the others. With
    probability `nfc_share` shadda stands behind its vowel, as in NFC: stock tools give such text to the model as it is.

    >>> draw_text(np.random.default_rng(0), "*ahaba Alowaladu.", 1.0, 1.0, 0.0)
    '*hb Alwld'
    >>> draw_text(np.random.default_rng(0), "AlS~aboru.", 0.0, 0.0, 1.0)
    'AlSa~boru.'
    """
    share, kind, part, stop, nfc = rng.random(5)
    if nfc < nfc_share:
        text_model = NFC_ORDER.sub(r"\2\1", text_model)
    if share < mark_dropout:
        lost = rng.random(len(text_model)) < (1.0 if kind < 0.5 else part)
        text_model = "".join(c for c, gone in zip(text_model, lost) if not (gone and c in text.MARKS_MODEL))
    return text_model.rstrip(".,;:!?") if stop < stop_dropout else text_model


def draw_prefix(rng: np.random.Generator, tokens: list[int], prompt: np.ndarray, frame_rate: float, text_dropout: float, voice_dropout: float) -> tuple[list[int], np.ndarray]:
    """What stands before the audio in this row: the text and the voice prompt, either of them dropped with its share.

    `prompt`: latents [V, C] of another utterance of the speaker. Its first 10 s are used; three in ten are cropped to
    2.5 s or more at a random place (kyutai-labs/pocket-tts, `small_voices_finetune`).
    """
    keep_text, keep_voice = rng.random(2) >= (text_dropout, voice_dropout)
    prompt = prompt[: int(10 * frame_rate)]
    crop, length, place = rng.random(3)
    shortest = int(2.5 * frame_rate)
    if crop < 0.3 and len(prompt) > shortest:
        size = shortest + int(length * (len(prompt) - shortest + 1))
        start = int(place * (len(prompt) - size + 1))
        prompt = prompt[start : start + size]
    return tokens if keep_text else [], prompt if keep_voice else prompt[:0]


def draw_row(rng: np.random.Generator, latents: np.ndarray, tokens: list[int], prompt: np.ndarray, draws: tuple[int, int], token_times: np.ndarray | None = None) -> Row:
    """A row with its noise and times; `draws` are K and K', `token_times` [L, 2] as in `Row`."""
    num_frames, dims = latents.shape

    def normal(count: int, width: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((count, num_frames, width), dtype=np.float32))

    return Row(
        latents=torch.from_numpy(np.array(latents)),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        token_times=torch.zeros(0, 2) if token_times is None else torch.from_numpy(token_times).float(),
        prompt=torch.from_numpy(np.array(prompt)),
        noise=normal(draws[0], dims),
        time_logits=normal(draws[0], 1),
        distill_noise=normal(draws[1], dims),
        distill_time_logits=normal(draws[1], 2),
    )


# --- guided attention -------------------------------------------------------------------------------------------------


def token_durations(tokens: list[list[int]], frames: list[float], vocabulary: int) -> np.ndarray:
    """Frames that each token of the vocabulary lasts, by non-negative least squares over utterances.

    A poor man's aligner: one number a symbol and no context. It leaves 1.4 frames of the deviation of 16.8 between the
    embedded corpus's utterances unexplained.
    """
    counts = np.stack([np.bincount(t, minlength=vocabulary) for t in tokens]).astype(float)
    return nnls(counts, np.asarray(frames, float))[0] + 0.02  # a symbol that lasts nothing still has a place


def guided_mask(rows: list[Row], prefixes: list[int], length: int, window: float) -> torch.Tensor:
    """[B, 1, length, length], True where a position may look: causal, and from audio to text only where the token is
    expected at most `window` frames from the position's own frame (after the last word: from the last word)."""
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    for b, (row, prefix) in enumerate(zip(rows, prefixes)):
        if len(row.token_times):
            first, last = row.token_times.T
            now = torch.arange(len(row.latents) + 1).clamp(max=int(last[-1]))[:, None]
            near = (first < now + 1 + window) & (last > now - window)
            mask[b, prefix : prefix + len(now), prefix - len(row.tokens) : prefix] &= near
    return mask[:, None]


# --- objective --------------------------------------------------------------------------------------------------------


class LSD(nn.Module):
    """Lagrangian Self Distillation (arXiv 2505.18825) on one head, as Pocket TTS is trained (CALM, arXiv 2509.06926).

    x: target latent, e: noise, x_t = t x + (1 - t) e. The head u(z, s, t, x_s) is the mean velocity from s to t.
    Diagonal: |u(t, t, x_t) - (x - e)|^2.  Distillation: with X(t) = x_s + (t - s) u(s, t, x_s), |dX/dt - u(t, t, X)|^2.
    Each is weighted by a learned w(s, t): q exp(w) / C - w, the negative log-likelihood of a Gaussian; it can be negative.
    """

    DIAGONAL_WEIGHT, DISTILL_WEIGHT = 0.75, 0.25
    TIME_MEAN, TIME_STD = 0.4, 1.0  # t = sigmoid(N(mean, std)): more draws near the data than uniform ones

    def __init__(self) -> None:
        super().__init__()
        self.weighting = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        nn.init.zeros_(self.weighting[-1].weight)
        nn.init.zeros_(self.weighting[-1].bias)

    def times(self, logits: torch.Tensor) -> torch.Tensor:
        """Standard normal draws [..., k] -> times in (0, 1), sorted along k."""
        return torch.sigmoid(logits * self.TIME_STD + self.TIME_MEAN).sort(-1)[0]

    def weighted(self, error: torch.Tensor, s: torch.Tensor, t: torch.Tensor, dims: int) -> torch.Tensor:
        w = self.weighting(torch.cat([s, t], -1)).squeeze(-1).to(error.dtype)
        return error * w.exp() / dims - w

    def diagonal(self, head: nn.Module, z: torch.Tensor, x: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z [M, D], x and e [M, C], t [M, 1] -> (weighted loss [M], squared error [M])."""
        error = (head(z, t, t, t * x + (1 - t) * e).to(x.dtype) - (x - e)).square().sum(-1)
        return self.weighted(error, t, t, x.shape[-1]), error

    def distillation(self, head: nn.Module, z: torch.Tensor, x: torch.Tensor, e: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z [M, D], x and e [M, C], s <= t [M, 1] -> (weighted loss [M], squared error [M]).

        The target u(t, t, X) passes gradient to X but not to its own parameters or z.
        """
        x_s = s * x + (1 - s) * e
        u, du_dt = torch.func.jvp(partial(head, z), (s, t, x_s), (torch.zeros_like(s), torch.ones_like(t), torch.zeros_like(x_s)))
        end = x_s + (t - s) * u
        frozen = {name: p.detach() for name, p in head.named_parameters()}
        target = torch.func.functional_call(head, frozen, (z.detach(), t, t, end))
        error = (u + (t - s) * du_dt - target).square().sum(-1)
        return self.weighted(error, s, t, x.shape[-1]), error


class TrainableTTS(nn.Module):
    """The FlowLM with its training loss; `flow_lm` is what gets exported, `lsd` holds the loss's own weighting net."""

    EOS_WEIGHT = 0.1

    def __init__(self, flow_lm: FlowLMModel, distill_head_only: bool = False):
        super().__init__()
        self.flow_lm, self.distill_head_only = flow_lm, distill_head_only
        self.lsd = LSD()

    def backbone(self, rows: list[Row], window: float | None = None) -> list[torch.Tensor]:
        """Per row z [T + 1, D]: positions 0..T-1 predict frames, position T predicts that the utterance is over.

        Row: [bos_before_voice | prompt x speaker_proj^T | text | bos_emb, frames 0..T-1], right-padded under a plain
        causal mask, so padding never reaches a valid position. The prompt enters raw, the frames normalised.
        With a `window` audio positions see of the text only tokens expected within that many frames (`guided_mask`).
        """
        lm = self.flow_lm
        device = lm.bos_emb.device
        inputs, prefixes = [], []
        for row in rows:
            prefix = []
            if lm.insert_bos_before_voice:
                prefix.append(lm.bos_before_voice[0])
            prefix.append(F.linear(row.prompt.to(device), lm.speaker_proj_weight))
            prefix.append(lm.conditioner(row.tokens.to(device)))
            frames = (row.latents.to(device) - lm.emb_mean) / lm.emb_std
            audio = lm.input_linear(torch.cat([lm.bos_emb[None], frames]))
            inputs.append(torch.cat([*(p.to(audio.dtype) for p in prefix), audio]))
            prefixes.append(len(inputs[-1]) - len(audio))
        # bf16 products stay bf16: by default PyTorch's plain attention makes fp32 of them, 4 times slower each, 11 % of a step.
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        # On a CPU fused attention and its gradient take 1.2 to 1.4 (fp32) or 1.5 to 2.3 times (bf16) as long as plain products.
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            z = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
            if window is None:
                z = lm.transformer(z, None)
            else:
                mask = guided_mask(rows, prefixes, z.shape[1], window).to(device)
                for layer in lm.transformer.layers:
                    z = layer(z, None, attn_mask=mask)
        z = lm.out_norm(z)
        if lm.z_proj is not None:
            z = lm.z_proj(z)
        return [z[b, p : p + len(row.latents) + 1] for b, (p, row) in enumerate(zip(prefixes, rows))]

    def forward(self, rows: list[Row], distill_weight: float, batch: tuple[int, int] | None = None, window: float | None = None) -> dict[str, torch.Tensor]:
        """The loss of some rows and its parts: means over valid positions (EOS: over these and each row's end).

        `batch`: frames and rows of the whole batch these rows are a part of, by default themselves. The parts of a batch,
        in turn or on several processes, then add up to its loss and gradients.
        `distill_weight` 0 leaves the distillation term out, which saves two passes of the head and a jvp.
        `window` as in `backbone`.
        """
        z = self.backbone(rows, window)
        device = z[0].device
        frames, count = batch or (sum(len(row.latents) for row in rows), len(rows))
        x = (torch.cat([row.latents for row in rows]).to(device) - self.flow_lm.emb_mean) / self.flow_lm.emb_std
        logits = torch.cat([self.flow_lm.out_eos(v).squeeze(-1) for v in z])
        ends = torch.cat([F.pad(torch.zeros(len(row.latents), device=device), (0, 1), value=1.0) for row in rows])
        eos = F.binary_cross_entropy_with_logits(logits.to(x.dtype), ends.to(x.dtype), reduction="sum") / (frames + count)

        def flat(name: str) -> torch.Tensor:  # [K, N, width] -> [K * N, width]
            return torch.cat([getattr(row, name) for row in rows], 1).to(device).flatten(0, 1)

        condition = torch.cat([v[:-1] for v in z])
        draws = len(rows[0].noise)
        t = self.lsd.times(flat("time_logits"))
        loss, error = self.lsd.diagonal(self.flow_lm.flow_net, condition.repeat(draws, 1), x.repeat(draws, 1), flat("noise"), t)
        parts = {"diagonal": loss.sum() / (draws * frames), "flow_error": error.sum() / (draws * frames), "eos": eos}
        total = self.lsd.DIAGONAL_WEIGHT * parts["diagonal"] + self.EOS_WEIGHT * eos
        if distill_weight:
            draws = len(rows[0].distill_noise)
            s, t = self.lsd.times(flat("distill_time_logits")).split(1, -1)
            condition = condition.detach() if self.distill_head_only else condition
            # In fp32: a bf16 time derivative is mostly rounding.
            with torch.autocast(device.type, enabled=False):
                loss, error = self.lsd.distillation(self.flow_lm.flow_net, condition.to(x.dtype).repeat(draws, 1), x.repeat(draws, 1), flat("distill_noise"), s, t)
            parts |= {"distillation": loss.sum() / (draws * frames), "distill_error": error.sum() / (draws * frames)}
            total = total + distill_weight * parts["distillation"]
        return parts | {"loss": total}
