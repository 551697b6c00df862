"""The cache's files: manifest, latents, rejects, cache.json. data_prep writes them, train reads them.

While it grows, a cache is the folder's `partial/`: raw float32 latents and JSON lines, appended row by row. A row
counts once its line is whole; whatever a crash left behind it is cut off on the next start. cache.json is written
last, so a folder that has it is complete.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from pocket_arabic.run import UserError, differences, read_jsonl, write_json

FORMAT_VERSION = 1
LATENT_DIM = 32


class CacheWriter:
    """Appends to a cache, or continues one made with the same `options`. Raises UserError if they changed."""

    def __init__(self, folder: Path, options: dict):
        self.folder, self.partial, self.options = folder, folder / "partial", options
        for saved in (folder / "cache.json", self.partial / "options.json"):
            if saved.exists():
                old = json.loads(saved.read_text(encoding="utf-8"))
                changed = differences(old.get("options", old), options)
                if changed:
                    raise UserError(f"{folder} was made with other options ({changed}); give another --out, or delete it: rm -r {folder}")
        self.complete = (folder / "cache.json").exists()
        if self.complete:
            return
        self.partial.mkdir(parents=True, exist_ok=True)
        write_json(self.partial / "options.json", options)
        self.rows = read_jsonl(self.partial / "manifest.jsonl")
        self.rejects = read_jsonl(self.partial / "rejects.jsonl")
        self.num_frames = sum(row["num_frames"] for row in self.rows)
        self._lines = {name: self._reopen(f"{name}.jsonl", rows) for name, rows in (("manifest", self.rows), ("rejects", self.rejects))}
        self._latents = open(self.partial / "latents.f32", "ab")
        self._latents.truncate(self.num_frames * LATENT_DIM * 4)

    def _reopen(self, name: str, rows: list[dict]):
        file = open(self.partial / name, "ab")
        file.truncate(sum(len(_line(row)) for row in rows))
        return file

    def done_ids(self) -> set[str]:
        return {row["id"] for row in self.rows + self.rejects}

    def add(self, row: dict, latents: np.ndarray) -> None:
        """Append one utterance: its manifest `row` and float32 latents [frames, 32]."""
        assert latents.dtype == np.float32 and latents.shape[1] == LATENT_DIM, (latents.dtype, latents.shape)
        row |= {"first_frame": self.num_frames, "num_frames": len(latents)}
        self._latents.write(latents.tobytes())
        self._latents.flush()
        self._append("manifest", row)
        self.rows.append(row)
        self.num_frames += len(latents)

    def reject(self, utterance_id: str, reason: str) -> None:
        row = {"id": utterance_id, "reason": reason}
        self._append("rejects", row)
        self.rejects.append(row)

    def _append(self, name: str, row: dict) -> None:
        self._lines[name].write(_line(row))
        self._lines[name].flush()

    def latents(self) -> np.ndarray:
        """What has been written so far, [frames, 32], memory-mapped."""
        if not self.num_frames:
            return np.zeros((0, LATENT_DIM), np.float32)
        return np.memmap(self.partial / "latents.f32", np.float32, "r", shape=(self.num_frames, LATENT_DIM))

    def close(self) -> None:
        for file in (self._latents, *self._lines.values()):
            file.close()

    def discard(self) -> None:
        """Remove what has been written: there is nothing in it to continue from."""
        self.close()
        shutil.rmtree(self.partial)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def finish(self, summary: dict) -> None:
        """Turn partial/ into the finished cache."""
        self.close()
        np.save(self.partial / "latents.npy", self.latents())
        for name in ("latents.npy", "manifest.jsonl", "rejects.jsonl"):
            os.replace(self.partial / name, self.folder / name)
        write_json(self.folder / "cache.json", {"format_version": FORMAT_VERSION, "options": self.options, **summary})
        shutil.rmtree(self.partial)


class Cache:
    """A finished cache: `rows` (manifest), `latents` float32 [frames, 32] memory-mapped, `info` (cache.json). Raises UserError."""

    def __init__(self, folder: Path):
        fix = f"build it: python data_prep.py --corpus demo --out {folder}"
        if not folder.is_dir():
            raise UserError(f"no cache at {folder}; {fix}")
        if not (folder / "cache.json").exists():
            raise UserError(f"{folder} is not a finished cache (no cache.json); run the same data_prep.py command again, or {fix}")
        self.folder = folder
        self.info = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        if self.info["format_version"] != FORMAT_VERSION:
            raise UserError(f"{folder} has format {self.info['format_version']}, this code reads {FORMAT_VERSION}; rm -r {folder}, then {fix}")
        self.rows = read_jsonl(folder / "manifest.jsonl")
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        if len(self.latents) != sum(row["num_frames"] for row in self.rows):
            raise UserError(f"{folder}: latents.npy and manifest.jsonl disagree; rm -r {folder}, then {fix}")

    def split(self, name: str) -> list[dict]:
        return [row for row in self.rows if row["split"] == name]

    def row_latents(self, row: dict) -> np.ndarray:
        """[frames, 32] of one manifest row."""
        return self.latents[row["first_frame"] : row["first_frame"] + row["num_frames"]]


def _line(row: dict) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()
