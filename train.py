#!/usr/bin/env python3
"""Cache and base in, run out: fine-tune Pocket TTS with the model's own objective, or as a student of a deeper model.

Reads   data/NAME/ (made by data_prep.py) and the base that encoded it.
Writes  runs/NAME/: args.json, progress.jsonl (one record a logged step and evaluation), loss.png,
        samples/step_NNNNNN_*.wav, checkpoints/step_NNNNNN/, and at the end bundle/, a Pocket TTS model that stock tools
        load, from the checkpoint whose held-out speech comes nearest to the recordings.

    python train.py --data data/clartts                                               # fine-tune the base, one GPU
    python train.py --data data/clartts --tune lora:32 --lr 1e-4                      # adapters, merged in the bundle
    python train.py --data data/clartts --base english --teacher runs/teacher         # a small student of a deep model
    accelerate launch --num_processes 8 train.py --data data/clartts --batch-size 8   # several GPUs
    python train.py @demo/recipe.txt                                                  # the demo: options of a file
    python train.py @demo/recipe.txt --max-steps 4 --batch-size 2 --out runs/try      # does it run?

The batch of a step is --batch-size x --grad-accum x processes; runs that agree in it take the same steps.
The same command again continues; so does, with a constant rate, a longer --max-hours, --max-steps or --epochs. Ctrl-C
and SIGTERM save first.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import accelerate
import torch
from accelerate import Accelerator
from pocket_tts import TTSModel
from pocket_tts.models.flow_lm import FlowLMModel
from pocket_tts.models.mimi import MimiModel
from pocket_tts.utils.config import Config

from pocket_arabic.adapt import freezes_head, parts_table
from pocket_arabic.base import build_flow_lm, parse_tokenizer, tts_model
from pocket_arabic.cache import Cache
from pocket_arabic.checkpoint import (
    SCORES,
    Damaged,
    best_checkpoint,
    export_bundle,
    exported,
    newest_checkpoint,
    prune,
    read_weights,
    resume,
    save_checkpoint,
    scores,
    update_hours,
)
from pocket_arabic.progress import Window, plot_curves
from pocket_arabic.run import (
    Clock,
    Parser,
    RunFolder,
    StopSignal,
    UserError,
    append_jsonl,
    command,
    filled,
    location,
    provenance,
    real,
    use_all_cores,
    whole,
)
from pocket_arabic.speech import speak_samples
from pocket_arabic.start import load_start
from pocket_arabic.step import NotFinite, Steps

# What may change when a run is continued: how long it goes on and what it shows, not what a step does.
FREE = {"data", "out", "epochs", "max_steps", "max_hours", "patience", "batch_size", "grad_accum"}
FREE |= {"compile", "wandb", "log_every", "eval_every", "judge_sentences", "sample_every", "keep"}
LENGTHS = {"epochs", "max_steps", "max_hours"}  # but a cosine is a function of its end
NOT_TAUGHT = ("freeze_head", "tokenizer", "draws", "distill_draws", "text_dropout", "voice_dropout")
DEFAULTS = {  # without and with --teacher
    "init": ("base", "teacher"),
    "guidance": (None, 2.0),
    "lr": (2e-4, 4e-5),
    "text_dropout": (0.2, 0.0),
    "voice_dropout": (0.5, 0.0),
}
JUDGE_SHARE = 0.1  # of a run's time goes into speaking for the choice of the checkpoint, once that is set up
LOGGED = ("loss", "flow_error", "z_error", "eos", "grad_norm", "lr", "frames_per_sec", "padding", "memory_gib")


# --- options ----------------------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    p = Parser(__doc__, files=True)
    what_options(p.add_argument_group("what"))
    g = p.add_argument_group("how long (the first limit reached ends the run)")
    g.add_argument("--epochs", type=whole(1, 10**6), default=20, help="passes over the training split")
    g.add_argument("--max-steps", type=whole(1), help="optimiser steps")
    g.add_argument("--max-hours", type=real(1e-6, 1e5), help="hours of wall clock, over all continuations")
    more = "evaluations in a row without a new best; 12 h of speech turn after 1,000 to 3,000 steps of 64 utterances"
    g.add_argument("--patience", type=whole(1), help=more)
    recipe_options(p.add_argument_group("recipe"))
    g = p.add_argument_group("machine")
    more = "torch.compile layers and head: minutes slower at first, then faster; a CPU needs a C++ compiler"
    g.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help=more)
    more = "default bf16 where the hardware has it; without, fp16 on a GPU and no (fp32) on a CPU"
    g.add_argument("--precision", choices=("bf16", "fp16", "no"), help=more)
    watching_options(p.add_argument_group("watching"))
    return p


def what_options(g: argparse._ArgumentGroup) -> None:
    more = "cache made by data_prep.py; default data/clartts"
    g.add_argument("--data", type=location, default=Path("data/clartts"), help=more)
    more = "demo, a language (english), or a CONFIG.yaml; default the cache's own"
    g.add_argument("--base", type=filled, help=more)
    g.add_argument("--out", type=location, help="the run's folder; default runs/NAME after the cache")
    more = "start from the base's FlowLM (default), from random weights of its shape, or, with --teacher the default, "
    more += "from the lowest and highest layers of the teacher"
    g.add_argument("--init", choices=("base", "scratch", "teacher"), help=more)
    more = "run, bundle or base of the same widths whose guided output the model learns, in place of the corpus's "
    more += "frames; the head is the teacher's and stays"
    g.add_argument("--teacher", type=filled, metavar="MODEL", help=more)
    more = "how far beyond its own output the teacher follows text and voice; default 2, upstream's; 1 is off"
    g.add_argument("--guidance", type=real(0, 100), metavar="W", help=more)
    more = "what trains: full; last:N, the last N layers, text embedding, output norm and head; lora:R, adapters of "
    more += "rank R and the text embedding; text, the embedding alone"
    g.add_argument("--tune", default="full", help=more)
    more = "keep flow_net and out_eos; default with lora, always with text"
    g.add_argument("--freeze-head", action=argparse.BooleanOptionalAction, help=more)
    more = (
        "base, or fresh:N: a BPE of N pieces over this corpus's romanised text, with a text embedding that starts anew"
    )
    g.add_argument("--tokenizer", default="base", help=more)
    more = "sanity run: train and evaluate on the first N utterances, which must be overfitted"
    g.add_argument("--subset", type=whole(1), metavar="N", help=more)


def recipe_options(g: argparse._ArgumentGroup) -> None:
    more = "utterances at a time, in each process; out of memory: halve it and double --grad-accum, the same steps"
    g.add_argument("--batch-size", type=whole(1, 10**5), default=64, help=more)
    g.add_argument("--grad-accum", type=whole(1, 10**5), default=1, help="such batches a step")
    more = (
        "largest AdamW learning rate; default 2e-4, upstream's for a new language, and 4e-5 with --teacher, also for "
    )
    more += "a new voice of a known language; 1e-3 for a nano model"
    g.add_argument("--lr", type=real(1e-9, 1), help=more)
    more = "muon: for the hidden matrices; a small model trained for minutes learns faster with it"
    g.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help=more)
    more = "after warm-up; cosine falls to 0 at the last step or the end of --max-hours"
    g.add_argument("--schedule", choices=("constant", "cosine"), default="constant", help=more)
    g.add_argument("--warmup-steps", type=whole(0), default=500, help="steps of linear warm-up")
    g.add_argument("--weight-decay", type=real(0, 10), default=0.1, help="AdamW weight decay")
    more = "noise and time draws per audio frame; 1 never reaches good quality upstream"
    g.add_argument("--draws", type=whole(1, 256), default=4, help=more)
    more = "the same for the distillation term, whose draws cost three times as much"
    g.add_argument("--distill-draws", type=whole(1, 256), default=4, help=more)
    more = "share of rows trained without their text; default 0.2, none with --teacher"
    g.add_argument("--text-dropout", type=real(0, 1), help=more)
    more = "share of rows trained without a voice prompt; default 0.5, none with --teacher"
    g.add_argument("--voice-dropout", type=real(0, 1), help=more)
    more = "share of rows whose text loses marks: half of them all, half a random part"
    g.add_argument("--mark-dropout", type=real(0, 1), default=0.0, help=more)
    more = "fixes initial weights, order, prompts and noise"
    g.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help=more)


def watching_options(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--log-every", type=whole(0), default=20, help="steps between printed lines; 0 is off")
    more = "steps between held-out evaluations, each on a checkpoint of its own; 0 is off (then the last checkpoint is "
    more += "exported)"
    g.add_argument("--eval-every", type=whole(0), default=250, help=more)
    more = "held-out sentences spoken at an evaluation to choose the checkpoint, as often as takes no tenth of the "
    more += "time; 0: choose by the held-out error"
    g.add_argument("--judge-sentences", type=whole(0, 10**5), default=16, help=more)
    more = "steps between spoken samples, a base's own and the last step's included; 0 is off"
    g.add_argument("--sample-every", type=whole(0), default=500, help=more)
    more = "also log to Weights & Biases; offline if nobody is logged in"
    g.add_argument("--wandb", type=filled, metavar="PROJECT", help=more)
    g.add_argument("--keep", type=whole(1), default=2, help="newest checkpoints kept, beside the best")


def parse_args() -> argparse.Namespace:
    p = build_parser()
    args = p.parse_args()
    check_student(args, p)
    for name, (plain, as_student) in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, as_student if args.teacher else plain)
    args.out = args.out or Path("runs") / args.data.resolve().name
    if args.precision is None:
        args.precision = default_precision()
    check_args(args)
    return args


def check_student(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What goes with --teacher, and what only with it."""
    if not args.teacher:
        if args.guidance is not None or args.init == "teacher":
            option = "--init teacher" if args.guidance is None else "--guidance"
            raise UserError(f"{option}: needs --teacher, a run, bundle or base")
        return
    for name in NOT_TAUGHT:
        if getattr(args, name) != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option}: not with --teacher, whose output, head and tokenizer a student learns from; leave it out"
            )
    if args.init == "scratch":
        raise UserError(
            "--init scratch: not with --teacher; a student starts from its layers (--init teacher) or from the base's "
            "own (--init base)"
        )


def default_precision() -> str:
    """bf16 emulated is slower than what it replaces: 11 times on GPUs before Ampere (kyutai-labs/pocket-tts)."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def check_args(args: argparse.Namespace) -> None:
    freezes_head(args.tune, args.freeze_head)
    parse_tokenizer(args.tokenizer)
    if args.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16: needs a GPU, whose loss scaler it relies on; use bf16 or no")
    if args.precision == "fp16" and args.optimizer == "muon":
        raise UserError("--precision fp16: its loss scaler serves one optimiser; use bf16 or no with --optimizer muon")
    if args.patience and args.schedule == "cosine":
        raise UserError("--patience ends a run before a cosine has come down; use --schedule constant with it")


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """A run's folder and clock around its steps: what is logged, saved, judged, spoken and exported."""

    def __init__(
        self,
        args: argparse.Namespace,
        cache: Cache,
        config: Config,
        weights: dict[str, torch.Tensor],
        mimi: MimiModel,
        teacher: FlowLMModel | None,
    ):
        self.args, self.cache, self.config, self.weights, self.mimi = args, cache, config, weights, mimi
        self.accelerator = Accelerator(mixed_precision=args.precision, log_with="wandb" if args.wandb else None)
        self.main = self.accelerator.is_main_process
        accelerate.utils.set_seed(args.seed)
        torch.set_float32_matmul_precision("high")  # on a GPU fp32 products, the distillation term's, may be TF32
        self.steps = Steps(args, self.accelerator, cache, config, weights, teacher)
        self.folder, self.clock = RunFolder(args.out), Clock(args.max_hours)
        self.saved_step, self.out_of_patience, self.judge = None, False, None

    @property
    def step(self) -> int:
        return self.steps.done

    def finished(self) -> bool:
        return self.step >= self.steps.last or self.out_of_patience or self.clock.share() >= 1

    def start_or_resume(self) -> None:
        """Open the run's folder. Raises UserError if it holds a run of another recipe."""
        args, steps = self.args, self.steps
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        recipe |= {"cache": self.cache.info["options"], "effective_batch": steps.rows_a_step}
        with self.accelerator.main_process_first():
            self.folder.check(recipe, FREE - LENGTHS if args.schedule == "cosine" else FREE)
            if self.main:
                self.folder.open(recipe)
        with self.accelerator.main_process_first():
            state = resume(self.folder.checkpoints, steps.trained(), self.main)
        if state:
            steps.done = self.saved_step = state["step"]
            self.clock.spent = state["hours"]
        if self.main and state:
            self.folder.rewind(self.step)
            print(f"continuing at step {self.step}, {self.clock.hours():.2f} h spent")
        elif self.main:
            self.folder.begin({"device": str(steps.device), "args": recipe})
        if args.wandb:
            self.track(recipe)

    def track(self, recipe: dict) -> None:
        """Log to Weights & Biases too."""
        import wandb

        options = {"dir": str(self.args.out), "name": self.args.out.name}
        if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
            options["mode"] = "offline"
            print(f"wandb: nobody is logged in; logging offline to {self.args.out}/wandb (wandb sync uploads it)")
        self.accelerator.init_trackers(self.args.wandb, {k: str(v) for k, v in recipe.items()}, {"wandb": options})

    def introduce(self) -> None:
        """What trains, on what, how far."""
        steps, hours = self.steps, self.args.max_hours
        print(parts_table(steps.tts.flow_lm))
        limit = f"step {steps.last}" + (f" or {hours} h" if hours else "")
        print(
            f"{len(steps.train)} utterances, {steps.an_epoch} steps an epoch of {steps.rows_a_step} each, to {limit}; "
            f"{self.accelerator.num_processes} x {steps.device}, precision {self.args.precision}, {steps.run.name}",
            flush=True,
        )

    def time_share(self) -> float:
        """Of the limit of time; every process's is the main one's."""
        share = self.clock.share()
        if self.accelerator.num_processes == 1 or not self.args.max_hours:
            return share  # a tensor of one number would make a GPU wait for it at each step
        shares = torch.tensor([share], dtype=torch.float64, device=self.steps.device)
        return accelerate.utils.broadcast(shares).item()

    def take_step(self) -> None:
        """Raises UserError if its gradient, or on a GPU that of the step before, is not finite; its rows are saved."""
        with self.rows_kept():
            self.steps.take(self.time_share())

    @contextmanager
    def rows_kept(self) -> Iterator[None]:
        """A gradient that is not finite becomes a UserError, its rows saved."""
        try:
            yield
        except NotFinite as error:
            inputs = self.args.out / f"not_finite_step_{error.check.step:06d}.pt"
            torch.save(error.check.inputs, inputs)
            raise UserError(f"{error} (its rows: {inputs}); {self.whole_until()}") from None

    def whole_until(self) -> str:
        """What a run that is not finite leaves, and the way on."""
        last = newest_checkpoint(self.folder.checkpoints)
        return f"{f'whole until {last}; ' if last else ''}start again with a lower --lr and another --out"

    def record(self, record: dict) -> None:
        """Into progress.jsonl and to the trackers."""
        append_jsonl(self.folder.progress, record)
        self.accelerator.log({k: v for k, v in record.items() if k != "kind"}, step=self.step)

    def log(self) -> None:
        """One line for the steps since the last one."""
        steps = self.steps
        means = steps.window.means(self.accelerator.reduce)
        if self.main:
            if not math.isfinite(means["loss"]):
                raise UserError(f"loss not finite at step {self.step}; {self.whole_until()}")
            found = {"kind": "train", "step": self.step, "hours": round(self.clock.hours(), 4)}
            found |= {"lr": steps.optimizers[0].param_groups[0]["lr"], **means, **steps.window.speed()}
            self.record(found)
            shown = " ".join(f"{name} {found[name]:.4g}" for name in LOGGED if name in found)
            print(f"step {self.step}/{steps.last} {shown} left {60 * self.hours_left():.1f} min", flush=True)
        steps.window = Window()

    def hours_left(self) -> float:
        """Until the last step or the limit of time: steps at their mean, evaluations and samples as long as the
        slowest one."""
        last, hours = self.steps.last, self.args.max_hours
        every = min((n for n in (self.args.eval_every, self.args.sample_every) if n), default=last)
        stops = -(-last // every) - self.step // every
        by_steps = (last - self.step) * self.steps.pace.mean() / 3600 + stops * self.clock.closing
        return min(by_steps, max(0.0, hours - self.clock.hours())) if hours else by_steps

    def due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.finished())

    def save_and_watch(self) -> None:
        """Save first: what an evaluation or a sample might break, it cannot lose. The main process does it, the others
        wait."""
        args, start = self.args, self.clock.hours()
        with self.rows_kept():
            self.steps.check_finite()
        if self.main:
            self.save()
            with torch.random.fork_rng():  # the wheel draws a noise for each prompt that it reads
                if self.due(args.eval_every):
                    self.evaluate()
                if self.due(args.sample_every) and (self.step or args.init != "scratch"):
                    self.speak_samples()
            best = best_checkpoint(self.folder.checkpoints, self.folder.records())
            prune(self.folder.checkpoints, args.keep, best[0] if best else None)
        self.accelerator.wait_for_everyone()
        took = self.clock.hours() - start
        self.clock.closing = max(self.clock.closing, took)
        self.steps.pace.pause(3600 * took)

    def save(self) -> None:
        """Raises UserError for weights that are not finite, which are never saved."""
        if self.saved_step != self.step:
            shadow = self.steps.ema.shadow
            if bad := [name for name, value in shadow.items() if not torch.isfinite(value).all()]:
                raise UserError(f"{bad[0]} is not finite at step {self.step}; {self.whole_until()}")
            save_checkpoint(self.folder.checkpoints, self.step, self.steps.trained(), {"hours": self.clock.hours()})
            self.saved_step = self.step

    def evaluate(self) -> None:
        """Score the averaged weights on the held-out split, once a step; redraw loss.png."""
        progress = self.folder.records()
        if not any(r["step"] == self.step for r in progress if r["kind"] == "eval"):
            record = {"kind": "eval", "step": self.step, "hours": round(self.clock.hours(), 4)}
            start = time.monotonic()
            record |= self.steps.held_out()
            record["eval_sec"] = round(time.monotonic() - start, 2)
            record |= self.judged(progress)
            self.record(record)
            held_out = ", ".join(f"{k[6:]} {v:.4g}" for k, v in record.items() if k.startswith("valid_"))
            if "speech_score" in record:
                held_out += "; speech_score {speech_score:.3f} dB, {ends} of {spoken} ends, in {judge_sec} s".format(
                    **record
                )
            print(f"step {self.step}: held out {held_out}", flush=True)
            progress.append(record)
            plot_curves(self.args.out / "loss.png", progress)
        values, patience = scores(progress)[1], self.args.patience
        best = min(values, key=values.get)
        if patience and sum(step > best for step in values) >= patience:
            self.out_of_patience = True
            print(f"no better than step {best} for {patience} evaluations: stopping")

    def judged(self, progress: list[dict]) -> dict:
        """What the averaged weights say, scored, unless that would take more than its share of the time."""
        took = [r["judge_sec"] for r in progress if "judge_sec" in r]
        affordable = not took or self.finished() or sum(took) + took[-1] <= JUDGE_SHARE * 3600 * self.clock.hours()
        if not self.args.judge_sentences or not affordable:
            return {}
        if self.judge is None:
            from pocket_arabic.evaluation import Judge  # librosa takes a second to load

            self.judge = Judge(self.steps.valid, self.mimi, self.args.judge_sentences)
        start = time.monotonic()
        return self.judge.score(self.speaker()) | {"judge_sec": round(time.monotonic() - start, 2)}

    def speaker(self) -> TTSModel:
        """The averaged weights, to speak with."""
        flow_lm = build_flow_lm(self.config, self.steps.averaged(self.steps.ema.shadow))
        return tts_model(self.config, flow_lm, self.mimi).to(self.steps.device)

    def speak_samples(self) -> None:
        """samples/step_NNNNNN_0.wav and _1.wav: the same held-out sentences, voice and seeds every time."""
        stem = self.args.out / "samples" / f"step_{self.step:06d}"
        if not stem.with_name(f"{stem.name}_0.wav").exists():
            texts = [row["text_model"] for row in self.cache.split("valid")[:2]]
            speak_samples(stem, self.speaker(), self.cache.voice(), texts)

    def close(self) -> None:
        """End the trackers and the process group. The wrapped model goes first: freed together with it, the group waits
        for Gloo's thread while holding the GIL that this thread needs to free its last tensor (pytorch/pytorch#56297);
        5 of 100 runs hung so."""
        self.steps.model = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def export(self) -> None:
        """bundle/ from the best checkpoint; from the last one if none was evaluated. Raises UserError if all it says is
        silence."""
        bundle, records = self.folder.bundle, self.folder.records()
        best = best_checkpoint(self.folder.checkpoints, records)
        path, name, score = best or (newest_checkpoint(self.folder.checkpoints), None, None)
        if exported(bundle) == path.name:
            print(f"{bundle} holds {path.name} already; nothing to do")
            return
        judged = next((r for r in records if "silent" in r and r["step"] == int(path.name[5:])), {})
        if judged and judged["silent"] == judged["spoken"]:
            raise UserError(
                f"{path}, the best, says nothing but silence, so no bundle is made; look at "
                f"{self.args.out / 'loss.png'}, train longer, or begin again with another --lr and --out"
            )
        try:
            state = self.steps.averaged(read_weights(path / "ema.safetensors", self.steps.ema.shadow))
        except Damaged as error:
            raise UserError(
                f"{error}; without it the next best is exported: rm -r {path}, then the same command"
            ) from None
        state |= {k: v for k, v in self.weights.items() if k.startswith("mimi.")}
        chosen_by = SCORES[name] if best else "last checkpoint; there was no evaluation"
        info = {"checkpoint": path.name, "chosen_by": chosen_by, "score": score, **self.origin()}
        export_bundle(bundle, self.config, state, self.cache.voice(), info)
        print(f"bundle: {bundle} ({path.name}" + (f", {name} {score:.3f})" if best else ")"))

    def origin(self) -> dict:
        """What a bundle tells of where it comes from, and what speaking needs to know of its training."""
        args, options, train = self.args, self.cache.info["options"], self.steps.train
        return {
            "base": Path(args.base).name,
            "teacher": args.teacher and Path(args.teacher).name,
            "guidance": args.guidance,
            "corpus": options["corpus"],
            "tune": args.tune,
            "hours": self.cache.info["hours"]["train"],
            "max_tokens": int(train.num_tokens().max()),
            "slowest_sec_per_token": round(train.slowest(), 4),
            "substitute": options.get("substitute"),
            "phonemes": options.get("phonemes"),
            "eos_threshold": self.config.default_eos_threshold,
            **provenance(),
        }


def main() -> None:
    args = parse_args()
    use_all_cores()

    # 1. Cache and base: everything a user can get wrong, before anything slow.
    cache = Cache(args.data)
    cache.voice()  # samples and the bundle need it
    args.base = args.base or cache.info["options"]["base"]
    start = load_start(args, cache)

    # 2. Model and optimiser; the folder, new or to be continued.
    run = Run(args, cache, *start)
    run.start_or_resume()
    if run.main:
        run.introduce()

    # 3. Train. Processes agree on when to stop: a signal or the clock of one of them ends the run for all.
    stop = StopSignal()
    run.save_and_watch()  # the score before the first step, or one that a crash cut off
    while True:
        if run.finished() or stop.received:
            run.accelerator.set_trigger()
        if run.accelerator.check_trigger():
            break
        run.take_step()
        if args.log_every and run.step % args.log_every == 0:
            run.log()
        if run.step % run.steps.an_epoch == 0 or (args.eval_every and run.step % args.eval_every == 0):
            run.save_and_watch()

    # 4. Save where it stopped; if it is done, export the best checkpoint.
    run.save_and_watch()
    run.close()
    if not run.main:
        return
    if stop.received and not run.finished():
        print(f"stopped at step {run.step}; the same command continues")
        raise SystemExit(128 + stop.received)
    # All of --max-hours is spent, what it left for closing too: the same command again has nothing to do.
    hours = run.clock.hours()
    update_hours(run.folder.checkpoints, hours if run.step == run.steps.last else max(hours, args.max_hours or 0.0))
    run.export()


if __name__ == "__main__":
    command(main)
