#include "build_info.h"

#include <cstdint>
#include <initializer_list>

#if STROP_WITH_CUDA
#include "base/device.h"
#endif
#include "base/simd_target.h"
#include "strop/parallel.h"

namespace strop::binding {
namespace {

std::string quoted(const std::string& text) {
  std::string out(1, '"');
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + '"';
}

std::string field(const char* name, const std::string& json) {
  std::string out = quoted(name);
  return out.append(": ").append(json);
}

std::string object(std::initializer_list<std::string> fields) {
  std::string out(1, '{');
  for (const std::string& f : fields) {
    if (out.size() > 1) out += ", ";
    out += f;
  }
  return out + '}';
}

std::string devices() {
  std::string out(1, '[');
#if STROP_WITH_CUDA
  const int n = device_count();
  for (int i = 0; i < n; ++i) {
    const DeviceInfo* d;
    if (!device_info(i, &d).ok()) continue;
    const std::string policy = "one launch, sums by messages between blocks";
    const std::string kl = "one launch, a row a group of blocks, sums by messages between them";
    if (out.size() > 1) out += ", ";
    const std::string capability = std::to_string(d->capability / 10) + '.' + std::to_string(d->capability % 10);
    out += object(
        {field("index", std::to_string(i)), field("name", quoted(d->name)), field("capability", quoted(capability)),
         field("multiprocessors", std::to_string(d->multiprocessors)), field("l2_bytes", std::to_string(d->l2_bytes)),
         field("paths", object({field("grpo_loss", quoted(policy)), field("bnpo_loss", quoted(policy)),
                                field("reverse_kl", quoted(kl))}))});
  }
#endif
  return out + ']';
}

}  // namespace

std::string build_info_json() {
  return object({field("version", quoted(STROP_VERSION)), field("cuda", STROP_WITH_CUDA ? "true" : "false"),
                 field("cuda_architectures", quoted(STROP_CUDA_ARCHITECTURES)),
                 field("compiler", quoted(STROP_COMPILER)), field("nvcc", quoted(STROP_NVCC)),
                 field("torch_version_built", quoted(STROP_TORCH_VERSION_BUILT)),
                 field("highway_target", quoted(simd_target_name(simd_target()))),
                 field("cpu_threads", std::to_string(num_threads())), field("cuda_devices", devices())});
}

}  // namespace strop::binding
