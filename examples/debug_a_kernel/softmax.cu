// Softmax of the rows of a matrix, a block a row: a kernel as people write it, with a mistake in it.
//
// block_reduce keeps the warps' results in shared memory and lets every thread combine them. It is right for one call.
// The kernel calls it twice, for the maximum and for the sum, and then a fast warp may write its part of the sum while
// a slow one still reads maxima. On a GPU that goes well almost always. -DFIXED puts in the barrier that is missing.
//
// Compiled for the emulator (CMakeLists.txt) or by nvcc: the source is the same.
#include <cmath>
#include <cstdio>
#include <vector>

#include "strop/launch.h"
#if STROP_EMULATED
#include "strop/emu.h"
#endif

struct Args {
  const float* x;  // (rows, columns)
  float* y;
  int columns;
};

template <class Combine>
__device__ float block_reduce(float v, float* scratch, Combine combine) {
  for (int d = 16; d > 0; d /= 2) v = combine(v, __shfl_xor_sync(0xffffffffu, v, d));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#ifdef FIXED
  __syncthreads();  // write after read: another call may still be reading the scratch
#endif
  if (lane == 0) scratch[warp] = v;
  __syncthreads();  // read after write: every warp's result is there
  v = scratch[0];
  for (int w = 1; w < warps; ++w) v = combine(v, scratch[w]);
  return v;
}

__global__ void softmax(const __grid_constant__ Args a) {
  float* scratch = &strop::dynamic_shared<float>();
  const float* x = a.x + static_cast<long long>(blockIdx.x) * a.columns;
  float* y = a.y + static_cast<long long>(blockIdx.x) * a.columns;

  float max = -INFINITY;
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) max = fmaxf(max, x[i]);
  max = block_reduce(max, scratch, [](float p, float q) { return fmaxf(p, q); });

  float sum = 0;
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) sum += expf(x[i] - max);
  sum = block_reduce(sum, scratch, [](float p, float q) { return p + q; });

  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) y[i] = expf(x[i] - max) / sum;
}

int main() {
  constexpr int kRows = 3, kColumns = 300;
  std::vector<float> x(kRows * kColumns), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 5;

  float *device_x, *device_y;
  cudaMalloc(&device_x, x.size() * sizeof(float));
  cudaMalloc(&device_y, y.size() * sizeof(float));
  cudaMemcpy(device_x, x.data(), x.size() * sizeof(float), cudaMemcpyHostToDevice);
  {
#if STROP_EMULATED
    // So that reports name the matrices and their elements.
    using strop::DType, strop::TensorView, strop::emu::Access;
    const strop::emu::Names names{
        {"x", TensorView::contiguous(device_x, DType::kFloat32, {kRows, kColumns}), Access::kInput},
        {"y", TensorView::contiguous(device_y, DType::kFloat32, {kRows, kColumns}), Access::kOutput}};
#endif
    strop::LaunchConfig config;
    config.grid = kRows;
    config.block = 128;
    config.shared_bytes = 4 * sizeof(float);
    const strop::Status status = strop::launch("softmax", softmax, config, Args{device_x, device_y, kColumns});
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  }
  const cudaError_t error = cudaDeviceSynchronize();
  cudaMemcpy(y.data(), device_y, y.size() * sizeof(float), cudaMemcpyDeviceToHost);

  double worst = 0;
  for (int r = 0; r < kRows; ++r) {
    double sum = 0;
    for (int c = 0; c < kColumns; ++c) sum += std::exp(double{x[r * kColumns + c]});
    for (int c = 0; c < kColumns; ++c) {
      const double expected = std::exp(double{x[r * kColumns + c]}) / sum;
      worst = std::fmax(worst, std::fabs(y[r * kColumns + c] - expected) / expected);
    }
  }
  std::printf("largest relative error %.1e, %s\n", worst,
              error == cudaSuccess ? "no mistakes" : cudaGetErrorString(error));
  cudaFree(device_x);
  cudaFree(device_y);
  return error == cudaSuccess && worst < 1e-4 ? 0 : 1;
}
