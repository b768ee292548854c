"""``python -m fastinpaint``."""

import sys

from fastinpaint.cli import main

if __name__ == "__main__":
    sys.exit(main())
