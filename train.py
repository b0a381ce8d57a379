"""Train a model: the same as python -m reid train."""

import sys

from reid.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
