"""`python -m musicjax …` does what `musicjax …` does."""

import sys

from musicjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
