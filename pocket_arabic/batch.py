"""Many sentences at once: the wheel's FlowLM a frame of all rows at a time, each row at its own place, and its codec
by rows.

Needs nothing but torch and the wheel. With guidance a sentence has two rows, as it is and with neither text nor
voice, and one head: z = z_null + w (z - z_null) (kyutai-labs/pocket-tts training/depth_distill). Shapes: B rows, S
positions of the key-value cache, F frames (80 ms each), C = 32 latent dimensions, D model width, T tokens.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from pocket_tts import TTSModel
from pocket_tts.models.flow_lm import lsd_decode
from pocket_tts.modules.attention import StreamingMultiheadAttention
from pocket_tts.modules.stateful_module import ModelState, increment_steps, init_states
from torch.nn import functional as F

ROUND = 64  # keys are read, texts padded and room made in multiples of this: few shapes, so few CUDA graphs
# Rows computed at least. The sums of a product depend on how many rows it has: MKL takes the same path from 16 on. A
# latent is read back in the next frame, and in a trained model a difference of 1e-7 grows to 1e-2 in some sentences
# within 5 s.
LEAST = 16


@dataclass(eq=False)
class Sentence:
    """What is to be spoken in one go."""

    voice: ModelState  # the FlowLM's state after the voice prompt, of one row
    tokens: list[int]
    seed: int
    frames_after_eos: int
    max_frames: int  # it is cut off there,
    deadline: int  # and has missed its end if that is more than so many frames


@dataclass
class Finished:
    sentence: Sentence
    latents: torch.Tensor  # [F, C], normalised as the FlowLM has them
    ended: bool  # whether it reached its end in time


def noise_of(seed: int, frames: int, dim: int, std: float) -> torch.Tensor:
    """The noise [frames, C] that the wheel draws on a CPU after torch.manual_seed(seed): once for the text, then once a
    frame."""
    return torch.empty(1 + frames, dim).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))[1:]


def frequencies(attention: StreamingMultiheadAttention) -> torch.Tensor:
    """Radians a position [width / 2], by the wheel's own formula to the bit."""
    halves = torch.arange(attention.dim_per_head // 2, dtype=torch.float32)
    return torch.exp(halves * (-math.log(attention.rope.max_period) * 2 / attention.dim_per_head))


@torch.no_grad()
def null_state(model: TTSModel) -> ModelState:
    """The FlowLM's state, of one row, before the first frame of a row with neither text nor voice."""
    lm = model.flow_lm
    state = init_states(lm, 1, 1)
    if lm.insert_bos_before_voice:
        model._run_flow_lm_and_increment_step(state, audio_conditioning=lm.bos_before_voice)
    return state


class SpeechBatch:
    """Up to `size` sentences, spoken `every` frames at a time. They come and go: those in use are the first.

    A row's tokens and frames stand at positions of its own, from 0 on, so that what it says does not depend on its
    neighbours. On a GPU a frame is one CUDA graph; nothing is read back between the `every` frames.
    Memory a row: layers x 2 x width of keys x 4 bytes a position, some 600 positions: 30 MB in the released size, 5 in
    the nano. At least `LEAST` sentences are computed, in `streams` rows each: its own, then, with guidance, that
    without text and voice.
    """

    def __init__(self, model: TTSModel, size: int, graphs: bool = True):
        self.model, self.size, self.lm = model, size, model.flow_lm
        self.device = self.lm.bos_emb.device
        self.every = 8 if self.device.type == "cuda" else 4
        self.streams = 1 if model.guidance == 1 else 2
        self.null = null_state(model) if self.streams == 2 else None
        self.sentences: list[Sentence] = []
        self.starts: list[int] = []  # position of each one's first frame, the later one of its rows'
        self.done: list[int] = []  # frames each has been through
        attention = self.lm.transformer.layers[0].self_attn
        self.heads = attention.num_heads, attention.num_kv_heads, attention.dim_per_head
        self.frequencies = frequencies(attention).to(self.device)
        new, size = {"device": self.device}, max(size, LEAST)
        rows = size * self.streams
        self.position = torch.zeros(rows, dtype=torch.long, **new)  # of the next frame
        self.frame = torch.zeros(size, dtype=torch.long, **new)  # its number
        self.eos = torch.full((size,), -1, **new)  # number of the frame whose logit was over the threshold
        self.latent = torch.zeros(size, self.lm.ldim, **new)  # the frame before
        self.cache = torch.zeros(
            rows, len(self.lm.transformer.layers), 2, self.heads[1], 0, self.heads[2], dtype=self.lm.dtype, **new
        )
        self.noise = torch.zeros(size, 0, self.lm.ldim, **new)
        self.latents = torch.zeros(size, 0, self.lm.ldim, **new)
        self.rows = torch.arange(rows, **new)
        self.side = torch.cuda.Stream(self.device) if graphs and self.device.type == "cuda" else None
        self._new_graphs()

    def _new_graphs(self) -> None:
        """Forget the graphs, and their pool of memory with them: one that has lost its last graph takes no other."""
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.side else None

    @property
    def free(self) -> int:
        return self.size - len(self.sentences)

    # --- rows -----------------------------------------------------------------------------------------------------

    def _make_room(self, positions: int, frames: int) -> None:
        """Caches of at least so many positions and frames; what is in them stays."""
        positions, frames = (-(-n // ROUND) * ROUND for n in (positions, frames))
        grown = False
        for name, dim, size in (("cache", 4, positions), ("noise", 1, frames), ("latents", 1, frames)):
            old = getattr(self, name)
            if (more := size - old.shape[dim]) > 0:
                shape = list(old.shape)
                shape[dim] = more
                # zeros: a masked NaN would still be one
                setattr(self, name, torch.cat([old, old.new_zeros(shape)], dim))
                grown = True
        if grown:
            self._new_graphs()  # the old ones hold the old addresses

    @torch.no_grad()
    def add(self, sentences: list[Sentence]) -> None:
        """Read voices and texts of at most `free` new sentences, in one pass."""
        assert 0 < len(sentences) <= self.free, (len(sentences), self.free)
        first, last, streams = len(self.sentences), len(self.sentences) + len(sentences), self.streams
        layers = [f"transformer.layers.{i}.self_attn" for i in range(self.cache.shape[1])]
        voices = [state for u in sentences for state in (u.voice, self.null)[:streams]]  # of each row
        prompts = torch.tensor([int(state[layers[0]]["offset"][0]) for state in voices])
        lengths = torch.tensor([n for u in sentences for n in (len(u.tokens), 0)[:streams]])
        longest, starts = _round_up(int(lengths.max())), prompts + lengths
        # Room to spare: a sentence goes on until the next look at the ends.
        frames = [u.max_frames + self.every for u in sentences]
        own = slice(0, None, streams)  # of these rows, those with text
        self._make_room(max(int(prompts.max()) + longest, *(starts[own] + torch.tensor(frames)).tolist()), max(frames))
        tokens = torch.zeros(len(sentences), longest, dtype=torch.long)
        for i, (state, prompt) in enumerate(zip(voices, prompts.tolist()), first * streams):
            for layer, name in enumerate(layers):
                self.cache[i, layer, :, :, :prompt] = state[name]["cache"][:, 0, :prompt].transpose(1, 2)
        for i, (u, count) in enumerate(zip(sentences, frames)):
            tokens[i, : len(u.tokens)] = torch.tensor(u.tokens)
            self.noise[first + i, :count] = noise_of(u.seed, count, self.lm.ldim, self.model.temp**0.5).to(self.device)
        positions = (prompts[own, None] + torch.arange(longest)).to(self.device)
        rows = slice(first * streams, last * streams, streams)
        self._layers(
            self.lm.conditioner(tokens.to(self.device)), rows, positions, _round_up(int(prompts.max()) + longest)
        )
        self.position[first * streams : last * streams] = starts.to(self.device)
        new = slice(first, last)
        self.frame[new], self.eos[new], self.latent[new] = 0, -1, self.lm.bos_emb
        self.sentences += sentences
        self.starts += starts[own].tolist()
        self.done += [0] * len(sentences)

    def _remove(self, gone: list[int]) -> None:
        """Sentences that are done leave; the last ones take their places."""
        keep, last = len(self.sentences) - len(gone), len(self.sentences)
        moves = list(zip([row for row in gone if row < keep], [row for row in range(keep, last) if row not in gone]))
        if moves:
            to, source = (torch.tensor(rows, device=self.device) for rows in zip(*moves))
            used = max(self.starts[row] + self.done[row] for _, row in moves)
            cache, position = (rows.unflatten(0, (-1, self.streams)) for rows in (self.cache, self.position))
            cache[to, ..., :used, :] = cache[source, ..., :used, :]
            for tensor in (position, self.frame, self.eos, self.latent, self.noise, self.latents):
                tensor[to] = tensor[source]
        for values in (self.sentences, self.starts, self.done):
            for target, row in moves:
                values[target] = values[row]
            del values[keep:]

    # --- a frame --------------------------------------------------------------------------------------------------

    def _layers(self, x: torch.Tensor, rows: slice, positions: torch.Tensor, keys: int) -> torch.Tensor:
        """The transformer on [n, T, D] of `rows` at `positions` [n, T]; attention reads the first `keys` of the
        cache."""
        (queries, kv, width), (n, steps, _) = self.heads, x.shape
        angle = positions[..., None].float() * self.frequencies  # [n, T, width / 2]
        turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]
        # values stay
        turn = torch.cat([turn.expand(-1, -1, queries + kv, -1), torch.ones_like(turn).expand(-1, -1, kv, -1)], 2)
        mask = torch.arange(keys, device=x.device) <= positions[:, None, :, None]  # [n, 1, T, keys]
        index = self.rows[rows, None]
        for i, layer in enumerate(self.lm.transformer.layers):
            attention = layer.self_attn
            heads = attention.in_proj(layer.norm1(x)).view(n, steps, queries + 2 * kv, width // 2, 2)
            heads = torch.view_as_real(torch.view_as_complex(heads) * turn).flatten(-2)
            cache = self.cache[:, i]
            cache[index, :, :, positions] = heads[:, :, queries:].unflatten(2, (2, kv))
            k, v = cache[rows, 0, :, :keys], cache[rows, 1, :, :keys]
            q = heads[:, :, :queries].transpose(1, 2)
            x = x + layer.layer_scale_1(
                attention.out_proj(
                    F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=queries != kv).transpose(1, 2).flatten(2)
                )
            )
            x = layer._ff_block(x)
        return x

    def _frame(self, n: int, keys: int) -> None:
        """The next frame of the first n sentences; all it reads and writes lies at fixed addresses, as a CUDA graph
        needs it."""
        lm, streams, rows, frame = self.lm, self.streams, self.rows[:n], self.frame[:n]
        position = self.position[: n * streams]
        x = lm.input_linear(self.latent[:n, None].repeat_interleave(streams, 0))
        z = lm.out_norm(self._layers(x, slice(0, n * streams), position[:, None], keys))[:, 0]
        z = (z if lm.z_proj is None else lm.z_proj(z)).float()
        if streams == 2:
            z = torch.lerp(z[1::2], z[::2], self.model.guidance)
        over = (lm.out_eos(z)[:, 0] > self.model.eos_threshold) & (frame >= self.model._MIN_FRAMES_BEFORE_EOS)
        latent = lsd_decode(
            lambda *times_and_x: lm.flow_net(z, *times_and_x), self.noise[rows, frame], self.model.sampler_decode_steps
        )
        self.latent[:n] = latent
        self.latents[rows, frame] = latent
        self.eos[:n] = torch.where(over & (self.eos[:n] < 0), frame, self.eos[:n])
        frame += 1
        position += 1

    def _replay(self, n: int, keys: int) -> None:
        """`_frame` as a CUDA graph. The first frame of a shape is launched kernel by kernel, which also warms up."""
        if (n, keys) in self.graphs:
            self.graphs[n, keys].replay()
            return
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            self._frame(n, keys)
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        self.graphs[n, keys] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graphs[n, keys], pool=self.pool):
            self._frame(n, keys)

    @torch.no_grad()
    def advance(self) -> list[Finished]:
        """`every` frames of all rows; those that are done, which leave."""
        n = len(self.sentences)
        keys = _round_up(max(start + done for start, done in zip(self.starts, self.done)) + self.every)
        rows, step = max(n, LEAST), self._frame
        if self.side:
            rows, step = (len(self.frame) if rows > LEAST else LEAST), self._replay
            keys = min(-(-keys // (4 * ROUND)) * 4 * ROUND, self.cache.shape[4])
        self.position[n * self.streams : rows * self.streams], self.frame[n:rows] = 0, 0  # idle rows, of old numbers
        for _ in range(self.every):
            step(rows, keys)
        self.done = [done + self.every for done in self.done]
        finished, gone = [], []
        for row, (u, done, eos) in enumerate(zip(self.sentences, self.done, self.eos[:n].tolist())):
            total = eos + u.frames_after_eos if eos >= 0 else u.max_frames + 1
            if done >= min(total, u.max_frames):
                latents = self.latents[row, : min(total, u.max_frames)].clone()
                finished.append(Finished(u, latents, eos >= 0 and total <= u.deadline))
                gone.append(row)
        self._remove(gone)
        return finished


def _round_up(count: int) -> int:
    return -(-count // ROUND) * ROUND


@torch.no_grad()
def decode(model: TTSModel, latents: list[torch.Tensor], most: int) -> list[torch.Tensor]:
    """Normalised latents, each [F, C] -> audio, each [samples], on the CPU.

    All rows from their beginnings, in blocks of about `most` frames in all; rows that are done leave.
    """
    mimi, lm = model.mimi, model.flow_lm
    device, steps = next(mimi.parameters()).device, int(mimi.encoder_frame_rate / mimi.frame_rate)
    order = sorted(range(len(latents)), key=lambda i: -len(latents[i]))
    lengths = [len(latents[i]) for i in order]
    padded = torch.nn.utils.rnn.pad_sequence([latents[i] for i in order], batch_first=True) * lm.emb_std + lm.emb_mean
    padded = padded.to(device)
    longest = max(1, 2 * most // len(order))  # frames of a block
    attentions = {
        name: m
        for name, m in mimi.named_modules()
        if isinstance(m, StreamingMultiheadAttention) and name.startswith("decoder")
    }
    state = init_states(mimi, len(order), max(a.context for a in attentions.values()) + steps * longest)
    audio = torch.zeros(len(order), lengths[0] * mimi.frame_size)
    start = 0
    while start < lengths[0]:
        n = sum(length > start for length in lengths)
        state = {name: {k: v[:, :n] if k == "cache" else v[:n] for k, v in s.items()} for name, s in state.items()}
        block = padded[:n, start : start + min(longest, max(1, most // n))]
        decoded = mimi.decode_from_latent(block, state)[:, 0]
        increment_steps(mimi, state, steps * block.shape[1])
        for name, attention in attentions.items():
            _forget(attention, state[name])
        audio[:n, start * mimi.frame_size :][:, : decoded.shape[1]] = decoded.cpu()
        start += block.shape[1]
    fade = torch.linspace(0, 1, model.sample_rate // 200)  # as the wheel does: a fresh decoder begins with a step
    audio[:, : len(fade)] *= fade
    decoded_rows = {i: audio[row, : lengths[row] * mimi.frame_size].clone() for row, i in enumerate(order)}
    return [decoded_rows[i] for i in range(len(latents))]


def _forget(attention: StreamingMultiheadAttention, state: dict[str, torch.Tensor]) -> None:
    """Drop what the codec's attention no longer looks at, and turn its keys to their new positions.

    The wheel keeps all and masks it, which in the embedded codec is a fifth of the time at 5 s and grows with the
    length.
    """
    end = int(state["offset"][0])
    if (gone := end - attention.context) <= 0:
        return
    kept = state["cache"][:, :, gone:end].clone()
    turn = torch.polar(torch.ones(1), -gone * frequencies(attention)).to(kept.device)
    kept[0] = torch.view_as_real(torch.view_as_complex(kept[0].unflatten(-1, (-1, 2))) * turn).flatten(-2)
    state["cache"][:, :, : attention.context] = kept
    state["offset"] -= gone


def default_size(device: torch.device) -> int:
    """Rows of a batch. On 2 CPU cores 64 rows take a tenth less of the processor than 16, and four times the memory."""
    return 64 if device.type == "cuda" else 16


def run(batch: SpeechBatch, take: Callable[[], Sentence | None]) -> Iterator[tuple[Finished, torch.Tensor]]:
    """Speak what `take` gives, until it gives None: each sentence as it is done, with its audio [samples].

    `take` is asked whenever there is room, and once more after everything has been handed out, so that a sentence may
    be given again. What is together in a batch does not depend on timing. On a CPU the codec works in threads beside
    the FlowLM, every thread on one core: products shared by two cores wait for each other, ten times as long as they
    work if a third program runs. It decodes row by row there, so that no sample depends on the neighbours; eight at
    once are a tenth faster. A GPU decodes a batch of rows.
    """
    on_gpu, threads = batch.device.type == "cuda", torch.get_num_threads()
    group, most = (batch.size, 1024) if on_gpu else (1, 16)
    workers = 0 if on_gpu else min(4, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    ready: list[Finished] = []
    pending: deque[tuple[list[Finished], Future | list]] = deque()

    def results() -> Iterator[tuple[Finished, torch.Tensor]]:
        finished, audio = pending.popleft()
        yield from zip(finished, audio.result() if isinstance(audio, Future) else audio)

    try:
        torch.set_num_threads(threads if on_gpu else 1)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            while True:
                if room := [u for _ in range(batch.free) if (u := take()) is not None]:
                    batch.add(room)
                if batch.sentences:
                    ready += batch.advance()
                elif not ready and not pending:
                    return
                draining = not batch.sentences
                while len(ready) >= group or (ready and draining):
                    args = (batch.model, [f.latents for f in ready[:group]], most)
                    pending.append((ready[:group], pool.submit(decode, *args) if workers else decode(*args)))
                    ready = ready[group:]
                while len(pending) > 4 * workers:
                    yield from results()
                if draining and pending:
                    yield from results()
    finally:
        torch.set_num_threads(threads)
