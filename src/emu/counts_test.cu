// What the emulator counts, of kernels whose accesses are known.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "strop/emu.h"
#include "strop/launch.h"

namespace strop::emu {
namespace {

// Floats on the device, all 0.
class Floats {
 public:
  explicit Floats(std::int64_t n) : n_(n) {
    EXPECT_EQ(cudaMalloc(&data_, bytes()), cudaSuccess);
    EXPECT_EQ(cudaMemset(data_, 0, bytes()), cudaSuccess);
  }
  ~Floats() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  float* data() const { return data_; }
  TensorView view() const { return TensorView::contiguous(data_, DType::kFloat32, {n_}, DeviceType::kCuda); }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(n_) * sizeof(float); }
  float* data_ = nullptr;
  std::int64_t n_;
};

class EmulatorCounts : public ::testing::Test {
 protected:
  void SetUp() override {
    clear_reports();
    set_counting(true);
  }
  void TearDown() override {
    set_counting(false);
    EXPECT_TRUE(reports().empty());
    clear_reports();
  }
  template <class Kernel, class... Args>
  void run(Kernel kernel, unsigned grid, unsigned block, std::size_t shared_bytes, Args... args) {
    LaunchConfig config;
    config.grid = grid, config.block = block, config.shared_bytes = shared_bytes;
    const Status status = strop::launch("kernel", kernel, config, args...);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  // The one line that reads, or writes, this buffer.
  static LineCounts line(const std::string& buffer, bool write = false) {
    std::vector<LineCounts> found;
    for (const LineCounts& l : counts().lines) {
      if (l.buffer == buffer && l.write == write) found.push_back(l);
    }
    EXPECT_EQ(found.size(), 1u) << buffer;
    return found.empty() ? LineCounts() : found[0];
  }
  static BufferCounts buffer(const std::string& name) {
    for (const BufferCounts& b : counts().buffers) {
      if (b.name == name) return b;
    }
    ADD_FAILURE() << name << " was not counted";
    return {};
  }
};

__global__ void read_strided(const float* in, float* out, int stride) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i * stride];
}

TEST_F(EmulatorCounts, SectorsOfGlobalMemory) {
  const Floats in(64 * 8 + 1), out(64);
  const Names names{{"in", in.view()}, {"out", out.view(), Access::kOutput}};
  struct Expected {
    int stride, first;
    std::int64_t moved;  // by two warps
  };
  // 128 bytes are 4 sectors, and 5 where they begin in the middle of one; 32 bytes apart, each lane needs its own.
  for (const auto& [stride, first, moved] :
       {Expected{1, 0, 8}, {1, 1, 10}, {2, 0, 16}, {4, 0, 32}, {8, 0, 64}, {0, 0, 2}}) {
    run(read_strided, 1, 64, 0, in.data() + first, out.data(), stride);
    const LineCounts reads = line("in"), writes = line("out", true);
    EXPECT_EQ(reads.threads, 64);
    EXPECT_EQ(reads.warps, 2);
    EXPECT_EQ(reads.moved, moved) << stride;
    EXPECT_EQ(reads.least, stride == 0 ? 2 : 8) << stride;
    EXPECT_EQ(writes.moved, 8);
    EXPECT_EQ(writes.least, 8);
    EXPECT_FALSE(reads.shared);
    EXPECT_NE(reads.where.file.find("counts_test.cu"), std::string::npos) << reads.where.file;
    EXPECT_EQ(reads.where.line, writes.where.line);
  }
}

TEST_F(EmulatorCounts, BytesOfBuffers) {
  const Floats in(200), out(128);
  const Names names{{"in", in.view()}, {"out", out.view(), Access::kOutput}};
  run(read_strided, 2, 64, 0, in.data(), out.data(), 0);  // all read the first
  EXPECT_EQ(buffer("in").size, 800);
  EXPECT_EQ(buffer("in").reads, 512);
  EXPECT_EQ(buffer("in").bytes_read, 4);
  EXPECT_EQ(buffer("in").writes, 0);
  EXPECT_EQ(buffer("out").writes, 512);
  EXPECT_EQ(buffer("out").bytes_written, 512);
  EXPECT_EQ(buffer("out").bytes_read, 0);
  EXPECT_EQ(counts().buffers.size(), 2u);
  EXPECT_EQ(counts().grid, 2u);
  EXPECT_EQ(counts().block, 64u);
  EXPECT_NE(counts().kernel.find("read_strided"), std::string::npos) << counts().kernel;
}

__global__ void copy_even_to_odd(float* p) { p[2 * threadIdx.x + 1] = p[2 * threadIdx.x]; }

TEST_F(EmulatorCounts, ViewsOfOneBuffer) {
  const Floats both(128);
  TensorView in = both.view(), out = both.view();
  in.shape[0] = out.shape[0] = 64;
  in.strides[0] = out.strides[0] = 2;
  out.data = both.data() + 1;
  TensorView again = in;  // the same memory over and over: counted as that of the first name
  again.rank = 2, again.shape[0] = 3, again.shape[1] = 64, again.strides[0] = 0, again.strides[1] = 2;
  const Names names{{"even", in}, {"odd", out, Access::kInOut}, {"expanded", again}};
  run(copy_even_to_odd, 1, 32, 0, both.data());
  EXPECT_EQ(buffer("even").reads, 128);
  EXPECT_EQ(buffer("even").bytes_read, 128);
  EXPECT_EQ(buffer("even").size, 256);
  EXPECT_EQ(buffer("even").writes, 0);
  EXPECT_EQ(buffer("odd").reads, 0);
  EXPECT_EQ(buffer("odd").writes, 128);
  EXPECT_EQ(line("even").moved, 8);
  EXPECT_EQ(buffer("expanded").reads, 0);
  EXPECT_EQ(buffer("expanded").size, 256);
}

__global__ void read_shared(float* out, int stride) {
  float* const s = &strop::dynamic_shared<float>();
  for (unsigned i = threadIdx.x; i < 33 * 32; i += blockDim.x) s[i] = static_cast<float>(i);
  __syncthreads();  // read after write
  out[threadIdx.x] = s[threadIdx.x * stride];
}

TEST_F(EmulatorCounts, BanksOfSharedMemory) {
  const Floats out(32);
  struct Expected {
    int stride;
    std::int64_t passes;
  };
  for (const auto& [stride, passes] : {Expected{1, 1}, {2, 2}, {4, 4}, {32, 32}, {33, 1}, {0, 1}}) {
    run(read_shared, 1, 32, 33 * 32 * sizeof(float), out.data(), stride);
    EXPECT_EQ(line("shared memory").moved, passes) << stride;
    EXPECT_EQ(line("shared memory").least, 1) << stride;
    EXPECT_TRUE(line("shared memory").shared);
    EXPECT_EQ(line("shared memory", true).moved, 33) << stride;
    EXPECT_EQ(line("shared memory", true).warps, 33) << stride;
    EXPECT_EQ(counts().barriers, 1);
  }
}

__global__ void read_shared_vectors(float4* out, int stride) {
  float4* const s = &strop::dynamic_shared<float4>();
  for (unsigned i = threadIdx.x; i < 64; i += blockDim.x) s[i] = make_float4(1, 2, 3, 4);
  __syncthreads();  // read after write
  out[threadIdx.x] = s[threadIdx.x * stride];
}

// A quarter of a warp at a time: 8 lanes' 16 bytes take all banks once, unless two of them want the same.
TEST_F(EmulatorCounts, BanksOfVectors) {
  const Floats out(128);
  for (const int stride : {1, 2}) {
    run(read_shared_vectors, 1, 32, 64 * sizeof(float4), reinterpret_cast<float4*>(out.data()), stride);
    EXPECT_EQ(line("shared memory").threads, 32);
    EXPECT_EQ(line("shared memory").moved, 4 * stride);
    EXPECT_EQ(line("shared memory").least, 4);
  }
}

TEST_F(EmulatorCounts, Map) {
  const Floats in(256), out(320);
  TensorView columns = in.view();  // (64, 4), by columns
  columns.rank = 2, columns.shape[0] = 64, columns.shape[1] = 4, columns.strides[0] = 1, columns.strides[1] = 64;
  const Names names{{"in", columns}, {"output", out.view(), Access::kScratch}};
  run(read_strided, 4, 64, 0, in.data(), out.data(), 1);
  // Column c is block c's; in row-major order they alternate.
  EXPECT_EQ(memory_map(10), "in      **********\noutput  00112233..\n");
  EXPECT_EQ(memory_map(7), "in      *******\noutput  0**2*3.\n");
  EXPECT_EQ(memory_map(256).substr(8, 12), "012301230123");
  EXPECT_EQ(memory_map(5).substr(memory_map(5).size() - 6), "0123.\n");
}

TEST_F(EmulatorCounts, MapOfManyBlocks) {
  const Floats in(70), out(70);
  const Names names{{"in", in.view()}, {"out", out.view(), Access::kOutput}};
  run(read_strided, 70, 1, 0, in.data(), out.data(), 1);
  const std::string blocks = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567";
  EXPECT_EQ(memory_map(100), "in   " + blocks + "\nout  " + blocks + "\n");
}

TEST_F(EmulatorCounts, WithoutCounting) {
  const Floats in(32), out(32);
  set_counting(false);
  run(read_strided, 1, 32, 0, in.data(), out.data(), 1);
  EXPECT_EQ(counts().block, 32u);
  EXPECT_TRUE(counts().buffers.empty());
  EXPECT_TRUE(counts().lines.empty());
}

// Scratch may stay unwritten, and may not be read before it is written.
TEST(EmulatorScratch, IsNobodysUntilWritten) {
  clear_reports();
  print_reports(false);
  const Floats in(64), out(64), scratch(64);
  const auto run = [&](const float* from, float* to) {
    LaunchConfig config;
    config.block = 32;
    ASSERT_TRUE(strop::launch("kernel", read_strided, config, from, to, 1).ok());
  };
  {
    const Names names{{"in", in.view()}, {"scratch", scratch.view(), Access::kScratch}};
    run(in.data(), scratch.data());
    EXPECT_TRUE(reports().empty());
    run(scratch.data(), out.data());  // what an earlier launch has left
    ASSERT_EQ(reports().size(), 1u);
    EXPECT_EQ(reports()[0].kind, Kind::kUninitialised);
    EXPECT_NE(reports()[0].text.find("a read of scratch["), std::string::npos) << reports()[0].text;
  }
  clear_reports();
  {
    const Names names{{"in", in.view()}, {"out", out.view(), Access::kOutput}};
    run(in.data(), out.data());
    ASSERT_EQ(reports().size(), 1u);
    EXPECT_EQ(reports()[0].kind, Kind::kUnwritten);
    EXPECT_NE(reports()[0].text.find("32 elements of an output were never written, the first is out[32]"),
              std::string::npos)
        << reports()[0].text;
  }
  clear_reports();
  print_reports(true);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace strop::emu
