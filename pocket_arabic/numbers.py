"""Digits to vocalised Arabic words: whole numbers, decimals, per cents, fractions, ranges, dates, times, years,
telephone numbers.

A run of digits is read whole, with its separators, signs and the letters that touch it, as the one form that it has; a
run that has none is refused (NumberError), so that no piece of one is ever spoken alone.

Grammar: Wright, A Grammar of the Arabic Language, I §§ 318-329, II §§ 96-108. A number is nominative and counts
masculine things, unless what stands around it decides: a preposition or عَامَ before it makes it genitive, سَنَةَ makes
it count something feminine, a counted noun after it that shows its ending takes away the tanween of 3 to 10 and decides
their gender (خَمْسُ سَنَوَاتٍ, خَمْسَةُ أَيَّامٍ), and so for 11 to 99 (إِحْدَى عَشْرَةَ سَنَةً). The noun itself stays
as it is written.
"""

import calendar
import re
from collections.abc import Callable

# --- cardinals and ordinals -------------------------------------------------------------------------------------------

# Cases are named by their vowel: "u" nominative, "i" genitive, "a" accusative.
VOWEL, TANWEEN = {"u": "ُ", "i": "ِ", "a": "َ"}, {"u": "ٌ", "i": "ٍ", "a": "ً"}
# Stems, without the ending: 3 to 10 counting masculine things have a ة, counting feminine ones have none.
ONE, TWO = ("وَاحِد", "وَاحِدَة"), ("اثْن", "اثْنَت")
WITH_MASCULINE = ["ثَلَاثَة", "أَرْبَعَة", "خَمْسَة", "سِتَّة", "سَبْعَة", "ثَمَانِيَة", "تِسْعَة", "عَشَرَة"]
WITH_FEMININE = ["ثَلَاث", "أَرْبَع", "خَمْس", "سِتّ", "سَبْع", "ثَمَان", "تِسْع", "عَشْر"]
TEN_AFTER = ("عَشَرَ", "عَشْرَةَ")  # of 11 to 19
TENS = ["عِشْر", "ثَلَاث", "أَرْبَع", "خَمْس", "سِتّ", "سَبْع", "ثَمَان", "تِسْع"]
ZERO, HUNDRED, AND = "صِفْر", "مِئَة", " وَ"
# A noun that is counted: singular, plural, how the plural is declined: as مَلَايِينَ (a diptote), else as آلَافٍ.
Noun = tuple[str, str, bool]
SCALES: list[tuple[int, Noun]] = [
    (10**9, ("مِلْيَار", "مِلْيَارَات", False)),
    (10**6, ("مِلْيُون", "مَلَايِين", True)),
    (10**3, ("أَلْف", "آلَاف", False)),
]
LARGEST = 10**12 - 1
ORDINALS = ["ثَانِي", "ثَالِث", "رَابِع", "خَامِس", "سَادِس", "سَابِع", "ثَامِن", "تَاسِع", "عَاشِر"]
SUN = "تثدذرزسشصضطظلن"


class NumberError(ValueError):
    """Digits that cannot be read; `run` is what stands in the text, `reason` why."""

    def __init__(self, run: str, reason: str):
        super().__init__(f'{reason}, in "{run}"')
        self.run, self.reason = run, reason


def ended(stem: str, case: str, construct: bool = False) -> str:
    """A stem with its case: tanween, or without it before a genitive (`construct`)."""
    if stem == "ثَمَان":  # like قَاضٍ
        if construct:
            return "ثَمَانِيَ" if case == "a" else "ثَمَانِي"
        return "ثَمَانِيًا" if case == "a" else "ثَمَانٍ"
    if construct:
        return stem + VOWEL[case]
    return stem + TANWEEN[case] + ("ا" if case == "a" and stem[-1] != "ة" else "")


def dual(stem: str, case: str, construct: bool = False) -> str:
    stem = stem[:-1] + "ت" if stem.endswith("ة") else stem
    return stem + ("َا" if case == "u" else "َيْ") + ("" if construct else "نِ")


def article(word: str) -> str:
    """The word with ال, without tanween.

    >>> article("خَمْسَةٌ"), article("ثَلَاثَةٌ"), article("اثْنَانِ")
    ('الْخَمْسَةُ', 'الثَّلَاثَةُ', 'الِاثْنَانِ')
    """
    word = word.removesuffix("ًا") + "َ" if word.endswith("ًا") else word.translate(str.maketrans("ٌٍ", "ُِ"))
    if word[0] == "ا":  # the alif of اثْنَانِ is not heard, its vowel goes to the lam
        return "الِ" + word
    return f"ال{word[0]}ّ{word[1:]}" if word[0] in SUN else f"الْ{word}"


def below_hundred(n: int, feminine: bool, case: str, construct: bool) -> str:
    """1 to 99."""
    unit, ten = n % 10, n // 10
    if n == 1:
        return ended(ONE[feminine], case)
    if n == 2:
        return dual(TWO[feminine], case)
    if n <= 10:
        return ended((WITH_FEMININE if feminine else WITH_MASCULINE)[n - 3], case, construct)
    if n == 11:
        return f"{'إِحْدَى' if feminine else 'أَحَدَ'} {TEN_AFTER[feminine]}"
    if n == 12:
        return f"{dual(TWO[feminine], case, True)} {TEN_AFTER[feminine]}"
    if n < 20:
        return f"{ended((WITH_FEMININE if feminine else WITH_MASCULINE)[unit - 3], 'a', True)} {TEN_AFTER[feminine]}"
    tens = TENS[ten - 2] + ("ُونَ" if case == "u" else "ِينَ")
    if unit == 0:
        return tens
    return ("إِحْدَى" if feminine and unit == 1 else below_hundred(unit, feminine, case, False)) + AND + tens


def hundreds(n: int, case: str, construct: bool) -> str:
    """1 to 9 hundreds: ثَلَاثُمِئَةٍ."""
    if n == 1:
        return ended(HUNDRED, case, construct)
    if n == 2:
        return dual(HUNDRED, case, construct)
    first = "ثَمَانِ" if n == 8 else ended(WITH_FEMININE[n - 3], case, True)
    return first + ended(HUNDRED, "i", construct)


def below_thousand(n: int, feminine: bool, case: str, construct: bool) -> str:
    """1 to 999."""
    if n % 100 == 0:
        return hundreds(n // 100, case, construct)
    rest = below_hundred(n % 100, feminine, case, construct)
    return hundreds(n // 100, case, False) + AND + rest if n > 100 else rest


def counted(n: int, noun: Noun, feminine: bool = False, case: str = "u", construct: bool = False) -> str:
    """So many of a noun, which comes in the form and case that its number wants.

    >>> counted(5, ("دَقِيقَة", "دَقَائِق", True), feminine=True)
    'خَمْسُ دَقَائِقَ'
    >>> counted(45, ("دَقِيقَة", "دَقَائِق", True), feminine=True)
    'خَمْسٌ وَأَرْبَعُونَ دَقِيقَةً'
    """
    one, many, diptote = noun
    rest = n % 100
    if n == 1:
        return ended(one, case, construct)
    if n == 2:
        return dual(one, case, construct)
    if rest in (1, 2):
        return counted(n - rest, noun, feminine, case) + AND + counted(rest, noun, feminine, case, construct)
    number = number_to_words(n, feminine, case, True)
    if rest == 0:
        return f"{number} {ended(one, 'i', construct)}"
    if rest > 10:
        return f"{number} {ended(one, 'a', construct)}"
    return f"{number} {many}{'َ' if diptote and not construct else VOWEL['i'] if construct else TANWEEN['i']}"


def number_to_words(n: int, feminine: bool = False, case: str = "u", construct: bool = False) -> str:
    """0 to 999,999,999,999 -> vocalised words, counting masculine or `feminine` things, before a genitive if
    `construct`.

    >>> number_to_words(25), number_to_words(3000), number_to_words(5, feminine=True, construct=True)
    ('خَمْسَةٌ وَعِشْرُونَ', 'ثَلَاثَةُ آلَافٍ', 'خَمْسُ')

    Raises ValueError beyond.
    """
    if not 0 <= n <= LARGEST:
        raise ValueError("a number of more than 12 digits")
    if n == 0:
        return ended(ZERO, case, construct)
    parts = []
    for scale, noun in SCALES:
        count, n = divmod(n, scale)
        if count:
            parts.append(counted(count, noun, case=case, construct=construct and n == 0))
    return AND.join(parts + ([below_thousand(n, feminine, case, construct)] if n else []))


def definite(n: int, feminine: bool, case: str) -> str:
    """A cardinal with ال, as in الـ5. Raises ValueError for more than a thousand that is not round."""
    if n > 1000 and n not in (2000, 10**6, 10**9):
        raise ValueError("too large a number for its article")
    words = number_to_words(n, feminine, case).split(AND)
    return AND.join(article(word) for word in words)


def ordinal(n: int, feminine: bool = False, case: str = "u") -> str:
    """1 to 99, definite, as the days of a month, hours and centuries are called.

    >>> ordinal(3), ordinal(12), ordinal(21), ordinal(10, feminine=True)
    ('الثَّالِثُ', 'الثَّانِيَ عَشَرَ', 'الْحَادِي وَالْعِشْرُونَ', 'الْعَاشِرَةُ')
    """
    ten, unit = divmod(n, 10)
    if n == 1:
        return "الْأُولَى" if feminine else article("أَوَّل" + VOWEL[case])
    if ten and unit == 0 and ten > 1:
        return article(below_hundred(n, feminine, case, False))
    stem = "حَادِي" if n > 10 and unit == 1 else ORDINALS[n - 2 if n <= 10 else unit - 2]
    ending = "a" if 10 < n < 20 else case
    long = stem.endswith("ي") and ending != "a" and not feminine  # الثَّانِي shows no other ending
    first = stem if long else stem + ("َة" if feminine else "") + VOWEL[ending]
    if n <= 10:
        return article(first)
    return (
        f"{article(first)} {TEN_AFTER[feminine]}"
        if n < 20
        else article(first) + AND + article(below_hundred(ten * 10, feminine, case, False))
    )


# --- dates and times --------------------------------------------------------------------------------------------------

MONTHS = [
    "يَنَايِرَ",
    "فِبْرَايِرَ",
    "مَارِسَ",
    "أَبْرِيلَ",
    "مَايُو",
    "يُونِيُو",
    "يُولِيُو",
    "أُغُسْطُسَ",
    "سِبْتَمْبِرَ",
    "أُكْتُوبَرَ",
    "نُوفَمْبِرَ",
    "دِيسَمْبِرَ",
]
HIJRI_MONTHS = [
    "الْمُحَرَّمِ",
    "صَفَرٍ",
    "رَبِيعٍ الْأَوَّلِ",
    "رَبِيعٍ الْآخِرِ",
    "جُمَادَى الْأُولَى",
    "جُمَادَى الْآخِرَةِ",
    "رَجَبٍ",
    "شَعْبَانَ",
    "رَمَضَانَ",
    "شَوَّالٍ",
    "ذِي الْقَعْدَةِ",
    "ذِي الْحِجَّةِ",
]
NO_FORM = "no number, date or time of a form that we read"
PERCENT = "فِي الْمِئَةِ"
HIJRA, CHRIST, BEFORE_CHRIST, BEFORE_HIJRA = "لِلْهِجْرَةِ", "لِلْمِيلَادِ", "قَبْلَ الْمِيلَادِ", "قَبْلَ الْهِجْرَةِ"
MINUTE: Noun = ("دَقِيقَة", "دَقَائِق", True)
SECOND = ("ثَانِيَة", "ثَوَان", False)


def date_to_words(day: int, month: int, year: int, era: str | None, case: str = "u") -> str:
    """A day of the Gregorian calendar, or of the Islamic one if `era` is لِلْهِجْرَةِ. Raises ValueError if there is no
    such day.

    >>> date_to_words(12, 5, 2024, None)
    'الثَّانِيَ عَشَرَ مِنْ مَايُو عَامَ أَلْفَيْنِ وَأَرْبَعَةٍ وَعِشْرِينَ'
    """
    hijri = era == HIJRA
    days = 30 if hijri or not (year and 1 <= month <= 12) else calendar.monthrange(year, month)[1]
    if not (1 <= month <= 12 and 1 <= day <= days):
        raise ValueError("no date")
    if not era and 1300 <= year < 1500:
        raise ValueError("a date of either calendar (put هـ or م after it)")
    words = [
        ordinal(day, case=case),
        "مِنْ",
        (HIJRI_MONTHS if hijri else MONTHS)[month - 1],
        "عَامَ",
        number_to_words(year, case="i"),
    ]
    return " ".join(words + ([era] if era else []))


def hour_to_words(hour: int, minute: int = 0, second: int = 0, case: str = "u") -> str:
    """What follows السَّاعَةُ: the hour as a feminine ordinal, then minutes and seconds. Raises ValueError if there is
    no such time.

    >>> hour_to_words(10, 30), hour_to_words(1, 5)
    ('الْعَاشِرَةُ وَالنِّصْفُ', 'الْوَاحِدَةُ وَخَمْسُ دَقَائِقَ')
    """
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and (minute or second)):
        raise ValueError("no time of day")
    parts = [article(ended(ONE[1], case)) if hour == 1 else ordinal(hour or 12, True, case)]
    if minute in (15, 20, 30) and not second:
        parts.append(article({15: "رُبْع", 20: "ثُلْث", 30: "نِصْف"}[minute] + VOWEL[case]))
    elif minute:
        parts.append(counted(minute, MINUTE, True, case))
    if second:
        parts.append(counted(second, SECOND, True, case))
    return AND.join(parts)


# --- what stands around a number --------------------------------------------------------------------------------------

LETTER, MARK = "ء-غف-يٱ-ۓ", "ً-ْٰ"
WORD = f"[{LETTER}{MARK}]"
NO_MARKS = dict.fromkeys([*range(0x64B, 0x653), 0x670])
IN_WORDS = frozenset(map(chr, [*range(0x621, 0x63B), *range(0x641, 0x653), *range(0x670, 0x6D4)]))
DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹", "0123456789" * 2)
DASH = "[-‐‒–—―−]"


def among(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words that put what follows into the genitive, and the years. Without marks; و or ف may stand before them.
GENITIVE = among(
    "في من إلى الى على عن مع بعد قبل منذ خلال عند نحو حوالي بين فوق تحت ضمن لدى كل قرابة زهاء يوم حتى رقم"
    " بنسبة نسبة لمدة مدة بقيمة قيمة بمبلغ مبلغ بسعر بثمن بسرعة بمعدل بمقدار بمسافة مسافة بعدد غضون طوال"
)
YEAR_WORD = re.compile("[وف]?[بلك]?(?:ال|ل)?(?:عام|عامي|أعوام|(سنة|سنتي|سنوات))")
OF_A_YEAR = among("ت توفي مات ولد المتوفى وفاته مولده ولادته تأسس تأسست")
OF_A_LENGTH = re.compile(
    "[وفبلك]?(?:ال)?(?:طول|ارتفاع|عرض|عمق|مساف|سباق|قطر|علو|سمك|محيط|جري|ركض|ابتعد|يبعد|تبعد|قطع|مشى|سار)"
)
# Nouns that are numbered by ordinals, when they have the article: الْقَرْنُ 19.
NUMBERED = among("القرن اليوم الشهر الباب الفصل الجزء المجلد الطابق الدور المركز الصف البند الدرس المبحث السطر القسم")
NUMBERED_FEMININE = among(
    "الساعة الليلة المرة الطبعة الدورة المرتبة الذكرى الحلقة الآية السورة الصفحة المادة الفقرة المرحلة الجلسة"
)
HOUR = re.compile("[وفبل]?(?:ال|ل)ساعة")
MONTH = re.compile(
    "(?:يناير|فبراير|مارس|[أاإ]بريل|مايو|يوني[وه]|يولي[وه]|[أا]غسطس|سبتمبر|[أا]كتوبر|نوفمبر|ديسمبر"
    "|كانون|شباط|آذار|نيسان|أيار|حزيران|تموز|آب|أيلول|تشرين|(?:ال)?محرم|صفر|ربيع|جمادى|رجب|شعبان|رمضان|شوال"
    "|ذ[يو] (?:القعدة|الحجة))$"
)
# Counted nouns whose gender their letters do not tell; those in ة, in ات and of the form of رَسَائِل are feminine.
FEMININE = among(
    "سور مدن نساء ليال ليالي نقاط غرف سنين سنون ثوان ثواني أنفس عيون أعين أيد أقدام سفن قرى مدارس دول شقق قطع نسخ خطب "
    "جمل أمم "
    "فرق صور قصص حجج نفس دار يد عين بنت أم أخت أذن قدم ساق شمس نار بئر كأس حرب ريح نسمات"
)
MASCULINE = among(
    "متر أمتار كيلومترات سنتيمترات مليمترات كيلوغرامات غرامات لترات دولارات ريالات جنيهات مجلدات حيوانات قرارات باصات "
    "خلفاء رؤساء "
    "آلاف ملايين مليارات أيام أشهر شهور أعوام أسابيع قرون رجال أشخاص أولاد أطفال طلاب كتب أجزاء أبواب فصول أبيات بيوت "
    "دراهم دنانير أقلام"
)
# Units written short, after digits only.
UNITS: dict[str, Noun] = {
    "كم": ("كِيلُومِتْر", "كِيلُومِتْرَات", False),
    "سم": ("سَنْتِيمِتْر", "سَنْتِيمِتْرَات", False),
    "مم": ("مِلِّيمِتْر", "مِلِّيمِتْرَات", False),
    **dict.fromkeys(("كغ", "كجم", "كغم", "كلغ"), ("كِيلُوغِرَام", "كِيلُوغِرَامَات", False)),
    **dict.fromkeys(("غم", "جم"), ("غِرَام", "غِرَامَات", False)),
    "م": ("مِتْر", "أَمْتَار", False),
}


def bare(word: str) -> str:
    return word.translate(NO_MARKS)


def word_at(text: str, end: int) -> str:
    """The letters and marks that end there."""
    start = end
    while start and text[start - 1] in IN_WORDS:
        start -= 1
    return text[start:end]


def words_before(text: str, count: int) -> list[str]:
    """The last words of the text, the nearest first, as long as nothing but a space (or a bracket that opens) parts
    them."""
    end, words = len(text.rstrip(" (")), []
    while len(words) < count and (word := word_at(text, end)):
        words.append(word)
        end -= len(word) + 1
        if text[end : end + 1] != " ":
            break
    return [w for w in words if bare(w)]


def genders(n: int, noun: str) -> tuple[bool, bool]:
    """Of a number before a word: (whether it loses its tanween, whether the word is feminine). A word that does not
    show that it is counted changes nothing."""
    letters, rest = bare(noun), n % 100
    ending = re.search(f"[{MARK}]*$", noun)[0]
    if 3 <= rest <= 10:
        broken = re.fullmatch("..ا.ي?.", letters)
        if (
            "ٍ" in ending
            or letters in FEMININE | MASCULINE
            or (letters.endswith("ات") and len(letters) > 3)
            or (broken and "َ" in ending)
        ):
            # اجْتِمَاعَات, إِنْجَازَات: masculine in the singular
            verbal = letters.endswith("ات") and letters[0] in "اإ"
            feminine = letters in FEMININE or (
                letters not in MASCULINE and not verbal and (letters.endswith("ات") or re.fullmatch("..ائ.", letters))
            )
            return True, bool(feminine)
    elif rest > 10:
        if letters.endswith("ة") and ending in ("", "ً"):
            return False, True
        return False, letters.removesuffix("ا") in FEMININE and "ً" in noun
    elif rest == 0 and n:
        return "ٍ" in ending, False
    return False, False


def genitive_ending(word: str) -> bool:
    return bool(re.search("[ٍِ]ّ?$", word))


def attached(prefix: str) -> Callable[[str], str] | None:
    """What letters that touch the digits from the right do to the words, if they are prefixes: وَ, بِ, الـ, لِلـ and
    the like.

    >>> attached("ب")("خَمْسَةٍ"), attached("لل")("الْخَمْسَةِ")
    ('بِخَمْسَةٍ', 'لِلْخَمْسَةِ')
    """
    found = re.fullmatch("([وف]?)([بلك]?)(ال)?|([وف]?)(لل)", bare(prefix))
    if not found:
        return None
    vowelled = "".join(c + ("ِ" if c in "بل" else "َ") for c in (found[1] or found[4] or "") + (found[2] or ""))
    if found[5]:
        return lambda words: f"{vowelled}لِ{words[1:]}"
    return lambda words: vowelled + words


# --- forms ------------------------------------------------------------------------------------------------------------

NUMBER = re.compile(
    r"(?P<zeros>0[0-9]+)"
    r"|(?P<whole>0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:(?P<group>[,،٬])[0-9]{3}(?:(?P=group)[0-9]{3})*|(?:\.[0-9]{3}){2,}))?"
    r"(?:[.٫](?P<decimals>[0-9]+))?"
    r"|(?P<dotted>[1-9][0-9]{0,2}(?:[.٬][0-9]{3})+)[,٫](?P<after>[0-9]+)"
)
FRACTION = re.compile("(?:([0-9]+)\ue000)?([1-9])[/⁄]([0-9]+)")
PARTS = ["نِصْف", "ثُلُث", "رُبُع", "خُمُس", "سُدُس", "سُبُع", "ثُمُن", "تُسُع", "عُشُر"]
PARTS_MANY = ["أَنْصَاف", "أَثْلَاث", "أَرْبَاع", "أَخْمَاس", "أَسْدَاس", "أَسْبَاع", "أَثْمَان", "أَتْسَاع", "أَعْشَار"]
DATE = re.compile("([0-9]{1,2})([-/.–−])([0-9]{1,2})\\2([0-9]{3,4})|([0-9]{4})([-/.–−])([0-9]{1,2})\\6([0-9]{1,2})")
TIME = re.compile("([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")
RANGE = re.compile(f"(.*[0-9])(%?){DASH}([0-9.٫].*)")
TELEPHONE = re.compile(r"(?:\+|0[0-9])[0-9]*(?:-[0-9]+)+|\+[0-9]{7,}")
# What is left of a run after its trailing punctuation: from a space, bracket or Arabic letter to the next.
RUN = re.compile(f"[^\\s()\\[\\]{LETTER}{MARK}0-9]*[0-9][^\\s()\\[\\]{LETTER}{MARK}]*")
CORE = re.compile(f"([،؛؟!,;?:]*)(.*?)((?:[.،؛؟!,;?:]|{DASH})*)")
ERA = re.compile(f"( ?)(ه|م|ص|ق\\.? ?[مه]|{'|'.join(sorted(UNITS, key=len, reverse=True))})(?!{WORD})")
# What stands in several pieces and is one: thousands apart, a telephone number, a date, a range, a per cent, two
# calendars.
THOUSANDS = re.compile(r"(?<![0-9.,،٫٬/:+-])(?<![0-9] )[1-9][0-9]{0,2}(?: [0-9]{3})+(?=[.,٫][0-9]|(?! ?[0-9]))")
SPACED_TELEPHONE = re.compile(r"(?<![0-9.,،٫٬/:-])(?<![0-9] )(?:\+|0)[0-9]+(?:[ -][0-9]+)+")
SPACED_DATE = re.compile(
    "(?<![0-9])([0-9]{1,2}) ?([-/]) ?([0-9]{1,2}) ?\\2 ?([0-9]{3,4})(?![0-9])|(?<![0-9])([0-9]{4}) ?([-/]) "
    "?([0-9]{1,2}) ?\\6 ?([0-9]{1,2})(?![0-9])"
)
FOLLOWING = re.compile(f" ?({WORD}+)((?: {WORD}+)?)")
PARTED = re.compile("[0-9] [0-9]")
# 1990م - 2000م
TWICE_IN_RANGE = re.compile(f"(?<![0-9])([0-9]{{1,4}}) ?(م|هـ?|ق\\.? ?م) ?{DASH} ?([0-9]{{1,4}} ?\\2)(?!{WORD})")
ATTACHED_LATER = re.compile(f"(?<!{WORD})((?:بِ|لِ|كَ)|[وف]?[َ]?(?:[بك][َِ]?)?ال|[وف]?[َ]?لِ?ل) (?=[0-9])")
SPACED_RANGE = re.compile(
    f"(?<![0-9.,،٫٬/:-])([0-9]+)((?::[0-9]{{2}})?%? ?)({DASH})( ?)([0-9]+)(?=[:%٪0-9]*(?:[^-/0-9]|$))"
)


def in_one_piece(text: str) -> str:
    """Without the spaces inside a number, telephone number, date, per cent or range."""
    if PARTED.search(text):
        text = THOUSANDS.sub(lambda m: m[0].replace(" ", "٬"), text)
        text = SPACED_TELEPHONE.sub(
            lambda m: m[0].replace(" ", "-") if sum(c.isdigit() for c in m[0]) >= 7 else m[0], text
        )
        text = re.sub("(?<=[0-9]) (?=[1-9][/⁄][0-9])", "\ue000", text)  # 5 1/2 is one number
    if "%" in text or "٪" in text:
        text = text.replace("٪", "%")
        text = re.sub("(?<=[0-9]) (?=%)|(?<=(?<![0-9])%) (?=[0-9])", "", text)
    if "/" in text:
        text = re.sub("([0-9] ?[هم]) ?/ ?(?=[0-9])", r"\1، ", text)
    if "/" in text or re.search(DASH, text):
        text = TWICE_IN_RANGE.sub(r"\1-\3", text)
        text = SPACED_RANGE.sub(_joined, SPACED_DATE.sub(lambda m: m[0].replace(" ", ""), text))
    return ATTACHED_LATER.sub(r"\1", text)


def _joined(match: re.Match) -> str:
    first, middle, dash, space, last = match.groups()
    item = not match.string[: match.start()].strip() and not middle.endswith(" ")  # "1- " begins an item of a list
    rises = int(first) < int(last)
    return f"{first}{middle.rstrip()}{dash}{last}" if rises and not (space and item) else match[0]


class Reader:
    """How one run is read: what stands around it decides its case, its gender and whether it loses its tanween."""

    def __init__(self, before: str, prefix: str, after: str):
        """`before`: the text as far as the run, without `prefix`, the letters that are one word with the digits (بِ,
        الـ); `after`: the text from the run's end on."""
        self.after, self.era, self.used = after, ERA.match(after), 0
        written = words_before(before, 3)
        self.previous = [bare(w) for w in written]
        self.written, self.first = (written or [""])[0], (self.previous or [""])[0]
        year = None if prefix or re.search("[ًٌٍ]", self.written) else YEAR_WORD.fullmatch(self.first)
        governs = self.first in GENITIVE or (self.first[:1] in ("و", "ف") and self.first[1:] in GENITIVE)
        governs = governs and not re.search("[ًٌٍ]|^مَن", self.written)
        genitive = (
            re.fullmatch("[وف]?(?:[بلك](?:ال)?|لل)", bare(prefix))
            if prefix and bare(prefix) != "ال"
            else governs or year
        )
        self.case = "i" if genitive else "u"
        self.feminine = bool(year and year[1])
        self.definite = bare(prefix).endswith(("ال", "لل"))
        self.hour = bool(HOUR.fullmatch(self.first))
        self.numbered = self.first in NUMBERED or self.first in NUMBERED_FEMININE
        following = FOLLOWING.match(after)
        self.next, self.rest = following.groups() if following else ("", "")

    def month(self) -> bool:
        """Whether a month is named next, or after مِنْ."""
        following = (self.next + self.rest, self.next, self.rest.strip() if bare(self.next) == "من" else "")
        return any(MONTH.fullmatch(bare(words)) for words in following if words)

    def adjective_case(self) -> str:
        """An ordinal follows its noun's case, where the noun shows one."""
        return {"ُ": "u", "ِ": "i", "َ": "a"}.get(self.written.replace("ّ", "")[-1:], self.case)

    def suffix(self, *names: str) -> bool:
        """Whether one of these letters follows the run; then it is read with it."""
        found = bool(self.era) and re.sub("[ .]", "", self.era[2]) in names
        self.used = len(self.era[0]) if found else self.used
        return found

    def is_year(self, n: float) -> bool:
        """Whether م after the number is the Christian era, and not metres. Raises ValueError if nothing tells."""
        if any(YEAR_WORD.fullmatch(w) or w.strip("و") in OF_A_YEAR for w in self.previous):
            return True
        if any(OF_A_LENGTH.match(w) for w in self.previous) or self.previous[:2] == ["بعد", "على"]:
            return False
        if 1000 <= n <= 2100:
            return True
        raise ValueError("a year or a length (write لِلْمِيلَادِ or مِتْرٍ after it)")

    def read(self, run: str) -> str:
        """The run's words; `used` tells then how many characters after it they say too. Raises ValueError."""
        if match := DATE.fullmatch(run):
            found = match.groups()
            day, month, year = (found[0], found[2], found[3]) if found[0] else (found[7], found[6], found[4])
            era = HIJRA if self.suffix("ه") else CHRIST if self.suffix("م") else None
            return date_to_words(int(day), int(month), int(year), era, self.case)
        if match := TIME.fullmatch(run.replace(".", ":") if self.hour else run):
            if re.search("سور|آي|نسب|مقياس|سفر", self.first):
                raise ValueError("a time, a ratio or a verse")
            case = self.adjective_case() if self.hour else self.case
            words = ("" if self.hour else f"السَّاعَة{VOWEL[case]} ") + hour_to_words(
                *(int(g or 0) for g in match.groups()), case=case
            )
            return words + self.half_of_day()
        if TELEPHONE.fullmatch(run):
            return ("زَائِدٌ " if run[0] == "+" else "") + one_by_one(re.sub("[^0-9]", "", run), self.case)
        if match := RANGE.fullmatch(run):
            return self.span(match[1], match[3].removesuffix("%")) + (f" {PERCENT}" if "%" in run else "")
        if run.count("%") == 1 and "%" in (run[0], run[-1]):
            return f"{signed(run.strip('%'), self.case)} {PERCENT}"
        if re.match(DASH, run):
            return self.amount(run[1:], "i", f"سَالِب{VOWEL[self.case]} ")
        return self.amount(run, self.case)

    def half_of_day(self) -> str:
        return " مَسَاءً" if self.suffix("م") else " صَبَاحًا" if self.suffix("ص") else ""

    def amount(self, run: str, case: str, sign: str = "") -> str:
        """A number of things, of a year, an hour or a day. Raises ValueError."""
        n = whole(run)
        if n is None:
            words = sign + value(run, case, construct=genitive_ending(self.next))
            unit = next((u for u in UNITS if self.suffix(u)), None)
            return f"{words} {ended(UNITS[unit][0], 'a')}" if unit else words
        if self.hour and 1 <= n <= 24:
            return hour_to_words(n, case=self.adjective_case()) + self.half_of_day()
        if self.numbered and 1 <= n <= 99:
            return ordinal(n, self.first in NUMBERED_FEMININE, self.adjective_case()) + self.calendar(n)
        if 1 <= n <= 31 and self.month():
            return ordinal(n, case=case) + ("" if bare(self.next) == "من" else " مِنْ")
        if calendar := self.calendar(n):
            return number_to_words(n, self.feminine, "i") + calendar
        if MONTH.fullmatch(self.first) and 1000 <= n <= 2999:
            return f"عَامَ {number_to_words(n, case='i')}"
        if unit := next((u for u in UNITS if self.suffix(u)), None):
            return sign + counted(n, UNITS[unit], case=case)
        construct, feminine = genders(n, self.next)
        if self.definite:
            return definite(n, feminine, case)
        return sign + number_to_words(n, self.feminine or feminine, case, construct)

    def calendar(self, n: int) -> str:
        """The era that follows, if one does. Raises ValueError."""
        eras = {"ه": HIJRA, "م": CHRIST, "قم": BEFORE_CHRIST, "قه": BEFORE_HIJRA}
        name = re.sub("[ .]", "", self.era[2]) if self.era else ""
        if name not in eras or (name == "م" and not self.numbered and not self.is_year(n)):
            return ""
        if n > 9999:
            raise ValueError("no year")
        self.used = len(self.era[0])
        return f" {eras[name]}"

    def span(self, first: str, last: str) -> str:
        """From one to the other, as in 5-7. Raises ValueError."""
        between = " وَ" if self.first == "بين" else " إِلَى "
        if TIME.fullmatch(first) and TIME.fullmatch(last):
            first, last = (hour_to_words(*map(int, t.split(":")), case=c) for t, c in ((first, self.case), (last, "i")))
            return (
                f"{'' if self.hour else f'السَّاعَة{VOWEL[self.case]} '}{first}{between}السَّاعَةِ {last}{self.half_of_day()}"
            )
        low, high = whole(first), whole(last)
        name = re.sub("[ .]", "", self.era[2]) if self.era else ""
        if low is None or high is None:
            return f"{value(first, self.case)}{between}{value(last, 'i')}"
        if low == high or (low > high) != (name in ("قم", "قه")):  # years before an era count down
            raise ValueError("a range that does not rise")
        if self.hour and high <= 24:
            return (
                hour_to_words(low, case=self.adjective_case())
                + between
                + hour_to_words(high, case="i")
                + self.half_of_day()
            )
        if self.numbered and low >= 1 and high <= 99:
            feminine = self.first in NUMBERED_FEMININE
            return ordinal(low, feminine, self.adjective_case()) + between + ordinal(high, feminine, "i")
        if low >= 1 and high <= 31 and self.month():
            return ordinal(low, case=self.case) + between + ordinal(high, case="i") + " مِنْ"
        start = number_to_words(low, self.feminine, "i" if name in ("ه", "م", "قم", "قه") else self.case)
        return start + between + self.amount(last, "i")


def signed(run: str, case: str) -> str:
    """A number that may be negative. Raises ValueError."""
    return f"سَالِب{VOWEL[case]} {value(run[1:], 'i')}" if re.match(DASH, run) else value(run, case)


def whole(run: str) -> int | None:
    """The value of a whole number, thousands apart or not; None for every other form."""
    found = NUMBER.fullmatch(run)
    return int(re.sub("[^0-9]", "", found["whole"])) if found and found["whole"] and not found["decimals"] else None


def value(run: str, case: str, construct: bool = False) -> str:
    """A number by itself: whole, decimal, with leading zeros, or a fraction, which may stand before a genitive
    (`construct`: نِصْفُ كُوبٍ). Raises ValueError.

    >>> value("3.05", "u"), value("007", "u"), value("3/4", "u")
    ('ثَلَاثَةٌ فَاصِلَةٌ صِفْرٌ خَمْسَةٌ', 'صِفْرٌ صِفْرٌ سَبْعَةٌ', 'ثَلَاثَةُ أَرْبَاعٍ')
    """
    if match := FRACTION.fullmatch(run):
        above, below = int(match[2]), int(match[3])
        if not above < below <= 10:
            raise ValueError("no fraction that we read, and no date")
        part = counted(
            above, (PARTS[below - 2], PARTS_MANY[below - 2], False), case=case, construct=construct and not match[1]
        )
        return number_to_words(int(match[1]), case=case) + AND + part if match[1] else part
    found = NUMBER.fullmatch(run)
    if not found or not run:
        raise ValueError(NO_FORM)
    if found["zeros"]:
        return one_by_one(run, case)
    words = number_to_words(int(re.sub("[^0-9]", "", found["whole"] or found["dotted"] or "0")), case=case)
    decimals = found["decimals"] or found["after"]
    if not decimals:
        return words
    rest = decimals.lstrip("0") or "0"  # a leading zero is heard: 3.05 is not 3.5
    zeros = [ended(ZERO, "u")] * (len(decimals) - len(rest))
    return " ".join([words, "فَاصِلَةٌ", *zeros, number_to_words(int(rest))])


def one_by_one(digits: str, case: str) -> str:
    return " ".join(number_to_words(int(d), case=case) for d in digits)


def numbers_to_words(text: str) -> str:
    """Every number, date and time in the text, in Western, Arabic or Persian digits, as words.

    >>> numbers_to_words("لَهُ ٤٠٪ مِنْهَا.")
    'لَهُ أَرْبَعُونَ فِي الْمِئَةِ مِنْهَا.'
    >>> numbers_to_words("تُوُفِّيَ سَنَةَ 450ه.")
    'تُوُفِّيَ سَنَةَ أَرْبَعِمِئَةٍ وَخَمْسِينَ لِلْهِجْرَةِ.'
    >>> numbers_to_words("جَاءَ 5 رِجَالٍ وَ5 نِسَاءٍ السَّاعَةَ 10:30.")
    'جَاءَ خَمْسَةُ رِجَالٍ وَخَمْسُ نِسَاءٍ السَّاعَةَ الْعَاشِرَةَ وَالنِّصْفَ.'

    Raises NumberError for a run of digits that has no form we know, or two.
    """
    text = text.translate(DIGITS)
    if not re.search("[0-9]", text):
        return text
    text, said, at = in_one_piece(text), "", 0
    for match in RUN.finditer(text):
        lead, core, tail = CORE.fullmatch(match[0]).groups()
        start, end = match.start() + len(lead), match.end() - len(tail)
        if core[0] == "." and word_at(text, start):  # the stop of a sentence, its space forgotten
            start, core = start + 1, core[1:]
        touching = word_at(text, start)
        join = attached(touching) if touching else None
        if touching and not join and (len(bare(touching)) == 1 or not core[0].isdigit()):
            raise NumberError(touching + core, "a number in one word with what is before it")
        before = text[: start - len(touching) if join else start]
        if tail.startswith("-") and before.strip() and not re.search("(?:^| )-", before):
            raise NumberError(core + tail, "a number with a dash or a minus after it")
        reader = Reader(before if join or not touching else before + " ", touching if join else "", text[end:])
        try:
            words = reader.read(core)
        except ValueError as error:
            raise NumberError(core + reader.after[: len(reader.era[0]) if reader.era else 0], str(error)) from None
        end += reader.used
        letters = re.match(f"{WORD}*", text[end:])[0]
        if len(bare(letters)) == 1 and not re.match("[وف][^0-9]?[0-9]", text[end:]):
            raise NumberError(core + letters, f"a letter after it that may stand for much, {letters}")
        said += text[at : len(before)] + (join(words) if join else " " * bool(touching) + words) + " " * bool(letters)
        at = end
    return said + text[at:]
