"""Measure the error of a trained teacher's gradient through its last updates alone.

Usage: python scripts/gradient_error.py RUN [--updates 1 2 3 5 10] [--samples 16]
"""

import os

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from asap_exp.evaluate.gradient_error import main

if __name__ == "__main__":
    main()
