"""The cache's files: manifest, latents, codes, rejects, cache.json. data_prep writes them, train reads them.

While it grows, a cache is the folder's `partial/`: blocks of some utterances, each a .npz of arrays and, written last,
a .json of its rows, which makes it count. Blocks are whole or absent and know nothing of each other, so any number of
processes may write them, in any order, and be killed at any moment. `finish` lays them end to end in the corpus's
order. cache.json is written last, so a folder that has it is complete.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pocket_arabic.audio import AudioError, decode, write_wav
from pocket_arabic.corpus import assign_splits
from pocket_arabic.run import UserError, atomic_write, differences, read_json, read_jsonl, write_json

FORMAT_VERSION = 1
LATENT_DIM = 32
BLOCKS = "?????_?????.json"
OPTIONS = {"base", "corpus", "encoder_sha256", "head_sec", "trim"}  # what training reads of them
ROW = {
    "id": str,
    "split": str,
    "speaker": str,
    "text_model": str,
    "speech_end_sec": (int, float),
    "first_frame": int,
    "num_frames": int,
}  # and of the manifest
PROMPT_SEC = 6.0  # voice.wav is the training utterance nearest to this length; prompts in training have 2.5 to 10 s


def recorded_options(folder: Path) -> dict | None:
    """The options a cache, finished or growing, was made with."""
    for saved in (folder / "cache.json", folder / "partial" / "options.json"):
        if saved.exists():
            old = read_json(saved, f"prepare the corpus again: rm -r {folder}, then the same data_prep.py command")
            return old.get("options", old)
    return None


class CacheWriter:
    """Writes a cache's blocks after `begin`, or continues one made with the same `options`. Raises UserError if they
    changed."""

    def __init__(self, folder: Path, options: dict):
        self.folder, self.partial, self.options = folder, folder / "partial", options
        old = recorded_options(folder)
        changed = differences(old, options) if old is not None else ""
        if changed:
            raise UserError(
                f"{folder} was made with other options ({changed}); give another --out, or delete it: rm -r {folder}"
            )
        self.complete = (folder / "cache.json").exists()

    def begin(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(self.partial / "options.json", self.options)

    def block(self, shard: int, index: int) -> Path:
        return self.partial / f"{shard:05d}_{index:05d}.json"

    def num_blocks(self) -> int:
        return len(list(self.partial.glob(BLOCKS)))

    def shard_done(self, shard: int) -> bool:
        """Whether it was finished and all of its blocks are still there."""
        done = self.partial / f"{shard:05d}.done"
        return done.exists() and done.read_bytes() == self._blocks_of(shard)

    def finish_shard(self, shard: int) -> None:
        (self.partial / f"{shard:05d}.done").write_bytes(self._blocks_of(shard))

    def _blocks_of(self, shard: int) -> bytes:
        return b"%d blocks" % len(list(self.partial.glob(f"{shard:05d}_?????.json")))

    def add_block(
        self,
        block: Path,
        rows: list[dict],
        rejects: list[dict],
        arrays: dict[str, np.ndarray],
        samples: list[np.ndarray],
        rate: int,
    ) -> None:
        """Write one block: manifest `rows` in order, with `arrays` (latents float32 [frames, 32], and codes uint16
        [frames, K] if wanted) of all of them end to end, and `samples` [n] of each, of which the best voice prompt is
        kept."""
        assert arrays["latents"].dtype == np.float32 and arrays["latents"].shape == (
            sum(r["num_frames"] for r in rows),
            LATENT_DIM,
        )
        prompt = min(
            (i for i, row in enumerate(rows) if row["split"] in ("train", "")),
            key=lambda i: prompt_distance(rows[i]),
            default=None,
        )
        if prompt is not None:
            write_wav(block.with_suffix(".wav"), samples[prompt], rate)
        with atomic_write(block.with_suffix(".npz")) as tmp:
            np.savez(tmp, **arrays)
        write_json(block, {"rows": rows, "rejects": rejects, "prompt": None if prompt is None else rows[prompt]["id"]})

    @contextmanager
    def _reading(self, block: Path) -> Iterator[None]:
        """While a block's files are read: a damaged one is taken out, so that its shard is not done. Raises
        UserError."""
        try:
            yield
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            block.unlink(missing_ok=True)
            raise UserError(
                f"{block.with_suffix('')}: damaged ({' '.join(str(error).split())[:80]}) and taken out; the same "
                "command makes it again"
            ) from None

    def discard(self) -> None:
        """Remove what has been written: there is nothing in it to continue from."""
        shutil.rmtree(self.partial)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def collect(self) -> tuple[list[dict], list[dict]]:
        """All rows with their splits and places, and all rejects; lays the arrays end to end in the folder. Done again
        after a crash, it gives the same bytes. A second utterance of the same id becomes a reject."""
        rows, rejects, blocks, prompts = [], [], [], {}
        seen: set[str] = set()
        num_frames = 0
        for path in sorted(self.partial.glob(BLOCKS)):
            with self._reading(path):
                block = json.loads(path.read_text(encoding="utf-8"))
                rejects += block["rejects"]
            blocks.append((path, block["rows"]))
            for row in block["rows"]:
                if row["id"] in seen:
                    rejects.append({"id": row["id"], "reason": "its id is another utterance's too"})
                    row["first_frame"] = None
                    continue
                seen.add(row["id"])
                row["first_frame"] = num_frames
                num_frames += row["num_frames"]
                rows.append(row)
                if row["id"] == block["prompt"]:
                    prompts[row["id"]] = path.with_suffix(".wav")
        if not rows:
            return rows, rejects
        assign_splits(rows)
        with self._reading(blocks[0][0]):
            names = np.load(blocks[0][0].with_suffix(".npz")).files
        for name in names:
            self._join(name, num_frames, blocks)
        train = {row["id"]: row for row in rows if row["split"] == "train"}
        best = min(
            prompts.keys() & train.keys(),
            key=lambda i: (prompt_distance(train[i]), i),
            default=next(iter(prompts), None),
        )
        if best:
            with self._reading(prompts[best].with_suffix(".json")):
                decode(prompts[best])
                voice = prompts[best].read_bytes()
            with atomic_write(self.folder / "voice.wav") as tmp:
                tmp.write_bytes(voice)
        return rows, rejects

    def _join(self, name: str, num_frames: int, blocks: list[tuple[Path, list[dict]]]) -> None:
        """NAME.npy from the blocks, one in memory at a time; a plain file, because a full disk kills who writes through
        a memory map."""
        with atomic_write(self.folder / f"{name}.npy") as tmp, open(tmp, "wb") as file:
            for number, (path, rows) in enumerate(blocks):
                with self._reading(path):
                    array, first = np.load(path.with_suffix(".npz"))[name], 0
                if number == 0:
                    shape = (num_frames, array.shape[1])
                    np.lib.format.write_array_header_1_0(
                        file, {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                    )
                for row in rows:
                    if row["first_frame"] is not None:
                        file.write(array[first : first + row["num_frames"]].tobytes())
                    first += row["num_frames"]

    def finish(self, rows: list[dict], rejects: list[dict], summary: dict) -> None:
        """Turn partial/ into the finished cache."""
        for name, lines in (("manifest", rows), ("rejects", rejects)):
            with atomic_write(self.folder / f"{name}.jsonl") as tmp:
                tmp.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        for leftover in self.folder.glob(".tmp.*"):  # of a process killed while it wrote
            leftover.unlink()
        write_json(self.folder / "cache.json", {"format_version": FORMAT_VERSION, "options": self.options, **summary})
        shutil.rmtree(self.partial)


def prompt_distance(row: dict) -> float:
    """How far, in seconds, an utterance is from a good voice prompt's length."""
    return abs(row["duration_sec"] - PROMPT_SEC)


class Cache:
    """A finished cache: `rows` (manifest), `latents` float32 [frames, 32] memory-mapped, `info` (cache.json). Raises
    UserError."""

    def __init__(self, folder: Path):
        fix = f"build it: python data_prep.py --corpus CORPUS --out {folder}, of clartts, demo or your own"
        if not folder.is_dir():
            raise UserError(f"no cache at {folder}; {fix}")
        if not (folder / "cache.json").exists():
            raise UserError(
                f"{folder} is not a finished cache (no cache.json); run the same data_prep.py command again, or {fix}"
            )
        self.folder = folder
        again = f"rm -r {folder}, then the data_prep.py command that made it, or {fix}"
        self.info = read_json(folder / "cache.json", again)
        if self.info.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{folder} has format {self.info.get('format_version')}, this code reads {FORMAT_VERSION}; {again}"
            )
        if not (
            isinstance(self.info.get("options"), dict)
            and self.info["options"].keys() >= OPTIONS
            and isinstance(self.info.get("hours"), dict)
        ):
            raise UserError(f"{folder / 'cache.json'}: options or hours missing; {again}")
        self.rows = read_jsonl(
            folder / "manifest.jsonl", lambda row: all(isinstance(row.get(key), kind) for key, kind in ROW.items())
        )
        try:
            self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{folder / 'latents.npy'}: damaged ({' '.join(str(error).split())[:80]}); {again}"
            ) from None
        ends = np.cumsum([0, *(row["num_frames"] for row in self.rows)])
        if (
            self.latents.shape != (ends[-1], LATENT_DIM)
            or sorted(row["first_frame"] for row in self.rows) != ends[:-1].tolist()
        ):
            raise UserError(f"{folder}: latents.npy and manifest.jsonl disagree; {again}")

    def voice(self) -> Path:
        """voice.wav. Raises UserError if it cannot be read; a cache of test rows alone has none."""
        path = self.folder / "voice.wav"
        try:
            decode(path)
        except AudioError as error:
            raise UserError(
                f"{path}: {error}; put a recording of the speaker there, some {PROMPT_SEC:.0f} s long"
            ) from None
        return path

    def split(self, name: str) -> list[dict]:
        return [row for row in self.rows if row["split"] == name]

    def row_latents(self, row: dict) -> np.ndarray:
        """[frames, 32] of one manifest row."""
        return self.latents[row["first_frame"] : row["first_frame"] + row["num_frames"]]
