// The simulated GPU: fibres, barriers, and the record of who touched which word of shared memory.
#if RLHF_SIMT
#include "native/simt/machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "native/cuda/gpu.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl rlhf_switch_fibre
.hidden rlhf_switch_fibre
.type rlhf_switch_fibre, @function
rlhf_switch_fibre:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rlhf_switch_fibre, . - rlhf_switch_fibre
)");
constexpr int SAVED = 6, RETURN = 6;  // words of a fresh stack, and the one that holds where it begins
#elif defined(__aarch64__)
asm(R"(
.text
.globl rlhf_switch_fibre
.hidden rlhf_switch_fibre
.type rlhf_switch_fibre, %function
rlhf_switch_fibre:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size rlhf_switch_fibre, . - rlhf_switch_fibre
)");
constexpr int SAVED = 20, RETURN = 11;
#else
#error "the simulator knows x86-64 and aarch64"
#endif

namespace rlhf::simt {

static thread_local Machine* machine_ =
    nullptr;  // of the owner: read at every access, without a check of its construction
Machine& machine() {
  if (!machine_) {
    thread_local std::unique_ptr<Machine> owner;
    owner = std::make_unique<Machine>();
    machine_ = owner.get();
  }
  return *machine_;
}

namespace {
const Kernel* kernels = nullptr;

[[noreturn]] void enter() {
  Machine& m = machine();
  m.kernel->run(m.params);
  m.self().state = State::done;
  m.leave();
  std::abort();
}

void start(int thread) {
  Machine& m = machine();
  Fibre& fibre = m.fibres[size_t(thread)];
  char* top = m.stacks.get() + (size_t(thread) + 1) * STACK;
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) / 64 * 64) - 8 - SAVED;
  std::memset(sp, 0, (SAVED + 2) * sizeof(void*));
  sp[RETURN] = reinterpret_cast<void*>(&enter);
  fibre = {};
  fibre.sp = sp, fibre.state = State::ready;
}

// Runs the lanes of a warp until each waits or has returned, or the warp pauses.
bool run_warp(int warp) {
  Machine& m = machine();
  std::vector<int> order;
  for (int lane = 0; lane < 32; lane++) order.push_back(warp * 32 + lane);
  for (bool moved = true; moved;) {
    moved = false;
    m.shuffle(order);
    for (int thread : order) {
      if (m.fibres[size_t(thread)].state != State::ready) continue;
      moved = true;
      m.running = m.place.thread = thread;
      rlhf_switch_fibre(&m.scheduler, m.self().sp);
      if (m.failed) return false;
      if (std::exchange(m.paused, false)) return true;
    }
  }
  for (int thread : order)
    if (m.fibres[size_t(thread)].state == State::at_warp) {
      for (int other : order)
        if (m.fibres[size_t(other)].state == State::done || m.fibres[size_t(other)].state == State::at_block) {
          std::snprintf(m.message, sizeof m.message, "%s: thread %d waits for its warp, and thread %d %s",
              m.kernel->name, thread, other,
              m.fibres[size_t(other)].state == State::done ? "has returned" : "is at a barrier of the block");
          return false;
        }
    }
  return true;
}

bool run_block() {
  Machine& m = machine();
  const int threads = m.kernel->threads, warps = threads / 32;
  m.epoch = 0;
  std::memset(m.shared, 0xff, size_t(m.shared_bytes));
  m.cells.assign(size_t(m.shared_bytes + 1) / 2, {});
  m.warps.assign(size_t(warps), {});
  m.barriers.clear(), m.boxes.clear(), m.products.assign(size_t(warps + 3) / 4, {});
  for (int thread = 0; thread < threads; thread++) start(thread);
  std::vector<int> order;
  for (int warp = 0; warp < warps; warp++) order.push_back(warp);
  for (;;) {
    m.shuffle(order);
    for (int warp : order) {
      if (!run_warp(warp)) return false;
      if (!m.boxes.empty() && m.below(2)) deliver_box();
    }
    if (wake_at_barriers()) continue;
    if (!m.boxes.empty()) {
      deliver_box();
      continue;
    }
    if (!none_hangs()) return false;
    bool waiting = false;
    for (Fibre& fibre : m.fibres)
      if (fibre.state == State::at_block) fibre.state = State::ready, waiting = true;
    if (!waiting) return ends_well();
    for (int warp = 0; warp < warps; warp++) release_tiles(warp);
    m.epoch++;
  }
}

}  // namespace

// What `touch` came before the running thread's, as a barrier orders them?
bool ordered(const Touch& touch) {
  Machine& m = machine();
  if (touch.thread < 0 || touch.thread == m.running || touch.block < m.epoch) return true;
  if (m.own_warp().known[touch.thread / 32] > touch.arrivals) return true;
  return touch.thread / 32 == m.running / 32 && touch.warp < m.own_warp().epoch;
}
Touch touch_now() {
  Machine& m = machine();
  return {m.running, m.epoch, m.own_warp().epoch, m.own_warp().arrivals, m.self().fences};
}

Kernel::Kernel(const char* name, int threads, int64_t bytes, void (*run)(const void*))
    : name(name), threads(threads), bytes(bytes), run(run), next(kernels) {
  kernels = this;
}

const Place& place() { return machine().place; }

void fault(const char* format, ...) {
  Machine& m = machine();
  int n = std::snprintf(m.message, sizeof m.message, "%s: block %d %d %d, thread %d: ", m.kernel->name,
      m.place.block[0], m.place.block[1], m.place.block[2], m.running);
  va_list list;
  va_start(list, format);
  std::vsnprintf(m.message + n, sizeof m.message - size_t(n), format, list);
  va_end(list);
  m.failed = true;
  m.leave();
  std::abort();
}

void sync_block() {
  machine().self().state = State::at_block;
  machine().leave();
}

void meet(void* mine, void (*compute)(void**)) {
  Machine& m = machine();
  Warp& warp = m.own_warp();
  Fibre* lanes = &m.fibres[size_t(m.running / 32 * 32)];
  m.self().brought = mine, m.self().meeting = compute;
  if (++warp.arrived < 32) {
    m.self().state = State::at_warp;
    return m.leave();
  }
  warp.arrived = 0;
  void* all[32];
  for (int i = 0; i < 32; i++) {
    if (lanes[i].meeting != compute) fault("the lanes of a warp meet in different operations");
    all[i] = lanes[i].brought, lanes[i].state = State::ready;
  }
  compute(all);
}

void sync_warp() {
  meet(nullptr, [](void**) { machine().own_warp().epoch++; });
}

char* shared_memory() { return machine().shared; }

int take_shared(int* used, int bytes) {
  Machine& m = machine();
  const int at = *used;
  *used += (bytes + 15) / 16 * 16;
  if (*used > (m.shared_bytes + 15) / 16 * 16)
    fault("takes %d bytes of shared memory, was launched with %d", *used, m.shared_bytes);
  return at;
}

void touch(int offset, int bytes, bool write) {
  Machine& m = machine();
  for (int i = offset / 2; i < (offset + bytes + 1) / 2; i++) {
    Cell& cell = m.cells[size_t(i)];
    if (cell.coming)
      fault("shared byte %d is %s before the copy to it was waited for", 2 * i, write ? "written" : "read");
    if (cell.barrier) fault("shared byte %d is a barrier's", 2 * i);
    if (write && cell.held) fault("shared byte %d is written while a product reads it", 2 * i);
    expect_seen(cell, 2 * i);
    if (!ordered(cell.write))
      fault("shared byte %d is %s after thread %d wrote it, with no barrier between", 2 * i, write ? "written" : "read",
          cell.write.thread);
    const Touch now = touch_now();
    if (!write) {
      if (!cell.filled) fault("shared byte %d is read before anything was written to it", 2 * i);
      const bool before = cell.read.thread >= 0 && cell.read.block == m.epoch,
                 ours = before && cell.read.thread / 32 == m.running / 32;
      cell.warps = before && (cell.warps || !ours);
      cell.lanes = ours && cell.read.warp == now.warp && (cell.lanes || cell.read.thread != m.running);
      cell.read = now;
      continue;
    }
    if (!ordered(cell.read) ||
        (cell.read.block == m.epoch && (cell.warps || (cell.lanes && cell.read.warp == now.warp))))
      fault("shared byte %d is written after thread %d read it, with no barrier between", 2 * i, cell.read.thread);
    cell.write = now, cell.read = {}, cell.warps = cell.lanes = false, cell.filled = true, cell.brought_by = -1;
  }
}

void copy_async(int offset, const void* from) {
  Machine& m = machine();
  touch(offset, 16, true);
  std::memset(m.shared + offset, 0xff, 16);
  for (int i = 0; i < 8; i++) m.cells[size_t(offset / 2 + i)].coming = true;
  auto& groups = m.self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({offset, from});
}

void copy_async_commit() {
  auto& groups = machine().self().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void copy_async_wait(int pending) {
  Machine& m = machine();
  auto& groups = m.self().copies;
  while (int(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) {
      for (int i = 0; i < 8; i++) m.cells[size_t(copy.offset / 2 + i)].coming = false;
      touch(copy.offset, 16, true);
      if (copy.from) std::memcpy(m.shared + copy.offset, copy.from, 16);
      else std::memset(m.shared + copy.offset, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

namespace {

class Simulated final : public GpuDevice {
 public:
  explicit Simulated(int ordinal) : words_(1024) {
    const char* seed = std::getenv("RLHF_SIMT_SEED");
    random_ = (seed ? std::strtoull(seed, nullptr, 10) : 0) * 0x9e3779b97f4a7c15ull +
              uint64_t(ordinal) * 0xd1342543de82ef95ull;
    errors = words_.data();
    multiprocessors = 4, architecture = ordinal >= HOPPERS ? 90 : ordinal == GEFORCE ? 86 : 80;
  }
  bool launch(const char* name, const int64_t grid[3], int threads, int64_t shared, const void* params,
      int64_t bytes) override {
    Machine& m = machine();
    const Kernel* kernel = kernels;
    while (kernel && std::strcmp(kernel->name, name)) kernel = kernel->next;
    if (!kernel) return refuse("there is no kernel of this name", name);
    if (kernel->threads != threads || threads % 32 || threads > 1024)
      return refuse("launched with another number of threads than it states", name);
    if (kernel->bytes != bytes) return refuse("launched with other parameters than it takes", name);
    const int most = architecture == 90 ? SHARED_MOST : architecture == 86 ? 99 << 10 : 163 << 10;
    if (shared > most)
      return refuse(("it needs " + std::to_string(shared) + " bytes of shared memory, a block of this GPU has " +
                        std::to_string(most))
                        .c_str(),
          name);
    if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535)
      return refuse("launched with more blocks than a grid can have", name);
    m.fibres.resize(size_t(threads));
    m.kernel = kernel, m.params = params, m.shared_bytes = int(shared), m.failed = false;
    m.random = random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
    const int64_t blocks = grid[0] * grid[1] * grid[2];
    std::vector<int> order;
    for (int64_t b = 0; b < blocks; b++) order.push_back(int(b));
    m.shuffle(order);
    for (int axis = 0; axis < 3; axis++) m.place.grid[axis] = int(grid[axis]);
    for (int b : order) {
      m.place.block[0] = int(b % grid[0]), m.place.block[1] = int(b / grid[0] % grid[1]),
      m.place.block[2] = int(b / grid[0] / grid[1]);
      if (!run_block()) {
        failure = m.message;
        return false;
      }
    }
    return true;
  }
  bool tensor_map(void* map, const void* data, int64_t rows, int64_t columns, int64_t stride, int box_rows) override {
    if (reinterpret_cast<uintptr_t>(data) % 16 || stride % 8 || rows < 1 || columns < 1 || rows > UINT32_MAX ||
        columns > UINT32_MAX || box_rows > 256)
      return refuse("a tensor that the copy engine does not take", "tensor_map");
    const int64_t words[5] = {int64_t(reinterpret_cast<uintptr_t>(data)), rows, columns, stride, box_rows};
    return std::memcpy(map, words, sizeof words), true;
  }
  bool fill(void* data, int byte, int64_t bytes) override { return std::memset(data, byte, size_t(bytes)), true; }
  void* allocate(size_t bytes) override {  // full of NaN
    bytes = (bytes + 255) / 256 * 256;
    void* data = std::aligned_alloc(256, bytes);
    return data ? std::memset(data, 0xff, bytes) : nullptr;
  }
  void release(void* data) override { std::free(data); }
  bool write(void* to, const void* from, size_t bytes) override { return std::memcpy(to, from, bytes), true; }
  bool read(void* to, const void* from, size_t bytes) override { return std::memcpy(to, from, bytes), true; }
  bool wait() override { return true; }
  std::string name() const override { return "simulator"; }

 private:
  bool refuse(const char* why, const char* kernel) {
    std::snprintf(machine().message, sizeof machine().message, "%s: %s", kernel, why);
    failure = machine().message;
    return false;
  }
  std::vector<int32_t> words_;
  uint64_t random_;
};

}  // namespace
}  // namespace rlhf::simt

namespace rlhf {
std::unique_ptr<GpuDevice> open_gpu(int ordinal, void*, std::string&) {
  return std::make_unique<simt::Simulated>(ordinal);
}
}  // namespace rlhf
#endif
