// The kernel for the emulation: `python -m pytest tests/ops/test_fused_on_chip.py` compiles it.

#include "hopper.h"
#include "block.cuh"
#include "sums.cuh"
#include "output.cuh"
#include "plan.cu"

// Run all clusters, one after another. Returns 0, or 1 with the reason in `error` (of `size` bytes).
extern "C" int run(const Problem* problem, int clusters, u32 seed, char* error, int size) {
  try {
    for (int cluster = 0; cluster < clusters; cluster++)
      hopper::run_cluster(CLUSTER_SIZE, cluster, clusters, seed, [problem] { sinkhorn_on_chip(*problem); });
  } catch (const hopper::Failure& failure) {
    snprintf(error, size, "%s", failure.what());
    return 1;
  }
  return 0;
}
