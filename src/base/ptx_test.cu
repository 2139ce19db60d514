// Every wrapper of base/ptx on real data: on a GPU, and in the emulator, whose bodies of the same functions these tests
// hold against the instructions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/arrival.cuh"
#include "base/launch_tag.h"
#include "base/message.cuh"
#include "base/ptx/async_copy.cuh"
#include "base/ptx/bulk_copy.cuh"
#include "base/ptx/cluster.cuh"
#include "base/ptx/fences.cuh"
#include "base/ptx/math.cuh"
#include "base/ptx/mbarrier.cuh"
#include "base/ptx/memory.cuh"
#include "base/ptx/mma.cuh"
#include "base/reduce.cuh"
#include "strop/launch.h"
#include "tests/support/random.h"

#if STROP_EMULATED
#include "strop/emu.h"
#endif

namespace strop {
namespace {

using testing::Random;
using Words = std::vector<std::uint32_t>;

// ---- Running kernels ------------------------------------------------------------------------------------------------

// In which orders the emulator lets threads take turns. A GPU has its own.
#if STROP_EMULATED
const std::pair<const char*, emu::Schedule> kSchedules[] = {{"Forward", {emu::Order::kForward}},
                                                            {"Reverse", {emu::Order::kReverse}},
                                                            {"Random1", {emu::Order::kRandom, 1}},
                                                            {"Random2", {emu::Order::kRandom, 2}},
                                                            {"Random3", {emu::Order::kRandom, 3}}};
#else
const std::pair<const char*, int> kSchedules[] = {{"Device", 0}};
#endif

class Ptx : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    int devices = 0;
    const bool found = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    (void)cudaGetLastError();
    if (!found) GTEST_SKIP() << "no CUDA device";
    cudaDeviceProp properties;
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    capability_ = 10 * properties.major + properties.minor;
#if STROP_EMULATED
    emu::clear_reports();
#endif
  }
  void TearDown() override {
#if STROP_EMULATED
    EXPECT_TRUE(emu::reports().empty()) << emu::reports()[0].text;
    emu::clear_reports();
#endif
  }

  template <class... Params, class... Args>
  void run(void (*kernel)(Params...), const LaunchConfig& config, Args&&... args) {
#if STROP_EMULATED
    emu::replay(kSchedules[GetParam()].second);
#endif
    const Status status = launch("ptx_test", kernel, config, std::forward<Args>(args)...);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  }

  int capability_ = 0;
};

INSTANTIATE_TEST_SUITE_P(, Ptx, ::testing::Range(0, static_cast<int>(std::size(kSchedules))),
                         [](const auto& info) { return std::string(kSchedules[info.param].first); });

template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    EXPECT_EQ(cudaMalloc(&data_, size_ * sizeof(T)), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  OnDevice(std::size_t size, T value) : OnDevice(std::vector<T>(size, value)) {}
  ~OnDevice() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

constexpr std::uint32_t kUntouched = 0xa5a5a5a5u;
const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

template <class T = std::uint32_t>
std::vector<T> random_values(std::size_t size, std::uint64_t stream) {
  Random random(stream);
  std::vector<T> values(size);
  for (T& v : values) v = static_cast<T>(random.bits());
  return values;
}

// ---- memory.cuh -----------------------------------------------------------------------------------------------------

__global__ void copy_elements(const unsigned char* in, unsigned char* out, std::uint32_t* widened, int n, int size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i == 0) ptx::prefetch_l2(in, static_cast<std::uint32_t>(n * size / 16 * 16));
  if (i >= n) return;
  const unsigned char* from = in + i * size;
  unsigned char* to = out + i * size;
  if (size == 2) {
    widened[i] = ptx::load_once_u16(from);
    ptx::store_streaming_u16(to, widened[i] | 0xffff0000u);  // the upper half goes nowhere
  } else if (size == 4) {
    ptx::store_streaming_u32(to, ptx::load_once_u32(from));
  } else if (size == 8) {
    ptx::store_streaming_u64(to, ptx::load_once_u64(from));
  } else {
    ptx::store_streaming_u128(to, ptx::load_once_u128(from));
  }
}

TEST_P(Ptx, LoadOnceAndStoreStreaming) {
  for (const int size : {2, 4, 8, 16}) {
    constexpr int kElements = 77, kGuard = 16;
    const auto in = random_values<unsigned char>(static_cast<std::size_t>(kElements * size), 1);
    std::vector<unsigned char> expected(in.size() + 2 * kGuard, 0xa5);
    const OnDevice<unsigned char> from(in), to(expected);
    const OnDevice<std::uint32_t> widened(kElements, kUntouched);
    run(&copy_elements, {.grid = 3, .block = 32}, from.data(), to.data() + kGuard, widened.data(), kElements, size);
    std::copy(in.begin(), in.end(), expected.begin() + kGuard);
    EXPECT_EQ(to.values(), expected) << size;
    if (size > 2) continue;
    for (std::size_t i = 0; i < kElements; ++i) {
      EXPECT_EQ(widened.values()[i], static_cast<std::uint32_t>(in[2 * i] | in[2 * i + 1] << 8));
    }
  }
}

// ---- message.cuh ----------------------------------------------------------------------------------------------------

// Every block sends `first` + its number and adds up what it receives from all; the last one sees that everybody has,
// by a second round, and clears the messages.
__global__ void all_to_all(Message* messages, std::uint64_t first, std::uint64_t tag, std::uint64_t* sums) {
  Message* const done = messages + gridDim.x;
  if (threadIdx.x == 0) send(&messages[blockIdx.x], first + blockIdx.x, tag);
  std::uint64_t sum = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) sum += receive(&messages[b], tag);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    send(&done[blockIdx.x], 0, tag);
  }
  if (blockIdx.x != gridDim.x - 1) return;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) receive(&done[b], tag);
  __syncwarp();
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) clear(&messages[b]), clear(&done[b]);
}

// With the same tag each time, as a replayed graph launches it, in memory that holds anything at first.
TEST_P(Ptx, MessagesOfLaunchesWithOneTag) {
  constexpr unsigned kBlocks = 6;
  const auto garbage = random_values<std::uint64_t>(4 * kBlocks, 5);
  const OnDevice<std::uint64_t> memory(garbage), sums(kBlocks, 0);
  const std::uint64_t tag = launch_tag();
  for (const std::uint64_t first : {std::uint64_t{7}, std::uint64_t{1} << 63, std::uint64_t{0}}) {
    run(&all_to_all, {.grid = kBlocks, .block = 32, .cooperative = true}, reinterpret_cast<Message*>(memory.data()),
        first, tag, sums.data());
    EXPECT_EQ(sums.values(), std::vector<std::uint64_t>(kBlocks, kBlocks * first + 15));
    EXPECT_EQ(memory.values(), std::vector<std::uint64_t>(4 * kBlocks, 0));
  }
}

TEST(LaunchTag, DiffersAtEachCallAndIsNeverZero) {
  std::set<std::uint64_t> tags;
  for (int i = 0; i < 10000; ++i) tags.insert(launch_tag());
  EXPECT_EQ(tags.size(), 10000u);
  EXPECT_EQ(tags.count(0), 0u);
}

// ---- math.cuh -------------------------------------------------------------------------------------------------------

__global__ void compute(const float* a, const float* b, float* power, float* least, float* most, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  power[i] = ptx::exp2_approx(a[i]);
  least[i] = ptx::min_nan(a[i], b[i]);
  most[i] = ptx::max_nan(a[i], b[i]);
}

TEST_P(Ptx, Exp2MinMax) {
  const float special[] = {0.f,   -0.f,   1.f,    -1.f,   kInfinity, -kInfinity, kNan,
                           128.f, 127.9f, -126.f, -127.f, -149.f,    1e-40f,     -1e-40f};
  std::vector<float> a, b;
  for (const float x : special) {
    for (const float y : special) a.push_back(x), b.push_back(y);
  }
  Random random(2);
  for (int i = 0; i < 1000; ++i) {
    a.push_back(static_cast<float>(random.uniform() * 280 - 145));
    b.push_back(static_cast<float>(random.uniform() * 280 - 145));
  }
  const int n = static_cast<int>(a.size());
  const OnDevice<float> da(a), db(b), power(a.size(), -1.f), least(a.size(), -1.f), most(a.size(), -1.f);
  run(&compute, {.grid = static_cast<unsigned>(n + 127) / 128, .block = 128}, da.data(), db.data(), power.data(),
      least.data(), most.data(), n);
  const std::vector<float> powers = power.values(), minima = least.values(), maxima = most.values();
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float x = a[i], y = b[i];
    const double exact = std::exp2(double{x});
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(powers[i]));
    } else if (std::isinf(x) || x >= 128.f) {
      EXPECT_EQ(powers[i], x > 0.f ? kInfinity : 0.f);
    } else if (powers[i] == 0.f) {  // flushed: 2 ulp of the least normal number, by which the result may be off
      EXPECT_LE(exact, 0x1p-126 + 2 * 0x1p-149) << x;
    } else {
      EXPECT_GE(powers[i], 0x1p-126f) << x;
      EXPECT_LE(std::abs(powers[i] - exact), 2 * std::exp2(std::floor(std::log2(exact)) - 23)) << x;
    }
    if (std::isnan(x) || std::isnan(y)) {
      EXPECT_TRUE(std::isnan(minima[i]) && std::isnan(maxima[i])) << x << " " << y;
    } else {
      EXPECT_EQ(minima[i], std::min(x, y));
      EXPECT_EQ(maxima[i], std::max(x, y));
    }
  }
}

__global__ void sum_of_warp(const std::uint32_t* in, std::uint32_t* out) {
  out[threadIdx.x] = ptx::warp_sum_u32(in[threadIdx.x]);
}

TEST_P(Ptx, WarpSum) {
  const Words in = random_values(96, 3);  // sums beyond 2^32 wrap
  const OnDevice<std::uint32_t> from(in), to(in.size(), kUntouched);
  run(&sum_of_warp, {.block = 96}, from.data(), to.data());
  Words expected;
  for (std::size_t i = 0; i < in.size(); ++i) {
    std::uint32_t sum = 0;
    for (std::size_t lane = 0; lane < 32; ++lane) sum += in[i / 32 * 32 + lane];
    expected.push_back(sum);
  }
  EXPECT_EQ(to.values(), expected);
}

__global__ void max_of_warp(const float* in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = warp_max(in[i]);
}

TEST_P(Ptx, WarpMax) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float kFills[] = {-kInf, -3.5f, -1e-40f, -0.f, 0.f, 1e-40f, 2.25f, kInf};
  const float kLargest[] = {-kInf, -2.f, -1e-41f, 0.f, 1e-42f, 1.f, 1e38f, kInf};
  std::vector<float> in, expected;
  for (const float fill : kFills) {
    for (const float largest : kLargest) {
      for (std::size_t lane = 0; lane < 32; ++lane) in.push_back(lane == in.size() / 32 % 32 ? largest : fill);
      expected.insert(expected.end(), 32, std::max(fill, largest));
    }
  }
  const OnDevice<float> from(in), to(in.size(), -1.f);
  run(&max_of_warp, {.grid = 8, .block = 256}, from.data(), to.data());
  EXPECT_EQ(to.values(), expected);  // -0 and 0 are equal
}

// ---- cluster.cuh ----------------------------------------------------------------------------------------------------

__global__ void tell_cluster(float* out) {
  __shared__ float told[2][32];
  const unsigned rank = blockIdx.x % 2, lane = threadIdx.x;
  ptx::cluster_arrive();
  ptx::cluster_wait();  // the other block runs, so that its shared memory is there
  for (std::uint32_t to = 0; to < 2; ++to)
    ptx::store_cluster_f32(&told[rank][lane], to, static_cast<float>(1000 * blockIdx.x + 100 * to + lane));
  ptx::cluster_arrive();
  ptx::cluster_wait();  // read after write: what the other block has told; it writes no more
  for (unsigned by = 0; by < 2; ++by) out[(blockIdx.x * 2 + by) * 32 + lane] = told[by][31 - lane];
}

TEST_P(Ptx, StoreCluster) {
  if (capability_ < 90) GTEST_SKIP() << "no clusters";
  constexpr unsigned kBlocks = 6;
  const OnDevice<float> out(kBlocks * 64, -1.f);
  run(&tell_cluster, {.grid = kBlocks, .block = 32, .cluster = 2}, out.data());
  std::vector<float> expected;
  for (unsigned block = 0; block < kBlocks; ++block) {
    for (unsigned by = 0; by < 2; ++by) {
      for (unsigned lane = 0; lane < 32; ++lane)
        expected.push_back(static_cast<float>(1000 * (block / 2 * 2 + by) + 100 * (block % 2) + 31 - lane));
    }
  }
  EXPECT_EQ(out.values(), expected);
}

// ---- async_copy.cuh -------------------------------------------------------------------------------------------------

constexpr int kPieceBytes = 1024;  // of a block; 0 to all of it are copied

// In pieces of `piece` bytes; 0: of 16 with what is missing filled with zeros. Each thread then passes on what another
// has brought.
__global__ void copy_pieces(const unsigned char* in, unsigned char* out, const int* lengths, int piece) {
  __shared__ __align__(16) unsigned char pieces[kPieceBytes];
  const int length = lengths[blockIdx.x], threads = static_cast<int>(blockDim.x);
  const int step = piece == 0 ? 16 : piece, end = piece == 0 ? kPieceBytes : length / piece * piece;
  in += blockIdx.x * kPieceBytes, out += blockIdx.x * kPieceBytes;
  for (int at = static_cast<int>(threadIdx.x) * step; at < end; at += threads * step) {
    if (piece == 4) ptx::copy_async_4(pieces + at, in + at);
    if (piece == 8) ptx::copy_async_8(pieces + at, in + at);
    if (piece == 16) ptx::copy_async_16(pieces + at, in + at);
    if (piece == 0) {
      const int left = min(max(length - at, 0), 16);
      ptx::copy_async_16(pieces + at, in + at, static_cast<std::uint32_t>(left));
    }
  }
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();  // read after write: every thread's pieces are there
  for (int at = static_cast<int>(threadIdx.x); at < end; at += threads) out[end - 1 - at] = pieces[end - 1 - at];
}

TEST_P(Ptx, AsyncCopyOfRaggedLengths) {
  const std::vector<int> lengths = {0, 1, 3, 4, 7, 8, 15, 16, 17, 31, 100, 509, 1000, 1023, 1024};
  const auto in = random_values<unsigned char>(lengths.size() * kPieceBytes, 4);
  const OnDevice<unsigned char> from(in);
  const OnDevice<int> on_device(lengths);
  for (const int piece : {4, 8, 16, 0}) {
    std::vector<unsigned char> expected(in.size(), 0xa5);
    const OnDevice<unsigned char> to(expected);
    run(&copy_pieces, {.grid = static_cast<unsigned>(lengths.size()), .block = 48}, from.data(), to.data(),
        on_device.data(), piece);
    for (std::size_t block = 0; block < lengths.size(); ++block) {
      for (int i = 0; i < kPieceBytes; ++i) {
        const std::size_t at = block * kPieceBytes + static_cast<std::size_t>(i);
        if (i < (piece == 0 ? lengths[block] : lengths[block] / piece * piece)) {
          expected[at] = in[at];
        } else if (piece == 0) {
          expected[at] = 0;
        }
      }
    }
    EXPECT_EQ(to.values(), expected) << piece;
  }
}

// Tiles of a word for each thread and copy, two buffers: one is computed on while the other fills.
struct Tiles {
  uint4 words[2][64];
};

__global__ void pipeline_of_tiles(const uint4* in, uint4* out, int tiles) {
  Tiles& s = dynamic_shared<Tiles>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  in += blockIdx.x * n * tiles, out += blockIdx.x * n * tiles;
  ptx::copy_async_16(&s.words[0][i], in + i);
  ptx::copy_async_commit();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) ptx::copy_async_16(&s.words[(tile + 1) % 2][i], in + (tile + 1) * n + i);
    ptx::copy_async_commit();  // empty at the end, so that the newest but one is always this tile
    ptx::copy_async_wait<1>();
    __syncthreads();  // read after write: every thread's part of the tile is there
    const uint4 a = s.words[tile % 2][i], b = s.words[tile % 2][(i + 1) % n];
    out[tile * n + i] = {a.x + b.x, a.y ^ b.y, a.z - b.z, a.w + 3 * b.w};
    __syncthreads();  // write after read: the next copy but one goes where this tile was
  }
}

TEST_P(Ptx, AsyncCopyPipeline) {
  constexpr unsigned kBlocks = 3, kThreads = 64, kTiles = 5;
  const Words in = random_values(kBlocks * kTiles * kThreads * 4, 5);
  const OnDevice<std::uint32_t> from(in), to(in.size(), kUntouched);
  run(&pipeline_of_tiles, {.grid = kBlocks, .block = kThreads, .shared_bytes = sizeof(Tiles)},
      reinterpret_cast<const uint4*>(from.data()), reinterpret_cast<uint4*>(to.data()), static_cast<int>(kTiles));
  Words expected;
  for (std::size_t tile = 0; tile < kBlocks * kTiles; ++tile) {
    for (std::size_t i = 0; i < kThreads; ++i) {
      const std::uint32_t* a = &in[(tile * kThreads + i) * 4];
      const std::uint32_t* b = &in[(tile * kThreads + (i + 1) % kThreads) * 4];
      for (const std::uint32_t v : {a[0] + b[0], a[1] ^ b[1], a[2] - b[2], a[3] + 3 * b[3]}) expected.push_back(v);
    }
  }
  EXPECT_EQ(to.values(), expected);
}

// ---- mbarrier.cuh ---------------------------------------------------------------------------------------------------

constexpr unsigned kStages = 2, kProducers = 32, kConsumers = 64;

// One warp writes, two read; each stage goes through several phases.
__global__ void produce_and_consume(const std::uint32_t* in, std::uint32_t* out, unsigned rounds) {
  __shared__ std::uint32_t stages[kStages][kProducers];
  __shared__ std::uint64_t full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (unsigned s = 0; s < kStages; ++s) {
      ptx::mbarrier_init(&full[s], kProducers);
      ptx::mbarrier_init(&empty[s], kConsumers);
    }
    ptx::mbarrier_fence_init();
  }
  __syncthreads();  // the mbarriers are there before anyone uses them
  for (unsigned round = 0; round < rounds; ++round) {
    const unsigned s = round % kStages, parity = round / kStages % 2, at = blockIdx.x * rounds + round;
    if (threadIdx.x < kProducers) {
      ptx::mbarrier_wait(&empty[s], parity ^ 1);  // write after read: the stage's last round has been consumed
      stages[s][threadIdx.x] = in[at * kProducers + threadIdx.x] + round;
      ptx::mbarrier_arrive(&full[s]);
      continue;
    }
    const unsigned i = threadIdx.x - kProducers;
    if (i % 2 == 0) {  // read after write: the stage is full
      ptx::mbarrier_wait(&full[s], parity);
    } else {
      while (!ptx::mbarrier_test(&full[s], parity)) {
      }
    }
    out[at * kConsumers + i] = stages[s][(7 * i + round) % kProducers];
    ptx::mbarrier_arrive(&empty[s]);
  }
}

TEST_P(Ptx, MbarrierPipeline) {
  constexpr unsigned kBlocks = 3, kRounds = 7;
  const Words in = random_values(kBlocks * kRounds * kProducers, 6);
  const OnDevice<std::uint32_t> from(in), to(kBlocks * kRounds * kConsumers, kUntouched);
  run(&produce_and_consume, {.grid = kBlocks, .block = kProducers + kConsumers}, from.data(), to.data(), kRounds);
  Words expected;
  for (unsigned at = 0; at < kBlocks * kRounds; ++at) {
    for (unsigned i = 0; i < kConsumers; ++i)
      expected.push_back(in[at * kProducers + (7 * i + at % kRounds) % kProducers] + at % kRounds);
  }
  EXPECT_EQ(to.values(), expected);
}

// ---- bulk_copy.cuh --------------------------------------------------------------------------------------------------

constexpr std::uint32_t kBulkWords = 512;

// Two buffers in turn: loaded, changed by all threads, stored. The last word that arrived is read back.
__global__ void bulk_round_trip(const std::uint32_t* in, std::uint32_t* out, std::uint32_t* last, int rounds,
                                std::uint32_t words) {
  __shared__ __align__(16) std::uint32_t buffers[2][kBulkWords];
  __shared__ std::uint64_t arrived;
  in += blockIdx.x * rounds * words, out += blockIdx.x * rounds * words;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();  // the mbarrier is there before anyone uses it
  for (int round = 0; round < rounds; ++round) {
    std::uint32_t* buffer = buffers[round % 2];
    if (threadIdx.x == 0) {
      ptx::bulk_store_wait_read<1>();  // write after read: the store of the last round but one has left the buffer
      const std::uint32_t* from = in + round * words;
      if (round % 2 == 0 || words == 4) {
        ptx::mbarrier_arrive_expect(&arrived, 4 * words);
        ptx::bulk_load(buffer, from, 4 * words, &arrived);
      } else {  // in two parts; the phase cannot end before the arrival
        ptx::mbarrier_expect(&arrived, 16);
        ptx::bulk_load(buffer, from, 16, &arrived);
        ptx::mbarrier_expect(&arrived, 4 * words - 16);
        ptx::bulk_load(buffer + 4, from + 4, 4 * words - 16, &arrived);
        ptx::mbarrier_arrive(&arrived);
      }
    }
    ptx::mbarrier_wait(&arrived, static_cast<unsigned>(round % 2));
    for (std::uint32_t i = threadIdx.x; i < words; i += blockDim.x) buffer[i] = 3 * buffer[i] + i;
    ptx::fence_proxy_async();
    __syncthreads();  // read after write: the store takes what all threads have written
    if (threadIdx.x == 0) {
      ptx::bulk_store(out + round * words, buffer, 4 * words);
      ptx::bulk_store_commit();
    }
  }
  if (threadIdx.x != 0) return;
  ptx::bulk_store_wait<0>();
  last[blockIdx.x] = out[rounds * words - 1];
}

TEST_P(Ptx, BulkRoundTrip) {
  if (capability_ < 90) GTEST_SKIP() << "no bulk copies";
  constexpr std::uint32_t kBlocks = 3, kRounds = 5;
  for (const std::uint32_t words : {4u, 12u, 500u, kBulkWords}) {
    const Words in = random_values(kBlocks * kRounds * words, 7);
    const OnDevice<std::uint32_t> from(in), to(in.size() + 4, kUntouched), last(kBlocks, kUntouched);
    run(&bulk_round_trip, {.grid = kBlocks, .block = 64}, from.data(), to.data(), last.data(),
        static_cast<int>(kRounds), words);
    Words expected, expected_last;
    for (std::uint32_t i = 0; i < in.size(); ++i) expected.push_back(3 * in[i] + i % words);
    for (std::uint32_t i = 1; i <= kBlocks; ++i) expected_last.push_back(expected[i * kRounds * words - 1]);
    expected.resize(in.size() + 4, kUntouched);
    EXPECT_EQ(to.values(), expected) << words;
    EXPECT_EQ(last.values(), expected_last) << words;
  }
}

// The thread that starts the copy does not stay for it; who needs it polls.
__global__ void bulk_and_leave(const std::uint32_t* in, std::uint32_t* out) {
  __shared__ __align__(16) std::uint32_t buffer[32];
  __shared__ std::uint64_t arrived;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&arrived, 1);
    ptx::mbarrier_fence_init();
  }
  __syncthreads();  // the mbarrier is there before anyone uses it
  if (threadIdx.x >= 32) {
    if (threadIdx.x > 32) return;
    ptx::mbarrier_arrive_expect(&arrived, sizeof buffer);
    ptx::bulk_load(buffer, in + blockIdx.x * 32, sizeof buffer, &arrived);
    return;
  }
  while (!ptx::mbarrier_test(&arrived, 0)) {
  }
  out[blockIdx.x * 32 + threadIdx.x] = buffer[31 - threadIdx.x];
}

TEST_P(Ptx, BulkLoadOutlivesItsThread) {
  if (capability_ < 90) GTEST_SKIP() << "no bulk copies";
  const Words in = random_values(3 * 32, 8);
  const OnDevice<std::uint32_t> from(in), to(in.size(), kUntouched);
  run(&bulk_and_leave, {.grid = 3, .block = 64}, from.data(), to.data());
  Words expected;
  for (std::size_t i = 0; i < in.size(); ++i) expected.push_back(in[i / 32 * 32 + 31 - i % 32]);
  EXPECT_EQ(to.values(), expected);
}

// ---- mma.cuh --------------------------------------------------------------------------------------------------------

constexpr unsigned kStride = 24;  // elements from row to row in shared memory: more than are used

// Every warp its own 32 rows of 8, of which lane l gives row 5 l mod 32.
__global__ void load_matrices(const std::uint16_t* in, std::uint32_t* out) {
  __shared__ __align__(16) std::uint16_t rows[64][kStride];
  const unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
  for (unsigned column = 0; column < 8; ++column) rows[threadIdx.x][column] = in[threadIdx.x * 8 + column];
  __syncwarp();  // read after write: rows of other lanes
  const void* row = rows[first + 5 * lane % 32];
  std::uint32_t four[4], two[2], four_transposed[4], two_transposed[2];
  ptx::ldmatrix_x4(four, row);
  ptx::ldmatrix_x2(two, row);
  ptx::ldmatrix_x4_trans(four_transposed, row);
  ptx::ldmatrix_x2_trans(two_transposed, row);
  out += threadIdx.x * 12;
  for (unsigned i = 0; i < 4; ++i) out[i] = four[i], out[4 + i] = four_transposed[i];
  for (unsigned i = 0; i < 2; ++i) out[8 + i] = two[i], out[10 + i] = two_transposed[i];
}

TEST_P(Ptx, LoadMatrices) {
  std::vector<std::uint16_t> in;
  for (unsigned i = 0; i < 64 * 8; ++i) in.push_back(static_cast<std::uint16_t>(i + 1));  // no two are the same
  const OnDevice<std::uint16_t> from(in);
  const OnDevice<std::uint32_t> to(64 * 12, kUntouched);
  run(&load_matrices, {.block = 64}, from.data(), to.data());
  Words expected;
  for (unsigned thread = 0; thread < 64; ++thread) {
    const unsigned g = thread % 32 / 4, t = thread % 4;
    const auto element = [&](unsigned matrix, unsigned row, unsigned column) -> std::uint32_t {
      return in[(thread / 32 * 32 + 5 * (8 * matrix + row) % 32) * 8 + column];
    };
    for (const unsigned count : {4u, 2u}) {
      for (unsigned i = 0; i < count; ++i) expected.push_back(element(i, g, 2 * t) | element(i, g, 2 * t + 1) << 16);
      for (unsigned i = 0; i < count; ++i) expected.push_back(element(i, 2 * t, g) | element(i, 2 * t + 1, g) << 16);
    }
  }
  EXPECT_EQ(to.values(), expected);
}

// Ways to get the fragments wrong, for the test to notice.
enum Mistake : int {
  kNone,
  kQuartersOfA,
  kHalvesOfA,
  kTransposedA,
  kRegistersOfB,
  kHalvesOfB,
  kRegistersOfC,
  kMistakes
};

__device__ std::uint32_t pair_of(std::uint16_t low, std::uint16_t high) { return std::uint32_t{high} << 16 | low; }

// d = a · b + c, fragments from and to global memory as documented: a (16, 16), b (16, 8), c and d (16, 8), row-major,
// one of each for every warp.
__global__ void multiply(const std::uint16_t* a, const std::uint16_t* b, const float* c, float* d, bool bfloat16,
                         int mistake) {
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const unsigned matrix = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  a += matrix * 256, b += matrix * 128, c += matrix * 128, d += matrix * 128;
  std::uint32_t fa[4], fb[2];
  float fc[4];
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned quarter = mistake == kQuartersOfA ? (i == 1 ? 2 : i == 2 ? 1 : i) : i;
    const unsigned row = g + quarter % 2 * 8, column = 2 * t + quarter / 2 * 8;
    fa[i] = mistake == kTransposedA ? pair_of(a[column * 16 + row], a[(column + 1) * 16 + row])
                                    : pair_of(a[row * 16 + column], a[row * 16 + column + 1]);
    if (mistake == kHalvesOfA) fa[i] = fa[i] << 16 | fa[i] >> 16;
    fc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  }
  for (unsigned i = 0; i < 2; ++i) {
    const unsigned row = 2 * t + (mistake == kRegistersOfB ? 1 - i : i) * 8;
    fb[i] = pair_of(b[row * 8 + g], b[(row + 1) * 8 + g]);
    if (mistake == kHalvesOfB) fb[i] = fb[i] << 16 | fb[i] >> 16;
  }
  if (bfloat16) {
    ptx::mma_m16n8k16_bf16(fc, fa, fb);
  } else {
    ptx::mma_m16n8k16_f16(fc, fa, fb);
  }
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned at = mistake == kRegistersOfC ? (i == 1 ? 2 : i == 2 ? 1 : i) : i;
    d[(g + at / 2 * 8) * 8 + 2 * t + at % 2] = fc[i];
  }
}

// A number of 16 bits near x, and its value.
std::uint16_t narrow(double x, bool bfloat16) {
  const auto v = static_cast<float>(x);
  return bfloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v)) : __half_as_ushort(__float2half_rn(v));
}
double value_of(std::uint16_t bits, bool bfloat16) {
  return bfloat16 ? __bfloat162float(__ushort_as_bfloat16(bits)) : __half2float(__ushort_as_half(bits));
}

// What a product is compared with, and by how much it may be off.
struct Product {
  double value = 0, magnitude = 0;  // with all terms taken positive

  void add(double term) { value += term, magnitude += std::abs(term); }
  // The products of 11- or 8-bit significands are exact in fp32. Adding `terms` of them and c in groups of any kind has
  // at most twice as many inputs, sums of groups among them, and as many sums as terms. The hardware may cut off each
  // at a unit in the last place of the largest one, which is at most 2^-23 of the magnitude.
  double tolerance(int terms) const { return 3 * terms * 0x1p-23 * magnitude; }
};

TEST_P(Ptx, MultiplyMatrices) {
  constexpr unsigned kMatrices = 6;
  for (const bool bfloat16 : {false, true}) {
    Random random(9);
    std::vector<std::uint16_t> a(kMatrices * 256), b(kMatrices * 128);
    std::vector<float> c(kMatrices * 128);
    for (auto* m : {&a, &b}) {
      for (auto& v : *m) v = narrow(random.normal() * std::exp2(static_cast<double>(random.integer(-3, 3))), bfloat16);
    }
    for (float& v : c) v = static_cast<float>(random.normal() * 8);
    const OnDevice<std::uint16_t> da(a), db(b);
    const OnDevice<float> dc(c);
    for (int mistake = kNone; mistake < kMistakes; ++mistake) {
      const OnDevice<float> dd(c.size(), kNan);
      run(&multiply, {.grid = kMatrices / 2, .block = 64}, da.data(), db.data(), dc.data(), dd.data(), bfloat16,
          mistake);
      const std::vector<float> d = dd.values();
      unsigned wrong = 0;
      for (unsigned i = 0; i < d.size(); ++i) {
        const unsigned matrix = i / 128, row = i / 8 % 16, column = i % 8;
        Product p;
        p.add(c[i]);
        for (unsigned k = 0; k < 16; ++k) {
          p.add(value_of(a[matrix * 256 + row * 16 + k], bfloat16) *
                value_of(b[matrix * 128 + k * 8 + column], bfloat16));
        }
        if (!(std::abs(d[i] - p.value) <= p.tolerance(16))) ++wrong;
      }
      if (mistake == kNone) {
        EXPECT_EQ(wrong, 0u) << (bfloat16 ? "bf16" : "f16");
      } else {
        EXPECT_GT(wrong, d.size() / 4) << "not noticed: mistake " << mistake << (bfloat16 ? " bf16" : " f16");
      }
    }
  }
}

// d (16, 8) = a (16, 32) · b (32, 8) by way of shared memory and ldmatrix: a and b row-major there, or both transposed.
__global__ void multiply_from_shared(const std::uint16_t* a, const std::uint16_t* b, float* d, bool transposed) {
  __shared__ __align__(16) std::uint16_t sa[32 * 40], sb[32 * 40];
  const unsigned lane = threadIdx.x, j = lane % 8, i = lane / 8;
  const unsigned stride_a = transposed ? kStride : 40, stride_b = transposed ? 40 : kStride;
  for (unsigned at = lane; at < 16 * 32; at += 32) {
    const unsigned row = at / 32, column = at % 32;
    sa[transposed ? column * stride_a + row : row * stride_a + column] = a[at];
  }
  for (unsigned at = lane; at < 32 * 8; at += 32) {
    const unsigned row = at / 8, column = at % 8;
    sb[transposed ? column * stride_b + row : row * stride_b + column] = b[at];
  }
  __syncwarp();  // read after write: elements that other lanes have brought
  float c[4] = {0.f, 0.f, 0.f, 0.f};
  for (unsigned k = 0; k < 32; k += 16) {
    std::uint32_t fa[4], fb[2];
    if (transposed) {
      ptx::ldmatrix_x4_trans(fa, &sa[(k + i / 2 * 8 + j) * stride_a + i % 2 * 8]);
      ptx::ldmatrix_x2(fb, &sb[j * stride_b + k + i % 2 * 8]);
    } else {
      ptx::ldmatrix_x4(fa, &sa[(i % 2 * 8 + j) * stride_a + k + i / 2 * 8]);
      ptx::ldmatrix_x2_trans(fb, &sb[(k + lane % 16) * stride_b]);
    }
    ptx::mma_m16n8k16_f16(c, fa, fb);
  }
  for (unsigned r = 0; r < 4; ++r) d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = c[r];
}

TEST_P(Ptx, MultiplyFromSharedMemory) {
  Random random(10);
  std::vector<std::uint16_t> a(16 * 32), b(32 * 8);
  for (auto* m : {&a, &b}) {
    for (auto& v : *m) v = narrow(random.normal(), false);
  }
  const OnDevice<std::uint16_t> da(a), db(b);
  for (const bool transposed : {false, true}) {
    const OnDevice<float> dd(16 * 8, kNan);
    run(&multiply_from_shared, {.block = 32}, da.data(), db.data(), dd.data(), transposed);
    const std::vector<float> d = dd.values();
    for (unsigned i = 0; i < d.size(); ++i) {
      Product p;
      for (unsigned k = 0; k < 32; ++k) p.add(value_of(a[i / 8 * 32 + k], false) * value_of(b[k * 8 + i % 8], false));
      EXPECT_NEAR(d[i], p.value, p.tolerance(32)) << i << (transposed ? " transposed" : "");
    }
  }
}

// ---- fences.cuh -----------------------------------------------------------------------------------------------------

// Two blocks change the letter in turn, each after it has seen what the other made of it.
__global__ void correspond(std::uint32_t* letter, std::uint32_t* turn, unsigned rounds) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  for (unsigned round = blockIdx.x; round < rounds; round += 2) {
    if (i == 0) {
      while (ptx::load_acquire_u32(turn) != round) {
      }
    }
    __syncthreads();  // read after write: what thread 0 has acquired is for all
    const std::uint32_t v = letter[(i + 1) % n];
    __syncthreads();  // write after read: all have read
    letter[i] = 3 * v + round;
    __syncthreads();  // all have written what thread 0 releases
    if (i == 0) ptx::store_release_u32(turn, round + 1);
  }
}

TEST_P(Ptx, ReleaseAndAcquire) {
  constexpr unsigned kThreads = 64, kRounds = 9;
  Words expected = random_values(kThreads, 11);
  const OnDevice<std::uint32_t> letter(expected), turn(1, 0u);
  run(&correspond, {.grid = 2, .block = kThreads, .cooperative = true}, letter.data(), turn.data(), kRounds);
  for (unsigned round = 0; round < kRounds; ++round) {
    const Words before = expected;
    for (unsigned i = 0; i < kThreads; ++i) expected[i] = 3 * before[(i + 1) % kThreads] + round;
  }
  EXPECT_EQ(letter.values(), expected);
  EXPECT_EQ(turn.values(), Words{kRounds});
}

// Each block leaves a part. Block 0 waits for all of them and adds them up, or the last one to come does.
__global__ void add_up(const std::uint32_t* in, std::uint32_t* parts, std::uint32_t* count, std::uint32_t* out,
                       bool last_one) {
  __shared__ bool adds;
  const unsigned i = threadIdx.x, n = blockDim.x;
  parts[blockIdx.x * n + i] = 5 * in[blockIdx.x * n + i];
  __syncthreads();  // all have written what thread 0 releases
  if (i == 0) {
    if (last_one) {
      adds = ptx::add_acquire_release_u32(count, 2) == 2 * (gridDim.x - 1);
    } else {
      ptx::add_release_u32(count, 2);
      adds = blockIdx.x == 0;
      while (adds && ptx::load_acquire_u32(count) != 2 * gridDim.x) {
      }
    }
  }
  __syncthreads();  // read after write: what thread 0 has acquired, and `adds`
  if (!adds) return;
  std::uint32_t sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += parts[block * n + n - 1 - i];
  out[i] = sum;
}

TEST_P(Ptx, AddWithRelease) {
  constexpr unsigned kBlocks = 7, kThreads = 64;
  const Words in = random_values(kBlocks * kThreads, 12);
  const OnDevice<std::uint32_t> from(in);
  Words expected(kThreads, 0);
  for (unsigned i = 0; i < in.size(); ++i) expected[kThreads - 1 - i % kThreads] += 5 * in[i];
  for (const bool last_one : {false, true}) {
    const OnDevice<std::uint32_t> parts(in.size(), kUntouched), count(1, 0u), out(kThreads, kUntouched);
    run(&add_up, {.grid = kBlocks, .block = kThreads, .cooperative = !last_one}, from.data(), parts.data(),
        count.data(), out.data(), last_one);
    EXPECT_EQ(out.values(), expected) << last_one;
    EXPECT_EQ(count.values(), Words{2 * kBlocks});
  }
}

// ---- arrival.cuh ----------------------------------------------------------------------------------------------------

// As add_up, with a counter that need not be 0 at first.
__global__ void add_up_last(const std::uint32_t* in, std::uint32_t* parts, std::uint64_t* counter, std::uint64_t tag,
                            std::uint32_t* out) {
  __shared__ bool last;
  const unsigned i = threadIdx.x, n = blockDim.x;
  parts[blockIdx.x * n + i] = 5 * in[blockIdx.x * n + i];
  __syncthreads();  // all have written what thread 0 hands over
  if (i == 0) last = last_to_arrive(counter, tag, gridDim.x);
  __syncthreads();  // read after write: what thread 0 has seen, and `last`
  if (!last) return;
  std::uint32_t sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += parts[block * n + n - 1 - i];
  out[i] = sum;
}

// With the same tag each time, as a replayed graph launches it, and garbage, 0 or what the last launch left.
TEST_P(Ptx, LastToArrive) {
  constexpr unsigned kThreads = 64;
  const std::uint64_t tag = launch_tag();
  for (const unsigned blocks : {1u, 2u, 7u}) {
    const Words in = random_values(blocks * kThreads, 13);
    const OnDevice<std::uint32_t> from(in);
    Words expected(kThreads, 0);
    for (unsigned i = 0; i < in.size(); ++i) expected[kThreads - 1 - i % kThreads] += 5 * in[i];
    for (const std::uint64_t before : {std::uint64_t{0}, ~std::uint64_t{0}, launch_tag()}) {
      const OnDevice<std::uint64_t> counter(1, before);
      for (int launches = 0; launches < 2; ++launches) {
        const OnDevice<std::uint32_t> parts(in.size(), kUntouched), out(kThreads, kUntouched);
        run(&add_up_last, {.grid = blocks, .block = kThreads}, from.data(), parts.data(), counter.data(), tag,
            out.data());
        EXPECT_EQ(out.values(), expected) << blocks;
        EXPECT_EQ(counter.values(), std::vector<std::uint64_t>{0});
      }
    }
  }
}

}  // namespace
}  // namespace strop
