"""The batch: what it speaks is what each sentence is alone; cheap refusals of what would break that on a GPU."""

import copy
import itertools
import queue
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from pocket_tts import TTSModel
from pocket_tts.modules.stateful_module import init_states
from torch.utils._python_dispatch import TorchDispatchMode

from pocket_arabic import batch as batches
from pocket_arabic import speech
from pocket_arabic.audio import read_audio
from pocket_arabic.base import load_config, load_mimi, load_weights, tts_model
from pocket_arabic.batch import Finished, Sentence, SpeechBatch, decode, noise_of, run
from pocket_arabic.speech import (
    EosWatch,
    Request,
    as_sentence,
    guide,
    load_bundle,
    prompt_state,
    speak,
    speak_each,
    voice_state,
)

ROUNDING = {
    "rtol": 0,
    "atol": 1e-3,
}  # grows from frame to frame: up to 3e-4 after 66 of them on a CPU with AVX2, less with AVX-512
WORDS = "kataba AlT~aAlibu risaAlapF Tawiylapa Al>amadi >ilaY waAlidihi fiy Alqar*yapi"


@pytest.fixture
def model(tiny_base, flow_lm) -> TTSModel:
    """The tiny model, whose EOS logit crosses the threshold now and then."""
    config = load_config(str(tiny_base))
    model = tts_model(config, flow_lm, load_mimi(config, load_weights(config)), temperature=0.7)
    with torch.no_grad():
        flow_lm.out_eos.weight.mul_(4)
        flow_lm.out_eos.bias.fill_(0)
    model.eos_threshold = 6.0
    return model


def requests(model: TTSModel) -> list[Request]:
    """12 sentences of 1 to 12 words, without a voice prompt or with one of 5 to 60 frames."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(12):
        text = " ".join(itertools.islice(itertools.cycle(WORDS.split()), i + 1)) + "."
        prompt = torch.randn(5 * i, 32, generator=generator) * model.flow_lm.emb_std
        found.append(
            Request(text, prompt_state(model, prompt) if i % 3 else init_states(model.flow_lm, 1, 1), seed=100 + i)
        )
    return found


@torch.no_grad()
def by_the_wheel(model: TTSModel, u: Sentence) -> tuple[torch.Tensor, bool]:
    """A sentence's latents [F, C] and whether it ended, by the wheel's own loop."""
    state = {name: {k: v.clone() for k, v in tensors.items()} for name, tensors in u.voice.items()}
    latents = queue.Queue()
    torch.manual_seed(u.seed)
    model._generate(state, torch.tensor([u.tokens]), u.max_frames, u.frames_after_eos, latents, None, threading.Event())
    found = [latent[0] for latent in iter(latents.get, None)]
    return torch.cat(found), len(found) <= u.deadline


def by_batch(batch: SpeechBatch, sentences: list[Sentence]) -> list[Finished]:
    waiting, found = iter(sentences), {}
    for finished, _ in run(batch, lambda: next(waiting, None)):
        found[finished.sentence] = finished
    return [found[u] for u in sentences]


def test_a_sentence_is_the_same_by_the_wheel_alone_and_in_any_batch(model):
    """Also in a batch with fewer rows than sentences, where rows come and go, and in another order of the file."""
    sentences = [as_sentence(model, request, 0.06) for request in requests(model)]
    wheel = [by_the_wheel(model, u) for u in sentences]
    lengths = {len(latents) for latents, _ in wheel}
    assert len(lengths) > 6 and {ended for _, ended in wheel} == {True, False}, (
        "the model ends some sentences and not others"
    )
    alone = [by_batch(SpeechBatch(model, 1), [u])[0] for u in sentences]
    for size, order in ((12, range(12)), (5, range(12)), (5, [7, 2, 11, 0, 9, 4, 6, 1, 10, 3, 8, 5])):
        together = dict(zip(order, by_batch(SpeechBatch(model, size), [sentences[i] for i in order])))
        for i, (latents, ended) in enumerate(wheel):
            assert len(together[i].latents) == len(latents) and together[i].ended == ended
            torch.testing.assert_close(together[i].latents, latents, **ROUNDING)
            assert torch.equal(together[i].latents, alone[i].latents)


def test_a_trained_sentence_has_no_bit_of_its_neighbours():
    """The embedded bundle: a difference of 1e-7 in one frame grows to 1e-2 within 5 s, so rows must not meet at all."""
    model = load_bundle(ROOT / "demo" / "bundle")
    voice = voice_state(model, ROOT / "demo" / "bundle" / "voice.wav")
    texts = ["*ahaba Alowaladu >ilaY Als~uwqi.", "halo >anota bixayorK?", "qaAla: naEamo, sa>a*ohabu gadFA."]
    sentences = [as_sentence(model, Request(text, voice, seed), 0.1) for seed, text in enumerate(texts)]
    together = by_batch(SpeechBatch(model, 3), sentences)
    again = by_batch(SpeechBatch(model, 2), sentences[::-1])[::-1]
    for u, one, other in zip(sentences, together, again):
        assert one.ended and torch.equal(one.latents, other.latents)
        assert torch.equal(one.latents, by_batch(SpeechBatch(model, 1), [u])[0].latents)
        spoken = speak(model, voice, texts[u.seed], u.seed, EosWatch(), 0, 0.1)
        assert spoken.ended and len(spoken.audio) == 1920 * len(one.latents)


@torch.no_grad()
def z_of(lm: torch.nn.Module, prefix: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """z [F + 1, D] before each of normalised `latents` [F, C] and after, by the wheel's stateless path on the row after
    `prefix` [P, D]."""
    frames = lm.input_linear(torch.cat([lm.bos_emb[None], latents]))
    return lm.out_norm(lm.transformer(torch.cat([prefix, frames])[None], None))[0, len(prefix) :]


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_guidance_is_on_z_against_a_row_of_neither_text_nor_voice(model, weight):
    """Each frame of a guided batch against float64: whole rows written out, one [bos_before_voice | prompt | text |
    ...] and one [bos_before_voice | ...], z_null + w (z - z_null), the head once. The wheel's own loop, guided, speaks
    the same."""
    model.guidance, lm = weight, copy.deepcopy(model.flow_lm).double()
    prompt = torch.randn(25, 32, generator=torch.Generator().manual_seed(5)) * lm.emb_std
    asked = [Request(r.chunk, prompt_state(model, prompt.float()), r.seed) for r in requests(model)]
    sentences = [as_sentence(model, request, 0.06) for request in asked]
    found = by_batch(SpeechBatch(model, 5), sentences)
    model.guidance = 1.0
    plain = by_batch(SpeechBatch(model, 5), sentences)
    model.guidance = weight
    for u, done, unguided in zip(sentences, found, plain):
        text = lm.conditioner.embed(torch.tensor(u.tokens))
        start, latents = lm.bos_before_voice[0], done.latents.double()
        z = z_of(lm, torch.cat([start, prompt.double() @ lm.speaker_proj_weight.T, text]), latents)
        z_null = z_of(lm, start, latents)
        z = z_null + weight * (z - z_null)
        one, noise = torch.ones(len(latents), 1).double(), noise_of(u.seed, len(latents), 32, model.temp**0.5).double()
        torch.testing.assert_close(latents, noise + lm.flow_net(z[:-1], 0 * one, one, noise), rtol=0, atol=1e-3)
        over = torch.nonzero((lm.out_eos(z)[:, 0] > model.eos_threshold)[6:])
        assert done.ended == bool(len(over) and 6 + int(over[0]) + u.frames_after_eos <= u.deadline)
        guide(model, 1 + u.max_frames)
        wheel, ended = by_the_wheel(model, u)
        assert ended == done.ended
        torch.testing.assert_close(wheel, done.latents, **ROUNDING)
        assert len(unguided.latents) != len(done.latents) or (unguided.latents - done.latents).abs().max() > 0.1


def test_decoded_rows_are_what_the_wheel_decodes(model):
    """Rows of different length, in blocks; the codec is no feedback, so rounding stays rounding."""
    latents = [torch.randn(n, 32, generator=torch.Generator().manual_seed(n)) for n in (9, 31, 1, 20)]
    for most in (8, 33, 1000):
        for one, audio in zip(latents, decode(model, latents, most)):
            found: queue.Queue = queue.Queue()
            for latent in [*one[None].split(1, 1), None]:
                found.put(latent)
            out: queue.Queue = queue.Queue()
            model._decode_audio_worker(found, out, len(one) * 16, 16)
            whole = out.get()[1][0, 0]
            torch.testing.assert_close(audio, whole, rtol=0, atol=1e-5)


def test_a_voice_state_is_the_wheels(model, cache):
    audio = torch.from_numpy(read_audio(cache / "voice.wav", model.sample_rate))[None]
    ours, theirs = voice_state(model, cache / "voice.wav"), model.get_state_for_audio_prompt(audio)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name][key], theirs[name][key]) for name in ours for key in ours[name])


@pytest.mark.parametrize("slowest", [None, 0.02, 0.12])
def test_caps_attempts_and_order_are_those_of_one_by_one(model, slowest):
    """Retries of the ones that miss their ends, cut off or not: the same attempt counts, with the same samples."""
    asked, watch = requests(model), EosWatch()
    alone = [speak(model, r.voice, r.chunk, r.seed, watch, 2, slowest) for r in asked]
    assert any(a.seed != r.seed for a, r in zip(alone, asked)) and len({a.ended for a in alone}) == 2
    for one, other in zip(alone, list(speak_each(model, iter(asked), 2, slowest, 5))):
        assert (one.seed, one.ended, len(one.audio)) == (other.seed, other.ended, len(other.audio))
        np.testing.assert_allclose(other.audio, one.audio, atol=1e-3)


def test_requests_are_read_as_rows_come_free(model, monkeypatch):
    """A long text: no more is read ahead, and no more kept, than some batches."""
    monkeypatch.setattr(speech, "is_silent", lambda *_: False)
    read, kept = 0, []
    voice = init_states(model.flow_lm, 1, 1)

    def book():
        nonlocal read
        for number in range(60):
            read += 1
            yield Request("kataba.", voice, number)

    for done, _ in enumerate(speech.speak_each(model, book(), size=2)):
        kept.append(read - done)
    assert done == 59 and max(kept) <= 2 + 4 * 4 + 4  # rows, the queue of the codec and what finishes with its last


def test_a_frame_reads_nothing_back(model):
    """A CUDA graph cannot: no value of a tensor may be asked for between the looks at the ends."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), name
            return func(*args, **(kwargs or {}))

    batch = SpeechBatch(model, 4)
    batch.add([as_sentence(model, request, None) for request in requests(model)[:3]])
    with torch.no_grad(), Watch():
        addresses = [
            tensor.data_ptr()
            for tensor in (batch.position, batch.frame, batch.eos, batch.latent, batch.cache, batch.latents)
        ]
        batch._frame(16, 64 * 3)
    assert addresses == [
        tensor.data_ptr()
        for tensor in (batch.position, batch.frame, batch.eos, batch.latent, batch.cache, batch.latents)
    ]
    assert batch.frame[:3].tolist() == [1, 1, 1]


def test_graphs_take_the_same_frames(model, monkeypatch):
    """The order of things around CUDA graphs, with graphs that are calls: the frame that warms up counts, a capture
    does not, a graph of an old cache is dropped, idle rows run along."""
    shapes, graphs = [], []

    class Graph:
        def __init__(self):
            graphs.append(self)

        def replay(self):
            SpeechBatch._frame(batch, *self.shape)

    @contextmanager
    def capture(graph, pool):
        def note(n, keys):
            graph.shape = n, keys
            shapes.append((n, keys))

        batch._frame = note
        yield
        del batch._frame

    monkeypatch.setattr(torch.cuda, "Stream", lambda *_: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    sentences = [as_sentence(model, r, 0.04) for r in requests(model) + requests(model)]
    alone = by_batch(SpeechBatch(model, 12), sentences)
    batch = SpeechBatch(model, 20)
    batch.side = torch.cuda.Stream()
    for one, other in zip(alone, by_batch(batch, sentences)):
        assert torch.equal(one.latents, other.latents) and one.ended == other.ended
    assert {n for n, _ in shapes} == {16, 20} and len(graphs) == len(shapes) < 12


def test_rows_of_a_product_are_enough():
    """`LEAST`: from there on MKL's sums do not depend on the number of rows. A machine where they do speaks as well,
    but a sentence may differ with its neighbours in the last bits of the first frames and audibly the same way at the
    end."""
    weight, x = (torch.randn(n, 192, generator=torch.Generator().manual_seed(n)) for n in (768, 64))
    whole = x @ weight.T
    assert all(torch.equal(x[:n] @ weight.T, whole[:n]) for n in range(batches.LEAST, 65))
