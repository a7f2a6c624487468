// The list of ops as JSON: for callers of the C interface, and for the addon. Names are C's identifiers, so nothing
// needs escaping.
#include <cmath>
#include <cstdio>

#include "native/list/table.h"

namespace rlhf {
namespace {

std::string quoted(const std::string& x) { return '"' + x + '"'; }

// An infinite end is null.
std::string number(double x) {
  if (std::isinf(x)) return "null";
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.17g", x);
  return digits;
}

template <class List, class F>
std::string joined(const List& list, const char* between, F&& text_of) {
  std::string out;
  for (const auto& item : list) out += (out.empty() ? "" : between) + text_of(item);
  return out;
}

std::string listed(const std::vector<const char*>& names) {
  return "[" + joined(names, ", ", [](const char* name) { return quoted(name); }) + "]";
}

std::string json(const Range& range) {
  const auto flag = [](bool x) { return std::string(x ? "true" : "false"); };
  return ", \"low\": " + number(range.low) + ", \"high\": " + number(range.high) +
         ", \"openLow\": " + flag(range.open_low) + ", \"openHigh\": " + flag(range.open_high);
}

std::string json(const Argument& a) {
#define ITEM(name) #name,
  static const char* const kinds[] = {RLHF_KINDS(ITEM)};
#undef ITEM
  return "{\"kind\": " + quoted(kinds[int(a.kind)]) + ", \"type\": " + quoted(a.type) +
         ", \"name\": " + quoted(a.name) + ", \"dims\": " + quoted(a.dims) + ", \"limit\": " + quoted(a.limit) +
         (a.kind == Kind::real || a.kind == Kind::integer ? json(a.range) : "") + "}";
}

std::string json(const Op& op) {
  return "{\"name\": " + quoted(op.name) + ", \"cpu\": " + listed(cpu_dtypes(op)) +
         ", \"cuda\": " + listed(cuda_dtypes(op)) + ", \"arguments\": [" +
         joined(op.arguments, ", ", [](const Argument& a) { return json(a); }) + "]}";
}

std::string json(const Choice& choice) {
  return quoted(choice.name) + ": [" + joined(choice.items, ", ", quoted) + "]";
}

}  // namespace

std::string ops_json() {
  return "{\"abi\": " + std::to_string(RLHF_ABI_VERSION) + ", \"law\": " + std::to_string(RLHF_LAW_VERSION) +
         ", \"ops\": [\n  " + joined(op_table(), ",\n  ", [](const Op& op) { return json(op); }) +
         "\n], \"choices\": {" + joined(choice_table(), ", ", [](const Choice& choice) { return json(choice); }) +
         "}}\n";
}

}  // namespace rlhf
