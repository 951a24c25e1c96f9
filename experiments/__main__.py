"""`python -m experiments` and `accelerate launch -m experiments`: the same as `wellworn`."""

from experiments.cli import main

if __name__ == "__main__":
    main()
