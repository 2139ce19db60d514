// Safetensors files for the suites, whole and damaged.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace strop::runtime::testing {

// A file that is gone with the object.
class File {
 public:
  explicit File(const std::string& bytes) {
    static int count = 0;
    const ::testing::TestInfo* const test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = ::testing::TempDir() + "/strop_" + test->test_suite_name() + "_" + test->name() + "_" +
            std::to_string(count++) + ".safetensors";
    std::ofstream(path_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  ~File() { std::remove(path_.c_str()); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The size of a header, the header, the tensors.
inline std::string file_of(const std::string& header, const std::vector<float>& data = {}) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<std::size_t>(i)] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  bytes += header;
  return bytes.append(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(float));
}

}  // namespace strop::runtime::testing
