// Safetensors: a file of named tensors (https://github.com/huggingface/safetensors). 8 bytes with the size of a header,
// the header in JSON,
//   {"__metadata__": {"key": "text", …}, "name": {"dtype": "F32", "shape": [97, 32], "data_offsets": [0, 12416]}, …}
// and behind it the tensors, row-major and little-endian; offsets count from there.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "runtime/tensor.h"

namespace strop::runtime {

// Row-major memory on the CPU that views share.
struct Held {
  Tensor tensor;
  std::shared_ptr<void> memory;  // null: somebody else's
};

// New memory of a tensor's shape and strides; sets its data. Throws Error where there is none.
Held allocated(Tensor t);

class Safetensors {
 public:
  // Reads the header. Whatever is wrong with the file throws Error.
  explicit Safetensors(const std::string& path);

  const std::string* metadata(const std::string& key) const;  // null where there is none
  // Reads a tensor into memory of its own; throws Error for one that is not there.
  Held read(const std::string& name);

 private:
  struct Entry {
    std::string dtype;
    Sizes shape;
    std::int64_t offset = 0;  // in the file
  };

  void read_header();
  void read_entries(const std::string& header, std::int64_t data);

  std::ifstream file_;
  std::int64_t bytes_ = 0;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Entry> entries_;
};

}  // namespace strop::runtime
