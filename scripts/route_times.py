"""Time every route of Sinkhorn attention on this GPU beside the one that is chosen.

Usage: python scripts/route_times.py [--n 256 1024] [--updates 5 10 20] [--spread 1 4 16]
       [--head-dim 64] [--dtype bfloat16] [--train] [--json FILE]
"""

import os

os.environ["MPLBACKEND"] = "Agg"  # set before matplotlib is imported

from asap_exp.benchmark.route_times import main

if __name__ == "__main__":
    main()
