#!/usr/bin/env python3
"""Does classifier-free guidance help at generation? The held-out sentences, spoken with several weights and seeds.

At each frame the head is asked twice, with the condition of [voice | text | audio] and with that of [voice | audio], as
training drops the text of some rows; u = u_without + weight (u_with - u_without). Weight 1 is no guidance. Stock tools
have none, so this is a measurement with a loop of its own, not a way to speak.

    python demo/measure_guidance.py --scorer "python recogniser.py --list" --out samples/guidance.json
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from pocket_tts.modules.stateful_module import increment_steps, init_states
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from pocket_arabic.audio import read_audio, write_wav  # noqa: E402
from pocket_arabic.base import decode_latents  # noqa: E402
from pocket_arabic.cache import Cache  # noqa: E402
from pocket_arabic.checkpoint import find_bundle  # noqa: E402
from pocket_arabic.run import command, write_json  # noqa: E402
from pocket_arabic.speech import load_bundle  # noqa: E402


@torch.no_grad()
def generate(model, prompt: torch.Tensor, text_model: str, weight: float, seed: int) -> tuple[np.ndarray, bool]:
    """Raw prompt latents [V, 32] and text -> audio [samples], and whether the end was reached."""
    lm, generator = model.flow_lm, torch.Generator().manual_seed(seed)
    tokens = lm.conditioner.prepare(text_model)
    limit = model._estimate_max_gen_len(tokens.shape[1])
    states = [init_states(lm, 1, 1 + len(prompt) + tokens.shape[1] + limit + 1) for _ in range(2)]

    def read(state: dict, embedded: torch.Tensor) -> torch.Tensor:
        out = lm.out_norm(lm.transformer(embedded, state))
        increment_steps(lm, state, embedded.shape[1])
        return out[:, -1]

    for state in states:
        read(state, torch.cat([lm.bos_before_voice, (prompt @ lm.speaker_proj_weight.T)[None]], 1))
    read(states[0], lm.conditioner(tokens))
    latent, found, ended = lm.bos_emb[None, None], [], False
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    for frame in range(limit):
        z, without = (read(state, lm.input_linear(latent)) for state in states)
        ended = frame >= model._MIN_FRAMES_BEFORE_EOS and bool(lm.out_eos(z) > model.eos_threshold)
        if ended:
            break
        noise = torch.randn(1, 32, generator=generator) * model.temp**0.5
        u, plain = (lm.flow_net(condition, zero, one, noise) for condition in (z, without))
        latent = (noise + plain + weight * (u - plain))[None]
        found.append(latent[0, 0])
    return decode_latents(model.mimi, torch.stack(found) * lm.emb_std + lm.emb_mean), ended


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("data/demo"))
    p.add_argument("--model", type=Path, default=Path("runs/demo"), help="run or bundle")
    p.add_argument("--weights", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--sentences", type=int, default=40)
    p.add_argument("--scorer", required=True, help="command that scores a pairs.jsonl and prints a JSON summary as its last line")
    p.add_argument("--out", type=Path, default=Path("guidance.json"))
    args = p.parse_args()
    bundle = find_bundle(args.model)
    model, rows = load_bundle(bundle), Cache(args.data).split("test")[: args.sentences]
    with torch.no_grad():
        prompt = model.mimi.encode_to_latent(torch.from_numpy(read_audio(bundle / "voice.wav", model.sample_rate))[None, None])[0]
    results = {"command": shlex.join(["python", "demo/measure_guidance.py", *sys.argv[1:]]), "sentences": len(rows), "seeds": args.seeds, "weights": {}}
    for weight in args.weights:
        scores, ends = [], 0
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                pairs = []
                for row in tqdm(rows, desc=f"weight {weight}, seed {seed}", disable=None):
                    audio, ended = generate(model, prompt, row["text_model"], weight, seed)
                    ends += ended
                    wav = Path(folder) / f"{row['id']}.wav"
                    write_wav(wav, audio, model.sample_rate)
                    pairs.append({"wav": str(wav), "text": row["text"]})
                listing = Path(folder) / "pairs.jsonl"
                listing.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in pairs), encoding="utf-8")
                scored = subprocess.run([*shlex.split(args.scorer), str(listing)], capture_output=True, text=True, check=True)
                scores.append(json.loads(scored.stdout.splitlines()[-1]))
        results["weights"][str(weight)] = {"eos_reached": ends, "scores": scores}
        write_json(args.out, results)
    print(args.out.read_text())


if __name__ == "__main__":
    command(main)
