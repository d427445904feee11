"""MediaWiki XML dumps, page by page, in constant memory.

mwxml reads the elements; its ``Dump`` class is passed by, because it insists on site information, which pieces of a
dump may lack, and keeps an empty element for every page it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any
from xml.etree.ElementTree import ParseError
from xml.parsers.expat import errors as expat

import mwxml
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML
from mwxml.iteration.site_info import SiteInfo

from memtrain.corpus.pages import DAMAGED, Page, Paragraph, ReadReport
from memtrain.corpus.wikitext import FORMULA, has_leftover_markup, paragraphs_of

_UNFINISHED = (expat.XML_ERROR_NO_ELEMENTS, expat.XML_ERROR_UNCLOSED_TOKEN, expat.XML_ERROR_UNCLOSED_CDATA_SECTION)
_FILE, _CATEGORY = 6, 14


def read_dump(handle: IO[bytes], where: str, report: ReadReport) -> Iterator[Page]:
    """Pages of the main namespace; redirects go to ``report.aliases``, unreadable pages to ``report.skipped``.

    ``handle`` gives the decompressed XML. A dump that ends early yields what was readable and is listed as
    ``truncated``. Of a page with a history the last revision counts.
    """
    try:
        root = ElementIterator.from_file(handle)
        if root.tag != "mediawiki":
            report.skip(where, f"not a MediaWiki dump: its root is <{root.tag}>")
            return
        yield from _pages(root, where, report)
    except StopIteration:
        report.skip(where, "truncated")
    except EOFError:
        report.skip(where, "truncated")
    except DAMAGED as error:
        report.skip(where, f"damaged: {error}")
    except (ValueError, LookupError) as error:
        report.skip(where, f"broken XML: {error}")
    except ParseError as error:
        # mwxml rewraps some of these without their code, so the message tells.
        message = str(error)
        report.skip(where, "truncated" if message.startswith(_UNFINISHED) else f"broken XML: {message[:100]}")


def _pages(root: Any, where: str, report: ReadReport) -> Iterator[Page]:
    files: set[str] = set()
    others: set[str] = set()
    namespace_map: dict[str, Any] | None = None
    for element in root:
        if element.tag == "siteinfo":
            spaces = SiteInfo.from_element(element).namespaces or []
            namespace_map = {space.name: space for space in spaces}
            for space in spaces:
                if space.name:
                    (files if space.id in (_FILE, _CATEGORY) else others).add(space.name.lower())
        elif element.tag == "page":
            try:
                page = mwxml.Page.from_element(element, namespace_map)
                text, model = _last_revision(page)
            except (MalformedXML, ValueError, TypeError, AttributeError) as error:
                report.skip(f"{where}: page {report.pages + 1}", f"bad page: {error}")
                page = None
            if page is not None:
                yield from _article(page, text, model, files, others, where, report)
        element.clear()
        root.element.clear()  # the emptied elements of pages already read


def _last_revision(page: Any) -> tuple[str | None, str | None]:
    text = model = None
    for revision in page:
        text, model = revision.text, revision.model
    return text, model


def _article(
    page: Any, text: str | None, model: str | None, files: set[str], others: set[str], where: str, report: ReadReport
) -> Iterator[Page]:
    if page.namespace != 0:
        report.drop("page outside the main namespace")
    elif page.redirect:
        report.drop("redirect")
        report.add_alias(page.redirect.partition("#")[0].strip(), page.title)
    elif not text:
        report.skip(f"{where}: {page.title}", "page without text")
    elif model not in (None, "wikitext"):
        report.drop(f"page in {model}")
    else:
        try:
            paragraphs = list(_clean(text, files, others, report))
        except Exception as error:  # whatever the parser stumbles over must cost one page, not the run
            report.skip(f"{where}: {page.title}", f"cannot be parsed: {type(error).__name__}: {error}")
            return
        yield Page(key=page.title, title=page.title, paragraphs=paragraphs)


def _clean(text: str, files: set[str], others: set[str], report: ReadReport) -> Iterator[Paragraph]:
    for paragraph in paragraphs_of(text, files, others):
        if FORMULA in paragraph.text:
            report.drop("formula")
        elif has_leftover_markup(paragraph.text):
            report.drop("leftover markup")
        else:
            yield paragraph
