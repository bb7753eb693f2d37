"""Measure cheaper gradients of a trained teacher: their error, time and memory on a CPU.

Usage: python scripts/gradient_error.py RUN [--updates 1 2 3 5 10] [--implicit 1 2 3 5]
       [--attention coarse tokens=64 refine=2] [--attention ...] [--samples 16] [--passes 3]
"""

import os

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from asap_exp.evaluate.gradient_error import main

if __name__ == "__main__":
    main()
