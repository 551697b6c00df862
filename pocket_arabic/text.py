"""Arabic in, model text out: the one text function of data_prep, train and generate.

    "هَلْ أَنْتَ بِخَيْرٍ؟"  -> normalise -> "هَلْ أَنْتَ بِخَيْرٍ؟"  -> romanise -> "halo >anota bixayorK?"

Marks and hamza forms are kept, because they are the pronunciation. Romanisation is Buckwalter's table, one symbol a
character, so it is reversible. Nothing is dropped in silence but layout (tatweel, bidi controls, quotation marks);
numbers become words; a character that cannot be said raises TextError with its name and place.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache

from pocket_arabic.numbers import numbers_to_words

# Buckwalter (1990, as in Habash 2010, "Introduction to Arabic Natural Language Processing", table 2.1). ٱ is "{".
# P J V G, for the loan letters, are the usual extension of the table.
ARABIC_TO_BUCKWALTER = dict(
    zip(
        "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيًٌٍَُِّْٰٱپچڤگ",
        "'|>&<}AbptvjHxd*rzs$SDTZEgfqklmnhwYyFNKaui~o`{PJVG",
        strict=True,
    )
)
PUNCTUATION_TO_LATIN = {"،": ",", "؛": ";", "؟": "?"}
TO_MODEL = ARABIC_TO_BUCKWALTER | PUNCTUATION_TO_LATIN | {c: c for c in " .!:"}
FROM_MODEL = {v: k for k, v in TO_MODEL.items()}

SHADDA = "ّ"
MARKS = "ًٌٍَُِّْٰ"
MARKS_MODEL = "".join(ARABIC_TO_BUCKWALTER[c] for c in MARKS)
LETTERS = "".join(c for c in ARABIC_TO_BUCKWALTER if c not in MARKS)
# Same letter, other code point: Persian and Urdu keyboards; punctuation of other keyboards; layout, which is not speech.
VARIANTS = {"ی": "ي", "ک": "ك", "ہ": "ه", ",": "،", ";": "؛", "?": "؟", "٬": "،", "–": "،", "—": "،", "(": "،", ")": "،", "[": "،", "]": "،"}
# Written short and read long: before anything else, after the layout characters are out, and at the end, when a title stands
# before its name as "د. ". What is found at the end cannot come about later, so a second pass changes nothing.
HONORIFICS = {"ﷺ": "صَلَّى اللَّهُ عَلَيْهِ وَسَلَّمَ", "ﷻ": "جَلَّ جَلَالُهُ"}
ABBREVIATIONS = {"(ص)": HONORIFICS["ﷺ"], "(ع)": "عَلَيْهِ السَّلَامُ", "(رض)": "رَضِيَ اللَّهُ عَنْهُ", "ق.م": "قَبْلَ الْمِيلَادِ"}
LAST = {"د. ": "الدُّكْتُورُ ", "إلخ": "إِلَى آخِرِهِ"}
LAYOUT = dict.fromkeys([0x640, 0xAD, 0x61C, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *map(ord, "\"'«»“”‘’")])


class TextError(ValueError):
    """Text that cannot be said; the message names the character and its position (from 1)."""


def normalise(text: str, numbers: bool = True) -> str:
    r"""Any Arabic text -> the canonical vocalised text (`text_norm`). Idempotent.

    Marks of one letter come as shadda, then vowel, the order people type (NFC puts the vowel first).
    Punctuation is . ، ؟ ! ؛ : attached to the word before it, one mark at a place, and the last one ends a sentence; so
    marks that an editing accident put in front of words (".العمر .ينقص") come right. Numbers become words.

    >>> normalise("ب\u064e\u0651") == normalise("ب\u0651\u064e")  # vowel or shadda first
    True
    >>> normalise("«قَالَ» ,نَعَمْ ؟!")
    'قَالَ، نَعَمْ؟'

    Raises TextError for a character outside the table, a mark without its letter, or a text without any letter.
    """
    raw = text
    text = _expand(text, HONORIFICS)
    text = _expand(unicodedata.normalize("NFKC", text).translate(LAYOUT), ABBREVIATIONS)
    if numbers:
        try:
            text = numbers_to_words(text)
        except ValueError as error:
            raise TextError(f"{error}: write it in words") from None
    text = " ".join(text.translate(str.maketrans(VARIANTS)).split())
    for c in text:
        if c not in TO_MODEL:
            raise TextError(f"{_describe(c, raw)} cannot be said: write it in vocalised Arabic words")
    # One punctuation mark at a place: the first that ends a sentence, else the first.
    text = re.sub(r" *([.،؟!؛:])([.،؟!؛: ]*)", lambda m: next((c for c in m[0] if c in ".؟!"), m[1]) + " ", text).strip()
    text = text.lstrip(".،؟!؛: ")
    if text and text[-1] not in ".؟!":
        text = text.rstrip("،؛: ") + "."
    text = _expand(text, LAST)
    text = re.sub(f"[{MARKS}]+", lambda m: "".join(sorted(set(m[0]), key=lambda c: (c != SHADDA, unicodedata.combining(c)))), text)
    if not any(c in LETTERS for c in text):
        raise TextError("the text has no Arabic letter")
    orphan = re.search(f"(?:^|[^{LETTERS}{MARKS}])([{MARKS}])", text)
    if orphan:
        raise TextError(f'"{orphan[1]}" ({unicodedata.name(orphan[1])}) stands without a letter before it, in "{text[: orphan.end()][-20:]}"')
    return text


def _expand(text: str, table: dict[str, str]) -> str:
    """Replace abbreviations that stand alone, not those that end or begin like a longer word."""
    letter = f"[{LETTERS}{MARKS}]"
    for short, long in table.items():
        before = f"(?<!{letter})" if short[0] in LETTERS else ""
        after = f"(?!{letter})" if short[-1] in LETTERS else ""
        text = re.sub(f"{before}{re.escape(short)}{after}", long if before else f" {long} ", text)
    return text


def romanise(text_norm: str) -> str:
    """Normalised Arabic -> Buckwalter, one symbol a character.

    >>> romanise("هَلْ أَنْتَ بِخَيْرٍ؟")
    'halo >anota bixayorK?'
    """
    return "".join(TO_MODEL[c] for c in text_norm)


def deromanise(text_model: str) -> str:
    """Buckwalter -> Arabic, the inverse of `romanise`. Raises TextError for a symbol outside the table.

    >>> deromanise("halo >anota bixayorK?")
    'هَلْ أَنْتَ بِخَيْرٍ؟'
    """
    for c in text_model:
        if c not in FROM_MODEL:
            raise TextError(f"{_describe(c, text_model)} is not a Buckwalter symbol")
    return "".join(FROM_MODEL[c] for c in text_model)


def model_text(
    text: str, romanized: bool = False, numbers: bool = True, phonemes: str | None = None, substitutes: dict[str, str] | None = None, rewrite: Iterable[Callable[[str], str]] = ()
) -> tuple[str, str]:
    """Text as given (Arabic, or Buckwalter if `romanized`) -> (text_norm, text_model).

    `phonemes`: "espeak" for IPA instead of Buckwalter. `substitutes`: what to write for Buckwalter symbols that a
    tokenizer does not know. `rewrite`: what else is done to the normalised text, `diacritize` or `pausal`.
    """
    text_norm = normalise(deromanise(" ".join(text.split())) if romanized else text, numbers)
    for step in rewrite:
        text_norm = step(text_norm)
    if phonemes:
        return text_norm, espeak_phonemes(text_norm)
    return text_norm, romanise(text_norm).translate(str.maketrans(substitutes or {}))


def espeak_phonemes(text_norm: str) -> str:
    """Normalised Arabic -> espeak-ng's IPA, punctuation kept; for a base whose tokenizer cannot take Buckwalter.

    >>> espeak_phonemes("هَلْ أَنْتَ بِخَيْرٍ؟")
    'hal ʔanta biχairin?'
    """
    spoken = _espeak().phonemize([text_norm], strip=True)[0].translate(str.maketrans(PUNCTUATION_TO_LATIN))
    return " ".join(spoken.split())


@cache
def _espeak():
    """espeak-ng 1.52 as the package espeakng-loader brings it, behind phonemizer."""
    import espeakng_loader
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend("ar", preserve_punctuation=True, punctuation_marks=".،؟!؛:")


def replace_characters(substitutes: dict[str, str] | None = None) -> dict[str, str]:
    """The `replace_characters` table of a bundle's YAML: lets stock Pocket TTS read Arabic script.

    It works on single characters, so it carries `romanise` and the removals whole, but not the order of marks.
    """
    variants = {k: TO_MODEL[v] for k, v in VARIANTS.items() if ord(k) > 127}
    # ASCII quotes stay out: "'" is Buckwalter's hamza, and a second pass over romanised text must change nothing.
    layout = {chr(c): "" for c in LAYOUT if c > 127}
    table = {k: v for k, v in TO_MODEL.items() if k != v} | variants | layout
    # Buckwalter typed as such is substituted too, so a second pass still changes nothing.
    return {k: (substitutes or {}).get(v, v) for k, v in table.items()} | (substitutes or {})


# A letter that needs no mark: ا آ ى ٱ; long و and ي, after their own vowel; lam before a doubled letter (الشَّمْسُ).
UNMARKED = re.compile(f"[اآىٱ]|(?<=ُ)و|(?<=ِ)ي|ل(?=[{LETTERS}]{SHADDA})")


def pausal(text_norm: str) -> str:
    """Normalised Arabic with pausal forms: before a stop, a final short vowel or tanween is not heard (Wright, I, § 230 ff.).

    -un, -in and short vowels go; -an becomes ا; ta marbuta becomes ه. Everything else stays.

    >>> pausal("رَأَيْتُ رَجُلًا، وَهُوَ فِي الْمَدِينَةِ.")
    'رَأَيْتُ رَجُلَا، وَهُوَ فِي الْمَدِينَهْ.'
    """
    text = re.sub("ة[ًٌٍَُِْ]?(?=[.،؟!؛:])", "هْ", text_norm)
    text = re.sub("َ?(?:ً([اى])|([اى])ً)(?=[.،؟!؛:])", lambda m: "َ" + (m[1] or m[2]), text)
    text = re.sub("ءً(?=[.،؟!؛:])", "ءَا", text)
    return re.sub(f"({SHADDA}?)[ٌٍَُِ](?=[.،؟!؛:])", lambda m: m[1] or "ْ", text)


def diacritize(text_norm: str) -> str:
    """Marks for the letters that have none, by the package arabic-diacritizer (a BiLSTM that works offline). Marks that are
    there stay, and so do the letters; where the package leaves a letter bare that needs a mark, sukun is meant.

    >>> diacritize("ذهب الوَلَدُ إلى المدرسة.")
    'ذَهَبَ الْوَلَدُ إِلَى الْمَدْرَسَةِ.'
    """
    restored = unicodedata.normalize("NFKC", _diacritizer().diacritize("".join(c for c in text_norm if c not in MARKS)))
    given, found = (re.findall(f"([^{MARKS}])([{MARKS}]*)", t) for t in (text_norm, restored))
    assert [g for g, _ in given] == [f for f, _ in found], (text_norm, restored)
    text = ""
    for (letter, marks), (_, other) in zip(given, found):
        if letter in "اى" and "ٰ" not in other:  # the package writes لاَ for لَا
            text += other if text[-1:] in tuple(LETTERS) else ""
            other = ""
        text += letter + (marks or (other if letter in LETTERS else ""))
    text = normalise(text)
    for place in reversed(_bare(text)):
        text = f"{text[:place]}{'َ' if text[place : place + 1] in tuple('اىة') else 'ْ'}{text[place:]}"
    return text


@cache
def _diacritizer():
    from diacritize import Diacritizer

    return Diacritizer.from_pretrained()


# Letters that recognisers and writers mix up; scoring practice unifies them where marks are left out as well.
FOLDED = str.maketrans({FROM_MODEL[a]: FROM_MODEL[b] for a, b in zip("><|{Yp&}", "AAAAyhwy")})


def scored(text: str, marks: bool) -> str:
    """What error rates are counted on, of a reference or of what a recogniser wrote; total, unlike `normalise`.

    Always: NFKC, layout characters out, digits to words, shadda before its vowel, no sukun (a letter without a vowel is
    written with or without it), other signs become spaces, lower case. Without `marks`: no marks at all, hamza seats and
    alef unified (أ إ آ ٱ -> ا, ؤ -> و, ئ -> ي), ى -> ي, ة -> ه.

    >>> scored("هَلْ أَنْتَ بِخَيْرٍ؟", marks=True)
    'هَل أَنتَ بِخَيرٍ'
    >>> scored("هَلْ أَنْتَ بِخَيْرٍ؟", marks=False)
    'هل انت بخير'
    """
    text = unicodedata.normalize("NFKC", text).translate(LAYOUT)
    with suppress(ValueError):  # a number too long to say stays as it is
        text = numbers_to_words(text)
    text = "".join(VARIANTS.get(c, c) for c in text).replace("\u0652", "").lower()
    text = re.sub(f"[{MARKS}]+", lambda m: "".join(sorted(m[0], key=lambda c: (c != SHADDA, unicodedata.combining(c)))), text)
    if not marks:
        text = "".join(c for c in text if not unicodedata.combining(c)).translate(FOLDED)
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in text).split())


def swap_vowels(text_norm: str) -> str:
    """The same letters with wrong vowels: a -> u -> i -> a, tanween likewise; a vowel before its own long letter stays, because the
    two belong together. What such a text sounds like tells whether a model hears the marks.

    >>> swap_vowels("هَلْ كَتَبَ الْكِتَابَ؟")
    'هُلْ كُتُبُ الْكَتَابُ؟'
    """
    return re.sub("َ(?![اىآ])|ُ(?!و)|ِ(?!ي)|[ًٌٍ]", lambda m: FROM_MODEL["uiaNKF"["auiFNK".index(TO_MODEL[m[0]])]], text_norm)


def missing_marks(text_norm: str) -> float:
    """Share of the letters that need a mark and have none: 0 for vocalised text, near 1 for bare text.

    >>> missing_marks("ذَهَبَ."), missing_marks("ذهب.")
    (0.0, 1.0)
    """
    return len(_bare(text_norm)) / max(1, len(_needing(text_norm)))


def _needing(text_norm: str) -> list[int]:
    """Where the marks of the letters that need one stand or would stand."""
    return [m.end() for m in re.finditer(f"[{LETTERS}]", UNMARKED.sub(lambda m: "-", text_norm))]


def _bare(text_norm: str) -> list[int]:
    """Those of them where no mark stands."""
    return [i for i in _needing(text_norm) if text_norm[i : i + 1] not in tuple(MARKS)]


def _describe(character: str, raw: str) -> str:
    """'"a" (LATIN SMALL LETTER A) at position 3', as it stands in the text the user gave."""
    at = next((i for i, c in enumerate(raw, 1) if character in unicodedata.normalize("NFKC", c)), None)
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    return f'"{character}" ({name})' + (f" at position {at}" if at else "")
