#include "runtime/safetensors.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/plan_host.h"
#include "tests/support/safetensors.h"

namespace strop::runtime {
namespace {

using testing::File;
using testing::file_of;
using testing::values_of;

// What opening a file, and reading a tensor of it, says.
std::string wrong(const std::string& bytes, const std::string& name = "") {
  const File file(bytes);
  try {
    Safetensors opened(file.path());
    if (!name.empty()) opened.read(name);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const File file(file_of(R"({"__metadata__": {"key": "text"},
      "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
      "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
      "none": {"dtype": "I64", "shape": [3, 0], "data_offsets": [28, 28]},
      "odd": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [24, 28]}})",
                          {1, 2, 3, 4, 5, 6, 7}));
  Safetensors opened(file.path());
  ASSERT_NE(opened.metadata("key"), nullptr);
  EXPECT_EQ(*opened.metadata("key"), "text");
  EXPECT_EQ(opened.metadata("other"), nullptr);
  const Held b = opened.read("b"), a = opened.read("a"), none = opened.read("none");
  EXPECT_EQ(a.tensor.sizes(), (Sizes{2, 3}));
  EXPECT_EQ(values_of<float>(a.tensor), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.tensor.data) % 64, 0U);
  EXPECT_EQ(b.tensor.rank, 0);
  EXPECT_EQ(values_of<float>(b.tensor), (std::vector<float>{7}));
  EXPECT_EQ(none.tensor.sizes(), (Sizes{3, 0}));
  EXPECT_EQ(none.tensor.dtype, DType::kInt64);
  EXPECT_NE(none.tensor.data, nullptr);
  EXPECT_THROW(opened.read("c"), Error);
  EXPECT_THROW(opened.read("odd"), Error);  // a dtype that is not known, which others may have put there
}

TEST(Safetensors, FilesThatAreNoneAreRefused) {
  EXPECT_THROW(Safetensors("/nowhere/at/all.safetensors"), Error);
  EXPECT_TRUE(has(wrong(""), "0 bytes"));
  EXPECT_TRUE(has(wrong("1234567"), "7 bytes"));
  EXPECT_TRUE(has(wrong("#!/bin/sh and more"), "not a safetensors file"));
  const std::string whole = file_of(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", {1, 2});
  EXPECT_EQ(wrong(whole, "a"), "");
  for (std::size_t n = 0; n < whole.size(); ++n)  // every part of a file says so, whether header or tensors are cut
    EXPECT_NE(wrong(whole.substr(0, n), "a"), "") << n;
  EXPECT_TRUE(has(wrong(whole.substr(0, 30)), "its header has"));
  EXPECT_TRUE(has(wrong(whole.substr(0, whole.size() - 1)), "tensor \"a\": bytes 0 to 8 of 7"));
  EXPECT_TRUE(has(wrong(file_of("[1, 2]")), "no JSON object"));
  EXPECT_TRUE(has(wrong(file_of("{\"a\": ")), "its header"));
  EXPECT_TRUE(has(wrong(std::string(8, '\xff') + "rest"), "not a safetensors file"));
}

TEST(Safetensors, TensorsThatCannotBeAreRefused) {
  const struct {
    const char *entry, *says;
  } cases[] = {
      {R"({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]})", "8 bytes, where its shape and dtype need 12"},
      {R"({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]})", "bytes 4 to 12 of 8"},
      {R"({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]})", "bytes 8 to 0"},
      {R"({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]})", "got -2"},
      {R"({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]})", "got -8"},
      {R"({"dtype": "F32", "shape": [2], "data_offsets": [0, 18446744073709551615]})", "got 18446744073709551615"},
      {R"({"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]})", "more elements"},
      {R"({"dtype": "F32", "shape": [0, 4294967296, 4294967296], "data_offsets": [0, 0]})", "more elements"},
      {R"({"dtype": "F32", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 2], "data_offsets": [0, 8]})", "more than 8 dimensions"},
      {R"({"dtype": "F32", "shape": [2]})", "data_offsets"},
      {R"({"dtype": 7, "shape": [2], "data_offsets": [0, 8]})", "its header"},
  };
  for (const auto& c : cases) {
    const std::string says = wrong(file_of(std::string("{\"a\": ") + c.entry + "}", {1, 2}));
    EXPECT_TRUE(has(says, c.says)) << c.entry << ": " << says;
  }
}

}  // namespace
}  // namespace strop::runtime
