"""Counts what kills, damaged files, absurd settings and full disks do to the stages.

Usage: python -m tests.reliability [PART ...] [--count N] [--seed N]      (or: make reliability)
"""

import os

# Before NumPy and torch are imported: threads do not survive a fork.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
