"""The entry of `python -m prunebench.cli`, the same as `python -m prunebench`."""

from prunebench.cli.main import main

if __name__ == "__main__":
    main()
