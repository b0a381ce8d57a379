"""Score weights or features on a test set: the same as python -m reid evaluate."""

import sys

from reid.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
