"""A base: its config, weights, codec and tokenizer, from a folder, the wheel's languages or a hub."""

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
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
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from torch import nn

from pocket_arabic import text
from pocket_arabic.cache import LATENT_DIM
from pocket_arabic.run import ROOT, UserError, atomic_write, differences, shortened

# of a teacher, in a student of own layers
TAUGHT = ("flow_lm.flow_net.", "flow_lm.out_eos.", "flow_lm.emb_mean", "flow_lm.emb_std")
GATED = "accept the terms at https://huggingface.co/kyutai/pocket-tts, then log in: hf auth login"


def beside(address: str) -> str:
    """The file's name in an hf:// address or path, without revision."""
    return address.rsplit("/", 1)[-1].split("@")[0]


def base_path(base: str) -> Path:
    """Where the config of a base would be: `demo`, a language of the wheel, or a YAML file."""
    if base == "demo":
        return ROOT / "demo" / "base.yaml"
    return Path(base) if base.endswith((".yaml", ".yml")) else CONFIGS_DIR / f"{base}.yaml"


def load_config(base: str, bundled: bool = False) -> Config:
    """`demo`, a language of the wheel (`english`), or a YAML file -> its config, local paths made absolute.

    Paths in a YAML resolve against its own folder. `bundled`: hub addresses do too, for a bundle whose files are
    checked. Raises UserError.
    """
    path = base_path(base)
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
            f"base {base}: its head is {config.flow_lm.flow.type} on {config.mimi.quantizer.dimension} dimensions; "
            f"this trains lsd on {LATENT_DIM}, for example english"
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
        raise UserError(
            f"cannot get {location} ({type(error).__name__}); check the network, and the login: {GATED}"
        ) from None


def load_strict(module: nn.Module, weights: dict[str, torch.Tensor], prefix: str) -> None:
    """Load the tensors named `prefix`*, all of the module's and no other. Raises UserError."""
    try:
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True
        )
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"the base's weights do not fit its config ({detail}); give weights and config of one model"
        ) from None


def load_weights(config: Config) -> dict[str, torch.Tensor]:
    """All tensors the config names, keyed `flow_lm.*` and `mimi.*`. Downloads what is on a hub; never the variant
    without voice cloning, whose encoder is zero. Raises UserError."""
    state: dict[str, torch.Tensor] = {}
    for location in (config.weights_path, config.flow_lm.weights_path, config.mimi.weights_path):
        if location:
            try:
                state |= load_file(fetch(location))
            except SafetensorError as error:
                raise UserError(
                    f"{location}: not a whole safetensors file ({error}); restore or download it again"
                ) from None
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} of {location}: not finite (NaN or infinity); restore or download it again, or train with a "
                "lower --lr"
            )
    if not any(k.startswith("mimi.") for k in state):
        raise UserError("the base has no codec weights: its config must name weights_path or mimi.weights_path")
    return state


def load_mimi(config: Config, weights: dict[str, torch.Tensor]) -> MimiModel:
    """The base's own codec, frozen. Raises UserError for an encoder of zeros (the weights without voice cloning)."""
    mimi = build_mimi(config.mimi)
    load_strict(mimi, weights, "mimi.")
    if all(not v.any() for v in mimi.encoder.state_dict().values()):
        raise UserError(
            f"the base's codec encoder is all zeros (weights without voice cloning), so it would cache silence; {GATED}"
        )
    return mimi.eval().requires_grad_(False)


def load_moshi_mimi(num_codebooks: int, location: str | None, device: str) -> nn.Module:
    """Moshi's Mimi, whose RVQ gives discrete codes [B, K, T]: another checkpoint than a Pocket TTS codec, same frames.
    `location`: a file or hf:// address; default moshi's own. Raises UserError."""
    from moshi.models import loaders

    path = fetch(location or f"hf://{loaders.DEFAULT_REPO}/{loaders.MIMI_NAME}")
    try:
        return loaders.get_mimi(path, device=device, num_codebooks=num_codebooks)
    except (SafetensorError, RuntimeError, KeyError, OSError) as error:
        raise UserError(
            f"--codes-weights {path}: not moshi's Mimi weights ({' '.join(str(error).split())[:120]}); leave it out "
            "for the hub's"
        ) from None


@torch.no_grad()
def decode_latents(mimi: MimiModel, latents: torch.Tensor) -> np.ndarray:
    """Raw latents [T, C] -> audio [samples]."""
    for name, module in mimi.named_modules():  # by these names streaming modules find their state
        if isinstance(module, StatefulModule):
            module._module_absolute_name = name
    steps = int(mimi.encoder_frame_rate / mimi.frame_rate)
    return mimi.decode_from_latent(latents[None], init_states(mimi, 1, len(latents) * steps))[0, 0].cpu().numpy()


def student_of(
    shape: Config, teacher: Config, weights: dict[str, torch.Tensor]
) -> tuple[Config, dict[str, torch.Tensor]]:
    """The teacher (`weights` are its) with as many layers as `shape` has: its lowest and its highest ones, as
    upstream's students start (kyutai-labs/pocket-tts training/depth_distill). Raises UserError if it has fewer."""
    depth, layers = teacher.flow_lm.transformer.num_layers, shape.flow_lm.transformer.num_layers
    if layers > depth:
        raise UserError(
            f"--teacher: it has {depth} layers, the base {layers}; give a --base of at most {depth}, or the base's own "
            "weights: --init base"
        )
    config, kept = teacher.model_copy(deep=True), [*range(-(-layers // 2)), *range(depth - layers // 2, depth)]
    config.flow_lm.transformer.num_layers = layers
    found = {name: tensor for name, tensor in weights.items() if not name.startswith("flow_lm.transformer.layers.")}
    for new, old in enumerate(kept):
        prefix = f"flow_lm.transformer.layers.{old}."
        found |= {
            name.replace(prefix, f"flow_lm.transformer.layers.{new}."): tensor
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
    return config, found


def taught(weights: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A base's weights with what a student has of its teacher: the head, and the statistics of the latents that it
    makes. Raises UserError if they have two codecs."""
    if any(not torch.equal(tensor, teacher[name]) for name, tensor in weights.items() if name.startswith("mimi.")):
        raise UserError(
            "--teacher: it has another codec than the base; leave out --init base, or give the base that it was made "
            "from"
        )
    return weights | {name: tensor for name, tensor in teacher.items() if name.startswith(TAUGHT)}


def check_teacher(config: Config, teacher: Config, same_tokenizer: bool) -> None:
    """Raises UserError if a base and a teacher differ in a width, or in their tokenizer if it must be the same."""

    def widths(config: Config) -> dict:
        lm = config.flow_lm.model_dump(mode="json")
        table = lm["lookup_table"]
        lm["transformer"].pop("num_layers")
        tokenizer = (
            {"tokenizer": hashlib.sha256(Path(table["tokenizer_path"]).read_bytes()).hexdigest()[:8]}
            if same_tokenizer
            else {}
        )
        return {f"{part}.{key}": value for part in ("transformer", "flow") for key, value in lm[part].items()} | {
            "embedding": table["dim"],
            **tokenizer,
        }

    if changed := differences(widths(config), widths(teacher)):
        raise UserError(
            f"--teacher: differs from the base in more than its depth ({changed}); give a --base of the teacher's "
            "widths"
        )


def encoder_hash(mimi: MimiModel) -> str:
    """SHA-256 of what turns audio into latents; latents of two encoders never mix."""
    digest = hashlib.sha256()
    parts = (mimi.encoder, mimi.encoder_transformer, getattr(mimi, "downsample", None))  # the last not in every codec
    for module in filter(None, parts):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def build_flow_lm(config: Config, weights: dict[str, torch.Tensor] | None) -> FlowLMModel:
    """The FlowLM with `weights` (strict), or freshly initialised if None. Raises UserError if they lack flow_lm.*."""
    flow_lm = FlowLMModel.from_pydantic_config(
        config.flow_lm, config.mimi.quantizer.dimension, config.flow_lm.insert_bos_before_voice
    )
    width = config.flow_lm.transformer.d_model
    # The wheel creates this one when it loads weights. Scale of a linear layer with 32 inputs.
    flow_lm.speaker_proj_weight = nn.Parameter(
        torch.randn(width, config.mimi.inner_dim or config.mimi.seanet.dimension) * 32**-0.5
    )
    if weights is not None:
        if not any(k.startswith("flow_lm.") for k in weights):
            raise UserError(
                "the base has a codec but no FlowLM weights, so there is nothing to start from; train with --init "
                "scratch"
            )
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


def tts_model(config: Config, flow_lm: FlowLMModel, mimi: MimiModel, temperature: float | None = None, steps: int = 1,
              eos_threshold: float | None = None, guidance: float = 1.0) -> TTSModel:  # fmt: skip
    """The wheel's own inference around modules that are already in memory. `guidance`, which the wheel has not, is ours
    to heed."""
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
    model.mimi, model.guidance = mimi, guidance
    stamp_state_names(model)
    return model.eval()


def load_tokenizer(config: Config) -> Tokenizer:
    """Raises UserError if the config's n_bins is not the tokenizer's size."""
    table = config.flow_lm.lookup_table
    try:
        return build_tokenizer(table.n_bins, table.tokenizer_path, table.tokenizer)
    except Exception as error:  # tokenizers raises bare ones
        raise UserError(
            f"{table.tokenizer_path}: {' '.join(str(error).split())[:120]}; give weights, config and tokenizer of one "
            "model"
        ) from None


def parse_tokenizer(choice: str) -> int | None:
    """`fresh:400` -> 400 pieces; None for `base`. Raises UserError."""
    match = re.fullmatch(r"base|fresh:([1-9]\d{0,5})", choice)
    if not match:
        raise UserError(f"--tokenizer {shortened(choice)}: not known; give base or fresh:N, N pieces")
    return match[1] and int(match[1])


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
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=num_pieces, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    with atomic_write(path) as tmp:
        tokenizer.save(str(tmp))


def use_tokenizer(
    config: Config, weights: dict[str, torch.Tensor], path: Path, seed: int
) -> tuple[Config, dict[str, torch.Tensor]]:
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
