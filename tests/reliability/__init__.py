"""Counts what kills, damaged files, absurd settings and full disks do to the stages.

Usage: python -m tests.reliability [PART ...] [--count N] [--seed N]      (or: make reliability)
"""
