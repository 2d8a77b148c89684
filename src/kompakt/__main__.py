"""``python -m kompakt``."""

from kompakt.compressor.cli import main

if __name__ == "__main__":
    main()
