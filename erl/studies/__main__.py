"""`python -m erl.studies`."""

from erl.studies.commands import main

if __name__ == "__main__":
    main()
