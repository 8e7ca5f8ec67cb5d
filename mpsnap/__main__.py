"""`python -m mpsnap`."""

# Under spawn and forkserver every node imports this module again under another name, and must not start a run.
if __name__ == "__main__":
    import sys

    from mpsnap.cli import main

    sys.exit(main())
