"""Check the built site: ``python docs/links.py docs/_build/html``, a part of ``make docs``.

Every link within it leads to a page, and to an anchor on that page, and nothing is loaded from
elsewhere: neither scripts nor styles nor pictures.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = {"", "top"}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED:
                self.loads.append(value)
            elif tag == "a" and name == "href":
                self.links.append(value)


page_of = cache(Page)


def fault(path, target):
    """What is wrong with a link of the page at ``path``, or None."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if found.is_dir():
        found /= "index.html"
    if not found.exists():
        return "leads nowhere"
    if found.suffix == ".html" and unquote(parts.fragment) not in page_of(found).anchors:
        return "has no such anchor"
    return None


def faults(site):
    """Lines about all that is wrong."""
    for path in sorted(set(site.rglob("*.html")) - set(site.glob("_static/**/*.html"))):
        page = page_of(path)
        for target in page.loads:
            if urlsplit(target).netloc:
                yield f"{path.relative_to(site)}: {target} is loaded from elsewhere"
        for target in {*page.links, *page.loads}:
            wrong = fault(path, target)
            if wrong:
                yield f"{path.relative_to(site)}: {target} {wrong}"


if __name__ == "__main__":
    lines = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(bool(lines))
