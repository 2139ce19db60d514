// Random numbers of the suites: the same on every platform for the same seed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>

namespace strop::testing {

// The seed of everything drawn in this run: STROP_TEST_SEED, or a fresh one. Printed once, so that a failure replays.
inline std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("STROP_TEST_SEED");
    const std::uint64_t value = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device()();
    std::cout << "STROP_TEST_SEED=" << value << std::endl;
    return value;
  }();
  return seed;
}

class Random {
 public:
  explicit Random(std::uint64_t stream) : state_(test_seed() * 0x9e3779b97f4a7c15U + stream) {}

  std::uint64_t bits() {  // SplitMix64 (Steele, Lea, Flood 2014)
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  std::int64_t integer(std::int64_t low, std::int64_t high) {  // both included
    return low + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
  }
  // Many small numbers, some large ones.
  std::int64_t log_integer(std::int64_t low, std::int64_t high) {
    const double x = std::exp(std::log(low) + uniform() * (std::log(high + 1.0) - std::log(low)));
    return std::min(high, static_cast<std::int64_t>(x));
  }
  bool chance(double p) { return uniform() < p; }
  double normal() {  // a sum of uniforms is normal enough here
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  template <class T, std::size_t N>
  const T& pick(const T (&choices)[N]) {
    return choices[integer(0, static_cast<std::int64_t>(N) - 1)];
  }

 private:
  std::uint64_t state_;
};

}  // namespace strop::testing
