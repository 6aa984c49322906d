"""`python -m revgraph`: the command line."""

from revgraph.cli import main

if __name__ == "__main__":
    main()
