// A cluster of Hopper's blocks on a CPU: what instructions.cuh declares, without a GPU, for tests.
//
// Every thread is a fiber with a stack of its own. A fiber runs until it waits: for the other lanes of
// its warp at an instruction of the warp, at a barrier, or at a mailbox; which fiber runs next is drawn
// from a seed, and so is when a sent number arrives. What a program may not do ends the run with an
// error: lanes of a warp at different instructions, a wait that never ends, an address outside of
// shared memory or not aligned, and two warps that use a place in shared memory, one of them writing,
// with no barrier in between, or numbers sent to a block that has ended. With some
// seeds one block is as far ahead of the others as it can be. Shared memory begins as NaN; copies arrive
// at once or when they are waited for.

#include <setjmp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef long long i64;
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  u32 x, y, z, w;
};

#define DEVICE static inline
#define DEVICE_MEMBER
#define KERNEL static void
#define PARAMETER const
#define CONSTANT(name, value) extern "C" const int name = value

namespace hopper {

constexpr int BLOCK_THREADS = 512, LANES = 32;
constexpr size_t STACK = 64 * 1024;
constexpr u32 RANK_SHIFT = 24, CAPACITY = 232448;  // most dynamic shared memory of a block, in bytes

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Access {
  int warp = -1, block = 0, block_epoch = 0, cluster_epoch = 0;
};
struct Copy {
  u32 to;
  const u16* from;
  bool valid;
};
struct Mailbox {
  int pending = 1, phase = 0;
  long bytes = 0;
  std::vector<int> waiting;
};
struct Sent {
  int block;
  u32 to;
  float x, y;
  u32 box;
};

struct Warp {
  const char* instruction = nullptr;
  int present = 0;
  u32 in[LANES][10], out[LANES][4];
};
struct Block {
  std::vector<u8> memory;
  std::vector<Access> writes, reads;
  std::map<u32, Mailbox> mailboxes;
  Warp warps[BLOCK_THREADS / LANES];
  int at_barrier = 0, running = BLOCK_THREADS;
};
struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started = false, done = false, runnable = true;
  int block, thread, block_epoch = 0, cluster_epoch = 0;
  const char* waits_for = "";
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);
};

struct Machine {
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<int> ready;
  std::vector<Sent> under_way;
  jmp_buf scheduler;
  int current = -1, at_cluster_barrier = 0, cluster = 0, clusters = 1;
  uint64_t random = 1;
  std::string error;
  std::function<void()> program;

  u32 draw(u32 below) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(random >> 33) % below;
  }
};
static Machine machine;

static Fiber& self() { return machine.fibers[machine.current]; }
static Block& block_of(u32 address) { return machine.blocks.at(address >> RANK_SHIFT); }
static void fail(const std::string& what) {
  machine.error =
      "block " + std::to_string(self().block) + ", thread " + std::to_string(self().thread) + ": " + what;
  _longjmp(machine.scheduler, 2);
}
static void park(const char* reason) {
  self().waits_for = reason;
  self().runnable = false;
  if (_setjmp(self().resume) == 0) _longjmp(machine.scheduler, 1);
}
static void wake(int number) {
  Fiber& fiber = machine.fibers[number];
  if (!fiber.runnable) {
    fiber.runnable = true;
    machine.ready.push_back(number);
  }
}

// Note an access of `bytes` bytes and return where they are.
static u8* touch(u32 address, u32 bytes, bool write) {
  Block& block = block_of(address);
  const u32 at = address & ((1u << RANK_SHIFT) - 1);
  if (at % bytes || at + bytes > block.memory.size())
    fail("no " + std::to_string(bytes) + " bytes at " + std::to_string(at) + " of shared memory");
  const Fiber& me = self();
  const Access now{me.thread / LANES, me.block, me.block_epoch, me.cluster_epoch};
  const auto meets = [&](const Access& other) {
    if (other.warp < 0 || (other.warp == now.warp && other.block == now.block)) return false;
    return other.block == now.block ? other.block_epoch == now.block_epoch
                                    : other.cluster_epoch == now.cluster_epoch;
  };
  for (u32 i = at / 2; i < (at + bytes) / 2; i++) {
    if (meets(block.writes[i]) || (write && meets(block.reads[i])))
      fail(std::string(write ? "writes" : "reads") + " " + std::to_string(2 * i) + ", which warp " +
           std::to_string(meets(block.writes[i]) ? block.writes[i].warp : block.reads[i].warp) +
           " uses without a barrier in between");
    (write ? block.writes : block.reads)[i] = now;
  }
  return block.memory.data() + at;
}
template <class T>
static T get(u32 address) {
  T x;
  memcpy(&x, touch(address, sizeof(T), false), sizeof(T));
  return x;
}
template <class T>
static void put(u32 address, T x) {
  memcpy(touch(address, sizeof(T), true), &x, sizeof(T));
}

static float half_to_float(u16 h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  float x = exponent == 31 ? (fraction ? NAN : INFINITY)
            : exponent     ? std::ldexp(1024.f + fraction, exponent - 25)
                           : std::ldexp((float)fraction, -24);
  return h & 0x8000 ? -x : x;
}
static u16 float_to_half(float x) {
  const u16 sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs((double)x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.0) return sign | 0x7c00;
  if (size < std::ldexp(1.0, -14)) return sign | (u16)std::nearbyint(std::ldexp(size, 24));
  int exponent;
  const double fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  const u32 scaled = (u32)std::nearbyint(std::ldexp(fraction, 11));  // in [1024, 2048]
  return sign | (u16)(((exponent + 14) << 10) + (scaled - 1024));
}
static float as_float(u32 x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
static u32 as_bits(float x) {
  u32 y;
  memcpy(&y, &x, 4);
  return y;
}
static float bfloat_to_float(u16 x) { return as_float((u32)x << 16); }
static u16 float_to_bfloat(float x) {
  if (std::isnan(x)) return 0x7fff;
  const u32 bits = as_bits(x);
  return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Wait for the warp; the last lane computes the instruction for all.
static Warp& my_warp() { return machine.blocks[self().block].warps[self().thread / LANES]; }
static u32* operands() { return my_warp().in[self().thread % LANES]; }
template <class Compute>
static const u32* together(const char* instruction, Compute compute) {
  Warp& warp = my_warp();
  if (warp.present == 0) warp.instruction = instruction;
  if (strcmp(warp.instruction, instruction))
    fail(std::string("is at ") + instruction + ", other lanes of the warp at " + warp.instruction);
  const int first = machine.current - machine.current % LANES;
  if (++warp.present < LANES) {
    park(instruction);
  } else {
    warp.present = 0;
    compute(warp);
    for (int lane = 0; lane < LANES; lane++)
      if (first + lane != machine.current) wake(first + lane);
  }
  return warp.out[self().thread % LANES];
}

template <float (*TO_FLOAT)(u16)>
static void multiply_fragments(Warp& w) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < LANES; lane++) {
    const int row = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < 4; r++)
        a[row + r % 2 * 8][pair + r / 2 * 8 + i] = TO_FLOAT((u16)(w.in[lane][r] >> 16 * i));
      for (int r = 0; r < 2; r++) b[pair + r * 8 + i][row] = TO_FLOAT((u16)(w.in[lane][4 + r] >> 16 * i));
      for (int r = 0; r < 2; r++) c[row + r * 8][pair + i] = as_float(w.in[lane][6 + 2 * r + i]);
    }
  }
  for (int m = 0; m < 16; m++)
    for (int n = 0; n < 8; n++)
      for (int k = 0; k < 16; k++) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < LANES; lane++)
    for (int i = 0; i < 4; i++) w.out[lane][i] = as_bits(c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
}
template <float (*TO_FLOAT)(u16)>
static void multiply_add(const char* name, float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const u32 in[10] = {a0, a1, a2, a3, b0, b1, as_bits(c[0]), as_bits(c[1]), as_bits(c[2]), as_bits(c[3])};
  memcpy(operands(), in, sizeof in);
  const u32* out = together(name, multiply_fragments<TO_FLOAT>);
  for (int i = 0; i < 4; i++) c[i] = as_float(out[i]);
}

// Matrix m of four has its rows at the addresses of lanes 8 m to 8 m + 7.
static u16& element(u16 (&matrices)[4][8][8], bool transposed, int matrix, int lane, int i) {
  const int row = lane / 4, column = lane % 4 * 2 + i;
  return transposed ? matrices[matrix][column][row] : matrices[matrix][row][column];
}
static void read_matrices(const char* name, u32 r[4], u32 at, bool transposed) {
  memcpy(operands(), touch(at, 16, false), 16);
  const u32* out = together(name, [transposed](Warp& w) {
    u16 matrices[4][8][8];
    for (int lane = 0; lane < LANES; lane++) memcpy(matrices[lane / 8][lane % 8], w.in[lane], 16);
    for (int lane = 0; lane < LANES; lane++)
      for (int m = 0; m < 4; m++)
        w.out[lane][m] =
            element(matrices, transposed, m, lane, 0) | (u32)element(matrices, transposed, m, lane, 1) << 16;
  });
  memcpy(r, out, 16);
}

static void copy_now(const Copy& copy) {
  u8* to = touch(copy.to, 16, true);
  if (copy.valid) memcpy(to, copy.from, 16);
  else memset(to, 0, 16);
}
static void check_phase(Mailbox& box) {
  if (box.pending || box.bytes) return;
  box.phase ^= 1;
  box.pending = 1;
  for (int fiber : box.waiting) wake(fiber);
  box.waiting.clear();
}
static void deliver(size_t number) {
  const Sent sent = machine.under_way[number];
  machine.under_way[number] = machine.under_way.back();
  machine.under_way.pop_back();
  Block& block = machine.blocks[sent.block];
  if (block.running == 0)
    machine.error = "a number is sent to block " + std::to_string(sent.block) + ", which has ended";
  memcpy(block.memory.data() + sent.to, &sent.x, 4);
  memcpy(block.memory.data() + sent.to + 4, &sent.y, 4);
  Mailbox& box = block.mailboxes.at(sent.box);
  box.bytes -= 8;
  check_phase(box);
}

static void enter() {
  machine.program();
  self().done = true;
  machine.blocks[self().block].running--;
  self().waits_for = "nothing: it has ended";
  self().runnable = false;
  _longjmp(machine.scheduler, 1);
}

// Run the program on one cluster; throws Failure.
static void run_cluster(int size, int cluster, int clusters, u32 seed, std::function<void()> program) {
  const size_t count = (size_t)size * BLOCK_THREADS;
  machine.blocks.assign(size, Block());
  machine.fibers.assign(count, Fiber());
  machine.ready.clear();
  machine.under_way.clear();
  machine.at_cluster_barrier = 0;
  machine.cluster = cluster;
  machine.clusters = clusters;
  machine.random = seed * 2654435761u + 88172645463325252ull;
  machine.error.clear();
  machine.program = program;
  for (Block& block : machine.blocks) {
    block.memory.assign(CAPACITY, 0xff);
    block.writes.assign(CAPACITY / 2, Access());
    block.reads.assign(CAPACITY / 2, Access());
  }
  u8* stacks = (u8*)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) throw Failure("no memory for the stacks");
  for (size_t i = 0; i < count; i++) {
    Fiber& fiber = machine.fibers[i];
    fiber.block = (int)(i / BLOCK_THREADS);
    fiber.thread = (int)(i % BLOCK_THREADS);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + i * STACK;
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, enter, 0);
    machine.ready.push_back((int)i);
  }
  while (machine.error.empty()) {
    if (!machine.under_way.empty() && (machine.ready.empty() || machine.draw(8) == 0))
      deliver(machine.draw((u32)machine.under_way.size()));
    if (machine.ready.empty()) {
      if (!machine.under_way.empty()) continue;
      break;
    }
    size_t chosen = machine.draw((u32)machine.ready.size());
    // With an odd seed, one block goes as far ahead of the others as it can.
    for (int i = 0;
         i < 64 && seed % 2 && machine.fibers[machine.ready[chosen]].block != (int)(seed / 2 % size); i++)
      chosen = machine.draw((u32)machine.ready.size());
    machine.current = machine.ready[chosen];
    machine.ready[chosen] = machine.ready.back();
    machine.ready.pop_back();
    if (_setjmp(machine.scheduler) == 0) {
      Fiber& fiber = self();
      if (fiber.started) _longjmp(fiber.resume, 1);
      fiber.started = true;
      setcontext(&fiber.start);
    }
  }
  munmap(stacks, count * STACK);
  if (!machine.error.empty()) throw Failure(machine.error);
  for (const Fiber& fiber : machine.fibers)
    if (!fiber.done)
      throw Failure("block " + std::to_string(fiber.block) + ", thread " + std::to_string(fiber.thread) +
                    " waits for ever: " + fiber.waits_for);
}

}  // namespace hopper

DEVICE u32 shared_base() { return (u32)hopper::self().block << hopper::RANK_SHIFT; }
DEVICE int thread() { return hopper::self().thread; }
DEVICE int thread_read_here() { return thread(); }
DEVICE int block_rank() { return hopper::self().block; }
DEVICE int cluster_number() { return hopper::machine.cluster; }
DEVICE int cluster_count() { return hopper::machine.clusters; }

DEVICE float exp2_of(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.f : y;
}
DEVICE float log2_of(float x) { return std::log2(x); }
DEVICE float inverse(float x) { return 1.f / x; }
DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float larger(float a, float b) { return std::fmax(a, b); }
DEVICE float round_up(float x) { return std::ceil(x); }
DEVICE float bits_to_float(u32 x) { return hopper::as_float(x); }
DEVICE u32 float_to_bits(float x) { return hopper::as_bits(x); }
DEVICE u32 to_f16x2(float first, float second) {
  return hopper::float_to_half(first) | (u32)hopper::float_to_half(second) << 16;
}
DEVICE u32 to_bf16x2(float first, float second) {
  return hopper::float_to_bfloat(first) | (u32)hopper::float_to_bfloat(second) << 16;
}
DEVICE u16 to_f16(float x) { return hopper::float_to_half(x); }
DEVICE float from_f16(u16 x) { return hopper::half_to_float(x); }
DEVICE u16 to_bf16(float x) { return hopper::float_to_bfloat(x); }
DEVICE u32 larger_u16x2(u32 a, u32 b) {
  return std::max(a & 0xffff, b & 0xffff) | std::max(a >> 16, b >> 16) << 16;
}
DEVICE u32 multiply_f16x2(u32 a, u32 b) {
  return to_f16x2(from_f16((u16)a) * from_f16((u16)b), from_f16((u16)(a >> 16)) * from_f16((u16)(b >> 16)));
}
DEVICE u32 multiply_bf16x2(u32 a, u32 b) {
  const auto times = [](u16 x, u16 y) { return hopper::bfloat_to_float(x) * hopper::bfloat_to_float(y); };
  return to_bf16x2(times((u16)a, (u16)b), times((u16)(a >> 16), (u16)(b >> 16)));
}

DEVICE void multiply_add_f16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  hopper::multiply_add<hopper::half_to_float>("mma.f16", c, a0, a1, a2, a3, b0, b1);
}
DEVICE void multiply_add_bf16(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  hopper::multiply_add<hopper::bfloat_to_float>("mma.bf16", c, a0, a1, a2, a3, b0, b1);
}
DEVICE float from_lane_xor(float x, int mask) {
  hopper::operands()[0] = hopper::as_bits(x);
  const u32* out = hopper::together("shfl.xor", [mask](hopper::Warp& w) {
    for (int lane = 0; lane < hopper::LANES; lane++) w.out[lane][0] = w.in[lane ^ mask][0];
  });
  return hopper::as_float(out[0]);
}
DEVICE int warp_maximum(int x) {
  hopper::operands()[0] = (u32)x;
  return (int)hopper::together("redux.max", [](hopper::Warp& w) {
    int top = (int)w.in[0][0];
    for (int lane = 1; lane < hopper::LANES; lane++) top = std::max(top, (int)w.in[lane][0]);
    for (int lane = 0; lane < hopper::LANES; lane++) w.out[lane][0] = (u32)top;
  })[0];
}
DEVICE void warp_barrier() {
  hopper::together("bar.warp", [](hopper::Warp&) {});
}

DEVICE float load_f32(u32 at) { return hopper::get<float>(at); }
DEVICE float2 load_f32x2(u32 at) { return hopper::get<float2>(at); }
DEVICE float4 load_f32x4(u32 at) { return hopper::get<float4>(at); }
DEVICE u32 load_u32(u32 at) { return hopper::get<u32>(at); }
DEVICE uint4 load_u32x4(u32 at) { return hopper::get<uint4>(at); }
DEVICE u16 load_u16(u32 at) { return hopper::get<u16>(at); }
DEVICE void store_u16(u32 at, u16 x) { hopper::put(at, x); }
DEVICE void store_f32(u32 at, float x) { hopper::put(at, x); }
DEVICE void store_f32x2(u32 at, float x, float y) { hopper::put(at, float2{x, y}); }
DEVICE void store_u32x4(u32 at, uint4 x) { hopper::put(at, x); }
DEVICE void load_matrices(u32 r[4], u32 at) { hopper::read_matrices("ldmatrix", r, at, false); }
DEVICE void load_matrices_transposed(u32 r[4], u32 at) {
  hopper::read_matrices("ldmatrix.trans", r, at, true);
}
DEVICE void store_matrices(u32 at, u32 r0, u32 r1, u32 r2, u32 r3) {
  const u32 in[5] = {r0, r1, r2, r3, at};
  memcpy(hopper::operands(), in, sizeof in);
  u8* to = hopper::touch(at, 16, true);
  const u32* out = hopper::together("stmatrix", [](hopper::Warp& w) {
    u16 matrices[4][8][8];
    for (int lane = 0; lane < hopper::LANES; lane++)
      for (int m = 0; m < 4; m++)
        for (int i = 0; i < 2; i++)
          hopper::element(matrices, false, m, lane, i) = (u16)(w.in[lane][m] >> 16 * i);
    for (int lane = 0; lane < hopper::LANES; lane++) memcpy(w.out[lane], matrices[lane / 8][lane % 8], 16);
  });
  memcpy(to, out, 16);
}

DEVICE void block_barrier() {
  hopper::Block& block = hopper::machine.blocks[hopper::self().block];
  const int first = hopper::self().block * hopper::BLOCK_THREADS;
  if (++block.at_barrier < hopper::BLOCK_THREADS) hopper::park("bar.block");
  else {
    block.at_barrier = 0;
    for (int i = first; i < first + hopper::BLOCK_THREADS; i++)
      if (i != hopper::machine.current) hopper::wake(i);
  }
  hopper::self().block_epoch++;
}
DEVICE void cluster_barrier() {
  const int count = (int)hopper::machine.fibers.size();
  if (++hopper::machine.at_cluster_barrier < count) hopper::park("bar.cluster");
  else {
    hopper::machine.at_cluster_barrier = 0;
    for (int i = 0; i < count; i++)
      if (i != hopper::machine.current) hopper::wake(i);
  }
  hopper::self().block_epoch++;
  hopper::self().cluster_epoch++;
}

DEVICE u32 load_global_u32(const u16* from) {
  u32 x;
  memcpy(&x, from, 4);
  return x;
}
DEVICE void store_global_u32x4(u16* to, uint4 x) {
  if ((uintptr_t)to % 16) hopper::fail("writes 16 bytes to an address that is no multiple of 16");
  memcpy(to, &x, 16);
}
DEVICE void prefetch(const u16*) {}
DEVICE void copy_async_if(u32 to, const u16* from, bool valid) {
  if ((uintptr_t)from % 16) hopper::fail("copies 16 bytes from an address that is no multiple of 16");
  hopper::touch(to, 16, true);
  if (hopper::machine.draw(2)) hopper::copy_now({to, from, valid});
  else hopper::self().groups.back().push_back({to, from, valid});
}
DEVICE void copy_async(u32 to, const u16* from) { copy_async_if(to, from, true); }
DEVICE void close_copy_group() { hopper::self().groups.emplace_back(); }
template <int PENDING>
DEVICE void wait_for_copies() {
  auto& groups = hopper::self().groups;  // the last one is open
  while (groups.size() > PENDING + 1) {
    for (const hopper::Copy& copy : groups.front()) hopper::copy_now(copy);
    groups.erase(groups.begin());
  }
}

DEVICE u32 in_block(u32 at, int rank) {
  if (rank < 0 || rank >= (int)hopper::machine.blocks.size())
    hopper::fail("there is no block " + std::to_string(rank) + " in the cluster");
  return (at & ((1u << hopper::RANK_SHIFT) - 1)) | (u32)rank << hopper::RANK_SHIFT;
}
DEVICE void store_remote_f32x2(u32 at, float x, float y) { hopper::put(at, float2{x, y}); }
DEVICE void store_remote_u32x4(u32 at, uint4 x) { hopper::put(at, x); }

DEVICE void open_mailbox(u32 box) { hopper::block_of(box).mailboxes[box & ((1u << hopper::RANK_SHIFT) - 1)]; }
DEVICE void mailboxes_open() {}
DEVICE hopper::Mailbox& mailbox_at(u32 box) {
  auto& boxes = hopper::block_of(box).mailboxes;
  const auto found = boxes.find(box & ((1u << hopper::RANK_SHIFT) - 1));
  if (found == boxes.end()) hopper::fail("there is no mailbox at " + std::to_string(box));
  return found->second;
}
DEVICE void expect_bytes(u32 at, int bytes) {
  hopper::Mailbox& box = mailbox_at(at);
  box.bytes += bytes;
  box.pending--;
  hopper::check_phase(box);
}
DEVICE void send(u32 to, float x, float y, u32 box) {
  mailbox_at(box);
  const u32 mask = (1u << hopper::RANK_SHIFT) - 1;
  if (to % 8 || to >> hopper::RANK_SHIFT != box >> hopper::RANK_SHIFT)
    hopper::fail("sends to one block and counts in another");
  hopper::machine.under_way.push_back({(int)(to >> hopper::RANK_SHIFT), to & mask, x, y, box & mask});
}
DEVICE bool arrived(u32 at, int parity) {
  hopper::Mailbox& box = mailbox_at(at);
  if (box.phase != parity) return true;
  box.waiting.push_back(hopper::machine.current);
  hopper::park("mailbox");
  return false;
}
