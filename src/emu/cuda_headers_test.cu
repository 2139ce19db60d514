// The headers of kernels that take 16-bit floats apart, compiled as a kernel is: they see words of raw bits as pairs,
// which a compiler for the CPU must not take for a mistake.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "base/convert.cuh"

namespace strop {
namespace {

// As base/row_vector.cuh does it.
template <class Pair>
float max_as(const std::uint32_t (&words)[2], DType dtype) {
  Pair m = *reinterpret_cast<const Pair*>(&words[0]);
  m = __hmax2(m, *reinterpret_cast<const Pair*>(&words[1]));
  const float2 f = to_float2(*reinterpret_cast<const std::uint32_t*>(&m), dtype);
  return fmaxf(f.x, f.y);
}

TEST(CudaHeaders, PairsOfRawBits) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const std::uint32_t words[2] = {from_float2({-1.f, 2.5f}, dtype), from_float2({NAN, -INFINITY}, dtype)};
    EXPECT_EQ(dtype == DType::kFloat16 ? max_as<__half2>(words, dtype) : max_as<__nv_bfloat162>(words, dtype), 2.5f);
    EXPECT_EQ(to_float(from_float(0.1f, dtype), dtype), to_float2(from_float2({0.f, 0.1f}, dtype), dtype).y);
  }
}

}  // namespace
}  // namespace strop
