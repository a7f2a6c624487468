// JavaScript's class Device: a stream of a CPU or a GPU, its memory and its queue. Every address is looked up.
#pragma once
#include <node_api.h>

namespace rlhf {

napi_value define_device(napi_env);

}  // namespace rlhf
