"""What a training run starts from: its base, or its teacher's layers, and the tokenizer."""

import argparse

import torch
from accelerate import PartialState
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import MimiModel
from pocket_tts.utils.config import Config

from pocket_arabic.base import (
    arabic_config,
    base_path,
    build_flow_lm,
    check_teacher,
    encoder_hash,
    fresh_tokenizer,
    load_config,
    load_mimi,
    load_weights,
    parse_tokenizer,
    student_of,
    taught,
    use_tokenizer,
)
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import find_bundle
from pocket_arabic.run import UserError

Weights = dict[str, torch.Tensor]


def load_start(args: argparse.Namespace, cache: Cache) -> tuple[Config, Weights, MimiModel, FlowLMModel | None]:
    """Config and weights that the model begins with, its codec, and the teacher if there is one. Raises UserError."""
    config, teacher = load_config(args.base), None
    if args.teacher:
        config, weights, teacher = begin_student(config, args.teacher, args.init)
    else:
        weights = load_weights(config)
    options = cache.info["options"]
    config = arabic_config(config, options.get("substitute"), options.get("phonemes"))
    mimi = load_mimi(config, weights)
    if encoder_hash(mimi) != options["encoder_sha256"]:
        raise UserError(
            f"{args.data} was encoded with another codec than {args.teacher or f'base {args.base}'}; rebuild it: "
            f"python data_prep.py --base {args.base} --out NEW_FOLDER ..."
        )
    if num_pieces := parse_tokenizer(args.tokenizer):
        config, weights = fresh_vocabulary(args, num_pieces, cache, config, weights)
    return config, weights, mimi, teacher


def begin_student(shape: Config, name: str, init: str) -> tuple[Config, Weights, FlowLMModel]:
    """Config and weights that a student begins with, of the depth of `shape`, and its teacher. Raises UserError."""
    if base_path(name).is_file():
        config = load_config(name)
    else:
        config = load_config(str(find_bundle(name, "--teacher") / "arabic.yaml"), bundled=True)
    check_teacher(shape, config, same_tokenizer=init == "base")
    weights = load_weights(config)
    own = (shape, taught(load_weights(shape), weights)) if init == "base" else student_of(shape, config, weights)
    return *own, build_flow_lm(config, weights)


def fresh_vocabulary(
    args: argparse.Namespace, num_pieces: int, cache: Cache, config: Config, weights: Weights
) -> tuple[Config, Weights]:
    """The base with OUT/tokenizer.json, made from the training texts when the run is new."""
    path = args.out / "tokenizer.json"
    with PartialState().main_process_first():
        if not path.exists():
            args.out.mkdir(parents=True, exist_ok=True)
            fresh_tokenizer([row["text_model"] for row in cache.split("train")], num_pieces, path)
    return use_tokenizer(config, weights, path, args.seed)
