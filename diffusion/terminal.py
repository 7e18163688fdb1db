"""What a person sees on a terminal of words that come from data: the words, and nothing that they ask the terminal for.

Names, reasons and messages come from files, registries and programs. Rich would take `[false, true]` for markup and
`:x:` for a picture, and a terminal obeys escape sequences.
"""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text


def visible(text: str) -> str:
    """The text with every character that is not printable, but for ends of lines and tabs, written as an escape."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


class PlainConsole(Console):
    """rich's console, on which a string is what it says."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of rich
        """Options are those of rich's console."""
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, **options}
        super().__init__(**plain)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - those of rich
        """A string as rich's text."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Anything, texts with a style of their own among it, as what is written."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
