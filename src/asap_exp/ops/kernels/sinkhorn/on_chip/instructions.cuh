// The instructions of Hopper that plan.cu uses, one function each. A test replaces this file, and
// nothing else, by an emulation on the CPU (tests/ops/emulator). Addresses in shared memory are
// 32-bit; `rank` is a block's number in its cluster. No header is included: NVRTC needs none.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(512, 1)
#define PARAMETER const __grid_constant__
#define CONSTANT(name, value) extern "C" __device__ const int name = value  // read by the launcher

extern __shared__ __align__(128) u8 shared_bytes[];

DEVICE u32 shared_base() { return (u32)__cvta_generic_to_shared(shared_bytes); }
DEVICE int thread() { return (int)threadIdx.x; }
// The same, and what is made of it, is neither kept from before nor made again: it spares registers.
DEVICE int thread_read_here() {
  int r;
  asm volatile("mov.u32 %0,%%tid.x;" : "=r"(r));
  return r;
}
DEVICE int block_rank() {
  u32 r;
  asm("mov.u32 %0,%%cluster_ctarank;" : "=r"(r));
  return (int)r;
}
DEVICE int cluster_number() {
  u32 r;
  asm("mov.u32 %0,%%clusterid.x;" : "=r"(r));
  return (int)r;
}
DEVICE int cluster_count() {
  u32 r;
  asm("mov.u32 %0,%%nclusterid.x;" : "=r"(r));
  return (int)r;
}

// Arithmetic --------------------------------------------------------------------------------------

DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_of(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float round_up(float x) { return ceilf(x); }
DEVICE float bits_to_float(u32 x) { return __uint_as_float(x); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }

// Two numbers of 16 bits in one register; the first is the lower half.
DEVICE u32 to_f16x2(float first, float second) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(second), "f"(first));
  return r;
}
DEVICE u32 to_bf16x2(float first, float second) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(r) : "f"(second), "f"(first));
  return r;
}
DEVICE u16 to_f16(float x) {
  u16 r;
  asm("cvt.rn.f16.f32 %0,%1;" : "=h"(r) : "f"(x));
  return r;
}
DEVICE float from_f16(u16 x) {
  float r;
  asm("cvt.f32.f16 %0,%1;" : "=f"(r) : "h"(x));
  return r;
}
DEVICE u16 to_bf16(float x) {
  u16 r;
  asm("cvt.rn.bf16.f32 %0,%1;" : "=h"(r) : "f"(x));
  return r;
}
DEVICE u32 larger_u16x2(u32 a, u32 b) { return __vmaxu2(a, b); }
DEVICE u32 multiply_f16x2(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 multiply_bf16x2(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0,%1,%2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// Matrix units: c[16, 8] += A[16, 16] B[16, 8], fragments as PTX lays them out ---------------------

DEVICE void multiply_add_f16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void multiply_add_bf16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Warps -------------------------------------------------------------------------------------------

DEVICE float from_lane_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE int warp_maximum(int x) { return __reduce_max_sync(~0u, x); }
DEVICE void warp_barrier() { __syncwarp(); }

// Shared memory of the block ------------------------------------------------------------------------

DEVICE float load_f32(u32 at) {
  float x;
  asm volatile("ld.shared.f32 %0,[%1];" : "=f"(x) : "r"(at) : "memory");
  return x;
}
DEVICE float2 load_f32x2(u32 at) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0,%1},[%2];" : "=f"(x.x), "=f"(x.y) : "r"(at) : "memory");
  return x;
}
DEVICE float4 load_f32x4(u32 at) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3},[%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
DEVICE u32 load_u32(u32 at) {
  u32 x;
  asm volatile("ld.shared.u32 %0,[%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
DEVICE uint4 load_u32x4(u32 at) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at)
               : "memory");
  return x;
}
DEVICE u16 load_u16(u32 at) {
  u16 x;
  asm volatile("ld.shared.u16 %0,[%1];" : "=h"(x) : "r"(at) : "memory");
  return x;
}
DEVICE void store_u16(u32 at, u16 x) { asm volatile("st.shared.u16 [%0],%1;" ::"r"(at), "h"(x) : "memory"); }
DEVICE void store_f32(u32 at, float x) {
  asm volatile("st.shared.f32 [%0],%1;" ::"r"(at), "f"(x) : "memory");
}
DEVICE void store_f32x2(u32 at, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0],{%1,%2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}
DEVICE void store_u32x4(u32 at, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

// Four 8 x 8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 r[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
DEVICE void load_matrices_transposed(u32 r[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
DEVICE void store_matrices(u32 at, u32 r0, u32 r1, u32 r2, u32 r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0],{%1,%2,%3,%4};" ::"r"(at), "r"(r0), "r"(r1),
               "r"(r2), "r"(r3)
               : "memory");
}
DEVICE void block_barrier() { __syncthreads(); }

// Global memory -----------------------------------------------------------------------------------

DEVICE u32 load_global_u32(const u16* from) { return *reinterpret_cast<const u32*>(from); }
DEVICE void store_global_u32x4(u16* to, uint4 x) { *reinterpret_cast<uint4*>(to) = x; }
DEVICE void prefetch(const u16* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
// 16 bytes to shared memory, or zeros if not valid. Copies are waited for in groups, oldest first.
DEVICE void copy_async(u32 to, const u16* from) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(to), "l"(from) : "memory");
}
DEVICE void copy_async_if(u32 to, const u16* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Clusters ----------------------------------------------------------------------------------------

DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE u32 in_block(u32 at, int rank) {
  u32 r;
  asm("mapa.shared::cluster.u32 %0,%1,%2;" : "=r"(r) : "r"(at), "r"(rank));
  return r;
}
DEVICE void store_remote_f32x2(u32 at, float x, float y) {
  asm volatile("st.shared::cluster.v2.f32 [%0],{%1,%2};" ::"r"(at), "f"(x), "f"(y) : "memory");
}
DEVICE void store_remote_u32x4(u32 at, uint4 x) {
  asm volatile("st.shared::cluster.v4.u32 [%0],{%1,%2,%3,%4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

// A mailbox counts arriving bytes: `send` stores 8 bytes in another block and counts them there.
DEVICE void open_mailbox(u32 box) { asm volatile("mbarrier.init.shared.b64 [%0],1;" ::"r"(box) : "memory"); }
DEVICE void mailboxes_open() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void expect_bytes(u32 box, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _,[%0],%1;" ::"r"(box), "r"(bytes) : "memory");
}
DEVICE void send(u32 to, float x, float y, u32 box) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0],{%1,%2},[%3];" ::"r"(to),
               "f"(x), "f"(y), "r"(box)
               : "memory");
}
DEVICE bool arrived(u32 box, int parity) {
  u32 done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2;\nselp.u32 %0,1,0,p;\n}"
               : "=r"(done)
               : "r"(box), "r"(parity)
               : "memory");
  return done;
}
