// A kernel for the emulation: the tests of the plan on chip compile it.

#include "hopper.h"
#include "block.cuh"
#include "sums.cuh"
#if GRADIENT
#include "adjoint.cu"
#define RUN adjoints_on_chip
#else
#include "output.cuh"
#include "plan.cu"
#define RUN sinkhorn_on_chip
#endif

// Run all clusters, one after another. Returns 0, or 1 with the reason in `error` (of `size` bytes).
extern "C" int run(const Problem* problem, int clusters, u32 seed, char* error, int size) {
  try {
    for (int cluster = 0; cluster < clusters; cluster++)
      hopper::run_cluster(CLUSTER_SIZE, cluster, clusters, seed, [problem] { RUN(*problem); });
  } catch (const hopper::Failure& failure) {
    snprintf(error, size, "%s", failure.what());
    return 1;
  }
  return 0;
}
