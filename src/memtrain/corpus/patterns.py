"""Regular expressions of the rule-based entity finder: dates, money, percentages, quantities, quoted titles, names."""

from __future__ import annotations

import re

from memtrain.corpus.scripts import CURRENCY, KATAKANA_LETTERS, MARKS, UNSPACED, UPPER

# Month names in the languages whose Wikipedias are largest and write dates in letters (nominative and genitive).
_MONTHS = (
    "January February March April May June July August September October November December "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec "
    "Januar Jänner Februar März Mai Juni Juli Oktober Dezember "
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre "
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre "
    "gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre "
    "janeiro fevereiro março maio junho julho setembro outubro novembro dezembro "
    "januari februari maart mei augustus stycznia lutego marca kwietnia maja czerwca lipca sierpnia września "
    "października listopada grudnia januar februar marts maj juli augusti mars oktober desember "
    "января февраля марта апреля мая июня июля августа сентября октября ноября декабря "
    "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня "
    "Ιανουαρίου Φεβρουαρίου Μαρτίου Απριλίου Μαΐου Ιουνίου Ιουλίου Αυγούστου Σεπτεμβρίου Οκτωβρίου "
    "Νοεμβρίου Δεκεμβρίου "
    "ocak şubat nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık Ocak Şubat Mart Nisan Mayıs Haziran Temmuz "
    "Ağustos Eylül Ekim Kasım Aralık "
    "يناير فبراير مارس أبريل مايو يونيو يوليو أغسطس سبتمبر أكتوبر نوفمبر ديسمبر "
    "जनवरी फ़रवरी फरवरी मार्च अप्रैल मई जून जुलाई अगस्त सितम्बर सितंबर अक्टूबर नवम्बर नवंबर दिसम्बर दिसंबर "
    "มกราคม กุมภาพันธ์ มีนาคม เมษายน พฤษภาคม มิถุนายน กรกฎาคม สิงหาคม กันยายน ตุลาคม พฤศจิกายน ธันวาคม"
)
MONTHS = frozenset(_MONTHS.split())
_MONTH = "(?:" + "|".join(sorted(map(re.escape, MONTHS), key=lambda month: (-len(month), month))) + r")\.?"

_L = rf"(?<![^\W{UNSPACED}])"
"""Left boundary: as in masking, Chinese or Thai before a number does not glue to it."""
_R = rf"(?![^\W{UNSPACED}]|[{MARKS}])"
_GAP = r"[ \u00a0\u202f]"
_NUM = r"(?:\d{1,3}(?:[,.\u00a0\u202f’']\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?)"
_SCALE = (
    r"(?:hundred|thousand|million|billion|trillion|bn|mn|Millionen|Milliarden|Mio\.|Mrd\.|millions?|milliards?|millones|"
    r"milioni|miliardi|milhões|bilhões|miljoen|миллионов|миллиардов|млн|млрд|万|亿|億|兆)"
)
_COINS = (
    r"(?:(?:US|Canadian|Australian)" + _GAP + r")?(?:dollars?|[Ee]uros?|pounds?|cents?|yen|yuan|francs?|rubles?|"
    r"roubles?|rupees?|pesos?|[Mm]arks?|kron(?:a|or|er)|рублей|долларов|евро|美元|日元|人民币|USD|EUR|GBP|JPY|CHF|CNY|INR)"
)
_UNIT = (
    r"(?:km²|km2|km/h|km|m²|m³|cm|mm|metres?|meters?|kilomet(?:re|er)s?|centimet(?:re|er)s?|miles?|mph|feet|foot|ft|"
    r"inches|acres|hectares|ha|square" + _GAP + r"(?:kilomet(?:re|er)s|met(?:re|er)s|miles|feet)|kilograms?|kg|grams?|"
    r"tonnes?|tons?|lb|litres?|liters?|gallons?|°C|°F|°|kW|MW|GW|kWh|GWh|TWh|Hz|kHz|MHz|GHz|nm|kB|MB|GB|TB|bits?|bytes?|volts?|watts?|"
    r"years?|months?|weeks?|days?|hours?|minutes?|seconds?|people|inhabitants|km²|м|км|кг|公里|米|公斤|人)"
)
_YEAR = r"(?:1\d{3}|20\d{2})"
_DAY = r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th|\.|er|º)?"
_ERA = _GAP + r"(?:BCE|BC|CE|AD|A\.D\.|B\.C\.|v\. Chr\.|av\. J\.-C\.)"
_OF = r"(?:" + _GAP + r"(?:de|of|del))?"

_DATES = (
    r"\d{4}年(?:\d{1,2}月(?:\d{1,2}日)?)?|\d{1,2}月\d{1,2}日",
    _L + r"\d{4}-\d{2}-\d{2}" + _R,
    _L + r"\d{1,2}[./]\d{1,2}[./]\d{4}" + _R,
    _L + _DAY + _OF + _GAP + _MONTH + _OF + r",?" + _GAP + r"\d{3,4}(?:" + _ERA + ")?" + _R,
    _L + _MONTH + _GAP + _DAY + r"," + _GAP + r"\d{3,4}" + _R,
    _L + _DAY + _OF + _GAP + _MONTH + _R,
    _L + _MONTH + r",?" + _OF + _GAP + r"\d{4}" + _R,
    _L + _MONTH + _GAP + r"(?:[12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?" + _R,
    _L + r"(?:\d{1,2}(?:st|nd|rd|th)|[XVI]+e)" + _GAP + r"(?:century|siècle|millennium)(?:" + _ERA + ")?" + _R,
    _L + r"\d{1,4}" + _ERA + _R + r"\.?",
    _L + r"(?:1\d|20)?\d0s" + _R,
)
_MONEY = (
    rf"(?:{_L}[A-Z]{{1,3}})?[{CURRENCY}]{_GAP}?{_NUM}(?:{_GAP}?(?:{_SCALE}|[mk]))?{_R}",
    rf"{_L}{_NUM}(?:{_GAP}?{_SCALE})?{_GAP}?(?:[{CURRENCY}](?!{_GAP}?\d)|{_COINS}{_R})",
)
_PERCENT = (
    rf"{_L}{_NUM}(?:{_GAP}?[-–]{_GAP}?{_NUM})?{_GAP}?[%‰％٪]",
    rf"{_L}{_NUM}{_GAP}(?:percent|per{_GAP}cent|percentage{_GAP}points?|Prozent|por{_GAP}ciento|pour{_GAP}cent|процентов){_R}",
)
_QUANTITIES = (
    rf"{_L}{_NUM}(?:{_GAP}?{_SCALE})?{_GAP}?-?{_UNIT}{_R}",
    rf"{_L}{_NUM}{_GAP}?{_SCALE}{_R}",
)
_NUMBERS = (rf"{_L}{_NUM}{_R}",)
_TITLES = (
    r"(?<=“)[^“”\n]{2,80}(?=”)",
    r"(?<=«)[^«»\n]{2,80}(?=»)",
    r"(?<=„)[^„“”\n]{2,80}(?=[“”])",
    r"(?<=《)[^《》\n]{1,40}(?=》)",
    r"(?<=「)[^「」\n]{1,40}(?=」)",
    r"(?<=『)[^『』\n]{1,40}(?=』)",
    r"(?:(?<=^\")|(?<=[\s(]\"))[^\"\s][^\"\n]{1,80}(?=\"(?:[\s.,;:!?)]|$))",
)

_WORD = rf"(?:[^\W\d_{UNSPACED}]|[{MARKS}])"
_CAPITAL = rf"[{UPPER}](?:{_WORD}|\d)*(?:['’‐-](?:{_WORD}|\d)+)*"
_INITIALS = rf"(?:[{UPPER}]\.)+"
_TITLES_OF_PEOPLE = "St Mt Dr Mr Mrs Ms Jr Sr Lt Col Gen Capt Sgt Prof Rev Gov Sen Rep Ft No"
ABBREVIATIONS = frozenset(_TITLES_OF_PEOPLE.split())
"""Words whose full stop ends no sentence."""
_ABBREVIATION = rf"(?:{'|'.join(sorted(ABBREVIATIONS))})\."
_PARTICLE = (
    "(?:of the|of|de la|de los|de las|de|del|della|dello|di|da|do|dos|das|du|des|la|le|les|von der|von dem|von|van der|"
    "van den|van|zu|zur|zum|der|den|ten|ter|al-|el-|ibn|bin|ben|af|av|og|y|i|&)"
)
_NAME_GAP = r"(?:[ \u00a0]|\n(?!\n))"
_PART = rf"(?:{_ABBREVIATION}|{_INITIALS}|(?:(?:al|el|d|l)[-'’])?{_CAPITAL})"
NAME = rf"{_L}(?<![{MARKS}]){_PART}(?:{_NAME_GAP}(?:{_PARTICLE}{_NAME_GAP})?{_PART})*"
"""A run of capitalised words, initials and abbreviations, joined by spaces and particles; whatever the script."""
ACRONYM = re.compile(rf"(?:[{UPPER}]\.){{2,}}(?:[{UPPER}](?!\w))?|[{UPPER}][{UPPER}\d&]*[{UPPER}](?:-?\d+)?s?")
ROMAN = re.compile(r"[IVXLCDM]+")

NUMERIC: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile("|".join(patterns)))
    for kind, patterns in (
        ("date", _DATES),
        ("money", _MONEY),
        ("percent", _PERCENT),
        ("quantity", _QUANTITIES),
        ("number", _NUMBERS),
    )
)
"""Kinds in the order in which they may claim a place."""
TITLE = re.compile("|".join(_TITLES))
NAMES = re.compile(NAME)
FOREIGN_RUN = re.compile(rf"[{KATAKANA_LETTERS}](?:[{KATAKANA_LETTERS}]|・(?=[{KATAKANA_LETTERS}])){{2,}}")
"""Katakana of three characters or more: names and loan words in Japanese."""
YEAR = re.compile(_YEAR)
