#include "runtime/safetensors.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/views.h"

namespace strop::runtime {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;  // of the header's size
constexpr std::int64_t kMostHeader = 100'000'000;
constexpr std::size_t kAlignment = 64;  // a cache line

DType dtype_of(const std::string& name) {
  static constexpr std::pair<const char*, DType> kNames[] = {
      {"F64", DType::kFloat64}, {"F32", DType::kFloat32}, {"F16", DType::kFloat16}, {"BF16", DType::kBFloat16},
      {"I64", DType::kInt64},   {"I32", DType::kInt32},   {"I16", DType::kInt16},   {"I8", DType::kInt8},
      {"U64", DType::kUInt64},  {"U32", DType::kUInt32},  {"U16", DType::kUInt16},  {"U8", DType::kUInt8},
      {"BOOL", DType::kBool}};
  for (const auto& [known, dtype] : kNames)
    if (name == known) return dtype;
  return DType::kOther;
}

// a * b for sizes, where that is a number of bytes that a file can have.
std::int64_t product(std::int64_t a, std::int64_t b) {
  std::int64_t c = 0;
  if (__builtin_mul_overflow(a, b, &c)) throw Error("a shape with more elements than can be counted");
  return c;
}

std::int64_t elements(const Sizes& shape) {
  std::int64_t n = 1;
  bool none = false;
  for (int d = 0; d < shape.count; ++d) {
    none |= shape[d] == 0;
    n = product(n, std::max<std::int64_t>(shape[d], 1));  // strides are counted where there is nothing, too
  }
  return none ? 0 : n;
}

// A number of a header that is not negative.
std::int64_t count_of(const Json& json) {
  if (!json.is_number_unsigned() || json.get<std::uint64_t>() > std::uint64_t{1} << 62)
    throw Error("expected a size or an offset, got " + json.dump());
  return json.get<std::int64_t>();
}

}  // namespace

Held allocated(Tensor t) {
  const auto bytes = static_cast<std::size_t>(t.bytes());
  if (bytes == 0) {
    t.data = &nothing;
    return {t, nullptr};
  }
  const std::size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::shared_ptr<void> memory(whole >= bytes ? std::aligned_alloc(kAlignment, whole) : nullptr, &std::free);
  if (memory == nullptr)
    throw Error("no memory for a tensor of " + std::to_string(bytes) + " bytes", StatusCode::kRuntimeError);
  t.data = memory.get();
  return {t, std::move(memory)};
}

Safetensors::Safetensors(const std::string& path) : file_(path, std::ios::binary | std::ios::ate) {
  if (!file_) throw Error("it cannot be opened", StatusCode::kRuntimeError);
  bytes_ = static_cast<std::int64_t>(file_.tellg());
  read_header();
}

void Safetensors::read_header() {
  unsigned char length[kLengthBytes] = {};
  file_.seekg(0);
  if (bytes_ < kLengthBytes || !file_.read(reinterpret_cast<char*>(length), kLengthBytes))
    throw Error("not a safetensors file: it has " + std::to_string(bytes_) + " bytes");
  std::uint64_t size = 0;
  for (std::int64_t i = kLengthBytes - 1; i >= 0; --i) size = size << 8 | length[i];
  if (size > static_cast<std::uint64_t>(std::min(bytes_ - kLengthBytes, kMostHeader)))
    throw Error("not a safetensors file, or a part of one: its header has " + std::to_string(size) +
                " bytes, and the file " + std::to_string(bytes_));
  std::string header(size, '\0');
  if (!file_.read(header.data(), static_cast<std::streamsize>(size)))
    throw Error("its header cannot be read", StatusCode::kRuntimeError);
  try {
    read_entries(header, kLengthBytes + static_cast<std::int64_t>(size));
  } catch (const Json::exception& error) {
    throw Error(std::string("its header: ") + error.what());
  }
}

void Safetensors::read_entries(const std::string& header, std::int64_t data) {
  const Json json = Json::parse(header);
  if (!json.is_object()) throw Error("its header is no JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      metadata_ = value.get<std::map<std::string, std::string>>();
      continue;
    }
    try {
      Entry entry;
      entry.dtype = value.at("dtype").get<std::string>();
      for (const Json& size : value.at("shape")) entry.shape.push(count_of(size));
      const Json& offsets = value.at("data_offsets");
      const std::int64_t begin = count_of(offsets.at(0)), end = count_of(offsets.at(1));
      if (begin > end || end > bytes_ - data)
        throw Error("bytes " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                    std::to_string(bytes_ - data));
      entry.offset = data + begin;
      const DType dtype = dtype_of(entry.dtype);
      const std::int64_t bytes = product(elements(entry.shape), std::max(dtype_size(dtype), 1));
      if (dtype != DType::kOther && bytes != end - begin)
        throw Error(std::to_string(end - begin) + " bytes, where its shape and dtype need " + std::to_string(bytes));
      entries_.emplace(name, std::move(entry));
    } catch (const Error& error) {
      throw Error("tensor \"" + name + "\": " + error.what());
    }
  }
}

const std::string* Safetensors::metadata(const std::string& key) const {
  const auto found = metadata_.find(key);
  return found != metadata_.end() ? &found->second : nullptr;
}

Held Safetensors::read(const std::string& name) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw Error("there is no tensor \"" + name + "\"");
  const Entry& entry = found->second;
  Tensor t;
  t.dtype = dtype_of(entry.dtype);
  if (t.dtype == DType::kOther) throw Error("tensor \"" + name + "\": dtype " + entry.dtype + " is not known");
  make_row_major(t, entry.shape);
  Held held = allocated(t);
  if (t.numel() == 0) return held;
  file_.clear();
  file_.seekg(entry.offset);
  if (!file_.read(static_cast<char*>(held.tensor.data), static_cast<std::streamsize>(t.bytes())))
    throw Error("tensor \"" + name + "\" cannot be read", StatusCode::kRuntimeError);
  return held;
}

}  // namespace strop::runtime
