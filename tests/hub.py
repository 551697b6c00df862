"""A loopback stand-in for the Hugging Face hub, to rehearse what cannot be downloaded in a test.

It serves files of models and datasets to the real `huggingface_hub` and `datasets` clients (HF_ENDPOINT), with what
their protocol needs and no more: repository info, file trees, HEAD, ranges, and commits of new files. It can gate a
repository and break transfers.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from pocket_tts.models.mimi import build_mimi
from pocket_tts.utils.config import CONFIGS_DIR, Config
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PIECE = 1 << 16


@dataclass
class Repository:
    folder: Path
    gated: bool = False

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()

    def files(self) -> dict[str, Path]:
        return {str(p.relative_to(self.folder)): p for p in sorted(self.folder.rglob("*")) if p.is_file()}


@dataclass
class Hub:
    """`repositories`: "models/owner/name" or "datasets/owner/name" -> folder. `broken`: how many more transfers of a
    file over 64 KiB end in the middle. `served`: bytes of file content sent, by path. `uploads`: where new repositories
    lie, if they may be made."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    broken: int = 0
    served: dict[str, int] = field(default_factory=dict)
    uploads: Path | None = None

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a script that shall see this hub, with caches of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "5",
        }

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        url = urlsplit(request.path)
        path = unquote(url.path).strip("/")
        kind, api = "models", path.startswith("api/")
        if api:
            kind, _, path = path.removeprefix("api/").partition("/")
            if kind == "validate-yaml":
                return reply(request, 200, b'{"errors": [], "warnings": []}', {"Content-Type": "application/json"})
            if kind == "repos":
                return self.create(request, json.loads(body))
        elif path.startswith("datasets/"):
            kind, path = "datasets", path.removeprefix("datasets/")
        owner, name, *rest = [*path.split("/"), ""][:2] + path.split("/")[2:]
        repository = self.repositories.get(f"{kind}/{owner}/{name}")
        if repository is None:
            return reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return reply(
                request,
                401,
                b"{}",
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this repository is restricted."},
            )
        if rest and rest[0] == "resolve":
            return self.file(request, repository, "/".join(rest[2:]))
        if rest[:1] in (["preupload"], ["commit"]):
            return self.commit(request, f"{owner}/{name}", rest[0], body)
        if not api or rest[:1] not in ([], ["revision"], ["tree"], ["paths-info"]):
            return reply(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        files = repository.files()
        if rest[:1] == ["tree"]:
            value = listing(
                files,
                "/".join(rest[2:]),
                "recursive" in parse_qs(url.query) and parse_qs(url.query)["recursive"][0].lower() == "true",
            )
        elif rest[:1] == ["paths-info"]:
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            value = [entry(w, files[w]) for w in wanted if w in files]
            value += [
                {"type": "directory", "path": w, "oid": "0" * 40}
                for w in wanted
                if any(f.startswith(f"{w}/") for f in files)
            ]
        else:
            if rest[:1] == ["revision"] and rest[1] not in (repository.sha, "main"):
                return reply(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            value = {
                "id": f"{owner}/{name}",
                "sha": repository.sha,
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
            }
            value |= {"siblings": [{"rfilename": f} for f in files], "lastModified": "2026-01-01T00:00:00.000Z"}
        reply(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def create(self, request: BaseHTTPRequestHandler, wanted: dict) -> None:
        """A new repository in the folder `uploads`."""
        repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if self.uploads is None:
            return reply(
                request, 403, b'{"error": "You may not create this repository."}', {"Content-Type": "application/json"}
            )
        if f"models/{repo}" in self.repositories:
            return reply(
                request,
                409,
                json.dumps({"url": f"{self.endpoint}/{repo}"}).encode(),
                {"Content-Type": "application/json"},
            )
        (self.uploads / repo).mkdir(parents=True)
        self.repositories[f"models/{repo}"] = Repository(self.uploads / repo)
        reply(
            request, 200, json.dumps({"url": f"{self.endpoint}/{repo}"}).encode(), {"Content-Type": "application/json"}
        )

    def commit(self, request: BaseHTTPRequestHandler, repo: str, stage: str, body: bytes) -> None:
        """Every file goes in the commit itself; the real hub takes large ones beside it."""
        repository = self.repositories[f"models/{repo}"]
        if stage == "preupload":
            value = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for f in json.loads(body)["files"]
                ]
            }
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    (repository.folder / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
            value = {
                "commitUrl": f"{self.endpoint}/{repo}/commit/{repository.sha}",
                "commitOid": repository.sha,
                "pullRequestUrl": None,
            }
        reply(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def file(self, request: BaseHTTPRequestHandler, repository: Repository, path: str) -> None:
        file = repository.files().get(path)
        headers = {"X-Repo-Commit": repository.sha, "Accept-Ranges": "bytes"}
        if file is None:
            return reply(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        size = file.stat().st_size
        headers |= {
            "ETag": f'"{hashlib.sha256(str(file).encode()).hexdigest()}"',
            "Content-Type": "application/octet-stream",
        }
        first, last, status = 0, size - 1, 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if span:
            first, last, status = int(span[1]), min(int(span[2] or size - 1), size - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        request.send_response(status)
        for key, value in (headers | {"Content-Length": str(last + 1 - first)}).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        with open(file, "rb") as source:
            source.seek(first)
            left = last + 1 - first
            cut = self.broken > 0 and left > PIECE
            self.broken -= cut
            left = PIECE // 2 if cut else left
            while left > 0:
                data = source.read(min(left, PIECE))
                request.wfile.write(data)
                self.served[path] = self.served.get(path, 0) + len(data)
                left -= len(data)
        if cut:
            request.close_connection = True
            request.connection.close()


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in (headers | {"Content-Length": str(len(body))}).items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def entry(path: str, file: Path) -> dict:
    oid = hashlib.sha1(path.encode()).hexdigest()
    commit = {"id": oid, "title": "data", "date": "2026-01-01T00:00:00.000Z"}
    return {"type": "file", "path": path, "size": file.stat().st_size, "oid": oid, "lastCommit": commit}


def listing(files: dict[str, Path], under: str, recursive: bool) -> list[dict]:
    prefix = f"{under}/" if under else ""
    found: dict[str, dict] = {}
    for path, file in files.items():
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40}
            if recursive or len(parts) == 1:
                found[path] = entry(path, file)
    return list(found.values())


# --- what it serves ---------------------------------------------------------------------------------------------------


def release_config(name: str = "english") -> Config:
    """One of the wheel's own; `english` has 109.5M parameters, 4,000 pieces."""
    return Config(**yaml.safe_load((CONFIGS_DIR / f"{name}.yaml").read_text(encoding="utf-8")))


def random_release(
    folder: Path, build_flow_lm, zero_encoder: bool = False, config: Config | None = None, name: str = "english"
) -> None:
    """A language, of its own config or `config`, as released, with random weights:
    languages/NAME/{model.safetensors,tokenizer.json}."""
    target = folder / "languages" / name
    target.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    syllables = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s", "t")]
    rng = np.random.default_rng(0)
    words = [" ".join("".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(12)) for _ in range(2000)]
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(
            vocab_size=4000,
            special_tokens=["<unk>"],
            initial_alphabet=[chr(c) for c in range(33, 127)],
            show_progress=False,
        ),
    )
    assert tokenizer.get_vocab_size() == 4000
    tokenizer.save(str(target / "tokenizer.json"))
    config = (config or release_config(name)).model_copy(deep=True)
    config.flow_lm.lookup_table.tokenizer_path = str(target / "tokenizer.json")
    torch.manual_seed(0)
    flow_lm, mimi = build_flow_lm(config, None), build_mimi(config.mimi)
    if zero_encoder:
        for p in mimi.encoder.parameters():
            torch.nn.init.zeros_(p)
    state = {f"flow_lm.{k}": v for k, v in flow_lm.state_dict().items()} | {
        f"mimi.{k}": v for k, v in mimi.state_dict().items()
    }
    save_file({k: v.contiguous() for k, v in state.items()}, target / "model.safetensors")


SENTENCES = [
    ".العمر .ينقص",
    "قَالَ: نَعَمْ، سَأَذْهَبُ غَدًا.",
    "هَلْ أَنْتَ بِخَيْرٍ؟",
    ":قَالَ الْحَكِيمُ .الصَّبْرُ مِفْتَاحُ الْفَرَجِ",
    "لَا تُؤَجِّلْ عَمَلَ الْيَوْمِ.",
    'كَتَبَ "الطَّالِبُ رِسَالَةً.',
]


def clartts_lookalike(
    folder: Path, rows: int, test_rows: int, shards: int, seconds: tuple[float, float] = (1.3, 2.0)
) -> None:
    """Parquet with ClArTTS's columns and quirks: samples as lists of float64 at 40,100 Hz, chapters in the file names,
    marks in front of words. Rows 3 and 5 of train are bad: no audio, Latin text."""
    rng = np.random.default_rng(0)
    voices = []
    for i in range(24):
        time = np.arange(int(rng.uniform(*seconds) * 40100)) / 40100
        tone = 0.3 * np.sin(2 * np.pi * (150 + 20 * i) * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
        voices.append(np.round(tone * 32767) / 32767)
    (folder / "data").mkdir(parents=True)
    for split, count, parts in (("train", rows, shards), ("test", test_rows, 1)):
        for part in range(parts):
            numbers = range(count * part // parts, count * (part + 1) // parts)
            table = pa.table(
                {
                    "text": [
                        SENTENCES[i % len(SENTENCES)] if (split, i) != ("train", 5) else "not Arabic" for i in numbers
                    ],
                    "file": [
                        f"ch_{(1 if split == 'train' else 90) + i * 5 // count}_arabic_tts_dataset_{split}{i}.wav"
                        for i in numbers
                    ],
                    "audio": pa.array(
                        [voices[i % 24] if (split, i) != ("train", 3) else None for i in numbers],
                        pa.list_(pa.float64()),
                    ),
                    "sampling_rate": pa.array([40100] * len(numbers), pa.int64()),
                    "duration": [len(voices[i % 24]) / 40100 for i in numbers],
                }
            )
            pq.write_table(table, folder / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet", row_group_size=50)
