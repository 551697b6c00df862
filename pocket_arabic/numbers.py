"""Digits to vocalised Arabic words: numbers as they are read alone (nominative, counting a masculine noun), and dates.

Grammar: Wright, A Grammar of the Arabic Language I, §§ 318-329 (numbers) and 328 (ordinals). A number and its noun are
put in one case, and in the masculine, here whatever the sentence around them wants; who needs another form writes the words.
"""

import calendar
import re

UNITS = ["صِفْرٌ", "وَاحِدٌ", "اثْنَانِ", "ثَلَاثَةٌ", "أَرْبَعَةٌ", "خَمْسَةٌ", "سِتَّةٌ", "سَبْعَةٌ", "ثَمَانِيَةٌ", "تِسْعَةٌ", "عَشَرَةٌ"]
ELEVEN, TWELVE, TEEN = "أَحَدَ عَشَرَ", "اثْنَا عَشَرَ", "عَشَرَ"
TENS = ["", "", "عِشْرُونَ", "ثَلَاثُونَ", "أَرْبَعُونَ", "خَمْسُونَ", "سِتُّونَ", "سَبْعُونَ", "ثَمَانُونَ", "تِسْعُونَ"]
HUNDREDS = ["", "مِئَةٌ", "مِئَتَانِ", "ثَلَاثُمِئَةٍ", "أَرْبَعُمِئَةٍ", "خَمْسُمِئَةٍ", "سِتُّمِئَةٍ", "سَبْعُمِئَةٍ", "ثَمَانِمِئَةٍ", "تِسْعُمِئَةٍ"]
# One, two, three to ten (genitive plural), eleven to ninety-nine (accusative), after whole hundreds (genitive).
SCALES = [
    (10**9, ("مِلْيَارٌ", "مِلْيَارَانِ", "مِلْيَارَاتٍ", "مِلْيَارًا", "مِلْيَارٍ")),
    (10**6, ("مِلْيُونٌ", "مِلْيُونَانِ", "مَلَايِينَ", "مِلْيُونًا", "مِلْيُونٍ")),
    (10**3, ("أَلْفٌ", "أَلْفَانِ", "آلَافٍ", "أَلْفًا", "أَلْفٍ")),
]
LARGEST = 10**12 - 1
PERCENT, POINT, AND = "فِي الْمِئَةِ", "فَاصِلَةٌ", " وَ"
DIGIT = "[0-9٠-٩۰-۹]"
# A whole number, thousands apart or not, with its decimals and a per-cent sign if any.
NUMBER = re.compile(f"({DIGIT}{{1,3}}(?:[,٬]{DIGIT}{{3}})+|{DIGIT}+)(?:[.٫]({DIGIT}+))?(?: ?([%٪]))?")

# Wright § 328: the days of a month are ordinals, and a year is in the genitive after عَام.
ORDINALS = ["", "الْأَوَّلُ", "الثَّانِي", "الثَّالِثُ", "الرَّابِعُ", "الْخَامِسُ", "السَّادِسُ", "السَّابِعُ", "الثَّامِنُ", "التَّاسِعُ", "الْعَاشِرُ"]
MONTHS = ["يَنَايِرَ", "فِبْرَايِرَ", "مَارِسَ", "أَبْرِيلَ", "مَايُو", "يُونِيُو", "يُولِيُو", "أُغُسْطُسَ", "سِبْتَمْبِرَ", "أُكْتُوبَرَ", "نُوفَمْبِرَ", "دِيسَمْبِرَ"]
HIJRI_MONTHS = ["الْمُحَرَّمِ", "صَفَرٍ", "رَبِيعٍ الْأَوَّلِ", "رَبِيعٍ الْآخِرِ", "جُمَادَى الْأُولَى", "جُمَادَى الْآخِرَةِ", "رَجَبٍ", "شَعْبَانَ", "رَمَضَانَ", "شَوَّالٍ", "ذِي الْقَعْدَةِ", "ذِي الْحِجَّةِ"]
OF, IN_YEAR = "مِنْ", "عَامَ"
ERAS = {"هـ": "لِلْهِجْرَةِ", "ه": "لِلْهِجْرَةِ", "م": "لِلْمِيلَادِ"}
ERA = "(?: ?(هـ?|م)(?![ء-ٰ]))"
# 12/5/2024, 12.5.2024, 2024-05-12 and so on, with an era if any; or a year alone with its era: 450 هـ, 2024م (but 2024 م are metres).
DATE = re.compile(f"(?<!{DIGIT})(?:({DIGIT}{{1,2}})([/.-])({DIGIT}{{1,2}})\\2({DIGIT}{{3,4}})|({DIGIT}{{4}})([/.-])({DIGIT}{{1,2}})\\6({DIGIT}{{1,2}})){ERA}?(?!{DIGIT})")
YEAR = re.compile(f"(?<!{DIGIT})(?<!{DIGIT}[.,٫٬])(?:({DIGIT}{{1,4}}) ?(هـ?)|({DIGIT}{{3,4}})(م))(?![ء-ٰ])")


def construct(word: str) -> str:
    """The form before a genitive: tanween and the dual's nun go."""
    return word[:-2] if word.endswith("انِ") else word.replace("ٌ", "ُ").replace("ٍ", "ِ")


def below_thousand(n: int) -> str:
    hundreds, rest = divmod(n, 100)
    parts = [HUNDREDS[hundreds]] if hundreds else []
    if 0 < rest <= 10:
        parts.append(UNITS[rest])
    elif rest == 11:
        parts.append(ELEVEN)
    elif rest == 12:
        parts.append(TWELVE)
    elif 12 < rest < 20:
        parts.append(f"{UNITS[rest - 10].replace('ٌ', 'َ')} {TEEN}")
    elif rest:
        parts += ([UNITS[rest % 10]] if rest % 10 else []) + [TENS[rest // 10]]
    return AND.join(parts)


def counted(n: int, noun: tuple[str, ...]) -> str:
    """1 to 999 of a noun given in its five forms: "ثَلَاثَةُ آلَافٍ"."""
    one, two, plural, accusative, genitive = noun
    rest = n % 100
    if n == 1:
        return one
    if n == 2:
        return two
    if rest == 0:
        return f"{construct(HUNDREDS[n // 100])} {genitive}"
    if rest <= 2:
        return counted(n - rest, noun) + AND + counted(rest, noun)
    hundreds = HUNDREDS[n // 100] + AND if n > 100 else ""
    return hundreds + (f"{construct(UNITS[rest])} {plural}" if rest <= 10 else f"{below_thousand(rest)} {accusative}")


def number_to_words(n: int) -> str:
    """0 to 999,999,999,999 -> vocalised words.

    >>> number_to_words(25), number_to_words(3000)
    ('خَمْسَةٌ وَعِشْرُونَ', 'ثَلَاثَةُ آلَافٍ')

    Raises ValueError beyond.
    """
    if not 0 <= n <= LARGEST:
        raise ValueError(f"{n} is more than a number of 12 digits")
    if n == 0:
        return UNITS[0]
    parts = []
    for scale, noun in SCALES:
        count, n = divmod(n, scale)
        if count:
            parts.append(counted(count, noun))
    return AND.join(parts + ([below_thousand(n)] if n else []))


def ordinal(n: int) -> str:
    """1 to 31, masculine and definite, as the days of a month are called.

    >>> ordinal(3), ordinal(12), ordinal(21)
    ('الثَّالِثُ', 'الثَّانِيَ عَشَرَ', 'الْحَادِي وَالْعِشْرُونَ')
    """
    if n <= 10:
        return ORDINALS[n]
    tens, unit = divmod(n, 10)
    first = "الْحَادِي" if unit == 1 else ORDINALS[unit]
    if tens == 1:
        return f"{first[:-1]}َ {TEEN}" if first.endswith("ُ") else f"{first}َ {TEEN}"
    return (f"{first} وَال" if unit else "ال") + {2: "ْعِشْرُونَ", 3: "ثَّلَاثُونَ"}[tens]


def genitive(words: str) -> str:
    """Number words in the nominative -> in the genitive.

    >>> genitive("أَلْفَانِ وَأَرْبَعَةٌ وَعِشْرُونَ")
    'أَلْفَيْنِ وَأَرْبَعَةٍ وَعِشْرِينَ'
    """
    for nominative, other in (("َانِ(?= |$)", "َيْنِ"), ("ُونَ", "ِينَ"), ("ٌ", "ٍ"), ("ُمِئَة", "ِمِئَة")):
        words = re.sub(nominative, other, words)
    words = re.sub(f"({'|'.join(construct(u) for u in UNITS[3:])})(?= )", lambda m: m[0][:-1] + "ِ", words)
    return words.replace("اثْنَا ", "اثْنَيْ ")


def date_to_words(day: int, month: int, year: int, era: str | None) -> str:
    """A day of the Gregorian calendar, or of the Islamic one if `era` is هـ. Raises ValueError if there is no such day.

    >>> date_to_words(12, 5, 2024, None)
    'الثَّانِيَ عَشَرَ مِنْ مَايُو عَامَ أَلْفَيْنِ وَأَرْبَعَةٍ وَعِشْرِينَ'
    """
    hijri = bool(era) and era[0] == "ه"
    days = 30 if hijri or not (year and 1 <= month <= 12) else calendar.monthrange(year, month)[1]
    if not (1 <= month <= 12 and 1 <= day <= days):
        raise ValueError(f"{day}/{month}/{year} is no date")
    words = [ordinal(day), OF, (HIJRI_MONTHS if hijri else MONTHS)[month - 1], IN_YEAR, genitive(number_to_words(year))]
    return " ".join(words + ([ERAS[era]] if era else []))


def spaced(match: re.Match, words: str) -> str:
    """The words apart from letters that touched the digits, but for a prefix of one letter: و5 is one word."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    touching = re.search("[ء-ٰ]+$", before)
    prefix = touching and len(re.sub("[ً-ٰ]", "", touching[0])) == 1 and touching[0][0] in "وفبلك"
    return f"{' ' if touching and not prefix else ''}{words}{' ' if re.match('[ء-ي]', after) else ''}"


def numbers_to_words(text: str) -> str:
    """Every number and date in the text, in Western, Arabic or Persian digits, as words: 1,250 and ٣٫١٤ and 40% included.

    >>> numbers_to_words("لَهُ ٤٠٪ مِنْهَا.")
    'لَهُ أَرْبَعُونَ فِي الْمِئَةِ مِنْهَا.'
    >>> numbers_to_words("تُوُفِّيَ سَنَةَ 450هـ.")
    'تُوُفِّيَ سَنَةَ أَرْبَعِمِئَةٍ وَخَمْسِينَ لِلْهِجْرَةِ.'

    Raises ValueError for a number of more than 12 digits, and for what is written like a date and is none.
    """

    def date(match: re.Match) -> str:
        groups = match.groups()
        day, month, year = (groups[0], groups[2], groups[3]) if groups[0] else (groups[7], groups[6], groups[4])
        return spaced(match, date_to_words(int(day), int(month), int(year), groups[8]))

    text = DATE.sub(date, text)
    text = YEAR.sub(lambda m: spaced(m, f"{genitive(number_to_words(int(m[1] or m[3])))} {ERAS[m[2] or m[4]]}"), text)

    def words(match: re.Match) -> str:
        whole, decimals, percent = match.groups()
        said = [number_to_words(int(re.sub("[,٬]", "", whole)))]
        if decimals:  # a leading zero is heard: 3.05 is not 3.5
            value = str(int(decimals)).zfill(len(decimals))
            zeros = len(value) - len(value.lstrip("0"))
            said += [POINT] + [UNITS[0]] * min(zeros, len(value) - 1) + [number_to_words(int(value))]
        return spaced(match, " ".join(said + ([PERCENT] if percent else [])))

    return NUMBER.sub(words, text)
