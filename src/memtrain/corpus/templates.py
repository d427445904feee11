"""The few wiki templates that carry running text. All others go out.

Without these a sentence loses its measure ("a length of and"), its foreign word or its quotation mark. Names are
those of the English Wikipedia, lower-case.
"""

from __future__ import annotations

from typing import Any

Shown = str | tuple[str, Any, str] | None
"""Text; or (text before, wikicode to read on, text after); or None for nothing."""

_FIRST = frozenset(
    "nowrap nobr small smaller big larger abbr vanchor visible anchor sc smallcaps em strong u s sup sub math1 noitalic "
    "not a typo typo sic color dfn tooltip samp kbd tt var angbr angle bracket citequote script ill illm interlanguage link "
    "quote blockquote quotation cquote centered transliteration1 nihongo2 lj".split()
) | {"visible anchor", "not a typo", "angle bracket", "interlanguage link", "interlanguage link multi", "as written"}
"""Show their first argument."""
_SECOND = frozenset({"lang", "transl", "transliteration", "font color", "colored text", "ipa-all", "langx", "rtl-lang"})
"""Show their second argument."""
_FIXED = {
    "'": "'", "'s": "'s", "' \"": "' \"", '" \'': "\" '", "\"'": "\"'", "nbsp": " ", "thinsp": " ", "hairsp": "", "spaces": " ",
    "snd": " – ", "spnd": " – ", "spaced ndash": " – ", "ndash": "–", "mdash": "—", "mdashb": "—", "spaced mdash": " — ", "--": "—", "en dash": "–",
    "em dash": "—", "endash": "–", "emdash": "—", "dash": " – ", "spaced en dash": " – ", "·": " · ", "•": " • ", "bull": " • ", "!": "|", "=": "=",
    "shy": "", "zwsp": "", "zwnj": "", "wbr": "", "pi": "π", "minus": "−", "times": "×", "plusminus": "±", "currentyear": "",
    "ad": "AD", "bce": "BCE", "ce": "CE", "mya": "million years ago", "okina": "ʻ", "hamza": "ʾ", "ayin": "ʿ", "sharp": "♯", "flat": "♭",
}  # fmt: skip
_FORMULAS = frozenset("math mvar chem chem2 eqm su nuclide nuclide2 physics particle val physconst bra ket".split())
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


def render(template: Any) -> Shown:
    """What a reader of the page sees of a template, as far as it is running text; ``"formula"`` for formulas."""
    name = " ".join(str(template.name).split()).lower().replace("_", " ")
    if name in _FIXED:
        return _FIXED[name]
    if name in _FORMULAS:
        return "formula"
    values = [parameter.value for parameter in template.params if not parameter.showkey]
    if name in _FIRST and values:
        return ("", values[0], "")
    if name in _SECOND and len(values) > 1:
        return ("", values[1], "")
    if name.startswith(_LANGUAGE_PREFIX) and values:
        return ("", values[0], "")
    if name in {"convert", "cvt", "conv"}:
        return _convert([str(value).strip() for value in values])
    if name in {"frac", "fraction", "sfrac"}:
        return _fraction([str(value).strip() for value in values])
    if name in {"as of", "asof"}:
        return _as_of(template, [str(value).strip() for value in values])
    if name in {"circa", "c.", "ca."}:
        return f"c. {values[0]}" if values else "c."
    if name in {"nihongo", "nihongo foot"} and values:
        return ("", values[0], "")
    if name in {"formatnum", "number", "gaps", "num"} and values:
        return str(values[0])
    if name.startswith("formatnum:"):
        return name.removeprefix("formatnum:")
    if name in {"us$", "usd", "gbp", "euro", "eur"} and values:
        return {"us$": "US$", "usd": "US$", "gbp": "£"}.get(name, "€") + str(values[0])
    if name in {"reign", "r."} and values:
        return "r. " + "–".join(str(value) for value in values[:2])
    if name in {"flag", "flagcountry", "flagu"} and values:
        return str(values[0])
    if name in {"railgauge", "track gauge"} and values:
        return _gauge(str(values[0]))
    return None


def _convert(values: list[str]) -> str | None:
    """``{{convert|5|km|mi}}`` -> ``5 km``; ranges ``{{convert|5|to|6|km}}``. The conversion itself is left out."""
    if len(values) < 2:
        return None
    if values[1] in _RANGE_WORDS and len(values) > 3:
        return f"{values[0]}{_RANGE_WORDS[values[1]]}{values[2]} {_unit(values[3])}"
    return f"{values[0]} {_unit(values[1])}"


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
    months = "January February March April May June July August September October November December".split()
    if template.has("alt"):
        return str(template.get("alt").value).strip()
    dated = [value for value in values if value]
    if len(dated) > 1 and dated[1].isdigit() and 1 <= int(dated[1]) <= 12:
        dated[1] = months[int(dated[1]) - 1]
    lower = template.has("lc")
    return ("as of " if lower else "As of ") + " ".join(reversed(dated[:3]))


def _gauge(code: str) -> str:
    units = {"mm": " mm", "ft": " ft", "in": " in"}
    for unit, shown in units.items():
        if code.endswith(unit):
            return code.removesuffix(unit).strip() + shown
    return code
