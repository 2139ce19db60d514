// What the module was built with and what it finds at run time.
#pragma once

#include <string>

namespace strop::binding {

// A JSON object: version, cuda, cuda_architectures, compiler, nvcc, torch_version_built, highway_target, cpu_threads,
// cuda_devices: [{index, name, capability, multiprocessors, l2_bytes, paths: {op: text}}].
std::string build_info_json();

}  // namespace strop::binding
