// share_memory against a list of every byte: it may say "shared" too often, but only where its comment says so.
#include "base/checks.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <set>

namespace strop {
namespace {

using checks::share_memory;

std::set<std::intptr_t> bytes_of(const TensorView& view) {
  std::set<std::intptr_t> bytes;
  const int size = dtype_size(view.dtype);
  for (std::int64_t i = 0; i < view.numel(); ++i) {
    std::int64_t rest = i, offset = 0;
    for (int d = view.rank - 1; d >= 0; --d) {
      offset += rest % view.shape[d] * view.strides[d];
      rest /= view.shape[d];
    }
    for (int k = 0; k < size; ++k) bytes.insert(reinterpret_cast<std::intptr_t>(view.data) + offset * size + k);
  }
  return bytes;
}

bool really_share(const TensorView& a, const TensorView& b) {
  const std::set<std::intptr_t> bytes = bytes_of(a);
  for (const std::intptr_t byte : bytes_of(b)) {
    if (bytes.count(byte) != 0) return true;
  }
  return false;
}

alignas(64) char memory[4096];

TensorView view_at(std::int64_t offset, DType dtype, std::initializer_list<std::int64_t> shape) {
  return TensorView::contiguous(memory + 2048 + offset, dtype, shape);
}

TEST(ShareMemory, ExactForColumnsOfOneBuffer) {
  constexpr std::int64_t kPitch = 12, kOuter = 2, kRows = 3, kWidth = 5, kLast = kPitch - kWidth;
  for (const int rank : {2, 3}) {
    const auto columns = [&](std::int64_t row, std::int64_t first) {
      const std::int64_t offset = (row * kPitch + first) * 2;
      if (rank == 2) {
        TensorView view = view_at(offset, DType::kFloat16, {kRows, kWidth});
        view.strides[0] = kPitch;
        return view;
      }
      TensorView view = view_at(offset, DType::kFloat16, {kOuter, kRows, kWidth});
      view.strides[0] = kRows * kPitch;
      view.strides[1] = kPitch;
      return view;
    };
    for (std::int64_t a = 0; a <= kLast; ++a) {
      for (std::int64_t row = -8; row <= 8; ++row) {
        for (std::int64_t b = 0; b <= kLast; ++b) {
          EXPECT_EQ(share_memory(columns(0, a), columns(row, b)), really_share(columns(0, a), columns(row, b)))
              << rank << " dimensions, columns from " << a << " and " << b << ", " << row << " rows apart";
        }
      }
    }
  }
}

TEST(ShareMemory, NeverOverlooksAByte) {
  std::mt19937 random(1);
  const auto draw = [&](int low, int high) { return low + static_cast<int>(random() % (high - low + 1)); };
  int apart = 0;
  for (int i = 0; i < 20000; ++i) {
    TensorView a = view_at(draw(0, 20), draw(0, 1) != 0 ? DType::kFloat32 : DType::kBFloat16, {});
    a.rank = draw(1, 3);
    for (int d = 0; d < a.rank; ++d) {
      a.shape[d] = draw(draw(0, 9) == 0 ? 0 : 1, 4);
      a.strides[d] = draw(0, 3) == 0 ? 1 : draw(-6, 14);
    }
    if (a.rank == 3 && draw(0, 1) != 0) a.strides[0] = a.strides[1] * draw(-2, 4);
    TensorView b = a;
    b.data = static_cast<char*>(a.data) + draw(-60, 60);
    switch (draw(0, 8)) {
      case 0:
        b.dtype = DType::kFloat16;
        break;
      case 1:
        b.strides[draw(0, a.rank - 1)] = draw(-6, 14);
        break;
      case 2:
        b.shape[draw(0, a.rank - 1)] = draw(0, 4);
        break;
      case 3:
        b.rank = draw(1, a.rank);
        break;
      default:
        break;
    }
    if (share_memory(a, b)) continue;
    ++apart;
    ASSERT_FALSE(really_share(a, b)) << "call " << i;
  }
  EXPECT_GT(apart, 1000);
}

}  // namespace
}  // namespace strop
