// pack_starts against the oracle, on every backend.
#include "kernels/ragged/pack_starts.h"

#include <gtest/gtest.h>

#include <string>

#include "strop/ragged.h"
#include "tests/support/backend.h"
#include "tests/support/random.h"
#include "tests/support/tensor.h"

namespace strop::ragged {
namespace {

using namespace strop::testing;  // NOLINT(google-build-using-namespace)

void check(const Backend& backend, Random& random, std::int64_t sequences, std::int64_t most, DType dtype,
           Layout layout) {
  SCOPED_TRACE(::testing::Message() << backend << ", seed " << test_seed() << ": " << sequences << " of " << most
                                    << " sequences, " << dtype_name(dtype) << " " << layout_name(layout));
  Tensor cu(dtype, {sequences + 1}, layout), cu_out(DType::kInt32, {most + 1}), first_out(DType::kInt32, {most});
  std::int64_t count = 0;
  cu.fill([&](std::int64_t i) {  // with sequences of no token, also behind the last one
    if (i > 0 && random.chance(0.7)) count += random.integer(1, 9);
    return static_cast<double>(count);
  });
  Tensor expected_cu = cu_out, expected_first = first_out;
  const TensorView a = expected_cu.host(), b = expected_first.host();
  PackStarts p;
  p.sequences = sequences, p.most = most, p.count = count;
  p.cu = integers(cu.host());
  p.cu_out = static_cast<std::int32_t*>(a.data), p.first_out = static_cast<std::int32_t*>(b.data);
  reference(p);
  const UseBackend use(backend);
  const Status status = pack_starts(cu.on(backend), count, cu_out.on(backend), first_out.on(backend));
  ASSERT_TRUE(status.ok()) << status.message();
  synchronize(backend);
  for (Tensor* tensor : {&cu, &cu_out, &first_out}) tensor->fetch();
  cu.expect_unchanged("cu");
  EXPECT_TRUE(cu_out.bytes() == expected_cu.bytes());
  EXPECT_TRUE(first_out.bytes() == expected_first.bytes());
}

TEST(PackStartsSmall, Sizes) {
  Random random(111);
  for (const Backend& backend : all_backends()) {
    for (std::int64_t sequences : {0, 1, 3, 127, 128, 300}) {
      for (std::int64_t more : {0, 1, 5, 130}) {
        for (DType dtype : {DType::kInt32, DType::kInt64}) {
          check(backend, random, sequences, sequences + more, dtype,
                random.chance(0.5) ? Layout::kContiguous : Layout::kStepped);
        }
      }
    }
  }
}

TEST(PackStartsSmall, BadInput) {
  for (const Backend& backend : device_backends()) {
    const auto message = [&](std::int64_t sequences, DType dtype, std::int64_t count, std::int64_t most,
                             std::int64_t firsts, DType out) {
      const UseBackend use(backend);
      Tensor cu(dtype, {sequences}), cu_out(out, {most}), first_out(DType::kInt32, {firsts});
      cu.fill([](std::int64_t) { return 0; });
      const Status status = pack_starts(cu.on(backend), count, cu_out.on(backend), first_out.on(backend));
      synchronize(backend);
      cu_out.fetch(), first_out.fetch();
      cu_out.expect_unchanged("cu_out"), first_out.expect_unchanged("first_out");
      return status.message();
    };
    const DType i32 = DType::kInt32;
    EXPECT_EQ(message(3, DType::kFloat32, 1, 5, 4, i32), "cu: expected int32 or int64, got float32");
    EXPECT_EQ(message(0, i32, 1, 5, 4, i32), "cu: expected shape (B + 1,), got (0,)");
    EXPECT_EQ(message(3, i32, -1, 5, 4, i32), "count: expected a number from 0 to 2^31 - 1, got -1");
    EXPECT_EQ(message(3, i32, 1, 2, 1, i32), "cu_out: expected at least cu's 3 numbers, got 2");
    EXPECT_EQ(message(3, i32, 1, 5, 3, i32), "first_out: expected shape (4,), got (3,)");
    EXPECT_EQ(message(3, i32, 1, 5, 4, DType::kInt64), "cu_out: expected int32, got int64");
  }
}

}  // namespace
}  // namespace strop::ragged
