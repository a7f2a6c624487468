// The list of ops as JSON.
#include "native/list/table.h"

namespace rlhf {

// Names are C's identifiers, so nothing needs escaping.
std::string ops_json() {
  static const char* const kinds[] = {
      "in", "opt", "out", "opt_out", "add", "opt_add", "ids", "offsets", "real", "integer", "choice"};
  const auto quoted = [](const std::string& x) { return '"' + x + '"'; };
  std::string ops, choices;
  for (const Op& op : op_table()) {
    std::string arguments;
    for (const Argument& a : op.arguments)
      arguments += (arguments.empty() ? "" : ", ") + std::string("{\"kind\": ") + quoted(kinds[int(a.kind)]) +
                   ", \"type\": " + quoted(a.type) + ", \"name\": " + quoted(a.name) + ", \"dims\": " + quoted(a.dims) +
                   ", \"limit\": " + quoted(a.limit) +
                   (a.kind == Kind::real || a.kind == Kind::integer ? ", \"range\": " + quoted(text(a.range)) : "") +
                   "}";
    const auto listed = [&](const std::vector<const char*>& dtypes) {
      std::string list;
      for (const char* dtype : dtypes) list += (list.empty() ? "" : ", ") + quoted(dtype);
      return "[" + list + "]";
    };
    ops += (ops.empty() ? "" : ",\n  ") + std::string("{\"name\": ") + quoted(op.name) +
           ", \"cpu\": " + listed(cpu_dtypes(op)) + ", \"cuda\": " + listed(cuda_dtypes(op)) + ", \"arguments\": [" +
           arguments + "]}";
  }
  for (const Choice& choice : choice_table()) {
    std::string items;
    for (const std::string& item : choice.items) items += (items.empty() ? "" : ", ") + quoted(item);
    choices += (choices.empty() ? "" : ", ") + quoted(choice.name) + ": [" + items + "]";
  }
  return "{\"abi\": " + std::to_string(RLHF_ABI_VERSION) + ", \"law\": " + std::to_string(RLHF_LAW_VERSION) +
         ", \"ops\": [\n  " + ops + "\n], \"choices\": {" + choices + "}}\n";
}

}  // namespace rlhf
