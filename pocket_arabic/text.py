"""Arabic in, model text out: the one text function of data_prep, train and generate.

    "هَلْ أَنْتَ بِخَيْرٍ؟"  -> normalise -> "هَلْ أَنْتَ بِخَيْرٍ؟"  -> romanise -> "halo >anota bixayorK?"

Marks and hamza forms are kept, because they are the pronunciation. Romanisation is Buckwalter's table, one symbol a
character, so it is reversible. Nothing is dropped in silence but layout (tatweel, bidi controls, quotation marks); what
else is dropped or changed (footnotes, signs of the Quran) is noted; numbers become words; a character that cannot be
said, or marks that no word of Arabic has, raise TextError with their place.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from itertools import groupby

from pocket_arabic.numbers import (
    CHRIST,
    GENITIVE,
    HIJRA,
    NUMBERED,
    NUMBERED_FEMININE,
    VOWEL,
    YEAR_WORD,
    NumberError,
    among,
    bare,
    numbers_to_words,
    word_at,
    words_before,
)

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
# Same letter, other code point: Persian and Urdu keyboards, Quranic fonts; punctuation of other keyboards.
VARIANTS = dict(zip("یکہھڪۃ", "يكههكة", strict=True))
VARIANTS |= dict(zip("\u08f0\u08f1\u08f2\u06e1\u06e7", "ًٌٍْي", strict=True))
VARIANTS |= dict.fromkeys(",٬–—―‒()[]", "،") | {";": "؛", "?": "؟", "۔": "."}
# Layout, which is not speech: tatweel, joiners, bidi controls, quotation marks. Zero-width space is not here: it parts
# words.
CONTROLS = [0x640, 0xAD, 0x34F, 0x61C, 0xFEFF, *range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)]
LAYOUT = dict.fromkeys([*CONTROLS, *map(ord, "\"'«»“”‘’„‚‹›﴾﴿")])
# Signs of the Quran that say nothing more to a reader of single words, dropped with a note.
SIGNS = dict.fromkeys(map(chr, range(0x6D6, 0x6DD)), "pause sign") | dict.fromkeys("\u06dd\u06de\u06e9", "ornament")
SIGNS |= dict.fromkeys("\u06df\u06e0", "sign of a silent letter") | dict.fromkeys(
    "\u0653\u06e4\u06e5\u06e6", "sign of length"
)
SIGNS |= dict.fromkeys("\u06e2\u06ed\u06e3\u06ea\u06eb\u06ec", "sign of recitation")
READ_AS = {"\u06e1": "sukun", "\u06e7": "ي", "\u06e8": "ن"} | dict.fromkeys("\u08f0\u08f1\u08f2", "tanween")
READ_AS |= dict.fromkeys("\u0656\u0657\u065e", "tanween or a vowel, by its place")
QURANIC = re.compile("[\u0653\u0656\u0657\u065e\u06d6-\u06ed\u08f0-\u08f2]")

# Written in one sign or in short, and read long.
PRAYER, PEACE = "صَلَّى اللَّهُ عَلَيْهِ وَسَلَّمَ", "عَلَيْهِ السَّلَامُ"
PLEASED = "رَضِيَ اللَّهُ عَنْه"
LIGATURES = {
    "ﷺ": PRAYER, "ﷻ": "جَلَّ جَلَالُهُ", "﷽": "بِسْمِ اللَّهِ الرَّحْمَنِ الرَّحِيمِ",
    "\ufdfe": "سُبْحَانَهُ وَتَعَالَى", "\ufdff": "عَزَّ وَجَلَّ", "\ufd40": "رَحِمَهُ اللَّهُ",
    "\ufd41": PLEASED + "ُ", "\ufd42": PLEASED + "َا", "\ufd43": PLEASED + "ُمْ", "\ufd44": PLEASED + "ُمَا",
    "\ufd47": PEACE, "\ufdf5": PRAYER, "\ufd48": "عَلَيْهِمُ السَّلَامُ", "\ufd4d": "عَلَيْهَا السَّلَامُ",
    "\ufd4e": "تَبَارَكَ وَتَعَالَى", "\ufd4f": "رَحِمَهُمُ اللَّهُ", "ؐ": PRAYER, "ؑ": PEACE,
    "ؒ": "رَحْمَةُ اللَّهِ عَلَيْهِ", "ؓ": PLEASED + "ُ",
}  # fmt: skip
# Words in one sign, with the marks that NFKC forgets; what is typed after them is their ending.
WORD_SIGNS = {"ﷲ": "اللَّه", "ﷴ": "مُحَمَّد", "ﷳ": "أَكْبَر", "ﷶ": "رَسُول", "ﷷ": "عَلَيْه", "ﷸ": "وَسَلَّم", "ﷹ": "صَلَّى", "﷼": "رِيَال"}
PROPHET = among("محمد النبي الرسول رسول نبي نبينا المصطفى الحبيب الأنبياء المرسلين")
AT_PEACE = among(
    "علي الحسن الحسين الصادق الباقر الرضا الكاظم الهادي العسكري المهدي السجاد الإمام موسى عيسى المسيح إبراهيم إسماعيل "
    "إسحاق يعقوب "
    "يوسف نوح آدم داود سليمان أيوب يونس يحيى زكريا هارون لوط هود صالح شعيب إدريس إلياس جبريل النبي المؤمنين مريم فاطمة "
    "الزهراء زينب"
)
WOMEN = among(
    "مريم فاطمة الزهراء زينب عائشة خديجة حفصة سودة صفية جويرية ميمونة أسماء سمية رقية آسية هاجر سارة سلمة حبيبة خولة"
)
# A title needs a name after it: one of these, or of the form الْبُخَارِيُّ, or any word after one that wants a person.
WOMEN |= among(
    "ليلى سعاد نور هدى منى سلمى رنا ريم لينا هند أمل إيمان آمنة بثينة جميلة حنان دعاء رانيا سميرة شيماء صفاء عبير غادة "
    "كوثر لطيفة مها "
    "نادية نجلاء نوال هالة وفاء ياسمين رشا سهير سناء فدوى نهى هناء"
)
NAMES = WOMEN | among(
    "محمد أحمد احمد محمود علي حسن حسين عمر عثمان خالد يوسف إبراهيم ابراهيم إسماعيل اسماعيل يحيى عيسى موسى هارون داود "
    "سليمان صالح "
    "عبد أبو ابو أبي ابن بن طه سعيد سعد سالم سامي سمير كريم كمال جمال جميل جلال جابر جعفر حامد حازم حمزة حمد راشد رشيد "
    "رامي زيد زياد "
    "زكريا زكي زهير شوقي صلاح ضياء طارق طلال عادل عامر عباس عماد عدنان عصام عزيز غازي غسان فؤاد فارس فاروق فاضل فهد "
    "فيصل قاسم لؤي ليث "
    "ماجد مازن مالك مجدي محسن مصطفى مصعب معاذ منصور منير مهدي ناصر نبيل نجيب نزار هاشم هاني هشام هيثم وائل وليد ياسر "
    "ياسين أسامة أنس "
    "أيمن أمين إياد أكرم أشرف أنور بدر بشار بلال تامر ثامر توفيق رضا رياض شريف شاكر صبري طاهر عارف عاطف فريد فتحي لطفي "
    "ممدوح مراد نادر"
)
BEFORE_A_PERSON = among(
    "قال يقول ذكر كتب جاء حضر زار سأل أجاب ألقى ألف الشيخ السيد الأستاذ الإمام مع إلى عن عند لدى تأليف بقلم إعداد "
    "إشراف تحقيق ترجمة"
)
PARTICLES = among(
    "ثم في من هو هي هم هذا هذه ذلك تلك نعم لا أو أم إن أن قد لقد كان كانت ما لم لن كل بل حيث إذا كما لكن لأن لأنه لأنها"
)
LETTERED = re.compile(
    "[وفبلك]?(?:ال|ل)?(?:إجابة|جواب|فقرة|حرف|خيار|اختيار|بند|قسم|فئة|مجموعة|صف|قائمة|نقطة|شكل|نوع|رمز|فصيلة"
    "|فيتامين|شقة|قاعة|مبنى|مادة|بديل|باب|.)"
)
# Letters at the head of some suras, said by their names; a maddah over one of them tells.
LETTER_NAMES = {"ا": "أَلِفْ", "ل": "لَامْ", "م": "مِيمْ", "ص": "صَادْ", "ر": "رَا", "ك": "كَافْ", "ه": "هَا", "ي": "يَا"}
LETTER_NAMES |= {"ع": "عَيْنْ", "ط": "طَا", "س": "سِينْ", "ح": "حَا", "ق": "قَافْ", "ن": "نُونْ"}
HEAD = re.compile(
    f"(?<![{LETTERS}{MARKS}])(?=[الرمصكهيعطسحقن]*[لمصكعسقن][\u0653\u06e4])"
    f"(?:[المصركهيعطسحقن][\u0653\u06d6-\u06db\u06e1\u06e4]*)+(?![{LETTERS}{MARKS}])"
)


class TextError(ValueError):
    """Text that cannot be said; the message names the character and its position (from 1)."""


def normalise(text: str, numbers: bool = True, notes: Counter[str] | None = None) -> str:
    r"""Any Arabic text -> the canonical vocalised text (`text_norm`). Idempotent.

    Marks of one letter come as shadda, then vowel, the order people type (NFC puts the vowel first); tanween stands
    before the alif it is written with. Punctuation is . ، ؟ ! ؛ : attached to the word before it, one mark at a place,
    and the last one ends a sentence; so marks that an editing accident put in front of words (".العمر .ينقص") come
    right. Numbers become words. `notes` counts what was dropped or guessed, each with what it was.

    >>> normalise("ب\u064e\u0651") == normalise("ب\u0651\u064e")  # vowel or shadda first
    True
    >>> normalise("«قَالَ» ,نَعَمْ ؟!")
    'قَالَ، نَعَمْ؟'

    Raises TextError for a character outside the table, digits that are no number, marks that cannot stand where they
    do, or a text without any letter.
    """
    raw, notes = text, Counter() if notes is None else notes
    if not PLAIN.fullmatch(text):
        text = IN_BRACKETS.sub(_in_brackets, _characters(text, notes))
        text = DIED.sub("تُوُفِّيَ سَنَةَ ", text)
        if numbers:
            try:
                text = numbers_to_words(text)
            except NumberError as error:
                place = _place(error.run, raw)
                raise TextError(f'{error.reason}, in "{error.run}"{place}: write it in words') from None
        text = re.sub("(?<=[ًَ])(ّ?)ی(ٰ?)(?!\\w|[ً-ْ])", r"\1ى\2", text)  # Persian ye, ى or ي by its place
        text = DASHES.sub("،", text).translate(TO_LETTERS)
        if other := UNKNOWN.search(text):
            raise TextError(f"{_describe(other[0], raw)} cannot be said: write it in vocalised Arabic words")
    text = " ".join(text.split())
    # One punctuation mark at a place: the first that ends a sentence, else the first.
    text = re.sub(" *([.،؟!؛:])([.،؟!؛: ]*)", _one_mark, text).strip().lstrip(".،؟!؛: ")
    if text and text[-1] not in ".؟!":
        text = text.rstrip("،؛: ") + "."
    if not LETTER.search(text):
        raise TextError("the text has no Arabic letter")
    text = _spelling(text, notes)
    # Short forms that hold a stop come last, when a stop has its one form. What one of them says decides about the
    # next, so until nothing changes.
    while SHORT_OR_LONE.search(text) and (longer := _short_forms(text)) != text:
        text = longer
    notes.update(f'letter "{letter}" stands alone and is read as such' for letter in LONE.findall(text))
    return text


WORD = f"[{LETTERS}{MARKS}]"
LETTER = re.compile(f"[{LETTERS}]")
UNKNOWN = re.compile(f"[^{''.join(map(re.escape, TO_MODEL))}\\s]")
PLAIN = re.compile(f"[{LETTERS}{MARKS} .،؟!؛:]*")
DASHES = re.compile(r"(?<![^\s.،؟!؛:()\[\]])[-‐]+|[-‐]+(?![^\s.،؟!؛:()\[\]])")
TO_LETTERS = str.maketrans(VARIANTS)
IN_BRACKETS = re.compile(r" ?\( ?(ص|ع|رض) ?\)")
SHORT = re.compile(f"(?<!{WORD})(?:ق\\. م|[إاأ]لخ|صلعم)(?!{WORD})")
LONG = {"ق": "قَبْلَ الْمِيلَادِ", "ص": PRAYER}

LONE = re.compile(f"(?<!{WORD})([{LETTERS.replace('و', '')}])(?!{WORD})")
LIST = re.compile(f"(?<!{WORD})[بج](?!{WORD})")
SHORT_OR_LONE = re.compile(f"{SHORT.pattern}|{LONE.pattern}")
TITLE = re.compile(f"(?<!{WORD})(أ\\. د|د)\\. (?=({WORD}+))")
HEAD_OF_SURA = re.compile("[وفبل]?(?:ال|ل)?(?:سورة|حرف)")
POWER = re.compile(f"(?<![0-9])10[⁰¹²³⁴-⁹]|[⁺⁻⁼]|(?<!{WORD})(?:[ء-ي]|كم|سم|مم)[²³]")
NUMERAL = "[0-9٠-٩۰-۹]"
DIED = re.compile(f"(?<!{WORD})ت\\.? ?(?={NUMERAL}{{1,4}} ?[هم](?!{WORD}))")
FOOTNOTE = re.compile(
    f'(?:(?<={WORD})|(?<={NUMERAL})|(?<=[.،؟!؛:»"]))(?:\\[{NUMERAL}{{1,3}}\\])+|'
    f"(?<={WORD})\\({NUMERAL}{{1,3}}\\)|\u06dd ?{NUMERAL}+|﴿{NUMERAL}+﴾|﴾{NUMERAL}+﴿"
)
SPACES = re.compile(r"[^\S\n]+")
# Nothing here is another form of something else, as NFKC has it.
SIMPLE = re.compile(f"[ -~\n{LETTERS}{MARKS}٠-٩۰-۹٪٫٬،؛؟«»–—]*")
LINE_ENDS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
CARELESS = re.compile("ا[َّْٰ]|َوٰ")


@cache
def _folded(character: str) -> str:
    """One character of what NFKC folds, with what it forgets: marks keep no space to stand on, a fraction is apart from
    the number before it; a superscript, subscript or circled digit becomes U+FFFF, to be dropped."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    if character in LIGATURES:
        return f" {LIGATURES[character]} "
    if character in WORD_SIGNS:
        return WORD_SIGNS[character]
    if kind == "<fraction>":
        return " " + unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "No" or character in "⁽⁾₍₎":
        return "\uffff"
    if kind in ("<isolated>", "<initial>", "<medial>", "<final>"):
        return unicodedata.normalize("NFKC", character).lstrip(" ـ")
    return character


def _characters(text: str, notes: Counter[str]) -> str:
    """What stands for letters and marks in many code points, in few; layout, footnotes and signs of the Quran taken
    out."""
    if SIMPLE.fullmatch(text):
        return SPACES.sub(" ", FOOTNOTE.sub(lambda m: _footnote(m, notes), text).translate(LAYOUT))
    if power := POWER.search(text):
        raise TextError(f'a power or a formula, in "{power[0]}" at position {power.start() + 1}: write it in words')
    text = re.sub(r"(?<!\S)ـ+(?!\S)", "،", text.replace("\u200b", " "))
    text = re.sub(f"(?<!{WORD})[اأ]\\.?هـ+(?!{WORD})", "انْتَهَى", text)
    text = LINE_ENDS.sub("\n", "".join(map(_folded, text)))
    # A hamza on a tatweel or a ى has the seat ئ.
    text = re.sub(f"(?<!{WORD})([وف]?[َ]?[بلك])ـ+ (?={NUMERAL})", r"\1", text)  # بـ 5
    text = re.sub("[ـىی]([ً-ْ]*)\u0654", r"ئ\1", unicodedata.normalize("NFKC", text))
    text = FOOTNOTE.sub(lambda m: _footnote(m, notes), text)
    if "\uffff" in text:
        notes["superscript or circled sign dropped, taken for a footnote mark"] += text.count("\uffff")
    text = SPACES.sub(" ", text.replace("\uffff", "").translate(LAYOUT)).translate(str.maketrans("ہھ", "هه"))
    if not QURANIC.search(text):
        return text
    for sign in set(text) & (SIGNS.keys() | READ_AS.keys()):
        what = f"a {SIGNS[sign]}, not spoken by itself" if sign in SIGNS else f"read as {READ_AS[sign]}"
        notes[f'"{sign}" ({unicodedata.name(sign)}): {what}'] += text.count(sign)
    text = HEAD.sub(lambda m: " ".join(LETTER_NAMES[c] for c in m[0] if c in LETTER_NAMES), text)
    # A small waw or ya is length: inside a word it is written in full, at its end it is understood (لَهُ).
    text = re.sub(f"\u06e5(?=[{LETTERS}])", "و", text)
    text = re.sub(f"\u06e6(?=[{LETTERS}])|(?<=[ىي]ِ)\u06e6", "ي", text)
    # Three signs that fonts of Medina use for tanween, and those of India for a long vowel (on ه at the end, and
    # inside).
    text = re.sub(f"(?<!ه)\u0657(?=[اى]?(?!{WORD}))|(?<=ه)\u0657(?=[اى](?!{WORD}))", "ً", text).replace("\u0657", "ُ")
    text = re.sub(f"(?<!ه)\u0656(?!{WORD})", "ٍ", text).replace("\u0656", "ِ").replace("\u065e", "ٌ")
    # A small meem after a vowel at the end of a word is its tanween.
    text = re.sub(f"([\u064e-\u0650])[\u06e2\u06ed](?=ا?(?!{WORD}))", lambda m: chr(ord(m[1]) - 3), text)
    return text.replace("\u06e8", "نْ").translate(dict.fromkeys(map(ord, SIGNS)))


def _footnote(match: re.Match, notes: Counter[str]) -> str:
    """A number in brackets that touches a word is a footnote, but for الْمَادَّةُ(5) and the like."""
    before = bare((words_before(match.string[: match.start()], 1) or [""])[0])
    if match[0][0] == "(" and (before in NUMBERED | NUMBERED_FEMININE | {"رقم"} or LETTERED.fullmatch(before)):
        return match[0]
    notes[f"{match[0]} dropped, taken for the number of a footnote or verse"] += 1
    return ""


def _in_brackets(match: re.Match) -> str:
    """(ص), (ع), (رض): a blessing after the name of whom it blesses; the letter's name after سُورَة; else as it
    stands."""
    before = [bare(w) for w in words_before(match.string[: match.start()], 4)]
    if before and HEAD_OF_SURA.fullmatch(before[0]):
        return f" {match[1]} "
    names = {w.removesuffix("ا") for w in before} | {w[1:] for w in before if w[0] in "وفبلك"} | set(before)
    she = "َا" if before and (before[0] in WOMEN or before[0][1:] in WOMEN) else ""
    if match[1] == "رض":
        return f" {PLEASED}{she or 'ُ'} "
    if match[1] == "ص" and names & PROPHET:
        return f" {PRAYER} "
    if match[1] == "ع" and names & AT_PEACE:
        return f" {PEACE.replace('هِ', 'هَا') if she else PEACE} "
    return match[0]


def _short_forms(text: str) -> str:
    """One pass over ق. م, إلخ, the letters of suras and eras that stand alone, and د. before a name."""
    text = SHORT.sub(lambda m: LONG.get(m[0][0], "إِلَى آخِرِهِ"), text)
    return TITLE.sub(_title, LONE.sub(_lone, text))


def _lone(match: re.Match) -> str:
    before = [bare(w) for w in words_before(match.string[: match.start()], 6)]
    if before and match[1] in "صقن" and HEAD_OF_SURA.fullmatch(before[0]):
        return LETTER_NAMES[match[1]]
    if match[1] in "هم" and any(YEAR_WORD.fullmatch(w) or w.endswith("القرن") for w in before):
        return HIJRA if match[1] == "ه" else CHRIST
    return match[0]


def _title(match: re.Match) -> str:
    """د. is a title before a name, not after what is numbered by letters nor in a list of them."""
    before, name = words_before(match.string[: match.start()], 1), bare(match[2])
    person = (
        name in NAMES
        or name.removesuffix("ا") in NAMES
        or re.fullmatch("ال.+يّ.?", match[2])
        or (before and bare(before[0]) in BEFORE_A_PERSON)
    )
    if (
        not person
        or len(name) == 1
        or name in PARTICLES
        or (before and LETTERED.fullmatch(bare(before[0])))
        or LIST.search(match.string)
    ):
        return match[0]
    governed = before and bare(before[0]) in GENITIVE
    ending = re.search(f"(?:[{MARKS}]|ًا)*$", match[2])[0]
    shown = {"ٌ": "u", "ُ": "u", "ٍ": "i", "ِ": "i", "ً": "a", "َ": "i" if governed else "a"}
    case = next((shown[c] for c in ending if c in shown), "i" if governed else "u")
    ending = ("َة" if name in WOMEN else "") + VOWEL[case]
    return "".join(f"{title}{ending} " for title in (["الْأُسْتَاذ"] if match[1] != "د" else []) + ["الدُّكْتُور"])


def _one_mark(match: re.Match) -> str:
    return next((c for c in match[0] if c in ".؟!"), match[1]) + " "


CLUSTER, TWICE = re.compile(f"[{MARKS}]{{2,}}"), re.compile(f"([{MARKS}])\\1+")


def _in_order(match: re.Match) -> str:
    return "".join(sorted(match[0], key=ORDER.index))


ORDER = SHADDA + MARKS.replace(SHADDA, "")
# Marks that a letter of a word may have, in our order; what is not one of these is an error.
COMPLETE = "ّ?(?:َٰ|[ًٌٍَُِٰ])|[ّْ]"
WRONG = re.compile(
    f"(?P<many>[{LETTERS}](?!(?:{COMPLETE})?(?![{MARKS}]))[{MARKS}]+)"
    f"|(?P<inside>[{LETTERS}]ّ?[ًٌٍ](?=[{LETTERS}])(?![اىو](?!{WORD})))"
    f"|(?P<first>(?<!{WORD})[{LETTERS}]ْ(?=[{LETTERS}]))"
    f"|(?P<never>ا[ًٌٍّٰ]|آ[{MARKS}]|ةّ)"
    f"|(?P<orphan>(?<!{WORD})[{MARKS}])"
)
WRONG_BECAUSE = {
    "many": "marks that exclude each other",
    "inside": "tanween inside a word",
    "first": "sukun on the first letter",
    "never": "a mark that this letter never has",
    "orphan": "a mark that stands without a letter before it",
}


def _spelling(text: str, notes: Counter[str]) -> str:
    """One spelling for what people spell in several ways, told by the place in the word; then the marks checked.

    Raises TextError for a word whose marks contradict each other.
    """
    text = CLUSTER.sub(_in_order, text)
    if twice := len(TWICE.findall(text)):
        notes["a mark that is written twice is read once"] += twice
        text = TWICE.sub(r"\1", text)
    while (other := _respelled(text)) != text:
        text = other
    if wrong := WRONG.search(text):
        word = word_at(text, wrong.end()) + re.match(f"{WORD}*", text[wrong.end() :])[0]
        names = " and ".join(unicodedata.name(c) for c in wrong[0] if c in MARKS)
        letter = f' on "{wrong[0][0]}"' if wrong[0][0] in LETTERS else ""
        raise TextError(f'{WRONG_BECAUSE[wrong.lastgroup]} ({names}){letter}, in "{word}": correct the word')
    return text


def _respelled(text: str) -> str:
    """One step of it; a step may make another due."""
    if CARELESS.search(text):
        text = re.sub("اْ", "ا", text)
        text = re.sub(f"(?<!{WORD})اٰ", "آ", text)
        text = re.sub("َ(?:اٰ|وٰا?)", "َا", text)
        text = re.sub(
            f"(?<!{WORD})((?:[وفبكل][َِ]?)?ال)(اَ)|([{LETTERS}])ا(ّ?َ)", lambda m: m[0] if m[1] else m[3] + m[4] + "ا", text
        )
        text = re.sub(f"(?<!{WORD})([وفكل]َاَ)|َاَ", lambda m: m[1] or "َا", text)
    if "ى" in text:  # with a vowel of its own, or after kasra, it is ي
        text = re.sub(f"ى(?=ّ|[ٌٍَُِْ])|(?<=ِ)ى(?!{WORD})", "ي", text)
    if "ً" in text:  # لَبَناً and لَبَنَاً are لَبَنًا
        text = re.sub(f"َ?([اى])ً(?!{WORD})", r"ً\1", text)
    if "آ" in text:  # a maddah over a long alif, before hamza or a doubled letter, is length
        text = re.sub(f"(?<=َ)آ(?=[ءأإئؤ]|[{LETTERS}]ّ| [أإآء])", "ا", text).replace("آَ", "آ")
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
    text: str,
    romanized: bool = False,
    numbers: bool = True,
    phonemes: str | None = None,
    substitutes: dict[str, str] | None = None,
    rewrite: Iterable[Callable[[str], str]] = (),
    notes: Counter[str] | None = None,
) -> tuple[str, str]:
    """Text as given (Arabic, or Buckwalter if `romanized`) -> (text_norm, text_model).

    `phonemes`: "espeak" for IPA instead of Buckwalter. `substitutes`: what to write for Buckwalter symbols that a
    tokenizer does not know. `rewrite`: what else is done to the normalised text, `diacritize` or `pausal`.
    `notes`: as in `normalise`.
    """
    text_norm = normalise(deromanise(" ".join(text.split())) if romanized else text, numbers, notes)
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
    layout = {chr(c): "" for c in LAYOUT if c > 127} | dict.fromkeys(SIGNS, "") | {"\u200b": " "}
    table = {k: v for k, v in TO_MODEL.items() if k != v} | variants | layout
    # Buckwalter typed as such is substituted too, so a second pass still changes nothing.
    return {k: (substitutes or {}).get(v, v) for k, v in table.items()} | (substitutes or {})


# A letter that needs no mark: ا آ ى ٱ; long و and ي, after their own vowel; the و of عَمْرٌو; lam before a doubled
# letter (الشَّمْسُ).
UNMARKED = re.compile(f"[اآىٱ]|(?<=ُ)و|(?<=[ٌٍ])و(?!{WORD})|(?<=ِ)ي|ل(?=[{LETTERS}]{SHADDA})")


def pausal(text_norm: str) -> str:
    """Normalised Arabic with pausal forms: before a stop, a final short vowel or tanween is not heard (Wright, I, § 230
    ff.).

    -un, -in and short vowels go, and with them the و of عَمْرٌو; -an becomes ا, or the ى that is written; ta marbuta
    becomes ه. Everything else stays: a long vowel, a sukun, a doubled letter (which loses its vowel alone).

    >>> pausal("رَأَيْتُ رَجُلًا، وَهُوَ فِي الْمَدِينَةِ.")
    'رَأَيْتُ رَجُلَا، وَهُوَ فِي الْمَدِينَهْ.'
    """
    text = re.sub("ة[ًٌٍَُِْ]?(?=[.،؟!؛:])", "هْ", text_norm)
    text = re.sub("([ٌٍ])و(?=[.،؟!؛:])", r"\1", text)
    text = re.sub("ً(?:ا|(ى))?(?=[.،؟!؛:])", lambda m: "َ" + (m[1] or "ا"), text)
    return re.sub(f"({SHADDA}?)[ٌٍَُِ](?=[.،؟!؛:])", lambda m: m[1] or "ْ", text)


def diacritize(text_norm: str) -> str:
    """Marks for the letters that have none, by the package arabic-diacritizer (a BiLSTM that works offline). Marks that
    are there stay, and so do the letters; where the package leaves a letter bare that needs a mark, sukun is meant.

    >>> diacritize("ذهب الوَلَدُ إلى المدرسة.")
    'ذَهَبَ الْوَلَدُ إِلَى الْمَدْرَسَةِ.'
    """
    restored = unicodedata.normalize("NFKC", _diacritizer().diacritize("".join(c for c in text_norm if c not in MARKS)))
    given, found = (re.findall(f"([^{MARKS}])([{MARKS}]*)", t) for t in (text_norm, restored))
    assert [g for g, _ in given] == [f for f, _ in found], (text_norm, restored)
    text = ""
    for is_word, group in groupby(zip(given, found), lambda pair: pair[0][0] in LETTERS):
        pairs = list(group)
        as_given = "".join(letter + marks for (letter, marks), _ in pairs)
        text += _completed(as_given, pairs) if is_word else as_given
    for place in reversed(_bare(text)):
        alone = not re.search(f"{WORD}.$", text[:place])  # no word begins with a sukun
        text = f"{text[:place]}{'َ' if alone or text[place : place + 1] in tuple('اىة') else 'ْ'}{text[place:]}"
    return text


def _completed(word: str, pairs: list[tuple[tuple[str, str], tuple[str, str]]]) -> str:
    """A word with the marks that were found for its letters without; as it was, if they contradict those it had."""
    text = ""
    for (letter, marks), (_, other) in pairs:
        if letter in "اى" and "ٰ" not in other:  # the package writes لاَ for لَا
            text += other if text[-1:] in tuple(LETTERS) else ""
            other = ""
        if marks == SHADDA:
            marks += other.replace(SHADDA, "")
        text += letter + (marks or other)
    if not AS_IN_EGYPT.fullmatch(bare(word)):
        text = re.sub("ِى$", "َى", text)  # the letter is given, the mark is a guess
    with suppress(TextError):
        return _spelling(text, Counter())
    return word


# ى for ي at the end, where only ي makes a word
AS_IN_EGYPT = re.compile("[وفبلك]?(?:فى|الذى|التى|هى|لى|بى|إنى|أنى|أى)")


@cache
def _diacritizer():
    from diacritize import Diacritizer

    return Diacritizer.from_pretrained()


# Letters that recognisers and writers mix up; scoring practice unifies them where marks are left out as well.
FOLDED = str.maketrans({FROM_MODEL[a]: FROM_MODEL[b] for a, b in zip("><|{Yp&}", "AAAAyhwy")})


def scored(text: str, marks: bool) -> str:
    """What error rates are counted on, of a reference or of what a recogniser wrote; total, unlike `normalise`.

    Always: NFKC, layout characters out, digits to words, shadda before its vowel, no sukun (a letter without a vowel is
    written with or without it), other signs become spaces, lower case. Without `marks`: no marks at all, hamza seats
    and alef unified (أ إ آ ٱ -> ا, ؤ -> و, ئ -> ي), ى -> ي, ة -> ه.

    >>> scored("هَلْ أَنْتَ بِخَيْرٍ؟", marks=True)
    'هَل أَنتَ بِخَيرٍ'
    >>> scored("هَلْ أَنْتَ بِخَيْرٍ؟", marks=False)
    'هل انت بخير'
    """
    text = unicodedata.normalize("NFKC", text).translate(LAYOUT)
    with suppress(ValueError):  # a number too long to say stays as it is
        text = numbers_to_words(text)
    text = "".join(VARIANTS.get(c, c) for c in text).replace("\u0652", "").lower()
    text = re.sub(
        f"[{MARKS}]+", lambda m: "".join(sorted(m[0], key=lambda c: (c != SHADDA, unicodedata.combining(c)))), text
    )
    if not marks:
        text = "".join(c for c in text if not unicodedata.combining(c)).translate(FOLDED)
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in text).split())


def swap_vowels(text_norm: str) -> str:
    """The same letters with wrong vowels: a -> u -> i -> a, tanween likewise; a vowel before its own long letter stays,
    because the two belong together. What such a text sounds like tells whether a model hears the marks.

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


def _place(run: str, raw: str) -> str:
    """' at position 3': where a run stands in the text the user gave (from 1), found by its digits."""
    digits = [
        (str(int(c)), at) for at, given in enumerate(raw) for c in unicodedata.normalize("NFKC", given) if c.isdecimal()
    ]
    first = "".join(c for c, _ in digits).find("".join(c for c in run if c.isdecimal()))
    lead = re.match("[^0-9]*", run)[0]
    if first < 0:
        return ""
    at = digits[first][1]
    return f" at position {at + 1 - (len(lead) if raw[:at].endswith(lead) else 0)}"


def _describe(character: str, raw: str) -> str:
    """'"a" (LATIN SMALL LETTER A) at position 3', as it stands in the text the user gave."""
    at = next((i for i, c in enumerate(raw, 1) if character in unicodedata.normalize("NFKC", c)), None)
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    return f'"{character}" ({name})' + (f" at position {at}" if at else "")
