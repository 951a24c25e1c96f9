"""`wellworn`, `python -m wellworn` and `accelerate launch -m wellworn`: one and the same."""

from wellworn.experiments.cli import main

if __name__ == "__main__":
    main()
