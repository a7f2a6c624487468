// The simulated GPU's state: what a block's fibres, barriers and copies share.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "native/simt/language.h"

// Saves the registers that a call must keep on the stack, *from = sp; then takes those of the other stack.
extern "C" void rlhf_switch_fibre(void** from, void* to);

namespace rlhf::simt {

constexpr size_t STACK = 128 << 10;
constexpr int SHARED_MOST = 227 << 10;  // of a block, on Hopper
constexpr int GEFORCE = 86;  // the GPU of this ordinal is an Ampere whose blocks have less shared memory
constexpr int HOPPERS = 90;  // those of this ordinal and above are Hoppers, all others Amperes

struct Touch {
  int thread = -1;
  uint32_t block = 0, warp = 0;  // how many barriers came before
  uint32_t arrivals = 0, fences = 0;  // of its warp at barriers in shared memory, of itself
};
struct Cell {  // two bytes of shared memory
  Touch write, read;  // the last of each
  bool warps = false, lanes = false;  // others have read it too: in this epoch of the block, of the reader's warp
  bool filled = false, coming = false;  // coming: by a copy that has not been waited for
  bool barrier = false;
  int brought_by = -1;  // the barrier of the copy that wrote it, in which of its phases
  uint32_t phase = 0;
  uint32_t held = 0;  // a bit for each warp with a product that reads it, until the warp has waited and arrived
};
struct Copy {
  int offset;
  const void* from;
};

struct Barrier {
  int arrivals, pending;
  int64_t bytes = 0;  // to come
  uint32_t phase = 0;  // how many are complete
  Touch made;
  bool published = false;
  std::vector<uint32_t> seen;  // phases that a thread has waited for
  uint32_t known[32] = {};  // to those who arrived, and so to those who wait
  std::map<int, uint32_t> known_phases;  // of other barriers, likewise
  uint32_t awaited = 0;  // phases that somebody must wait for: they bring boxes
};
struct Box {  // on its way: of a tile, whose pieces are turned, or a line
  int to, barrier;
  bool turned;
  int64_t rows, columns, row, column;
  const uint16_t* data;
  int64_t data_rows, data_columns, stride;
};
struct Sums {
  float* c[32];
  int columns, products = 0;  // products that are not done
  std::vector<float> values;  // [32][columns / 2], meanwhile
};
struct Multiplication {
  Product of;
  const uint32_t* registers[32];  // a, where it lies in them
  std::vector<uint32_t> a;  // [32][4], what they hold
  std::vector<int> cells;
};

enum class State { ready, at_warp, at_block, at_barrier, done };
struct Fibre {
  void* sp = nullptr;
  State state = State::done;
  void* brought = nullptr;
  void (*meeting)(void**) = nullptr;
  std::vector<std::vector<Copy>> copies;  // committed groups, and the open one
  int barrier = 0, parity = 0;  // that it waits for
  uint32_t fences = 0;
};
struct Warp {
  int arrived = 0;
  uint32_t epoch = 0;
  std::vector<std::vector<Multiplication>> products = {{}};  // committed groups, and the open one
  std::vector<Sums> sums;
  std::vector<int> done_with;  // cells whose products are done
  size_t count = 0;  // of products
  uint32_t arrivals = 0, known[32] = {};  // its own, and how many of each warp's are known to it
  bool begun = false;
};

struct Machine {
  std::unique_ptr<char[]> stacks;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<Cell> cells;
  std::map<int, Barrier> barriers;
  std::vector<Box> boxes;
  std::vector<std::vector<std::pair<uint64_t, uint64_t>>>
      products;  // of each warpgroup: the tiles that its first warp to come there named
  bool paused = false;
  alignas(1024) char shared[SHARED_MOST];
  int shared_bytes = 0, running = -1;
  uint32_t epoch = 0;
  void* scheduler = nullptr;
  const Kernel* kernel = nullptr;
  const void* params = nullptr;
  Place place{};
  uint64_t random = 0;
  bool failed = false;
  char message[512];

  Machine() : stacks(new char[1024 * STACK]) {}  // pages that no fibre reaches are never there
  int below(int n) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return int((random >> 33) % uint64_t(n));
  }
  void shuffle(std::vector<int>& order) {
    for (int i = int(order.size()) - 1; i > 0; i--) std::swap(order[size_t(i)], order[size_t(below(i + 1))]);
  }
  Fibre& self() { return fibres[size_t(running)]; }
  Warp& own_warp() { return warps[size_t(running / 32)]; }
  void leave() { rlhf_switch_fibre(&self().sp, scheduler); }
};
Machine& machine();
bool ordered(const Touch&);
Touch touch_now();

// of hopper.cc
void expect_seen(const Cell&, int byte);
void deliver_box();  // one of those on their way
bool wake_at_barriers();  // whether a thread can run
bool none_hangs();
bool ends_well();
void release_tiles(int warp);  // those whose products are done

}  // namespace rlhf::simt
