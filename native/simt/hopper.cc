// The simulated Hopper: barriers that count bytes, boxes that the copy engine brings, products that run beside the
// threads.
#if RLHF_SIMT
#include "native/simt/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace rlhf::simt {
namespace {

constexpr float POISON = __builtin_nanf("0x5eed");
constexpr int64_t BOX = 64;  // columns of a box

float wide(uint16_t bf16) {
  const uint32_t bits = uint32_t(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// where the 16 bytes that hold a byte of a tile stand
int turned(int byte) { return byte ^ (byte >> 3 & 0x70); }

Barrier& barrier_at(int at) {
  Machine& m = machine();
  const auto found = m.barriers.find(at);
  if (found == m.barriers.end()) fault("there is no barrier at shared byte %d", at);
  if (!ordered(found->second.made))
    fault("the barrier at shared byte %d is used after thread %d made it, with no barrier between", at,
        found->second.made.thread);
  return found->second;
}

void complete(Barrier& b) {
  if (b.pending == 0 && b.bytes == 0) b.phase++, b.pending = b.arrivals;
}
bool is_over(const Barrier& b, int parity) { return int(b.phase & 1) != parity; }

// the element (i, k) of a tile, i along its rows or columns of the product
int place_of(uint64_t descriptor, bool across, int i, int k) {
  const int start = int(descriptor & 0x3fff) << 4, next = int(descriptor >> 16 & 0x3fff) << 4,
            eight = int(descriptor >> 32 & 0x3fff) << 4;
  const int byte =
      across ? i / 64 * next + i % 64 * 2 + k / 8 * eight + k % 8 * 128 : i / 8 * eight + i % 8 * 128 + k * 2;
  return turned(start + byte);
}

void hold(Multiplication& one, int byte) {
  Machine& m = machine();
  if (byte + 2 > m.shared_bytes) fault("a product reads shared byte %d of %d", byte, m.shared_bytes);
  Cell& cell = m.cells[size_t(byte / 2)];
  if (cell.coming) fault("shared byte %d is multiplied before the copy to it was waited for", byte);
  if (!cell.filled) fault("shared byte %d is multiplied before anything was written to it", byte);
  if (cell.brought_by < 0 && (!ordered(cell.write) || m.fibres[size_t(cell.write.thread)].fences == cell.write.fences))
    fault("shared byte %d is multiplied after thread %d wrote it, with no fence or no barrier between", byte,
        cell.write.thread);
  expect_seen(cell, byte);
  cell.held |= 1u << (m.running / 32);
  one.cells.push_back(byte / 2);
}

float value_at(int byte) {
  uint16_t bits;
  std::memcpy(&bits, machine().shared + byte, 2);
  return wide(bits);
}

void set_off(const Box& box) {
  Machine& m = machine();
  Barrier& b = barrier_at(box.barrier);
  if (!b.published) fault("the barrier at shared byte %d was not published", box.barrier);
  b.awaited = b.phase + 1;
  for (int i = box.to / 2; i < box.to / 2 + int(box.rows * box.columns); i++) {
    Cell& cell = m.cells[size_t(i)];
    if (cell.coming) fault("shared byte %d is brought while it is on its way", 2 * i);
    if (cell.held)
      fault("shared byte %d is brought while a product of warp %d may read it", 2 * i, __builtin_ctz(cell.held));
    if (!ordered(cell.write) || !ordered(cell.read))
      fault("shared byte %d is brought, with no barrier after thread %d", 2 * i, cell.read.thread);
    cell = {}, cell.coming = true;
  }
  m.boxes.push_back(box);
}

// The tensor core's own order is not known: here in f64, rounded once for each product of 16 steps.
void compute(const Multiplication& one, int first_row, Sums& sums) {
  const Product& p = one.of;
  const int N = p.columns;
  std::vector<float> a(16 * 16), b(size_t(N) * 16);
  for (int k = 0; k < 16; k++) {
    for (int i = 0; i < 16; i++) {
      const auto half = [&] { return one.a[size_t(4 * (i % 8 * 4 + k % 8 / 2) + i / 8 + k / 8 * 2)] >> k % 2 * 16; };
      a[size_t(16 * i + k)] =
          p.registers ? wide(uint16_t(half())) : value_at(place_of(p.a, p.a_across, first_row + i, k));
    }
    for (int j = 0; j < N; j++) b[size_t(16 * j + k)] = value_at(place_of(p.b, p.b_across, j, k));
  }
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < N / 2; i++) {
      float& sum = sums.values[size_t(lane * N / 2 + i)];
      const float *x = &a[size_t(16 * (lane / 4 + i % 4 / 2 * 8))],
                  *y = &b[size_t(16 * (i / 4 * 8 + lane % 4 * 2 + i % 2))];
      double exact = p.add ? sum : 0;
      for (int k = 0; k < 16; k++) exact += double(x[k]) * double(y[k]);
      sum = float(exact);
    }
}

Sums& sums_of(Warp& warp, const float* c) {
  for (Sums& sums : warp.sums)
    if (sums.c[0] == c) return sums;
  std::abort();
}

void start_product(void** all) {
  Machine& m = machine();
  Warp& warp = m.own_warp();
  const Product& p = *static_cast<Product*>(all[0]);
  for (int i = 1; i < 32; i++) {
    const Product& other = *static_cast<Product*>(all[i]);
    if (other.a != p.a || other.b != p.b || other.add != p.add) fault("the lanes of a warp multiply different tiles");
  }
  auto& named = m.products[size_t(m.running / 128)];
  if (warp.count == named.size()) named.emplace_back(p.a, p.b);
  else if (named[warp.count] != std::pair(p.a, p.b)) fault("the warps of a warpgroup multiply different tiles");
  warp.count++;
  if (!warp.begun) fault("a product that no multiply_begin stands before");
  if ((!p.registers && p.a >> 62 != 1) || p.b >> 62 != 1) fault("a tile of another layout than rows of 128 bytes");

  Multiplication one{p, {}, {}, {}};
  for (int lane = 0; p.registers && lane < 32; lane++) {
    one.registers[lane] = static_cast<Product*>(all[lane])->registers;
    one.a.insert(one.a.end(), one.registers[lane], one.registers[lane] + 4);
  }
  const int first_row = m.running / 32 % 4 * 16;
  for (int k = 0; k < 16; k++) {
    for (int i = 0; !p.registers && i < 16; i++) hold(one, place_of(p.a, p.a_across, first_row + i, k));
    for (int j = 0; j < p.columns; j++) hold(one, place_of(p.b, p.b_across, j, k));
  }
  bool known = false;
  for (Sums& sums : warp.sums) known |= sums.c[0] == p.c;
  if (!known) {
    Sums sums{{}, p.columns, 0, {}};
    for (int lane = 0; lane < 32; lane++) {
      sums.c[lane] = static_cast<Product*>(all[lane])->c;
      sums.values.insert(sums.values.end(), sums.c[lane], sums.c[lane] + p.columns / 2);
      std::fill_n(sums.c[lane], p.columns / 2, POISON);
    }
    warp.sums.push_back(std::move(sums));
  }
  sums_of(warp, p.c).products++;
  warp.products.back().push_back(std::move(one));
}

void end_products(void** all) {
  Machine& m = machine();
  Warp& warp = m.own_warp();
  const int groups = *static_cast<int*>(all[0]);
  while (int(warp.products.size()) - 1 > groups) {
    for (const Multiplication& one : warp.products.front()) {
      for (size_t lane = 0; lane < one.a.size() / 4; lane++)
        if (std::memcmp(one.registers[lane], &one.a[4 * lane], 16))
          fault("the registers of a product were written before it was waited for");
      Sums& sums = sums_of(warp, one.of.c);
      compute(one, m.running / 32 % 4 * 16, sums);
      sums.products--;
      warp.done_with.insert(warp.done_with.end(), one.cells.begin(), one.cells.end());
    }
    warp.products.erase(warp.products.begin());
  }
  std::erase_if(warp.sums, [](const Sums& sums) {
    if (sums.products) return false;
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < sums.columns / 2; i++)
        if (std::memcmp(&sums.c[lane][i], &POISON, 4))
          fault("the sums of a product were written before it was waited for");
      std::memcpy(sums.c[lane], &sums.values[size_t(lane * sums.columns / 2)], size_t(sums.columns) * 2);
    }
    return true;
  });
}

}  // namespace

void expect_seen(const Cell& cell, int byte) {
  if (cell.brought_by < 0) return;
  Machine& m = machine();
  if (m.barriers.at(cell.brought_by).seen[size_t(m.running)] <= cell.phase)
    fault("shared byte %d is used before the phase of the barrier at %d that brought it was waited for", byte,
        cell.brought_by);
}

void release_tiles(int warp) {
  Machine& m = machine();
  Warp& of = m.warps[size_t(warp)];
  for (int cell : of.done_with) m.cells[size_t(cell)].held &= ~(1u << warp);
  of.done_with.clear();
  for (const auto& group : of.products)
    for (const auto& one : group)
      for (int cell : one.cells) m.cells[size_t(cell)].held |= 1u << warp;
}

void barrier_init(int at, int arrivals) {
  Machine& m = machine();
  if (m.barriers.count(at)) fault("the barrier at shared byte %d is made again", at);
  touch(at, 8, true);
  for (int i = 0; i < 4; i++) m.cells[size_t(at / 2 + i)].barrier = true;
  Barrier& b = m.barriers[at];
  b.arrivals = b.pending = arrivals, b.made = touch_now(), b.seen.assign(m.fibres.size(), 0);
}

void barrier_publish() {
  for (auto& [at, b] : machine().barriers)
    if (b.made.thread == machine().running) b.published = true;
}

void barrier_arrive(int at, int bytes) {
  Machine& m = machine();
  Barrier& b = barrier_at(at);
  if (b.pending == 0) fault("more threads arrive at the barrier at shared byte %d than it was made for", at);
  release_tiles(m.running / 32);
  Warp& warp = m.own_warp();
  warp.known[m.running / 32] = ++warp.arrivals;
  for (int i = 0; i < 32; i++) b.known[i] = std::max(b.known[i], warp.known[i]);
  for (const auto& [other, its] : m.barriers)
    b.known_phases[other] = std::max(b.known_phases[other], its.seen[size_t(m.running)]);
  b.pending--, b.bytes += bytes;
  complete(b);
  if (m.below(2)) {  // others may run before this warp goes on
    m.paused = true;
    m.leave();
  }
}

void barrier_wait(int at, int parity) {
  Machine& m = machine();
  Barrier& b = barrier_at(at);
  if (!is_over(b, parity)) {
    m.self().state = State::at_barrier, m.self().barrier = at, m.self().parity = parity;
    m.leave();
  }
  b.seen[size_t(m.running)] = b.phase;
  for (const auto& [other, phases] : b.known_phases) {
    uint32_t& seen = m.barriers.at(other).seen[size_t(m.running)];
    seen = std::max(seen, phases);
  }
  for (int i = 0; i < 32; i++) m.own_warp().known[i] = std::max(m.own_warp().known[i], b.known[i]);
}

bool wake_at_barriers() {
  Machine& m = machine();
  bool any = false;
  for (Fibre& fibre : m.fibres) {
    if (fibre.state == State::at_barrier && is_over(m.barriers.at(fibre.barrier), fibre.parity))
      fibre.state = State::ready;
    any |= fibre.state == State::ready;
  }
  return any;
}

bool none_hangs() {
  Machine& m = machine();
  for (size_t thread = 0; thread < m.fibres.size(); thread++) {
    if (m.fibres[thread].state != State::at_barrier) continue;
    const Barrier& b = m.barriers.at(m.fibres[thread].barrier);
    std::snprintf(m.message, sizeof m.message,
        "%s: thread %zu waits at the barrier at shared byte %d for ever: %d arrivals and %lld bytes are to come",
        m.kernel->name, thread, m.fibres[thread].barrier, b.pending, (long long)b.bytes);
    return false;
  }
  return true;
}

bool ends_well() {
  Machine& m = machine();
  for (const auto& [at, b] : m.barriers)
    if (*std::max_element(b.seen.begin(), b.seen.end()) < b.awaited)
      return std::snprintf(m.message, sizeof m.message,
                 "%s: the block ends, and nobody waited for a box of the barrier at shared byte %d", m.kernel->name,
                 at),
             false;
  for (size_t warp = 0; warp < m.warps.size(); warp++) {
    const char* what = nullptr;
    if (m.warps[warp].count != m.products[warp / 4].size())
      what = "has not multiplied what others of its warpgroup have";
    if (m.warps[warp].products.size() > 1 || !m.warps[warp].products[0].empty())
      what = "has returned while it multiplies";
    if (what) return std::snprintf(m.message, sizeof m.message, "%s: warp %zu %s", m.kernel->name, warp, what), false;
  }
  return true;
}

void copy_box(int to, int room, const uint64_t* map, int64_t row, int64_t column, int at) {
  int64_t words[5];
  std::memcpy(words, map, sizeof words);
  const int bytes = int(words[4]) * 128;
  if (to % 1024) fault("a box is brought to shared byte %d, which is no multiple of 1024", to);
  if (bytes > room) fault("a box of %d bytes is brought to %d", bytes, room);
  if (row < INT32_MIN || row > INT32_MAX || column < INT32_MIN || column > INT32_MAX)
    fault("a box at row %lld", (long long)row);
  set_off({to, at, true, words[4], BOX, row, column, reinterpret_cast<const uint16_t*>(uintptr_t(words[0])), words[1],
      words[2], words[3]});
}

void copy_line(int to, int room, const void* from, int bytes, int at) {
  if (to % 16 || bytes % 16)
    fault("a line of %d bytes is brought to shared byte %d: both must be multiples of 16", bytes, to);
  if (bytes > room) fault("a line of %d bytes is brought to %d", bytes, room);
  set_off({to, at, false, 1, bytes / 2, 0, 0, static_cast<const uint16_t*>(from), 1, bytes / 2, 0});
}

void deliver_box() {
  Machine& m = machine();
  std::swap(m.boxes[size_t(m.below(int(m.boxes.size())))], m.boxes.back());
  const Box box = m.boxes.back();
  m.boxes.pop_back();
  Barrier& b = m.barriers.at(box.barrier);
  for (int64_t i = 0; i < box.rows; i++)
    for (int64_t j = 0; j < box.columns; j++) {
      const int64_t row = box.row + i, column = box.column + j;
      const bool inside = row >= 0 && row < box.data_rows && column >= 0 && column < box.data_columns;
      const uint16_t x = inside ? box.data[row * box.stride + column] : 0;
      const int place = box.to + int(128 * i + 2 * j), byte = box.turned ? turned(place) : place;
      std::memcpy(m.shared + byte, &x, 2);
      Cell& cell = m.cells[size_t(byte / 2)];
      cell.coming = false, cell.filled = true, cell.brought_by = box.barrier, cell.phase = b.phase;
    }
  b.bytes -= box.rows * box.columns * 2;
  complete(b);
}

void fence_async() { machine().self().fences++; }

void multiply(const Product& mine) {
  Product one = mine;
  meet(&one, start_product);
}
void multiply_begin() {
  meet(nullptr, [](void**) { machine().own_warp().begun = true; });
}
void multiply_commit() {
  meet(nullptr, [](void**) { machine().own_warp().products.emplace_back(), machine().own_warp().begun = false; });
}
void multiply_wait(int groups) { meet(&groups, end_products); }

}  // namespace rlhf::simt
#endif
