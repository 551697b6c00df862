#!/usr/bin/env python3
"""Write demo/tokenizer.json, the nano base's tokenizer: one token a printable ASCII character.

    python demo/build_tokenizer.py

Every Latin text, English or Buckwalter, is in its vocabulary. The word mark in front (Metaspace) is what lets the
wheel find its sentence and clause ends, which it looks up by tokenising ".!...?" and ",;:" and dropping the first
token.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

MARK, UNKNOWN = "▁", "<unk>"

symbols = [UNKNOWN, MARK] + [chr(c) for c in range(33, 127)]
tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[], unk_token=UNKNOWN))
tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(MARK, prepend_scheme="always")
tokenizer.decoder = decoders.Metaspace(MARK, prepend_scheme="always")
tokenizer.save(str(Path(__file__).with_name("tokenizer.json")))
