// Planted: addresses outside of the buffer, misaligned, or of bytes that nobody wrote; inputs and outputs mistaken.
#include <cstdint>

#include "emu/planted/planted.h"

namespace strop::planted {
namespace {

constexpr int kN = 200;  // elements, in blocks of
constexpr unsigned kThreads = 64;
constexpr unsigned kBlocks = (kN + kThreads - 1) / kThreads;

__device__ int global_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// ---- Out of bounds --------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void read_past_the_end(const float* in, float* out, int n) {
  const int i = global_index(), last = kBroken ? n : n - 1;
  if (i < last) out[i] = in[i + 1] - in[i];  // planted: read_past_the_end
}
PLANT(read_past_the_end, kOutOfBounds, kMemcheck,
      "The last difference takes an element that the buffer does not have.") {
  Buffer<float> in(kN, index), out(kN - 1 + kBroken);
  (void)launch("planted", read_past_the_end<kBroken>, {.grid = kBlocks, .block = kThreads}, in, out, kN);
  return out.holds([](int) { return 1; });
}

template <bool kBroken>
__global__ void write_before_the_start(const float* in, float* out, int n) {
  const int i = global_index(), first = kBroken ? 0 : 1;
  if (i >= first && i < n) out[i - 1] = in[i];  // planted: write_before_the_start
}
PLANT(write_before_the_start, kOutOfBounds, kMemcheck, "Thread 0 writes to element -1: into another allocation.") {
  Buffer<float> in(kN, index), out(kN - 1);
  (void)launch("planted", write_before_the_start<kBroken>, {.grid = kBlocks, .block = kThreads}, in, out, kN);
  return out.holds([](int i) { return i + 1; });
}

template <bool kBroken>
__global__ void whole_blocks(const float* in, float* out, int n) {
  const int i = global_index();
  if (kBroken || i < n) out[i] = 2 * in[i];  // planted: whole_blocks
}
PLANT(whole_blocks, kOutOfBounds, kMemcheck, "No i < n: the last block goes on behind the end.") {
  Buffer<float> in(kN, index), out(kN);
  (void)launch("planted", whole_blocks<kBroken>, {.grid = kBlocks, .block = kThreads}, in, out, kN);
  return out.holds([](int i) { return 2 * i; });
}

template <bool kBroken>
__global__ void index_wraps(const float* in, float* out) {
  const unsigned left = threadIdx.x == 0 && !kBroken ? 0 : threadIdx.x - 1;
  out[threadIdx.x] = in[left];  // planted: index_wraps
}
PLANT(index_wraps, kOutOfBounds, kMemcheck, "Thread 0 reads 16 GiB away: 0u - 1 does not become -1 in an address.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", index_wraps<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return i == 0 ? 0 : i - 1; });
}

template <bool kBroken>
__global__ void null_optional(const float* in, const float* bias, float* out) {
  const float b = kBroken || bias != nullptr ? bias[threadIdx.x] : 0.f;  // planted: null_optional
  out[threadIdx.x] = in[threadIdx.x] + b;
}
PLANT(null_optional, kOutOfBounds, kMemcheck, "An optional input is read although the caller has given none.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", null_optional<kBroken>, {.block = kThreads}, in, nullptr, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void shared_past_the_end(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  s[threadIdx.x + 1] = in[threadIdx.x];  // planted: shared_past_the_end
  if (threadIdx.x == 0) s[0] = 0;
  __syncthreads();  // read after write: a neighbour's element
  out[threadIdx.x] = s[threadIdx.x];
}
PLANT(shared_past_the_end, kOutOfBounds, kMemcheck, "The launch forgets the halo in the size of shared memory.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  const std::size_t bytes = (kThreads + (kBroken ? 0 : 1)) * sizeof(float);
  (void)launch("planted", shared_past_the_end<kBroken>, {.block = kThreads, .shared_bytes = bytes}, in, out);
  return out.holds([](int i) { return i == 0 ? 0 : i - 1; });
}

template <bool kBroken>
__global__ void shared_before_the_start(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x), left = kBroken ? t - 1 : max(t - 1, 0);
  s[t] = in[t];
  __syncthreads();   // read after write: a neighbour's element
  out[t] = s[left];  // planted: shared_before_the_start
}
PLANT(shared_before_the_start, kOutOfBounds, kMemcheck, "Thread 0 has no left neighbour in shared memory.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", shared_before_the_start<kBroken>, {.block = kThreads, .shared_bytes = kThreads * 4}, in, out);
  return out.holds([](int i) { return i == 0 ? 0 : i - 1; });
}

template <bool kBroken>
__global__ void past_a_variable(const float* in, float* out) {
  __shared__ float s[kThreads], factor[1];
  const unsigned t = threadIdx.x;
  if (t == 0) factor[0] = 2;
  s[t] = in[t];
  __syncthreads();  // read after write: a neighbour's element
  const unsigned next = kBroken ? t + 1 : min(t + 1, kThreads - 1);
  out[t] = factor[0] * s[next];  // planted: past_a_variable
}
PLANT(past_a_variable, kOutOfBounds, kNone,
      "The last thread reads past a __shared__ array, perhaps in the variable behind it.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  (void)launch("planted", past_a_variable<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int i) { return i < 63 ? 2 * (i + 1) : 126; });
}

template <bool kBroken>
__global__ void between_the_rows(const float* in, float* out, int columns, int stride) {
  const int t = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
  const int end = kBroken ? stride : columns;
  float sum = 0;
  for (int c = t; c < end; c += 32) sum += in[row * stride + c];  // planted: between_the_rows
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (t == 0) out[row] = sum;
}
PLANT(between_the_rows, kOutOfBounds, kNone,
      "A row is summed up to its stride: what lies between the rows of a slice is not the caller's. A wrong sum.") {
  constexpr int kRows = 3, kColumns = 50, kStride = 64;
  Buffer<float> in(kRows * kStride, [](int i) { return i % kStride < kColumns ? 1 : 1000; }), out(kRows);
  TensorView rows;
  rows.data = static_cast<float*>(in), rows.rank = 2;
  rows.shape[0] = kRows, rows.shape[1] = kColumns, rows.strides[0] = kStride, rows.strides[1] = 1;
  const Names names{{"in", rows}};
  (void)launch("planted", between_the_rows<kBroken>, {.grid = kRows, .block = 32}, in, out, kColumns, kStride);
  return out.holds([](int) { return kColumns; });
}

template <bool kBroken>
__global__ void freed_buffer(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // planted: freed_buffer
}
PLANT(freed_buffer, kOutOfBounds, kMemcheck, "The workspace was freed before the launch that reads it.") {
  Buffer<float> in(kThreads, index), out(kThreads);
  const float* p = in;
  if (kBroken) in.free();
  (void)launch("planted", freed_buffer<kBroken>, {.block = kThreads}, p, out);
  return out.holds(index);
}

// ---- Misaligned -----------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void misaligned_vector(const float* in, float* out) {
  const uint4 v = *reinterpret_cast<const uint4*>(in + 4 * threadIdx.x);  // planted: misaligned_vector
  *reinterpret_cast<uint4*>(out + 4 * threadIdx.x) = v;
}
PLANT(misaligned_vector, kMisaligned, kMemcheck, "16 bytes at once from a row that starts at an odd element.") {
  Buffer<float> in(4 * kThreads + 4, index), out(4 * kThreads);
  const int first = kBroken ? 1 : 4;
  (void)launch("planted", misaligned_vector<kBroken>, {.block = kThreads}, in + first, out);
  return out.holds([&](int i) { return first + i; });
}

template <bool kBroken>
__global__ void misaligned_shared(const float* in, float* out) {
  float* s = &dynamic_shared<float>();
  const unsigned t = threadIdx.x, padding = kBroken ? 1 : 2;
  *reinterpret_cast<float2*>(s + padding + 2 * t) = float2{in[2 * t], in[2 * t + 1]};  // planted: misaligned_shared
  out[t] = s[padding + 2 * t];
}
PLANT(misaligned_shared, kMisaligned, kMemcheck, "Padding by one float leaves no pair at a multiple of 8 bytes.") {
  Buffer<float> in(2 * kThreads, index), out(kThreads);
  (void)launch("planted", misaligned_shared<kBroken>, {.block = kThreads, .shared_bytes = 1024}, in, out);
  return out.holds([](int i) { return 2 * i; });
}

// ---- Uninitialised --------------------------------------------------------------------------------------------------

template <bool kBroken>
__global__ void uninitialised_shared(const float* in, float* out, int n) {
  float* s = &dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x);
  if (t < n) s[t] = in[t];
  if (!kBroken && t >= n) s[t] = 0;
  __syncthreads();                                 // read after write: another's element
  out[t] = s[static_cast<int>(kThreads) - 1 - t];  // planted: uninitialised_shared
}
PLANT(uninitialised_shared, kUninitialised, kInitcheck, "The tail of a tile is not filled up with zeros, but summed.") {
  constexpr int kTile = 50;
  Buffer<float> in(kTile, index), out(kThreads);
  (void)launch("planted", uninitialised_shared<kBroken>, {.block = kThreads, .shared_bytes = 4 * kThreads}, in, out,
               kTile);
  return out.holds([](int i) { return 63 - i < kTile ? 63 - i : 0; });
}

template <bool kBroken>
__global__ void uninitialised_workspace(const float* in, float* sums) {
  sums[threadIdx.x] += in[threadIdx.x];  // planted: uninitialised_workspace
}
PLANT(uninitialised_workspace, kUninitialised, kInitcheck, "Sums are added to memory that nobody has set to zero.") {
  Buffer<float> in(kThreads, index), sums(kThreads);
  if (!kBroken) sums.fill(0);
  (void)launch("planted", uninitialised_workspace<kBroken>, {.block = kThreads}, in, sums);
  return sums.holds(index);
}

template <bool kBroken>
__global__ void uninitialised_counter(unsigned* counter) {
  atomicAdd(counter, 1u);  // planted: uninitialised_counter
}
PLANT(uninitialised_counter, kUninitialised, kInitcheck, "An atomic counter starts wherever the memory was left.") {
  Buffer<unsigned> counter(1);
  if (!kBroken) counter.fill(0);
  (void)launch("planted", uninitialised_counter<kBroken>, {.block = kThreads}, counter);
  return counter.holds([](int) { return kThreads; });
}

template <bool kBroken>
__global__ void uninitialised_last(const float* in, float* out) {
  const float4 v = *reinterpret_cast<const float4*>(in + 4 * threadIdx.x);  // planted: uninitialised_last
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}
PLANT(uninitialised_last, kUninitialised, kInitcheck,
      "A row of 4 k - 1 elements is read in fours: the last one is padding, in which anything may be, NaN too.") {
  Buffer<float> in(4 * kThreads), out(kThreads);
  const std::vector<float> ones(4 * kThreads, 1.f);
  (void)cudaMemcpy(in, ones.data(), (ones.size() - (kBroken ? 1 : 0)) * sizeof(float), cudaMemcpyHostToDevice);
  (void)launch("planted", uninitialised_last<kBroken>, {.block = kThreads}, in, out);
  return out.holds([](int) { return 4; });
}

// ---- Inputs and outputs ---------------------------------------------------------------------------------------------

TensorView view(float* data, std::int64_t n) {
  TensorView v;
  v.data = data, v.rank = 1, v.shape[0] = n, v.strides[0] = 1;
  return v;
}

template <bool kBroken>
__global__ void write_to_an_input(float* in, float* out) {
  const unsigned t = threadIdx.x;
  const float v = in[t];
  (kBroken ? in : out)[t] = v > 0 ? v : 0;  // planted: write_to_an_input
}
PLANT(write_to_an_input, kReadOnly, kNone, "The result goes to the input, whose contents the caller still needs.") {
  Buffer<float> in(kThreads, index), out(kThreads, zero);
  const Names names{{"in", view(in, kThreads), emu::Access::kInput}, {"out", view(out, kThreads), emu::Access::kInOut}};
  (void)launch("planted", write_to_an_input<kBroken>, {.block = kThreads}, in, out);
  return out.holds(index);
}

template <bool kBroken>
__global__ void unwritten_output(const float* in, float* out, int n) {
  const int i = global_index();
  if (i < n) out[i] = in[i];
}
PLANT(unwritten_output, kUnwritten, kNone, "The grid is rounded down: nobody writes the last elements.") {
  Buffer<float> in(kN, index), out(kN);
  const unsigned grid = kBroken ? kN / kThreads : kBlocks;
  const Names names{{"in", view(in, kN)}, {"out", view(out, kN), emu::Access::kOutput}};
  (void)launch("planted", unwritten_output<kBroken>, {grid, kThreads}, in, out, kN);  // planted: unwritten_output
  return out.holds(index);
}

}  // namespace
}  // namespace strop::planted
