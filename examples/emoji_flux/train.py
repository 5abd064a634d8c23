"""Train the sample pipeline again: `python examples/emoji_flux/train.py --help`."""

import sys

from emoji_training.cli import main

if __name__ == "__main__":
    sys.exit(main())
