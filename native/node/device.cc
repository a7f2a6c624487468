#include "native/node/device.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <system_error>
#include <utility>

#include "native/cpu/threads.h"
#include "native/node/environment.h"
#include "native/node/frame.h"
#include "native/node/memory.h"
#include "native/node/node.h"
#include "native/node/queue.h"

namespace rlhf {
namespace {

constexpr napi_type_tag RECORDED_TAG = {0x9d1c2f0b7a6e4c35, 0xb1d0c2a94f7e6138};
struct Recorded {
  uint64_t device;
  std::shared_ptr<const Calls> calls;
  std::vector<Place> blocks;  // one for each that the calls touch
};

constexpr int64_t ROOM =
    int64_t(256) << 20;  // bytes that lost tensors may take, beside a quarter of what was in use at most
constexpr int64_t PRESSURE = int64_t(1) << 42;  // bytes that make V8 collect at once

class Device final : public Resident {
 public:
  static napi_value create(napi_env env, napi_callback_info info) {
    const Arguments given(env, info, "Device");
    napi_value target;
    must(napi_get_new_target(env, info, &target));
    if (!target) throw Refusal{Refusal::type, "ARGUMENT", "Device: it was called without new"};
    Environment& environment = Environment::of(env);
    auto device = std::make_unique<Device>();
    const auto lost = [](napi_env env, void* data, void*) {
      std::unique_ptr<Device>(static_cast<Device*>(data))->shut(env);
    };
    try {
      device->open(given);
      device->set_facts(env, given.self);
      must(napi_wrap(env, given.self, device.get(), lost, nullptr, nullptr));
    } catch (...) {
      device->shut(env);
      throw;
    }
    device.release()->enter(environment);
    return given.self;
  }

  // As a method of JavaScript's Device. V8 lets no other receiver come here.
  template <napi_value (Device::*f)(const Arguments&)>
  static napi_value method(napi_env env, napi_callback_info info) {
    const Arguments given(env, info, "device");
    void* device = nullptr;
    if (napi_unwrap(env, given.self, &device) != napi_ok || !device)
      throw Refusal{Refusal::type, "ARGUMENT", "device: the receiver is no device"};
    return (static_cast<Device*>(device)->*f)(given);
  }

  // allocate(bytes, owner?): an address. The memory is freed once the owner, an object, is lost.
  napi_value allocate(const Arguments& given) {
    check_open();
    const double bytes = given.whole(0, "bytes");
    Block* block = bytes < 1e15 ? obtain(given.env, size_t(bytes)) : nullptr;
    if (!block) throw Refusal{Refusal::range, "MEMORY", "out of memory: " + text(bytes) + " bytes wanted"};
    try {
      set_owner(given, *block);
      if (block->owner && int64_t(memory_->current()) > ceiling_) shed(given.env);
      return address_of(given.env, *block);
    } catch (...) {
      release(given.env, *block);
      throw;
    }
  }

  // own(address, owner?): another owner, or none
  napi_value own(const Arguments& given) {
    check_open();
    Block& block = *find(given, 0).block;
    disown(given.env, block);
    set_owner(given, block);
    return nullptr;
  }

  // release(address): whether it was in use
  napi_value release(const Arguments& given) {
    const double address = given.number(0, "address");
    Block* block = memory_ && is_whole(address, 0, EXACT) ? memory_->find(uint64_t(address), 0) : nullptr;
    if (block && double(reinterpret_cast<uintptr_t>(block->data)) != address) block = nullptr;
    if (block) release(given.env, *block);
    return boolean(given.env, block != nullptr);
  }

  // write(address, bytes: Uint8Array): copied before it returns
  napi_value write(const Arguments& given) {
    check_open();
    size_t bytes = 0;
    const uint8_t* from = given.array<uint8_t>(1, "bytes", napi_uint8_array, &bytes);
    if (bytes == 0) return nullptr;
    const Place to = find(given, bytes);
    std::unique_ptr<uint8_t[]> copy(new (std::nothrow) uint8_t[bytes]);
    if (!copy)
      throw Refusal{Refusal::range, "MEMORY", "out of memory: " + std::to_string(bytes) + " bytes are to be copied"};
    std::memcpy(copy.get(), from, bytes);
    queue_->write(to, std::move(copy));
    return nullptr;
  }

  // trust(address): takes the numbers there as good, though an op failed that was to write them
  napi_value trust(const Arguments& given) {
    check_open();
    queue_->trust(find(given, 0));
    return nullptr;
  }

  // read(address, bytes): a promise of an ArrayBuffer, after all that was queued before
  napi_value read(const Arguments& given) {
    check_open();
    const size_t bytes = size_t(given.whole(1, "bytes"));
    auto read = std::make_unique<Read>(*environment_, *this, *queue_);
    if (bytes) read->from = find(given, bytes);
    napi_value buffer = array_buffer(given.env, bytes);
    size_t length = 0;
    must(napi_get_arraybuffer_info(given.env, buffer, &read->to, &length));
    if (length != bytes) throw Stopped{};
    must(napi_create_reference(given.env, buffer, 1, &read->buffer));
    return promise(given, std::move(read));
  }

  // wait(): a promise, of nothing, after all that was queued before; rejected with the first failure that no read told
  napi_value wait(const Arguments& given) {
    check_open();
    auto read = std::make_unique<Read>(*environment_, *this, *queue_);
    read->waits = true;
    return promise(given, std::move(read));
  }

  // call(frame: Float64Array, its numbers)
  napi_value call(const Arguments& given) {
    check_open();
    size_t room = 0;
    const double* frame = given.array<double>(0, "frame", napi_float64_array, &room);
    const size_t count = size_t(given.whole(1, "numbers", 0, double(room)));
    double numbers[MOST_NUMBERS];  // a copy: another thread may share the frame
    if (count > MOST_NUMBERS) throw Refusal{Refusal::range, "ARGUMENT", "call: the frame is longer than any op's"};
    if (count) std::memcpy(numbers, frame, count * sizeof *numbers);
    auto calls = std::make_shared<Calls>();
    Numbers in{numbers, numbers + count};
    read_call(in, *memory_, *calls);
    if (in.next != in.end)
      throw Refusal{Refusal::range, "ARGUMENT",
          std::string(op_table()[size_t(calls->steps[0].op)].name) + ": the frame goes on after it"};
    calls->bind();
    if (planned_) plan(*calls);
    else queue_->run(std::move(calls));
    return nullptr;
  }

  // record(frames: Float64Array), one after another: what run takes
  napi_value record(const Arguments& given) {
    check_open();
    size_t count = 0;
    const double* frames = given.array<double>(0, "frames", napi_float64_array, &count);
    const std::vector<double> numbers(frames, frames + count);
    auto calls = std::make_shared<Calls>();
    for (Numbers in{numbers.data(), numbers.data() + count}; in.next < in.end;) read_call(in, *memory_, *calls);
    calls->bind();
    auto recorded = std::make_unique<Recorded>();
    for (const Held& held : calls->tensors)
      if (held.place.block) recorded->blocks.push_back(held.place);
    std::sort(recorded->blocks.begin(), recorded->blocks.end(),
        [](const Place& a, const Place& b) { return a.life < b.life; });
    const auto same = [](const Place& a, const Place& b) { return a.life == b.life; };
    recorded->blocks.erase(std::unique(recorded->blocks.begin(), recorded->blocks.end(), same), recorded->blocks.end());
    recorded->device = id_, recorded->calls = std::move(calls);
    napi_value object;
    must(napi_create_object(given.env, &object));
    must(napi_wrap(
        given.env, object, recorded.get(), [](napi_env, void* data, void*) { delete static_cast<Recorded*>(data); },
        nullptr, nullptr));
    recorded.release();
    must(napi_type_tag_object(given.env, object, &RECORDED_TAG));
    return object;
  }

  // run(recorded)
  napi_value run(const Arguments& given) {
    check_open();
    bool ours = given.is(0, napi_object);
    if (ours) must(napi_check_object_type_tag(given.env, given[0], &RECORDED_TAG, &ours));
    void* data = nullptr;
    if (ours) must(napi_unwrap(given.env, given[0], &data));
    const auto* recorded = static_cast<const Recorded*>(data);
    if (!recorded || recorded->device != id_)
      throw Refusal{Refusal::type, "ARGUMENT", "run: wanted calls that this device recorded"};
    for (const Place& place : recorded->blocks)
      if (place.block->life != place.life)
        throw Refusal{Refusal::type, "DISPOSED", "recorded calls were run after memory of theirs was freed"};
    if (!planned_) queue_->run(recorded->calls);
    return nullptr;
  }

  napi_value memory(const Arguments& given) {
    const double workspace = planned_ ? double(planned_workspace_) : queue_ ? double(queue_->workspace_bytes()) : 0;
    const std::pair<const char*, double> facts[] = {
        {"current", memory_ ? double(memory_->current()) : 0},
        {"peak", memory_ ? double(memory_->peak()) + workspace : 0},
        {"held", memory_ ? double(memory_->held()) + workspace : 0},
        {"workspace", workspace},
        {"busySeconds", queue_ ? queue_->busy_seconds() : 0},
    };
    napi_value out;
    must(napi_create_object(given.env, &out));
    for (const auto& [name, value] : facts) {
      napi_value number;
      must(napi_create_double(given.env, value, &number));
      must(napi_set_named_property(given.env, out, name, number));
    }
    return out;
  }

  // trim(): starts the peak anew, without the workspace that calls so far needed
  napi_value trim(const Arguments&) {
    if (memory_) memory_->reset_peak();
    if (queue_) queue_->trim();
    planned_workspace_ = 0;
    return nullptr;
  }

  // close(): what is still queued does not run, and what is still to be read is refused
  napi_value close(const Arguments& given) {
    shut(given.env);
    return nullptr;
  }

  // Ends the threads and frees everything; once is enough.
  void shut(napi_env env) noexcept override {
    if (!stream_) return;
    queue_.reset();
    if (memory_) memory_->each([&](Block& block) { disown(env, block); });
    memory_.reset();
    rlhf_stream_destroy(stream_);
    stream_ = nullptr;
    if (!environment_) return;
    if (!environment_->ended) {
      report(env, 0);
      refuse_reads();
    }
    leave();
  }

  // JavaScript's object stays while reads are pending.
  void hold(napi_env env, napi_value self) {
    if (reads_ == 0) must(napi_create_reference(env, self, 1, &held_));
    reads_++;
  }
  void let_go(napi_env env) noexcept override {
    if (--reads_ == 0) napi_delete_reference(env, std::exchange(held_, nullptr));
  }

 private:
  static constexpr size_t MOST_NUMBERS = 1 + 64 * 9;

  void open(const Arguments& given) {
    char isa[32] = "";
    size_t length = 0;
    if (given.is(0, napi_string)) must(napi_get_value_string_utf8(given.env, given[0], isa, sizeof isa, &length));
    else if (!given.is(0, napi_undefined))
      throw Refusal{Refusal::type, "ARGUMENT", "Device: isa is neither a string nor undefined"};
    const bool gpu = std::strcmp(isa, "cuda") == 0;
    const int number = int(given.whole(1, gpu ? "ordinal" : "threads", 0, gpu ? 1e6 : 1024));
    bool planned = false;
    if (given.is(2, napi_boolean)) must(napi_get_value_bool(given.env, given[2], &planned));
    planned_ = planned;
    char why[512] = "";
    stream_ = gpu ? rlhf_cuda_stream_create(number, nullptr, why, sizeof why)
                  : rlhf_stream_create(length ? isa : nullptr, number);
    const std::string none = "the system gave no threads for a device of " + std::to_string(number ? number : cores());
    if (!stream_ && gpu) throw Refusal{Refusal::range, "DEVICE", why};
    if (!stream_) throw Refusal{Refusal::range, "THREADS", none};  // the ISA is known to be there
    const Pages pages{gpu ? stream_ : nullptr};
    memory_ = std::make_unique<Memory>(pages);
    try {
      queue_ = std::make_unique<Queue>(stream_, pages);
    } catch (const std::system_error&) { throw Refusal{Refusal::range, "THREADS", none}; }
  }

  void set_facts(napi_env env, napi_value self) {
    napi_property_descriptor facts[2] = {};
    facts[0].utf8name = "isa", facts[1].utf8name = "threads";
    must(napi_create_string_utf8(env, rlhf_stream_isa(stream_), NAPI_AUTO_LENGTH, &facts[0].value));
    must(napi_create_int32(env, rlhf_stream_threads(stream_), &facts[1].value));
    must(napi_define_properties(env, self, 2, facts));
  }

  void check_open() const {
    if (!stream_) throw Refusal{Refusal::type, "DEVICE", "the device is closed"};
  }

  static napi_value address_of(napi_env env, const Block& block) {
    napi_value address;
    must(napi_create_double(env, double(reinterpret_cast<uintptr_t>(block.data)), &address));
    return address;
  }

  // The bytes at an address that was given.
  Place find(const Arguments& given, size_t bytes) const {
    const double address = given.whole(0, "address");
    Block* block = memory_->find(uint64_t(address), bytes);
    if (!block)
      throw Refusal{Refusal::range, "ARGUMENT",
          "there is no memory of " + std::to_string(bytes) + " bytes at the address " + text(address)};
    const size_t offset = size_t(uint64_t(address) - uint64_t(reinterpret_cast<uintptr_t>(block->data)));
    return {block, block->life, offset, bytes, offset == 0 && (bytes + 3) / 4 * 4 >= block->asked};
  }

  // ---- memory, and who owns it

  Block* obtain(napi_env env, size_t bytes) {
    const auto attempt = [&]() -> Block* {
      try {
        return memory_->allocate(bytes);
      } catch (const std::bad_alloc&) { return nullptr; }
    };
    Block* block = attempt();
    for (int i = 0; i < 2 && !block; i++) {
      if (i == 1 && !collect(env)) break;
      queue_->drain();
      memory_->trim();
      block = attempt();
    }
    return block;
  }

  void set_owner(const Arguments& given, Block& block) {
    if (given.is(1, napi_undefined)) return;
    if (!given.is(1, napi_object)) throw Refusal{Refusal::type, "ARGUMENT", "device: the owner is no object"};
    napi_ref owner;
    must(napi_create_reference(given.env, given[1], 0, &owner));
    block.owner = owner;
    grown_ = true;
  }

  static void disown(napi_env env, Block& block) noexcept {
    if (block.owner) napi_delete_reference(env, static_cast<napi_ref>(std::exchange(block.owner, nullptr)));
  }

  void release(napi_env env, Block& block) noexcept {
    disown(env, block);
    memory_->release(&block);
  }

  // Frees what lost owners had, as far as V8 knows of them.
  void sweep(napi_env env) {
    memory_->each([&](Block& block) {
      if (!block.owner) return;
      napi_handle_scope scope;
      must(napi_open_handle_scope(env, &scope));
      napi_value owner = nullptr;
      const napi_status status = napi_get_reference_value(env, static_cast<napi_ref>(block.owner), &owner);
      napi_close_handle_scope(env, scope);
      if (status == napi_ok && !owner) release(env, block);
    });
  }

  // Has V8 look for lost owners now, twice: where it was marking already, it keeps what was made meanwhile once.
  // False where none was given since the last time.
  bool collect(napi_env env) {
    if (!std::exchange(grown_, false)) return false;
    int64_t total;
    for (int i = 0; i < 2; i++) {
      must(napi_adjust_external_memory(env, PRESSURE, &total));
      must(napi_adjust_external_memory(env, -PRESSURE, &total));
    }
    sweep(env);
    return true;
  }

  // Lost tensors may take a quarter of the most that was in use, and some room. V8 is told rarely, since it answers by
  // collecting: a step of training takes and frees gigabytes that it need not know of.
  void shed(napi_env env) {
    sweep(env);
    if (int64_t(memory_->current()) > ceiling_ - ROOM / 2) {  // few are known to be lost, others may be
      collect(env);
      const int64_t used = int64_t(memory_->current());
      ceiling_ = std::max(ceiling_, used + std::max(ROOM, used / 4));
    }
    report(env, int64_t(memory_->current()));
  }

  void report(napi_env env, int64_t bytes) noexcept {
    int64_t total;
    if (bytes != told_ && napi_adjust_external_memory(env, bytes - told_, &total) == napi_ok) told_ = bytes;
  }

  // ---- promises

  napi_value array_buffer(napi_env env, size_t bytes) const {
    napi_value constructor, length, buffer;
    must(napi_get_reference_value(env, environment_->array_buffer, &constructor));
    must(napi_create_double(env, double(bytes), &length));
    const napi_status status = napi_new_instance(env, constructor, 1, &length, &buffer);
    if (status != napi_pending_exception) return must(status), buffer;
    must(napi_get_and_clear_last_exception(env, &buffer));
    throw Refusal{Refusal::range, "MEMORY", "out of memory: " + std::to_string(bytes) + " bytes are to be read"};
  }

  napi_value promise(const Arguments& given, std::unique_ptr<Read> read) {
    hold(given.env, given.self);
    napi_value promise;
    if (napi_create_promise(given.env, &read->deferred, &promise) != napi_ok) {
      let_go(given.env);
      throw Stopped{};
    }
    environment_->add(given.env, read.get());
    queue_->push(read.release());
    return promise;
  }

  // The queue has ended: what ran is settled, the rest of this device's is refused.
  void refuse_reads() noexcept {
    if (reads_ == 0) return;
    environment_->settle_done();
    Read* last = environment_->reads;
    while (last && last->after) last = last->after;
    for (Read *read = last, *before; read; read = before) {  // the oldest first
      before = read->before;
      if (&read->device == this) environment_->settle(read);
    }
  }

  void plan(const Calls& calls) {
    queue_->drain();  // offsets that were written tell how much
    int64_t bytes = 0;
    invoke(stream_, calls.steps[0].op, calls.values.data(), nullptr, 0, &bytes);
    if (size_t(bytes) > planned_workspace_) planned_workspace_ = size_t(bytes);
  }

  static std::atomic<uint64_t> opened_;
  const uint64_t id_ = ++opened_;  // of all environments
  rlhf_stream* stream_ = nullptr;  // null: closed
  bool planned_ = false;
  size_t planned_workspace_ = 0;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<Queue> queue_;
  bool grown_ = false;  // by memory with an owner, since V8 last looked for lost ones
  int64_t ceiling_ = ROOM, told_ = 0;  // bytes in use that V8 is asked at, and that it knows of
  size_t reads_ = 0;  // pending
  napi_ref held_ = nullptr;
};
std::atomic<uint64_t> Device::opened_{0};

}  // namespace

napi_value define_device(napi_env env) {
#define METHOD(name)                                                                                            \
  {                                                                                                             \
#name, nullptr, guarded < Device::method < &Device::name>>, nullptr, nullptr, nullptr, napi_default_method, \
        nullptr                                                                                                 \
  }
  const napi_property_descriptor methods[] = {METHOD(allocate), METHOD(own), METHOD(release), METHOD(write),
      METHOD(trust), METHOD(read), METHOD(wait), METHOD(call), METHOD(record), METHOD(run), METHOD(memory),
      METHOD(trim), METHOD(close)};
#undef METHOD
  napi_value out;
  must(napi_define_class(env, "Device", NAPI_AUTO_LENGTH, guarded<Device::create>, nullptr,
      sizeof methods / sizeof *methods, methods, &out));
  return out;
}

}  // namespace rlhf
