"""Digits to vocalised Arabic words, in the form a number is read alone: nominative, counting a masculine noun.

Grammar: Wright, A Grammar of the Arabic Language I, §§ 318-329. A number and its noun are put in one case here whatever
the sentence around them wants; who needs another case writes the words.
"""

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


def numbers_to_words(text: str) -> str:
    """Every number in the text, in Western, Arabic or Persian digits, as words: 1,250 and ٣٫١٤ and 40% included.

    >>> numbers_to_words("لَهُ ٤٠٪ مِنْهَا.")
    'لَهُ أَرْبَعُونَ فِي الْمِئَةِ مِنْهَا.'

    Raises ValueError for a number of more than 12 digits.
    """

    def words(match: re.Match) -> str:
        whole, decimals, percent = match.groups()
        said = [number_to_words(int(re.sub("[,٬]", "", whole)))]
        if decimals:  # a leading zero is heard: 3.05 is not 3.5
            value = str(int(decimals)).zfill(len(decimals))
            zeros = len(value) - len(value.lstrip("0"))
            said += [POINT] + [UNITS[0]] * min(zeros, len(value) - 1) + [number_to_words(int(value))]
        return " ".join(said + ([PERCENT] if percent else []))

    return NUMBER.sub(words, text)
