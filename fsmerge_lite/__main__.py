"""`python -m fsmerge_lite`: the command line, which stands in `bench.commands`."""
import sys

from .bench.commands import main

sys.exit(main())
