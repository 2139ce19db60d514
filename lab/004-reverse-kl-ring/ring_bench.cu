// Times reverse KL, forward and fused, at V = 248320: ring_bench ROWS bf16|fp32. Environment variables of the
// experiment are not read by the library.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/reverse_kl/reverse_kl.h"
using namespace strop;
using namespace strop::reverse_kl;
__global__ void fill(unsigned short* p, size_t n, unsigned seed, bool f32) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    unsigned h = (unsigned)(i * 2654435761u) ^ seed;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    float v = ((h & 0xffff) / 65536.f - .5f) * 8;
    if (f32)
      ((float*)p)[i] = v;
    else
      p[i] = (unsigned short)(__float_as_uint(v) >> 16);
  }
}
int main(int argc, char** argv) {
  size_t V = 248320;
  int rows = atoi(argv[1]);
  bool f32 = !strcmp(argv[2], "fp32");
  size_t n = V * rows, es = f32 ? 4 : 2;
  void *x, *y, *g, *m, *ws;
  float* loss;
  cudaMalloc(&x, n * es);
  cudaMalloc(&y, n * es);
  cudaMalloc(&g, n * es);
  cudaMalloc(&m, rows);
  cudaMalloc(&ws, 96 * 1024);
  cudaMalloc((void**)&loss, 512);
  cudaMemset(m, 1, rows);
  cudaMemset(ws, 0, 96 * 1024);
  fill<<<1024, 256>>>((unsigned short*)x, n, 1, f32);
  fill<<<1024, 256>>>((unsigned short*)y, n, 7, f32);
  cudaEvent_t e0, e1;
  cudaEventCreate(&e0);
  cudaEventCreate(&e1);
  float ms;
  // copy rate
  {
    cudaMemcpy(g, x, n * es, cudaMemcpyDeviceToDevice);
    std::vector<float> t;
    for (int i = 0; i < 5; i++) {
      cudaEventRecord(e0);
      cudaMemcpyAsync(g, x, n * es, cudaMemcpyDeviceToDevice);
      cudaEventRecord(e1);
      cudaEventSynchronize(e1);
      cudaEventElapsedTime(&ms, e0, e1);
      t.push_back(ms);
    }
    std::sort(t.begin(), t.end());
    if (getenv("V")) printf("copy %.2f TB/s\n", 2 * n * es / t[2] / 1e9);
  }
  for (int fused = 0; fused < 2; ++fused) {
    Problem p;
    p.outer = 1;
    p.inner = rows;
    p.vocab = V;
    DType d = f32 ? DType::kFloat32 : DType::kBFloat16;
    p.student = {x, 0, (long)V, 1, d};
    p.teacher = {y, 0, (long)V, 1, d};
    p.mask = {m, 0, 1, DType::kBool};
    p.loss = loss;
    if (fused) p.grad = {g, 0, (long)V, 1, d};
    p.workspace = ws;
    std::vector<float> t;
    for (int i = 0; i < 7; i++) {
      cudaEventRecord(e0);
      Status s = run_cuda(p, nullptr);
      cudaEventRecord(e1);
      cudaEventSynchronize(e1);
      if (!s.ok()) printf("%s\n", s.message().c_str());
      cudaEventElapsedTime(&ms, e0, e1);
      t.push_back(ms);
    }
    std::sort(t.begin(), t.end());
    float h;
    cudaMemcpy(&h, loss, 4, cudaMemcpyDeviceToHost);
    double by = n * es * (fused ? 3. : 2.);
    printf("%s %8.1f us %5.1f%%   ", fused ? "fused" : "fwd", t[3] * 1e3, by / t[3] / 1e9 / 3.005 * 100);
  }
  printf(" %s\n", cudaGetErrorString(cudaDeviceSynchronize()));
}
