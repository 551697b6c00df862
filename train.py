#!/usr/bin/env python3
"""Cache and base in, run out: fine-tune Pocket TTS, or train its FlowLM from scratch, with the model's own objective.

Reads   data/NAME/ (made by data_prep.py) and the base that encoded it.
Writes  runs/NAME/: args.json, progress.jsonl (one record a logged step and evaluation), loss.png,
        samples/step_NNNNNN_*.wav, checkpoints/step_NNNNNN/, and at the end bundle/, a Pocket TTS model that stock tools
        load, from the checkpoint with the lowest held-out flow error.

    python train.py --data data/demo --init scratch --batch-size 16 --lr 1.2e-3 --warmup-steps 100 --max-hours 0.22   # `make demo`
    python train.py --data data/my_recordings                                             # fine-tune the base, one GPU
    python train.py --data data/demo --init scratch --max-steps 4 --batch-size 2 --out runs/try   # does it run?

The same command again continues; so does a longer --max-steps, --epochs or --max-hours. Ctrl-C and SIGTERM save first.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import accelerate
import matplotlib
import numpy as np
import torch
from accelerate import Accelerator
from pocket_tts.models.flow_lm import FlowLMModel
from safetensors.torch import load_file

from pocket_arabic import __version__
from pocket_arabic.audio import write_wav
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import EMA, best_checkpoint, export_bundle, load_checkpoint, newest_checkpoint, prune, save_checkpoint
from pocket_arabic.model import LSD, Row, TrainableTTS, build_flow_lm, draw_row, encoder_hash, load_config, load_mimi, load_weights, tts_model
from pocket_arabic.run import StopSignal, UserError, append_jsonl, atomic_write, command, differences, provenance, read_jsonl, use_all_cores, write_json

matplotlib.use("Agg")

# What may change when a run is continued: how long it goes on and what it shows, not what a step does.
FREE = {"data", "out", "epochs", "max_steps", "max_hours", "log_every", "eval_every", "sample_every", "keep"}
DISTILL_SHARE = 0.25  # of the steps compute the distillation term, divided by this share: same gradient in expectation, 9 % faster (FACTS of kyutai-labs/pocket-tts training)
ROW, ORDER, DISTIL = range(3)  # separate streams of random numbers under one --seed
EVAL_EPOCH = 0  # training counts from 1; evaluation always uses the same noise, so its curve is smooth


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--version", action="version", version=__version__)
    g = p.add_argument_group("what")
    g.add_argument("--data", type=Path, required=True, help="cache made by data_prep.py")
    g.add_argument("--base", help="demo, a language (english), or a CONFIG.yaml; default the cache's own")
    g.add_argument("--out", type=Path, help="the run's folder; default runs/NAME after the cache")
    g.add_argument("--init", choices=("base", "scratch"), default="base", help="start from the base's FlowLM, or from random weights of its shape")
    g = p.add_argument_group("how long (the first limit reached ends the run)")
    g.add_argument("--epochs", type=int, default=20, help="passes over the training split")
    g.add_argument("--max-steps", type=int, help="optimiser steps")
    g.add_argument("--max-hours", type=float, help="hours of wall clock, over all continuations")
    g = p.add_argument_group("recipe")
    g.add_argument("--batch-size", type=int, default=64, help="utterances a step")
    g.add_argument("--lr", type=float, default=4e-5, help="AdamW learning rate after warm-up, constant (the wheel's small-data recipe); 2e-4 to 1.2e-3 from scratch")
    g.add_argument("--warmup-steps", type=int, default=500, help="steps of linear warm-up")
    g.add_argument("--weight-decay", type=float, default=0.1, help="AdamW weight decay")
    g.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--ema", type=float, default=0.999, help="decay a step of the averaged weights, which are evaluated and exported")
    g.add_argument("--draws", type=int, default=4, help="noise and time draws per audio frame; 1 never reaches good quality upstream")
    g.add_argument("--text-dropout", type=float, default=0.2, help="share of rows trained without their text")
    g.add_argument("--voice-dropout", type=float, default=0.5, help="share of rows trained without a voice prompt")
    g.add_argument("--seed", type=int, default=0, help="fixes initial weights, order, prompts and noise")
    g = p.add_argument_group("machine")
    g.add_argument("--precision", choices=("bf16", "fp16", "no"), help="of the transformer; default bf16 on a GPU that has it, fp16 on other GPUs, no (fp32) on CPU")
    g = p.add_argument_group("watching")
    g.add_argument("--log-every", type=int, default=20, help="steps between printed lines; 0 is off")
    g.add_argument(
        "--eval-every", type=int, default=250, help="steps between held-out evaluations, each on a checkpoint of its own; 0 is off (then the last checkpoint is exported)"
    )
    g.add_argument("--sample-every", type=int, default=500, help="steps between spoken samples; 0 is off")
    g.add_argument("--keep", type=int, default=2, help="newest checkpoints kept, beside the best")
    args = p.parse_args()
    args.out = args.out or Path("runs") / args.data.name
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    for name in ("epochs", "max_steps", "max_hours", "batch_size", "lr", "draws", "keep"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")
    for name in ("text_dropout", "voice_dropout"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be a share from 0 to 1")


# --- data -------------------------------------------------------------------------------------------------------------


class Rows:
    """The rows of a split, with a voice prompt each from the training split. Everything drawn is a pure function of
    (seed, epoch, position in the split), so a resumed run and any division into batches see the same rows."""

    def __init__(self, cache: Cache, split: str, tokenize, frame_rate: float, args: argparse.Namespace):
        self.cache, self.args, self.frame_rate = cache, args, frame_rate
        self.rows = cache.split(split)
        self.tokens = [tokenize(row["text_model"]) for row in self.rows]
        self.by_speaker: dict[str, list[dict]] = {}
        for row in cache.split("train"):
            self.by_speaker.setdefault(row["speaker"], []).append(row)
        for row in self.rows:
            if not any(other["id"] != row["id"] for other in self.by_speaker.get(row["speaker"], ())):
                raise UserError(f'{cache.folder}: speaker "{row["speaker"]}" has no second utterance in the train split to prompt with; add one, or drop the speaker')

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int, epoch: int) -> Row:
        rng = np.random.default_rng([ROW, self.args.seed, epoch, index])
        row = self.rows[index]
        others = self.by_speaker[row["speaker"]]
        prompt = others[rng.integers(len(others))]
        while prompt["id"] == row["id"]:  # a prompt cut from the target itself leaks it
            prompt = others[rng.integers(len(others))]
        evaluating = epoch == EVAL_EPOCH
        return draw_row(
            rng,
            self.cache.row_latents(row),
            self.tokens[index],
            self.cache.row_latents(prompt),
            self.frame_rate,
            self.args.draws,
            0.0 if evaluating else self.args.text_dropout,
            0.0 if evaluating else self.args.voice_dropout,
        )

    def order(self, epoch: int, batch_size: int) -> list[list[int]]:
        """Batches of one epoch: shuffled, then sorted by length within pools of 16 batches so that rows of a batch are
        of like length, then the batches shuffled."""
        rng = np.random.default_rng([ORDER, self.args.seed, epoch])
        indices = rng.permutation(len(self.rows))
        pool = 16 * batch_size
        batches = []
        for start in range(0, len(indices), pool):
            block = sorted(indices[start : start + pool], key=lambda i: self.rows[i]["num_frames"])
            batches += [[int(i) for i in block[b : b + batch_size]] for b in range(0, len(block), batch_size)]
        rng.shuffle(batches)
        return batches


def latent_statistics(cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [32] of the training split's latents, for a model that has none of its own."""
    latents = np.concatenate([cache.row_latents(row) for row in cache.split("train")]).astype("float64")
    return torch.from_numpy(latents.mean(0)).float(), torch.from_numpy(latents.std(0)).float()


# --- the loop's parts -------------------------------------------------------------------------------------------------


def distils(seed: int, step: int) -> bool:
    """Whether this step computes the distillation term; the same on every process."""
    return bool(np.random.default_rng([DISTIL, seed, step]).random() < DISTILL_SHARE)


def print_parts(model: TrainableTTS) -> None:
    """The table of what trains."""
    parts = {f"flow_lm.{name}": module for name, module in model.flow_lm.named_children()}
    own = sum(p.numel() for p in model.flow_lm.parameters()) - sum(p.numel() for m in parts.values() for p in m.parameters())
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}
    sizes |= {"flow_lm (bos, speaker_proj)": own, "lsd.weighting (not exported)": sum(p.numel() for p in model.lsd.parameters())}
    print(f"{'module':32}{'parameters':>12}")
    for name, size in sizes.items():
        print(f"{name:32}{size:12,}  trainable")
    print(f"{'mimi':32}{'':12}  frozen (encoded in the cache)", flush=True)


@torch.no_grad()
def evaluate(model: TrainableTTS, ema: EMA, valid: Rows, batch_size: int) -> dict[str, float]:
    """Held-out means under the averaged weights, with the same noise, times and prompts each time."""
    own = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema.shadow)
    totals: dict[str, float] = {}
    frames = 0
    for start in range(0, len(valid), batch_size):
        rows = [valid.row(i, EVAL_EPOCH) for i in range(start, min(start + batch_size, len(valid)))]
        size = sum(len(row.latents) for row in rows)
        frames += size
        for name, value in model(rows, LSD.DISTILL_WEIGHT).items():
            totals[name] = totals.get(name, 0.0) + value.item() * size
    model.load_state_dict(own)
    return {f"valid_{name}": total / frames for name, total in totals.items()}


@torch.no_grad()
def speak_samples(folder: Path, step: int, config, flow_lm: FlowLMModel, ema: EMA, mimi, cache: Cache, longest: int) -> None:
    """The same two held-out sentences, voice and seed every time, by the wheel's own inference."""
    averaged = copy.deepcopy(flow_lm).cpu()
    averaged.load_state_dict({k.removeprefix("flow_lm."): v for k, v in ema.shadow.items() if k.startswith("flow_lm.")})
    model = tts_model(config, averaged, mimi)
    with torch.random.fork_rng(devices=[]):
        state = model.get_state_for_audio_prompt(cache.folder / "voice.wav")
        for index, row in enumerate(cache.split("valid")[:2]):
            torch.manual_seed(index)
            audio = model.generate_audio(state, row["text_model"], max_tokens=longest)
            folder.mkdir(exist_ok=True)
            write_wav(folder / f"step_{step:06d}_{index}.wav", audio, mimi.sample_rate)


def plot_loss(path: Path, progress: list[dict]) -> None:
    from matplotlib import pyplot as plt

    train, valid = ([r for r in progress if r["kind"] == kind] for kind in ("train", "eval"))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for axis, name, title in zip(axes, ("flow_error", "distill_error", "eos"), ("diagonal flow error", "distillation error", "EOS cross-entropy")):
        for label, records, key in (("train", train, name), ("held out (EMA)", valid, f"valid_{name}")):
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                axis.plot(*zip(*points), label=label, lw=1, marker="." if records is valid else None)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=110)
    plt.close(figure)


def resume(args: argparse.Namespace, recipe: dict) -> Path | None:
    """The checkpoint to continue from; forgets what progress.jsonl says of later steps. Raises UserError if the recipe changed."""
    saved = args.out / "args.json"
    if not saved.exists():
        return None
    old = json.loads(saved.read_text(encoding="utf-8"))
    changed = differences({k: v for k, v in old.items() if k not in FREE}, {k: v for k, v in recipe.items() if k not in FREE})
    if changed:
        raise UserError(f"{args.out} was trained with another recipe ({changed}); give another --out, or the same options")
    checkpoint = newest_checkpoint(args.out / "checkpoints")
    step = int(checkpoint.name[5:]) if checkpoint else 0
    with atomic_write(args.out / "progress.jsonl") as tmp:
        kept = [r for r in read_jsonl(args.out / "progress.jsonl") if r.get("step", 0) <= step] if checkpoint else []
        tmp.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
    return checkpoint


def main() -> None:
    args = parse_args()
    use_all_cores()

    # 1. Cache and base: everything a user can get wrong, before anything slow.
    cache = Cache(args.data)
    args.base = args.base or cache.info["options"]["base"]
    config = load_config(args.base)
    weights = load_weights(config)
    mimi = load_mimi(config, weights)
    if encoder_hash(mimi) != cache.info["options"]["encoder_sha256"]:
        raise UserError(f"{args.data} was encoded with another codec than base {args.base}; rebuild it: python data_prep.py --base {args.base} --out NEW_FOLDER ...")
    for split in ("train", "valid"):
        if not cache.split(split):
            raise UserError(f"{args.data} has no {split} utterances; give data_prep.py a corpus with some")

    # 2. Model, optimiser, accelerator.
    if args.precision is None:
        args.precision = "no" if not torch.cuda.is_available() else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()} | {"cache": cache.info["options"]}
    accelerator = Accelerator(mixed_precision=args.precision)
    if accelerator.num_processes > 1:
        raise UserError(f"{accelerator.num_processes} processes: training runs in one; start it with python, not accelerate launch")
    accelerate.utils.set_seed(args.seed)
    flow_lm = build_flow_lm(config, weights if args.init == "base" else None)
    if args.init == "scratch":
        mean, std = latent_statistics(cache)
        flow_lm.emb_mean.copy_(mean)
        flow_lm.emb_std.copy_(std)
    model = TrainableTTS(flow_lm)
    print_parts(model)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = EMA(model, args.ema)
    tokenize = flow_lm.conditioner.tokenizer.encode
    train, valid = (Rows(cache, split, tokenize, config.mimi.frame_rate, args) for split in ("train", "valid"))
    longest = max(map(len, train.tokens))

    # 3. New run or continuation.
    checkpoints, progress_file = args.out / "checkpoints", args.out / "progress.jsonl"
    checkpoint = resume(args, recipe)
    step, spent, saved_step = 0, 0.0, None
    if checkpoint:
        state = load_checkpoint(checkpoint, model, optimizer, ema)
        step, spent = state["step"], state["hours"]
        saved_step = step
        print(f"continuing at step {step}, {spent:.2f} h spent")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "args.json", recipe)
    if not checkpoint:
        append_jsonl(progress_file, {"kind": "start", **provenance(), "device": str(accelerator.device), "precision": args.precision, "args": recipe})
    steps_per_epoch = -(-len(train) // args.batch_size)
    last_step = min(args.epochs * steps_per_epoch, args.max_steps or args.epochs * steps_per_epoch)
    print(
        f"{len(train)} utterances, {steps_per_epoch} steps an epoch, to step {last_step}"
        + (f" or {args.max_hours} h" if args.max_hours else "")
        + f", {args.precision} on {accelerator.device}",
        flush=True,
    )

    stop, clock = StopSignal(), time.monotonic()

    def hours() -> float:
        return spent + (time.monotonic() - clock) / 3600

    def save_and_evaluate() -> None:
        """Save first: what the evaluation or a sample might break, it cannot lose."""
        nonlocal saved_step
        if saved_step != step:
            save_checkpoint(checkpoints, step, accelerator.unwrap_model(model), optimizer, ema, {"hours": hours()})
            saved_step = step
        progress = read_jsonl(progress_file)
        due = args.eval_every and (step % args.eval_every == 0 or finished())
        if due and not any(r["kind"] == "eval" and r["step"] == step for r in progress):
            record = {"kind": "eval", "step": step, "hours": round(hours(), 4), **evaluate(model, ema, valid, args.batch_size)}
            append_jsonl(progress_file, record)
            progress.append(record)
            print(f"step {step}: held out " + ", ".join(f"{k[6:]} {v:.4g}" for k, v in record.items() if k.startswith("valid_")), flush=True)
            plot_loss(args.out / "loss.png", progress)
        if args.sample_every and step and step % args.sample_every == 0:
            speak_samples(args.out / "samples", step, config, flow_lm, ema, mimi, cache, longest)
        best = best_checkpoint(checkpoints, progress)
        prune(checkpoints, args.keep, best[0] if best else None)

    def finished() -> bool:
        return step >= last_step or bool(args.max_hours and hours() >= args.max_hours)

    # 4. Train.
    if step == 0 and args.eval_every:
        save_and_evaluate()
    model.train()
    logged, logged_step, frames, averages = time.monotonic(), step, 0, {}
    batches: Iterator[list[int]] = iter(())
    epoch = 0
    while not finished() and not stop.received:
        if 1 + step // steps_per_epoch != epoch:
            epoch = 1 + step // steps_per_epoch
            batches = iter(train.order(epoch, args.batch_size)[step % steps_per_epoch :])
        rows = [train.row(i, epoch) for i in next(batches)]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / max(1, args.warmup_steps))
        losses = model(rows, LSD.DISTILL_WEIGHT / DISTILL_SHARE if distils(args.seed, step) else 0.0)
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(model.parameters(), args.clip)
        if not torch.isfinite(norm) and args.precision != "fp16":  # fp16's scaler skips such steps by itself
            raise UserError(f"gradient not finite at step {step}; the last checkpoint is whole, continue it with a lower --lr in a new --out")
        optimizer.step()
        optimizer.zero_grad()
        ema.update(accelerator.unwrap_model(model), step)
        step += 1

        frames += sum(len(row.latents) for row in rows)
        for name, value in {**losses, "grad_norm": norm}.items():
            averages.setdefault(name, []).append(value.detach())
        if args.log_every and step % args.log_every == 0:
            seconds = time.monotonic() - logged
            record = {"kind": "train", "step": step, "hours": round(hours(), 4), "lr": optimizer.param_groups[0]["lr"]}
            record |= {k: round(torch.stack(v).mean().item(), 5) for k, v in averages.items()} | {"frames_per_sec": round(frames / seconds, 1)}
            append_jsonl(progress_file, record)
            left = (last_step - step) * seconds / (step - logged_step) / 3600
            left = min(left, args.max_hours - hours()) if args.max_hours else left
            print(
                f"step {step}/{last_step} "
                + " ".join(f"{k} {record[k]:.4g}" for k in ("loss", "flow_error", "eos", "grad_norm", "lr", "frames_per_sec"))
                + f" left {left * 60:.1f} min",
                flush=True,
            )
            logged, logged_step, frames, averages = time.monotonic(), step, 0, {}
        if step % steps_per_epoch == 0 or (args.eval_every and step % args.eval_every == 0):
            save_and_evaluate()
            model.train()

    # 5. Save where it stopped; if it is done, export the best checkpoint.
    save_and_evaluate()
    if stop.received and not finished():
        print(f"stopped at step {step}; the same command continues")
        raise SystemExit(128 + stop.received)
    export(args, config, cache, weights, longest)


def export(args: argparse.Namespace, config, cache: Cache, weights: dict[str, torch.Tensor], longest: int) -> None:
    """bundle/ from the checkpoint with the lowest held-out flow error; from the last one if none was evaluated."""
    checkpoints = args.out / "checkpoints"
    best = best_checkpoint(checkpoints, read_jsonl(args.out / "progress.jsonl"))
    path, score = best or (newest_checkpoint(checkpoints), None)
    info_file = args.out / "bundle" / "bundle.json"
    if info_file.exists() and json.loads(info_file.read_text(encoding="utf-8"))["checkpoint"] == path.name:
        print(f"{args.out}/bundle holds {path.name} already; nothing to do")
        return
    state = {k: v for k, v in load_file(path / "ema.safetensors").items() if k.startswith("flow_lm.")}
    state |= {k: v for k, v in weights.items() if k.startswith("mimi.")}
    info = {
        "checkpoint": path.name,
        "chosen_by": "lowest held-out flow error (EMA weights)" if best else "last checkpoint; there was no evaluation",
        "valid_flow_error": score,
        "base": Path(args.base).name,
        "corpus": cache.info["options"]["corpus"],
        "hours": cache.info["hours"]["train"],
        "max_tokens": longest,
        "eos_threshold": config.default_eos_threshold,
        **provenance(),
    }
    export_bundle(args.out / "bundle", config, state, cache.folder / "voice.wav", info)
    print(f"bundle: {args.out}/bundle ({path.name}" + (f", held-out flow error {score:.3f})" if best else ")"))


if __name__ == "__main__":
    command(main)
