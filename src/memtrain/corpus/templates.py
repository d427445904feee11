"""The few wiki templates that carry running text. All others go out.

Without these a sentence loses its measure ("a length of and"), its foreign word or its quotation mark. Names are
those of the English Wikipedia, lower-case.
"""

from __future__ import annotations

from typing import Any

Shown = str | tuple[str, Any, str] | None
"""Text; or (text before, wikicode to read on, text after); or None for nothing."""

_FIRST = frozenset(
    {
        *(
            "nowrap",
            "nobr",
            "small",
            "smaller",
            "big",
            "larger",
            "sc",
            "smallcaps",
            "em",
            "strong",
            "u",
            "s",
            "sup",
            "sub",
        ),
        *("abbr", "dfn", "tooltip", "samp", "kbd", "tt", "var", "typo", "sic", "not a typo", "as written"),
        *(
            "vanchor",
            "visible anchor",
            "angbr",
            "angle bracket",
            "noitalic",
            "nq",
            "script",
            "centered",
            "ipa",
            "grapheme",
        ),
        *(
            "ill",
            "illm",
            "interlanguage link",
            "interlanguage link multi",
            "nihongo",
            "nihongo foot",
            "vr",
        ),
        *("quote", "blockquote", "quotation", "cquote", "quote box", "centered pull quote"),
    }
)
"""Show their first argument."""
_SECOND = frozenset({"color", "lang", "langx", "transl", "transliteration", "font color", "colored text", "rtl-lang"})
"""Show their second argument."""
_FIXED = {
    **{"'": "'", "'s": "'s", "' \"": "' \"", "\" '": "\" '", "\"'": "\"'", '-"': '"', "!": "|", "=": "="},
    **{"nbsp": " ", "thinsp": " ", "spaces": " ", "hairsp": "", "shy": "", "zwsp": "", "zwnj": "", "wbr": ""},
    **dict.fromkeys(("ndash", "endash", "en dash"), "–"),
    **dict.fromkeys(("snd", "spnd", "spaced ndash", "spaced en dash", "dash"), " – "),
    **dict.fromkeys(("mdash", "emdash", "em dash", "mdashb", "--"), "—"),
    **{
        "spaced mdash": " — ",
        "·": " · ",
        "•": " • ",
        "bull": " • ",
        "minus": "−",
        "times": "×",
        "plusminus": "±",
        "pi": "π",
    },
    **{"ad": "AD", "bce": "BCE", "ce": "CE", "mya": "million years ago", "okina": "ʻ", "hamza": "ʾ", "ayin": "ʿ"},
}
_MUSIC = {"flat": "♭", "sharp": "♯", "natural": "♮"}
_SHIPS = {"uss": "USS", "hms": "HMS", "ss": "SS", "rms": "RMS", "hmas": "HMAS", "hmcs": "HMCS", "ms": "MS", "mv": "MV"}
_MONEY = {"us$": "US$", "usd": "US$", "gbp": "£", "euro": "€", "eur": "€", "inr": "₹", "jpy": "¥", "a$": "A$"}
_FORMULAS = frozenset(
    {"math", "mvar", "chem", "chem2", "eqm", "su", "nuclide", "nuclide2", "physics particle", "val", "physconst", "e"}
)
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
_LANGUAGE_PREFIX = "lang-"
_RANGE_WORDS = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "x": " × ",
    "×": " × ",
    "by": " by ",
    "to(-)": " to ",
}


_SHOWING = (
    _FIRST
    | _SECOND
    | _MONEY.keys()
    | _SHIPS.keys()
    | {"pop density", "convert", "cvt", "conv", "frac", "fraction", "sfrac", "as of", "asof", "circa", "c.", "ca."}
    | {"formatnum", "number", "gaps", "num", "music", "flag", "flagcountry", "flagu", "us patent"}
    | {"railgauge", "track gauge"}
)


def _plain_name(name: str) -> str:
    return " ".join(name.split()).lower().replace("_", " ")


def is_silent(name: str) -> bool:
    """Whether nothing of the arguments of a template with this name is shown."""
    name = _plain_name(name)
    return name not in _SHOWING and not name.startswith((_LANGUAGE_PREFIX, "script/"))


def render(template: Any) -> Shown:
    """What a reader of the page sees of a template, as far as it is running text; ``"formula"`` for formulas."""
    name = _plain_name(str(template.name))
    if name in _FIXED:
        return _FIXED[name]
    if name in _FORMULAS:
        return "formula"
    values = _positional(template)
    if (name in _FIRST or name.startswith("script/")) and values:
        return ("", values[0], "")
    if name in _SECOND and len(values) > 1:
        return ("", values[1], "")
    if name.startswith(_LANGUAGE_PREFIX) and values:
        return ("", values[0], "")
    if name == "pop density":
        return _density([str(value).strip() for value in values])
    if name in {"convert", "cvt", "conv"}:
        return _convert([str(value).strip() for value in values])
    if name in {"frac", "fraction", "sfrac"}:
        return _fraction([str(value).strip() for value in values])
    if name in {"as of", "asof"}:
        return _as_of(template, [str(value).strip() for value in values])
    if name in {"circa", "c.", "ca."}:
        return f"c. {values[0]}" if values else "c."
    if name in {"formatnum", "number", "gaps", "num"} and values:
        return str(values[0])
    if name.startswith("formatnum:"):
        return name.removeprefix("formatnum:")
    if name in _MONEY and values:
        return _MONEY[name] + str(values[0])
    if name in _SHIPS and values:
        return f"{_SHIPS[name]} {str(values[0]).strip()}"
    if name == "music" and values:
        return _MUSIC.get(str(values[0]).strip().lower())
    if name in {"flag", "flagcountry", "flagu", "us patent"} and values:
        return ("U.S. Patent " if name == "us patent" else "") + str(values[0]).strip()
    if name in {"railgauge", "track gauge"} and values:
        return _gauge(str(values[0]))
    return None


def _positional(template: Any) -> list[Any]:
    """Values of the arguments 1, 2, …, whether their number is written out or not."""
    numbered = {str(parameter.name).strip(): parameter.value for parameter in template.params}
    values: list[Any] = []
    while (value := numbered.get(str(len(values) + 1))) is not None:
        values.append(value)
    return values


def _convert(values: list[str]) -> str | None:
    """``{{convert|5|km|mi}}`` -> ``5 km``; ranges ``{{convert|5|to|6|km}}``. The conversion itself is left out."""
    if len(values) < 2:
        return None
    if values[1] in _RANGE_WORDS and len(values) > 3:
        return f"{_grouped(values[0])}{_RANGE_WORDS[values[1]]}{_grouped(values[2])} {_unit(values[3])}"
    return f"{_grouped(values[0])} {_unit(values[1])}"


def _grouped(number: str) -> str:
    """``640081.87`` -> ``640,081.87``, as the page shows it."""
    whole, dot, rest = number.partition(".")
    return f"{int(whole):,}{dot}{rest}" if whole.isascii() and whole.isdigit() and len(whole) > 4 else number


def _density(values: list[str]) -> str | None:
    """``{{pop density|3645257|640081.87|km2}}`` -> ``5.7/km²``."""
    try:
        people, area = (float(value.replace(",", "")) for value in values[:2])
        return f"{people / area:,.1f}/{_unit(values[2])}"
    except (ValueError, IndexError, ZeroDivisionError):
        return None


def _unit(code: str) -> str:
    names = {
        "sqmi": "sq mi",
        "km2": "km²",
        "m2": "m²",
        "cm2": "cm²",
        "m3": "m³",
        "km3": "km³",
        "C": "°C",
        "F": "°F",
        "K": "K",
    }
    names |= {
        "sqft": "sq ft",
        "ft2": "sq ft",
        "cuft": "cu ft",
        "kg/m3": "kg/m³",
        "g/cm3": "g/cm³",
        "nmi": "nautical miles",
    }
    return names.get(code, code)


def _fraction(values: list[str]) -> str | None:
    if not values:
        return None
    if len(values) == 1:
        return f"1/{values[0]}"
    if len(values) == 2:
        return f"{values[0]}/{values[1]}"
    return f"{values[0]} {values[1]}/{values[2]}"


def _as_of(template: Any, values: list[str]) -> str:
    """``{{as of|2016|4}}`` -> ``As of April 2016``."""
    if template.has("alt"):
        return str(template.get("alt").value).strip()
    dated = [value for value in values[:3] if value]
    if len(dated) > 1 and dated[1].isdigit() and 1 <= int(dated[1]) <= 12:
        dated[1] = (*_MONTHS, "December")[int(dated[1]) - 1]
    return ("as of " if template.has("lc") else "As of ") + " ".join(reversed(dated))


def _gauge(code: str) -> str:
    units = {"mm": " mm", "ft": " ft", "in": " in"}
    for unit, shown in units.items():
        if code.endswith(unit):
            return code.removesuffix(unit).strip() + shown
    return code
