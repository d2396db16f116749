"""The files of the page."""

from importlib.resources import files
from typing import Final

_FOLDER: Final = files("taskpilot_instrument.web")
_PAGE: Final = "page.html"
#: Media types by the paths that the files are served at.
TYPES: Final = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/page.runs.js": "text/javascript",
    "/page.shapes.js": "text/javascript",
    "/page.tables.js": "text/javascript",
}


def read(path: str, root: str) -> str:
    """Return the text of a file.

    :param root: the path that the application is mounted under, without a slash at its end.
    """
    name = path.removeprefix("/") or _PAGE
    text = (_FOLDER / name).read_text(encoding="utf-8")
    # Mounted under a path without a slash at its end, relative addresses would miss it.
    return text.replace("%ROOT%", root.replace("&", "").replace('"', "").replace("<", "")) if name == _PAGE else text
