// Every op of the list on random arguments of random small sizes: the bits of every ISA and number of threads are those
// of scalar with one; refused calls are refused, and under the sanitizers nothing is read or written beyond its end.
// Then RLHF_FUZZ_RUNS calls of each (200), a few of whose fields are not what they should be: nothing in C++ parses
// what others wrote, so what the interface must withstand are arguments. Each call is done or refused by a message that
// names the op.
#include "test/native/calls.h"

using namespace check;

namespace {

void withstand(const Op& op, int runs) {
  Random random(1000 + uint64_t(&op - op_table().data()));
  Stream plain("scalar", 1),
      best(std::string(rlhf_isa_available()).substr(0, std::string(rlhf_isa_available()).find(' ')), 3);
  int done = 0, refused = 0;
  for (int run = 0; run < runs; run++) {
    Call call = make(op, random, random);
    for (int64_t changes = 1 + random.below(3); changes > 0; changes--) disturb(call, random);
    if (!provide(call)) continue;
    Stream& on = run % 2 ? plain : best;
    std::string message;
    const bool ok = outcome(on, call, &message)[0] == 0;
    (ok ? done : refused)++;
    if (!ok)
      expect(message.find(std::string(op.name) + ": ") == 0, "%s, run %d: refused by \"%s\"", op.name, run,
          message.c_str());
  }
  expect(runs < 100 || (refused > 0 && refused + done > runs / 4), "%s: %d calls done and %d refused of %d", op.name,
      done, refused, runs);
}

}  // namespace

int main() {
  const char* given = std::getenv("RLHF_FUZZ_RUNS");
  const int runs = given ? std::atoi(given) : 200;
  const int rounds = std::getenv("RLHF_TEST_ROUNDS") ? std::atoi(std::getenv("RLHF_TEST_ROUNDS")) : 12;
  for (const Op& op : op_table()) {
    if (std::string(op.name).find("limit") == 0) continue;
    Random random(uint64_t(&op - op_table().data()));
    int done = 0;
    for (int round = 0; done < rounds && round < 20 * rounds; round++) {
      const Call call = make(op, random, random);
      Stream reference("scalar", 1);
      std::string message;
      const std::vector<char> wanted = outcome(reference, call, &message);
      done += wanted[0] == 0;
      if (wanted[0] != 0) continue;  // ids into an empty table, rows without a vocabulary
      std::istringstream names(rlhf_isa_available());
      for (std::string isa; names >> isa;)
        for (int threads : {1, 3}) {
          Stream stream(isa, threads);
          expect(outcome(stream, call, &message) == wanted, "%s, round %d: %s differs from scalar/1", op.name, round,
              stream.name.c_str());
        }
    }
    expect(done == rounds, "%s: only %d calls of %d were accepted", op.name, done, 20 * rounds);
    withstand(op, runs);
  }
  return report();
}
