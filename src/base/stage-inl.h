// Elements of any dtype and stride, copied into fp32 (or mask bytes) that a SIMD kernel can read, and fp32 results
// copied out again: what kernels do with inputs that they cannot read in place. Compiled once for each instruction set.
#if defined(STROP_BASE_STAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef STROP_BASE_STAGE_INL_H_
#undef STROP_BASE_STAGE_INL_H_
#else
#define STROP_BASE_STAGE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "base/element.h"
#include "base/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strop {
namespace HWY_NAMESPACE {

template <class E>
const typename E::Type* element(const void* data, std::int64_t offset) {
  return static_cast<const typename E::Type*>(data) + offset;
}
template <class E>
typename E::Type* element(void* data, std::int64_t offset) {
  return static_cast<typename E::Type*>(data) + offset;
}

HWY_INLINE float to_float(F32, float x) { return x; }
HWY_INLINE float to_float(F16, std::uint16_t x) { return float_from_float16(x); }
HWY_INLINE float to_float(BF16, std::uint16_t x) { return float_from_bfloat16(x); }

template <class E>
void stage(E e, const typename E::Type* from, std::int64_t stride, std::size_t n, float* to) {
  const std::size_t lanes = hn::Lanes(Float());
  std::size_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= n; i += lanes) hn::StoreU(load(e, from + i), Float(), to + i);
  }
  for (; i < n; ++i) to[i] = to_float(e, from[static_cast<std::int64_t>(i) * stride]);
}

// n elements from `offset` on, `stride` apart.
inline void stage(const void* data, DType dtype, std::int64_t offset, std::int64_t stride, std::size_t n, float* to) {
  if (dtype == DType::kFloat32) return stage(F32(), element<F32>(data, offset), stride, n, to);
  if (dtype == DType::kFloat16) return stage(F16(), element<F16>(data, offset), stride, n, to);
  return stage(BF16(), element<BF16>(data, offset), stride, n, to);
}

template <class E>
void unstage(E e, const float* from, std::size_t n, typename E::Type* to, std::int64_t stride) {
  const std::size_t lanes = hn::Lanes(Float());
  HWY_ALIGN float in[hn::MaxLanes(Float())] = {};
  HWY_ALIGN typename E::Type out[hn::MaxLanes(Float())];
  std::size_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= n; i += lanes) store(e, hn::LoadU(Float(), from + i), to + i);
  }
  for (; i < n; i += lanes) {
    const std::size_t rest = n - i < lanes ? n - i : lanes;
    for (std::size_t k = 0; k < rest; ++k) in[k] = from[i + k];
    store(e, hn::Load(Float(), in), out);
    for (std::size_t k = 0; k < rest; ++k) to[static_cast<std::int64_t>(i + k) * stride] = out[k];
  }
}

inline void unstage(const float* from, std::size_t n, void* data, DType dtype, std::int64_t offset,
                    std::int64_t stride) {
  if (dtype == DType::kFloat32) return unstage(F32(), from, n, element<F32>(data, offset), stride);
  if (dtype == DType::kFloat16) return unstage(F16(), from, n, element<F16>(data, offset), stride);
  return unstage(BF16(), from, n, element<BF16>(data, offset), stride);
}

// Four rows of n elements, a multiple of 4, `from_pitch` apart, to to[k][0 … 3], `pitch` from k to k. `to` is aligned
// to 16 bytes.
HWY_INLINE void transpose_four(const float* from, std::int64_t from_pitch, std::size_t n, float* to,
                               std::size_t pitch) {
#if HWY_TARGET == HWY_SCALAR
  for (std::size_t k = 0; k < n; ++k)
    for (int j = 0; j < 4; ++j)
      to[k * pitch + static_cast<std::size_t>(j)] = from[j * from_pitch + static_cast<std::int64_t>(k)];
#else
  const hn::FixedTag<float, 4> q;
  for (std::size_t k = 0; k < n; k += 4) {
    const auto row = [&](int j) HWY_ATTR { return hn::LoadU(q, from + j * from_pitch + k); };
    const auto a = row(0), b = row(1), c = row(2), d = row(3);
    const auto ac0 = hn::InterleaveLower(q, a, c), bd0 = hn::InterleaveLower(q, b, d);
    const auto ac2 = hn::InterleaveUpper(q, a, c), bd2 = hn::InterleaveUpper(q, b, d);
    hn::Store(hn::InterleaveLower(q, ac0, bd0), q, to + k * pitch);
    hn::Store(hn::InterleaveUpper(q, ac0, bd0), q, to + (k + 1) * pitch);
    hn::Store(hn::InterleaveLower(q, ac2, bd2), q, to + (k + 2) * pitch);
    hn::Store(hn::InterleaveUpper(q, ac2, bd2), q, to + (k + 3) * pitch);
  }
#endif
}

template <class T>
void stage_mask(const void* data, std::int64_t offset, std::int64_t stride, std::size_t n, std::uint8_t* to) {
  const T* from = static_cast<const T*>(data) + offset;
  if (stride == 1) {
    for (std::size_t i = 0; i < n; ++i) to[i] = from[i] != 0;
  } else {
    for (std::size_t i = 0; i < n; ++i) to[i] = from[static_cast<std::int64_t>(i) * stride] != 0;
  }
}

// The same for a mask of any dtype: bytes that are not 0 where the element is not 0 (NaN is not 0, -0.0 is).
inline void stage_mask(const void* data, DType dtype, std::int64_t offset, std::int64_t stride, std::size_t n,
                       std::uint8_t* to) {
  switch (dtype) {
    case DType::kFloat32:
      return stage_mask<float>(data, offset, stride, n, to);
    case DType::kFloat64:
      return stage_mask<double>(data, offset, stride, n, to);
    case DType::kFloat16:
    case DType::kBFloat16: {
      const auto* from = static_cast<const std::uint16_t*>(data) + offset;
      for (std::size_t i = 0; i < n; ++i) to[i] = (from[static_cast<std::int64_t>(i) * stride] & 0x7fff) != 0;
      return;
    }
    default:
      break;
  }
  switch (dtype_size(dtype)) {
    case 1:
      return stage_mask<std::uint8_t>(data, offset, stride, n, to);
    case 2:
      return stage_mask<std::uint16_t>(data, offset, stride, n, to);
    case 4:
      return stage_mask<std::uint32_t>(data, offset, stride, n, to);
    default:
      return stage_mask<std::uint64_t>(data, offset, stride, n, to);
  }
}

// How many of n bytes are not 0.
inline std::int64_t count_nonzero(const std::uint8_t* mask, std::size_t n) {
  const hn::ScalableTag<std::uint8_t> u8;
  const hn::ScalableTag<std::uint64_t> u64;
  const std::size_t lanes = hn::Lanes(u8);
  auto sums = hn::Zero(u64);
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    sums = hn::Add(sums, hn::SumsOf8(hn::Min(hn::LoadU(u8, mask + i), hn::Set(u8, 1))));
  }
  HWY_ALIGN std::uint64_t parts[hn::MaxLanes(u64)];
  hn::Store(sums, u64, parts);
  std::int64_t count = 0;
  for (std::size_t k = 0; k < hn::Lanes(u64); ++k) count += static_cast<std::int64_t>(parts[k]);
  for (; i < n; ++i) count += mask[i] != 0;
  return count;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace strop
HWY_AFTER_NAMESPACE();

#endif  // STROP_BASE_STAGE_INL_H_
