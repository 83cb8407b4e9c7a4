"""Write `src/warmstart/__init__.pyi` from the table of public names, for type checkers and editors.

python tools/write_stub.py            write it
python tools/write_stub.py --check    exit 1 if it is not what would be written
"""

import sys
from pathlib import Path

from warmstart.public_names import NAMES_BY_MODULE

STUB = Path(__file__).parent.parent / "src" / "warmstart" / "__init__.pyi"


def stub_text() -> str:
    """The stub as it ought to be: one re-export a line, sorted, so that a change is one line in a diff."""
    table = NAMES_BY_MODULE
    lines = [_line(module, name) for module in sorted(table) for name in sorted(table[module])]
    return "\n".join(
        ["# Written by tools/write_stub.py from public_names.py; do not edit.", *lines, "", "__version__: str", ""]
    )


def _line(module: str, name: str) -> str:
    """One re-export, as the formatter wants it."""
    line = f"from warmstart.{module} import {name} as {name}"
    return line if len(line) <= 120 else f"from warmstart.{module} import (\n    {name} as {name},\n)"


def main() -> int:
    """Write or check, by the arguments."""
    if "--check" not in sys.argv[1:]:
        STUB.write_text(stub_text(), encoding="utf-8")
        return 0
    if STUB.exists() and STUB.read_text(encoding="utf-8") == stub_text():
        return 0
    print(f"{STUB.name} does not match the table in public_names.py: run `make stub`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
