#!/usr/bin/env python3
"""Train the ear (measure/ear.py): make words without sense, speak them with espeak-ng, listen.

    apt-get install espeak-ng
    python measure/train_ear.py
    python measure/train_ear.py --clips 250 --steps 20 --work /tmp/ear --out /tmp/ear.safetensors    # runs small

Reads   demo/codec.safetensors, and demo/sentences.txt only to make sure that none of it is said.
Writes  --work: the features of what was spoken, a checkpoint, progress.jsonl; at the end --out, in fp16.

A line is a few words drawn apart: roots of three random letters in patterns of the language, with clitics and endings
of any case, and some particles. No order of words or letters can be guessed, so the ear has to hear every vowel. Half
of the clips have the embedded corpus's voice, the others another variant, all some tempo and pitch; some go through
Opus, as the corpus did, some through the nano codec, half of these with noise on the latents, as those that a FlowLM
makes have it. Training draws noise, tilts of the spectrum and masks of bands anew each time.

The same command again continues: parts that are spoken stay, and training goes on from its checkpoint.
"""

import argparse
import io
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import torch.nn.functional as F
from pocket_tts.models.mimi import MimiModel
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "demo")]
from build_corpus import SAMPLE_RATE as SPEECH_RATE  # noqa: E402
from build_corpus import espeak  # noqa: E402
from ear import CENTRE, FLOOR, MELS, SCALE, STRIDE, SYMBOLS, WEIGHTS, Net, best_path, features, spelled  # noqa: E402

from pocket_arabic.base import decode_latents, load_config, load_mimi, load_weights  # noqa: E402
from pocket_arabic.evaluation import error_rates  # noqa: E402
from pocket_arabic.run import ROOT, RunFolder, append_jsonl, atomic_write, command  # noqa: E402
from pocket_arabic.text import deromanise, normalise, scored  # noqa: E402

# --- words without sense ----------------------------------------------------------------------------------------------


def listed(words: str) -> list[str]:
    return words.split()


# Frequent letters stand oftener, far less often than in a text.
LETTERS = "ءءبتتثجحخددذررزسسشصضطظععغففققككللللممممنننههوويي"
SUN = "تثدذرزسشصضطظلن"
# 1, 2, 3 are the letters of a root.
STEMS = listed("""
    1َ2َ3 1ُ2ِ3 1َ2ِ3 1َ2ُ3 1َ2ْ3 1ُ2ْ3 1ِ2ْ3 1ُ2ُ3 1ِ2َ3 1َا2ِ3 1َا2َ3 1ِ2َا3 1َ2َا3 1ُ2َا3 1َ2ِي3 1ُ2ُو3 1َ2ُو3 1َا3
    1ِي3 1ُو3 1َيْ3 1َوْ3 1َ2ّ 1ُ2ّ 1ِ2ّ 1َ2َّ3 1ُ2ِّ3 1َ2َّا3 1ُ2َّا3 1ُ2َيْ3 1َوْ2َ3 1َيْ2َ3 1َوَا2ِ3 1َ2َائِ3
    1َ2ْ3َا2 1ُ2ْ3ُو2 1ِ2ْ3ِي2 1َ2ْ3َ2 مَ1ْ2ُو3 مَ1ْ2َ3 مَ1ْ2ِ3 مَ1َا2ِ3 مَ1َا2ِي3 مُ1َ2ِّ3 مُ1َ2َّ3 مُ1َا2ِ3 مُ1ْ2ِ3
    مُ1ْتَ2ِ3 مُتَ1َ2ِّ3 مُنْ1َ2ِ3 مُسْتَ1ْ2َ3 مِ1ْ2َا3 مِ1ْ2َ3 تَ1ْ2ِي3 تَ1َ2َّ3 تَ1َ2ُّ3 تَ1َا2َ3 ان1َ2َ3 ا1ْتَ2َ3
    اسْتَ1ْ2َ3 اسْتِ1ْ2َا3 ا1ْتِ2َا3 انْ1ِ2َا3 أَ1ْ2َ3 أُ1ْ2ِ3 إِ1ْ2َا3 أَ1ْ2َا3 أَ1ْ2ِ3 يَ1ْ2ُ3 يَ1ْ2ِ3 يَ1ْ2َ3
    يُ1َ2ِّ3 يُ1ْ2َ3 يَتَ1َ2َّ3 تَ1ْ2ُ3 تُ1َا2ِ3 نَ1ْ2َ3 نُ1ِي3 أَ1ُو3 آ2َا3 آ2ِ3 1َ2ْ3ِيّ 1َا2ُو3 1َ2َ3َا1ِ2
""")
ENDINGS = listed("""
    َ َ َ ُ ُ ُ ِ ِ ِ ٌ ٌ ٍ ٍ ًا ًا ْ ْ َةٌ َةٍ َةً َةَ َةُ َةِ َا ُوا ُونَ ِينَ َانِ َيْنِ َاتٌ َاتٍ َاتُ َاتِ َتْ ْتُ
    ْتَ ْتِ ْنَا ْتُمْ ْنَ َهُ ُهُ ِهِ َهَا ُهَا ِهَا َهُمْ ُهُمْ ِهِمْ َكَ ُكَ ِكَ ِي َنِي َنَا ُنَا ِنَا َى ًى ِيٌّ
    ِيَّةٌ ِيَّةَ َوْا َيْتُ َتْهُ َتُهُ َتِي
""")
PREFIXES = ["", *listed("الْ وَ فَ بِ لِ كَ سَ أَ وَالْ بِالْ كَالْ فَالْ لِلْ فَبِ وَلِ لَ")]
PARTICLES = listed("""
    فِي مِنْ عَنْ عَلَى إِلَى هُوَ هِيَ هُمْ مَا لَا لَمْ لَنْ قَدْ لَقَدْ إِنَّ أَنَّ أَنْ إِنْ كَانَ لَيْسَ هٰذَا
    هٰذِهِ ذٰلِكَ تِلْكَ أُولٰئِكَ الَّذِي الَّتِي الَّذِينَ كُلُّ كُلَّ كُلِّ ثُمَّ أَوْ أَمْ بَلْ حَتَّى إِذَا لَوْ
    مَنْ يَا اللَّهُ اللَّهِ اللّٰهُ اللّٰهِ عِنْدَ بَعْدَ قَبْلَ بَيْنَ لٰكِنَّ لٰكِنْ غَيْرَ كَمَا أَيْنَ كَيْفَ أَنَا
    أَنْتَ نَحْنُ هَلْ هٰؤُلَاءِ رَحْمٰنُ مَعَ مُنْذُ حَيْثُ أَيُّهَا
""")
PARTICLE_SHARE, PREFIX_SHARE, COMMA_SHARE, WASLA_SHARE = 0.15, 0.45, 0.1, 0.1
WORDS = (2, 6)  # a line's length


def word(rng: random.Random) -> str:
    """A particle, or a root in a pattern: of random letters, and so hardly ever a word."""
    if rng.random() < PARTICLE_SHARE:
        return rng.choice(PARTICLES)
    root = rng.choices(LETTERS, k=3)
    text = re.sub("[123]", lambda m: root[int(m[0]) - 1], rng.choice(STEMS)) + rng.choice(ENDINGS)
    text = text.replace("ّْ", "ّ")
    if rng.random() < PREFIX_SHARE:
        text = with_prefix(rng.choice(PREFIXES), text)
    if text[0] == "ا" and rng.random() < WASLA_SHARE:
        text = "ٱ" + text[1:]
    return with_seats(text)


def with_prefix(prefix: str, text: str) -> str:
    """The article's lam is heard as the sun letter after it, and takes a kasra before an alef that only carries.

    >>> with_prefix("الْ", "شَمْسٌ"), with_prefix("وَالْ", "اسْتِقْلَالُ"), with_prefix("بِ", "يَدٍ")
    ('الشَّمْسٌ', 'وَالِاسْتِقْلَالُ', 'بِيَدٍ')
    """
    if prefix.endswith("لْ") and text[0] in SUN:
        return prefix[:-1] + text[0] + ("" if text[1] == "ّ" else "ّ") + text[1:]
    if prefix.endswith("لْ") and text[0] == "ا":
        return prefix[:-1] + "ِ" + text
    return prefix + text


def with_seats(text: str) -> str:
    """Each hamza on the seat that the vowels around it ask for, roughly as spelling has it.

    >>> with_seats("سُءَالٌ"), with_seats("ءِبِلٌ"), with_seats("ذِءْبٌ"), with_seats("ءَامَنَ")
    ('سُؤَالٌ', 'إِبِلٌ', 'ذِئْبٌ', 'آمَنَ')
    """

    def seat(match: re.Match) -> str:
        before, after = match.string[: match.start()], re.sub("^ّ", "", match.string[match.end() :])[:1]
        if not before:
            return "إ" if after == "ِ" else "أ"
        if "ِ" in (before[-1], after) or before[-1] == "ي" or after == "ٍ":
            return "ئ"
        if "ُ" in (before[-1], after):
            return "ؤ"
        return "ء" if before[-1] in "او" or after in ("ٌ", "ً") else "أ"

    return re.sub("أَا|ءَا", "آ", re.sub("ء", seat, text)) if "ء" in text else text


def line(rng: random.Random) -> str:
    """A few words, perhaps a comma between two, and an end."""
    words = [word(rng) for _ in range(rng.randint(*WORDS))]
    parted = [w + ("،" if rng.random() < COMMA_SHARE else "") for w in words[:-1]]
    return normalise(" ".join([*parted, words[-1]]) + rng.choice("..؟!"))


def triples(text: str) -> set[tuple[str, ...]]:
    """Three words in a row, by their letters."""
    words = scored(text, marks=False).split()
    return set(zip(words, words[1:], words[2:]))


# --- speech -----------------------------------------------------------------------------------------------------------

VARIANTS = [*(f"m{i}" for i in range(1, 9)), *(f"f{i}" for i in range(1, 6)), "klatt", "klatt2", "steph", "adam"]
OPUS = (0.8, 0.97)  # libsndfile's compression levels about the corpus's 0.91
LATENT_NOISE = 0.2  # largest, in deviations of the latents, which the codec makes 1
OPUS_SHARE, CODEC_SHARE = 0.15, 0.125  # of the clips: some 0.3 and 0.5 s each, where speaking takes 0.03
CODEC_WEIGHT = 3  # a codec copy counts as three clips
PART = 250  # clips


def through_opus(samples: np.ndarray, level: float) -> np.ndarray:
    file = io.BytesIO()
    sf.write(file, samples, SPEECH_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return sf.read(io.BytesIO(file.getvalue()), dtype="float32")[0]


def load_codec() -> MimiModel:
    config = load_config("demo")
    return load_mimi(config, load_weights(config))


@torch.no_grad()
def through_codec(mimi: MimiModel, samples: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    latents = mimi.encode_to_latent(torch.from_numpy(samples)[None, None])[0]
    latents += noise * torch.from_numpy(rng.standard_normal(latents.shape).astype("float32"))
    return decode_latents(mimi, latents)


def drawn_variant(rng: random.Random) -> dict:
    return {"voice": f"ar+{rng.choice(VARIANTS)}", "speed": rng.randint(120, 200), "pitch": rng.randint(25, 75)}


def drawn_voice(rng: random.Random) -> dict:
    """The corpus's voice, as it is or a little off."""
    speed, pitch = rng.choice((150, rng.randint(120, 190))), rng.choice((50, rng.randint(35, 65)))
    return {"speed": speed, "pitch": pitch}


def speak_part(number: int, seed: int, mimi: MimiModel, forbidden: set[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Part `number` of the corpus, every clip as it is or by Opus, some through the codec besides: a pure function of
    (seed, number)."""
    rng, noise = random.Random(f"{seed} {number}"), np.random.default_rng([seed, number])
    found, texts = [], []
    for index in range(PART):
        text = line(rng)
        assert not triples(text) & forbidden, text
        samples = espeak(text, **(drawn_variant(rng) if index % 2 else drawn_voice(rng)))
        copies = [through_opus(samples, rng.uniform(*OPUS)) if rng.random() < OPUS_SHARE else samples]
        if index % 2 == 0 and rng.random() < 2 * CODEC_SHARE:
            deviation = rng.choice((0.0, rng.uniform(0, LATENT_NOISE)))
            copies += [through_codec(mimi, samples, deviation, noise)] * CODEC_WEIGHT
        for copy in copies:
            found.append(features(copy, SPEECH_RATE).half().numpy())
            texts.append(spelled(text))
    return {"mel": np.concatenate(found), "frames": np.array([len(f) for f in found]), "texts": np.array(texts)}


def speak_all(work: Path, clips: int, seed: int) -> list[tuple[torch.Tensor, str]]:
    """(features [T, MELS], what is said) of every clip and copy; speaks the parts that are not there yet."""
    mimi = load_codec()
    forbidden = set().union(*map(triples, (ROOT / "demo" / "sentences.txt").read_text(encoding="utf-8").splitlines()))
    corpus = []
    for number in range(math.ceil(clips / PART)):
        file = work / f"part_{number:03d}.npz"
        if not file.exists():
            with atomic_write(file) as tmp:
                np.savez(tmp, **speak_part(number, seed, mimi, forbidden))
            print(f"{file}: spoken, {time.process_time():.0f} s of one core", flush=True)
        with np.load(file) as part:
            ends = np.cumsum(part["frames"])
            mels = np.split(part["mel"], ends[:-1])
            corpus += [(torch.from_numpy(mel), str(text)) for mel, text in zip(mels, part["texts"])]
    return corpus


# --- listening --------------------------------------------------------------------------------------------------------

SILENCE = (math.log(FLOOR) - CENTRE) / SCALE
NOISE_LEVEL = (-8.0, -3.0)  # logarithms of power over the clip's mean power; half of the draws have none
TILT, MASKED_BANDS = 0.3, 8
EMA = 0.998
HELD_OUT = 100  # clips of the corpus that are only listened to


def disturbed(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """[T, MELS] with a tilt, a floor of noise, a few bands masked; never time, where a sound would be guessed."""
    mel = mel.float() + torch.linspace(-1, 1, MELS) * rng.uniform(-TILT, TILT)
    if rng.random() < 0.5:
        noise = 0.8 * torch.randn(mel.shape) + rng.uniform(*NOISE_LEVEL)
        mel = (torch.logaddexp(SCALE * mel + CENTRE, noise) - CENTRE) / SCALE
    width = int(rng.integers(0, MASKED_BANDS + 1))
    start = int(rng.integers(0, MELS - width))
    mel[:, start : start + width] = 0
    return mel


def batches(corpus: list, size: int, seed: int, step: int) -> Iterator[list[int]]:
    """Endless batches of indices from `step` on, of clips of one length; each pass has its own order."""
    while True:
        per_pass = len(corpus) // size
        rng = np.random.default_rng([seed, step // per_pass])
        lengths = np.array([len(mel) for mel, _ in corpus]) * rng.uniform(0.85, 1.15, len(corpus))
        groups = np.argsort(lengths)[len(corpus) % size :].reshape(per_pass, size)
        for group in rng.permutation(groups)[step % per_pass :]:
            yield group.tolist()
            step += 1


def loss_of(net: Net, mels: list[torch.Tensor], texts: list[str]) -> torch.Tensor:
    """CTC's, a mean over the batch of each clip's loss over its length."""
    together = torch.full((len(mels), max(map(len, mels)), MELS), SILENCE)
    for row, mel in zip(together, mels):
        row[: len(mel)] = mel
    targets = [torch.tensor([SYMBOLS.index(c) + 1 for c in text]) for text in texts]
    frames = torch.tensor([math.ceil(len(mel) / STRIDE) for mel in mels])
    lengths = torch.tensor([len(t) for t in targets])
    return F.ctc_loss(net(together).transpose(0, 1), torch.cat(targets), frames, lengths, zero_infinity=True)


@torch.no_grad()
def held_out_error(net: Net, corpus: list[tuple[torch.Tensor, str]]) -> float:
    """Mean error rate, marks counted."""
    net.eval()
    heard = [best_path(net(mel.float()[None])[0]) for mel, _ in corpus]
    net.train()
    return float(np.mean([error_rates(deromanise(text), h)["cer_marks"] for (_, text), h in zip(corpus, heard)]))


class Training:
    """The net, its average, the optimiser and the step, kept in one file."""

    def __init__(self, file: Path, lr: float, steps: int):
        self.file, self.lr, self.steps, self.step, self.cpu_sec = file, lr, steps, 0, 0.0
        self.net, self.average = Net(), Net()
        self.average.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr, weight_decay=0.01)
        if file.exists():
            saved = torch.load(file, weights_only=True)
            for part in ("net", "average", "optimiser"):
                getattr(self, part).load_state_dict(saved[part])
            self.step, self.cpu_sec = saved["step"], saved["cpu_sec"]

    def save(self) -> None:
        parts = {part: getattr(self, part).state_dict() for part in ("net", "average", "optimiser")}
        with atomic_write(self.file) as tmp:
            torch.save(parts | {"step": self.step, "cpu_sec": self.cpu_sec}, tmp)

    def advance(self, mels: list[torch.Tensor], texts: list[str]) -> float:
        """One step of AdamW: 200 steps of warmup, then a cosine to nothing; the average follows."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        self.optimiser.param_groups[0]["lr"] = self.lr * min(1.0, (self.step + 1) / 200) * cosine
        loss = loss_of(self.net, mels, texts)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(EMA, self.step / (self.step + 10))
        for mean, new in zip(self.average.parameters(), self.net.parameters()):
            mean.data.lerp_(new.data, 1 - decay)
        return loss.item()


def train(corpus: list[tuple[torch.Tensor, str]], args: argparse.Namespace) -> Net:
    held_out, corpus = corpus[:HELD_OUT], corpus[HELD_OUT:]
    torch.manual_seed(args.seed)
    training, losses, start = Training(args.work / "checkpoint.pt", args.lr, args.steps), [], time.process_time()
    for batch in batches(corpus, args.batch_size, args.seed, training.step):
        if training.step >= args.steps:
            break
        rng = np.random.default_rng([args.seed, training.step])
        torch.manual_seed(int(rng.integers(2**31)))  # what is drawn depends on the step alone, resumed or not
        losses.append(training.advance([disturbed(corpus[i][0], rng) for i in batch], [corpus[i][1] for i in batch]))
        if training.step % args.save_every == 0 or training.step == args.steps:
            now = time.process_time()
            training.cpu_sec, start = training.cpu_sec + now - start, now
            training.save()
            record = {"loss": float(np.mean(losses)), "held_out_cer": held_out_error(training.average, held_out)}
            record = {"step": training.step, **record, "cpu_sec": round(training.cpu_sec)}
            append_jsonl(args.work / "progress.jsonl", record)
            print(json.dumps(record), flush=True)
            losses = []
    return training.average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ear"), help="folder of the run")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the weights")
    parser.add_argument("--clips", type=int, default=4000, help="lines to speak")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak, of AdamW")
    parser.add_argument("--save-every", type=int, default=100, help="steps from checkpoint to checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe, folder = (
        {key: vars(args)[key] for key in ("clips", "steps", "batch_size", "lr", "seed")},
        RunFolder(args.work),
    )
    folder.check(recipe, free=set())
    folder.open(recipe)
    net = train(speak_all(args.work, args.clips, args.seed), args)
    with atomic_write(args.out) as tmp:
        save_file({k: v.half() for k, v in net.state_dict().items()}, tmp)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command(main)
