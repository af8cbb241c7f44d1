"""`python -m fsmerge_lite`: the command line, which stands in `recipes.commands`."""
import sys

from .recipes.commands import main

sys.exit(main())
