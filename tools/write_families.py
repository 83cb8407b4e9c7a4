"""Write the table of families into `docs/families.md`, from the families themselves, and which are left out.

python tools/write_families.py            write it
python tools/write_families.py --check    exit 1 if it is not what would be written
"""

import re
import sys
from pathlib import Path

from warmstart.families.listing import as_markdown, left_out_as_markdown

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
BEGIN, END = "<!-- the table: written by tools/write_families.py -->\n", "<!-- end of the table -->\n"


def page_text(page: str) -> str:
    """The page with the table as it ought to be."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE} must hold the lines {BEGIN!r} and {END!r} once each")
    return pattern.sub(lambda _: f"{BEGIN}\n{as_markdown()}\n{left_out_as_markdown()}\n{END}", page)


def main() -> int:
    """Write or check, by the arguments."""
    page = PAGE.read_text(encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page_text(page), encoding="utf-8")
        return 0
    if page == page_text(page):
        return 0
    print(f"{PAGE.name} does not match the families: run `make families`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
