"""The nano codec's training (demo/train_codec.py): its distances, its start, and one pass that serves two sides."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scripts import ROOT, run
from torch import nn

sys.path.insert(0, str(ROOT / "demo"))
sys.path.insert(0, str(ROOT / "measure"))
import codec
import train_codec
from train_codec import (
    FRAME,
    SAMPLE_RATE,
    MelodyDistance,
    SpectralDistance,
    generator_terms,
    in_step,
    periods,
)


def tones(*hz: float, frames: int = 4) -> torch.Tensor:
    """[1, 1, samples], each tone a whole number of periods."""
    time = torch.arange(frames * FRAME, dtype=torch.float64) / SAMPLE_RATE
    return sum(torch.sin(2 * math.pi * f * time) for f in hz)[None, None].float()


def test_the_melody_distance_is_the_waveforms_not_the_spectrums():
    """Closed forms: silence is log 2 away, the same tone a quarter period late log 3, upside down log 5; what lies
    above the bands does not count. To the spectral distance, which sees no phase, upside down is the same."""
    distance, real = MelodyDistance(4 * FRAME), tones(100)
    late = torch.roll(real, SAMPLE_RATE // 100 // 4, -1)
    # 1e-3 of the mean energy keeps silent crops finite.
    for fake, energy in ((real, 0), (torch.zeros_like(real), 1), (late, 2), (-real, 4)):
        assert distance(fake, real).item() == pytest.approx(math.log1p(energy / 1.001), abs=1e-4)
    assert distance(real + tones(5000), real).item() < 1e-4
    half = distance(tones(300), tones(100, 300))  # below 200 Hz all of it is missing, above that half of the energy
    assert half.item() == pytest.approx((math.log1p(1 / 1.001) + 4 * math.log1p(0.5 / 1.001)) / 5, abs=1e-3)
    assert SpectralDistance()(-real, real).item() < 1e-6


def test_pauses_do_not_pull_more_than_speech():
    """A sound a little louder than it should be and hiss 60 dB below it in a pause: where there is nothing, logarithms
    are steep: 720 times as much without weights."""
    sound, hiss = torch.randn(2, 1, 1, 8 * FRAME, generator=torch.Generator().manual_seed(0)) / 10
    real = torch.cat([sound, torch.zeros_like(sound)], -1)
    said = torch.cat([1.1 * sound, hiss / 1000], -1).requires_grad_()
    SpectralDistance()(said, real).backward()
    speech, pause = (part.norm().item() for part in said.grad.split(sound.shape[-1], -1))
    assert 1 < pause / speech < 40


@pytest.mark.parametrize("hz", [83.0, 104.0, 137.0, 240.0])
def test_a_voice_in_step_begins_a_period_with_each_frame(hz):
    """Of a steady voice all frames become the same, and hold the whole periods nearest to those they held; its formant
    stays where it was."""
    time = torch.arange(12 * FRAME, dtype=torch.float64) / SAMPLE_RATE
    voice = sum(math.exp(-((k * hz - 600) ** 2) / 3e5) * torch.cos(2 * math.pi * k * hz * time) for k in range(1, 16))
    voice = voice[None].float() / 8
    stepped = in_step(voice)
    frames = stepped[0].view(12, FRAME)[2:-2]
    mean = frames.mean(0)
    assert (frames - mean).square().mean() < 0.02 * mean.square().mean()
    pitch, phase, voiced = periods(stepped)
    inner = slice(16, -16)
    assert voiced[:, inner].all()
    assert np.median(pitch[:, inner]) == pytest.approx(12.5 * round(hz / 12.5), rel=0.01)
    assert np.cos(2 * np.pi * phase[:, 16:-16:8]).min() > 0.9
    energy = torch.fft.rfft(torch.cat([voice, stepped])).abs().square()
    centroids = energy @ torch.arange(energy.shape[1]).float() * (12.5 / 12) / energy.sum(1)
    assert centroids[1] == pytest.approx(centroids[0].item(), rel=0.03)


def test_a_voice_gets_the_periods_it_is_given():
    """One more in each frame than it had, and the formant where it was; 0 leaves it to what was heard."""
    voice = tones(137.0, 274.0, 411.0, frames=12)[0] / 10
    given = np.full((1, 12), round(137 / 12.5) + 1)
    pitch, _, voiced = periods(in_step(voice, given))
    assert voiced[:, 16:-16].all() and np.median(pitch[:, 16:-16]) == pytest.approx(12.5 * given[0, 0], rel=0.01)
    assert torch.equal(in_step(voice, 0 * given), in_step(voice))


def test_periods_are_those_that_latents_tell():
    """Latents that tell 9 where 9 or at times 10 were heard, 20 where 20 were, and nothing of silence; never further
    away than one."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, (400, 8))
    heard = np.choose(kind, [0, 9 + (rng.random((400, 8)) < 0.3), np.where(rng.random((400, 8)) < 0.1, 30, 20)])
    latents = np.eye(3, dtype="float32")[kind]
    chosen = train_codec.read_periods(latents, heard.astype(np.uint8))
    inner, told = chosen[:, 2:], np.choose(kind, [0, 9, 20])[:, 2:]
    wrong = heard[:, 2:] == 30
    assert (inner[~wrong] == told[~wrong]).mean() > 0.99 and (inner[wrong] == 29).all()
    assert np.array_equal(chosen[:, :2], heard[:, :2])


def test_what_has_no_voice_is_left_as_it_is():
    noise = torch.randn(1, 8 * FRAME, generator=torch.Generator().manual_seed(0)) / 10
    assert not periods(noise)[2].mean() > 0.1
    assert torch.equal(in_step(torch.zeros(2, 8 * FRAME)), torch.zeros(2, 8 * FRAME))


def test_the_share_of_phase_is_that_of_what_is_moved():
    """Nothing moved is 0, latents that know nothing of each other are 1."""
    first, other = torch.randn(2, 16, 200, 32, generator=torch.Generator().manual_seed(0))
    assert codec.phase_share(first, first).item() == 0
    assert codec.phase_share(first, other).item() == pytest.approx(1, abs=0.02)
    assert codec.phase_share(first, (first + other) / 2**0.5).item() == pytest.approx(1 - 0.5**0.5, abs=0.02)


def frames_of_voices(*gains: float) -> train_codec.Frames:
    """Seven frames of a steady voice for each gain, from eight."""
    time = torch.arange(8 * FRAME, dtype=torch.float64) / SAMPLE_RATE
    voice = sum(torch.cos(2 * math.pi * k * 137 * time) for k in range(1, 20))[None].float() / 50
    return train_codec.frames_of(torch.cat([gain * voice for gain in gains]))


def test_frames_hold_what_is_heard():
    """A steady voice: its periods in every frame, twice as loud log 2 more in every band that it fills; of silence no
    voice. Beside what is to be said there is the frame before."""
    frames = frames_of_voices(1, 2, 0)
    assert frames.heard.shape == (3, 8 * FRAME) and frames.speech.shape == (3, 6 * FRAME)
    assert frames.sound.shape == (3, 7, 16 * 64 + 8) and frames.counts.shape == (3, 7)
    assert (frames.counts[:2] == round(137 / 12.5)).all() and not frames.counts[2].any()
    assert (frames.sound[:2, ..., -8:] == 1).all() and not frames.sound[2, ..., -8:].any()
    mel = train_codec.MEL_STD * frames.sound[..., : 16 * 64].astype("float32").reshape(3, 7, 16, 64)
    assert np.allclose((mel[1] - mel[0])[..., :32], math.log(2), atol=0.05)  # below 2.6 kHz, where the voice is
    assert not frames.heard[2].any() and not frames.speech[2].any()


def test_crops_begin_as_clips_do():
    """A frame and up to two more are silent, each crop's own; what comes later is as it was."""
    audio = torch.ones(64, 8 * FRAME)
    begun = train_codec.begun(audio, np.random.default_rng(0))
    silent = (begun == 0).sum(1)
    assert silent.min() > FRAME and silent.max() <= 3 * FRAME + 1 and len(silent.unique()) > 32
    assert (begun[:, 3 * FRAME + 240 :] == 1).all() and (begun.diff(dim=1).abs() < 0.01).all()


def test_a_folded_code_says_the_same_in_unit_variance():
    torch.manual_seed(0)
    code, sound, counts = train_codec.Code(4, width=16), torch.randn(8, 6, train_codec.SOUND), torch.ones(8, 6).long()
    before = code(sound, counts)
    read = code.errors(before, sound, counts)
    code.fold(before)
    after = code(sound, counts)
    assert before.shape == (8, 5, 4) and before.std((0, 1)).max() < 0.5
    assert torch.allclose(after.mean((0, 1)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(after.std((0, 1)), torch.ones(4), atol=1e-5)
    for name, error in code.errors(after, sound, counts).items():
        assert torch.allclose(error, read[name], atol=1e-5)


def test_a_code_trains_further(tmp_path):
    """From another run's, in unit variance again; then it stays, and so does what it writes."""
    torch.manual_seed(0)
    earlier, frames = train_codec.Code(32), frames_of_voices(1, 0.5, 0.1, 0)
    torch.save(earlier.state_dict(), tmp_path / "earlier.pt")
    line = ["--init-code", f"{tmp_path}/earlier.pt", "--code-hours", "1e-9", "--work", f"{tmp_path}"]
    code = train_codec.learn_code(train_codec.parse_args(line), frames)
    assert torch.equal(code.write[0].weight, earlier.write[0].weight)
    codes = np.load(tmp_path / "codes.npy")
    assert codes.shape == (4, 6, 32) and np.allclose(codes.std((0, 1)), 1, atol=0.05)
    (tmp_path / "earlier.pt").unlink()
    (tmp_path / "codes.npy").unlink()
    again = train_codec.learn_code(train_codec.parse_args(line), frames)
    assert torch.equal(again.write[-1].weight, code.write[-1].weight)
    assert np.array_equal(np.load(tmp_path / "codes.npy"), codes)


def test_what_is_read_belongs_to_its_frame():
    """A code that gives the sound itself, and a reader that returns the newest of three latents, are without error;
    with latents of the frames before they are not."""
    sound, counts = torch.randn(2, 7, train_codec.SOUND), torch.zeros(2, 7).long()
    sound[..., -8:] = (sound[..., -8:] > 0).float()
    newest = SimpleNamespace(
        read=lambda context: torch.cat([context[..., : train_codec.SOUND], torch.zeros(*context.shape[:2], 41)], -1)
    )
    errors = train_codec.Code.errors(newest, sound[:, 1:], sound, counts)
    assert errors["mel"] == 0 and errors["periods"] == pytest.approx(math.log(41))
    assert train_codec.Code.errors(newest, sound[:, :-1], sound, counts)["mel"] > 1


def test_a_step_of_the_encoder_trains_the_encoder_only(tiny_base, tmp_path):
    args = train_codec.parse_args(["--config", f"{tiny_base}", "--work", f"{tmp_path}"])
    mimi, code = train_codec.load_mimi(tiny_base), train_codec.Code(32)
    training = train_codec.EncoderTraining(args, mimi, frames_of_voices(1, 0.5, 0.1), code)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (mimi, code)]
    for _ in range(2):
        training.take_step(0.1)
    changed = [
        {k.split(".")[0] for k, v in module.state_dict().items() if not torch.equal(v, old[k])}
        for module, old in zip((mimi, code), before)
    ]
    assert changed == [{"encoder", "encoder_transformer", "downsample"}, set()]


def test_what_changes_when_audio_moves_is_measured():
    """measure/codec.py: a latent that is a frame's first sample changes with any move of noise, one that is the mean of
    a steady sound with none."""
    noise = np.random.default_rng(0).standard_normal(400 * FRAME).astype("float32")
    first = SimpleNamespace(encode_to_latent=lambda x: x[0, 0].view(1, -1, FRAME)[..., :1])
    found = codec.moved(first, [noise])
    assert set(found) == {"1", "2.5", "5", "10", "20", "80"}
    assert all(share == pytest.approx(1, abs=0.2) for share in found.values())
    level = np.repeat(np.linspace(0, 1, 4), 100 * FRAME).astype("float32")
    mean = SimpleNamespace(encode_to_latent=lambda x: x[0, 0].view(1, -1, FRAME).mean(-1, keepdim=True))
    assert max(codec.moved(mean, [level]).values()) < 0.01


def test_layers_start_at_unit_variance(tiny_base):
    """By PyTorch's defaults the tiny codec's latents hardly depend on what they hear."""
    audio = torch.randn(2, 1, 8 * FRAME, generator=torch.Generator().manual_seed(0)) / 10
    mimi = train_codec.load_mimi(tiny_base)
    train_codec.scale_layers(mimi, audio)
    found = []
    convs = [m for m in mimi.modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    for conv in convs:
        conv.register_forward_hook(lambda conv, inputs, output: found.append(output.std().item()))
    with torch.no_grad():
        train_codec.decode(mimi, mimi.encode_to_latent(audio))
    assert len(found) == len(convs) and found[-1] == pytest.approx(0.1, rel=1e-3)
    assert {round(std, 3) for std in found[:-1]} == {0.3, 1.0}


def test_one_pass_gives_codec_and_discriminators_their_own_gradients(tiny_base, tmp_path, monkeypatch):
    """As three passes would: the discriminators' gradient of their loss without the codec's, the codec's of its own
    loss through discriminators that have not stepped yet."""
    args = train_codec.parse_args(["--config", f"{tiny_base}", "--work", f"{tmp_path}"])
    latents, speech = np.zeros((1, 14, 32), "float32"), np.zeros((1, 14 * FRAME), "int16")
    training = train_codec.DecoderTraining(args, train_codec.load_mimi(tiny_base), latents, speech)
    monkeypatch.setattr(training.critics_optimiser, "step", lambda: None)
    real, fake = (torch.randn(2, 1, 4 * FRAME) / 10 for _ in range(2))
    fake.requires_grad_()
    start = int(np.random.default_rng([0, 0]).integers(2 * FRAME))
    training.rng = np.random.default_rng([0, 0])
    training.against_critic(real, fake)[0].backward()
    mine, given = fake.grad, [p.grad.clone() for p in training.critics.parameters()]

    half = slice(start, start + 2 * FRAME)
    for p in training.critics.parameters():
        p.grad = None
    scores = zip(training.critics(real[..., half]), training.critics(fake.detach()[..., half]))
    sum((1 - r[-1]).relu().mean() + (1 + f[-1]).relu().mean() for r, f in scores).div(8).backward()
    assert all(torch.allclose(a, p.grad, atol=1e-7) for a, p in zip(given, training.critics.parameters()))
    with torch.no_grad():
        kept = training.critics(real[..., half])
    adversarial, features = generator_terms(training.critics(fake[..., half]), kept)
    wanted = torch.autograd.grad(0.1 * adversarial + 0.5 * features, fake)[0]
    assert wanted.abs().sum() > 0 and torch.allclose(mine, wanted, atol=1e-8)


@pytest.mark.parametrize("rate", [200, 12.5])
def test_a_codec_trains_and_continues(tiny_base, tmp_path, rate):
    """Two calls of one command: the second goes on where the first was; the weights are those a base loads. Also of a
    codec whose transformers run at the latents' rate."""
    if rate == 12.5:
        config = yaml.safe_load(tiny_base.read_text())
        mimi, width = config["mimi"], config["mimi"]["transformer"]["input_dimension"]
        for part in ("seanet", "decoder_seanet"):
            mimi[part] = mimi[part] | {"ratios": [20, 12, 8]}
        mimi["transformer"] |= {"output_dimensions": [32]}
        mimi["quantizer"]["output_dimension"] = width
        tiny_base = tmp_path / "slow.yaml"
        tiny_base.write_text(yaml.safe_dump(config))
    noise = np.random.default_rng(0)
    envelope = np.repeat(noise.uniform(0, 1, 200), FRAME)
    voice = np.sin(2 * np.pi * 110 * np.arange(200 * FRAME) / SAMPLE_RATE)
    audio = 8000 * envelope * voice + noise.normal(0, 50, 200 * FRAME)
    (tmp_path / "work").mkdir()
    np.save(tmp_path / "work" / "audio.npy", audio.astype("int16"))
    line = f"demo/train_codec.py --config {tiny_base} --work {tmp_path}/work --out {tmp_path}/c.safetensors"
    line += " --threads 1 --floor-share 0.2 --critic-share 0.5 --code-hours 0.0005 --both-hours 0.0005 --decoder-hours"
    first = run(line, 0.0005)
    assert first.returncode == 0, first.stderr
    second = run(line, 0.001)
    assert second.returncode == 0, second.stderr
    assert "encoder: continuing at step" in second.stdout and "quantizer: continuing at step" in second.stdout
    codes = np.load(tmp_path / "work" / "codes.npy")
    assert np.abs(codes.std((0, 1)) - 1).max() < 0.05
    weights = {k.removeprefix("mimi."): v for k, v in load_file(tmp_path / "c.safetensors").items()}
    mimi = train_codec.load_mimi(tiny_base)
    mimi.load_state_dict(weights)


def test_the_decoder_alone_trains_further(tiny_base, tmp_path):
    """The encoder and with it every cached latent stays, to the bit."""
    (tmp_path / "work").mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 100 * FRAME).astype("int16")
    np.save(tmp_path / "work" / "audio.npy", noise)
    start = {f"mimi.{k}": v.half() for k, v in train_codec.load_mimi(tiny_base).state_dict().items()}
    save_file(start, tmp_path / "start.safetensors")
    line = f"demo/train_codec.py --config {tiny_base} --work {tmp_path}/work --out {tmp_path}/c.safetensors --threads 1"
    line += f" --init {tmp_path}/start.safetensors --code-hours 0 --both-hours 0 --decoder-hours 0.0005"
    result = run(line)
    assert result.returncode == 0, result.stderr
    trained = load_file(tmp_path / "c.safetensors")
    changed = {name.split(".")[1] for name, weight in trained.items() if not torch.equal(weight, start[name])}
    assert changed == {"quantizer", "upsample", "decoder_transformer", "decoder"}
