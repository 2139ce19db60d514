// What a warp's lanes get where they load or multiply matrices together.
#include "emu/matrix.h"

#include "emu/launch.h"
#include "float16.h"

namespace strop::emu {

void complete_load_matrices(void* const* payloads, unsigned mask) {
  const auto element = [&](unsigned matrix, unsigned row, unsigned column) -> std::uint32_t {
    const void* lane = payloads[8 * matrix + row];  // null: that lane has exited, which was reported
    return lane == nullptr ? 0u : static_cast<const LoadMatrices*>(lane)->row[column];
  };
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& m = *static_cast<LoadMatrices*>(payloads[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < m.count; ++i) {
      m.result[i] = m.transposed ? element(i, 2 * t, g) | element(i, 2 * t + 1, g) << 16
                                 : element(i, g, 2 * t) | element(i, g, 2 * t + 1) << 16;
    }
  }
}

void complete_multiply_matrices(void* const* payloads, unsigned mask) {
  float a[16][16] = {}, b[16][8] = {};
  const auto each = [&](auto&& f) {
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1) != 0) f(*static_cast<MultiplyMatrices*>(payloads[lane]), lane / 4, lane % 4);
    }
  };
  each([&](const MultiplyMatrices& m, unsigned g, unsigned t) {
    const auto half = [&](std::uint32_t pair, unsigned high) {
      const auto bits = static_cast<unsigned short>(pair >> 16 * high);
      return m.bfloat16 ? float_from_bfloat16(bits) : float_from_half(bits);
    };
    for (unsigned high = 0; high < 2; ++high) {
      for (unsigned i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + i / 2 * 8 + high] = half(m.a[i], high);
      for (unsigned i = 0; i < 2; ++i) b[2 * t + i * 8 + high][g] = half(m.b[i], high);
    }
  });
  each([&](MultiplyMatrices& m, unsigned g, unsigned t) {
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned k = 0; k < 16; ++k) m.c[i] += a[g + i / 2 * 8][k] * b[k][2 * t + i % 2];
    }
  });
}

}  // namespace strop::emu
