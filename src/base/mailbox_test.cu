// Numbers from a kernel to the host, on CUDA and in the emulator.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/mailbox.h"
#include "strop/launch.h"
#include "tests/support/backend.h"

namespace strop {
namespace {

__global__ void write_numbers(std::int64_t* numbers, std::int64_t first, int count) {
  if (static_cast<int>(threadIdx.x) < count) numbers[threadIdx.x] = first + threadIdx.x;
}

TEST(Mailbox, NumbersArrive) {
  for (const testing::Backend& backend : testing::device_backends()) {
    if (!backend.cuda()) continue;
    const testing::UseBackend use(backend);
    std::unique_ptr<Mailbox> box;
    const Status made = Mailbox::create(backend.device_index, &box);
    ASSERT_TRUE(made.ok()) << made.message();
    LaunchConfig config;
    config.block = 32;
    auto* const numbers = static_cast<std::int64_t*>(box->view().data);
    for (std::int64_t first : {0, 7, 1 << 20}) {
      box->clear();
      ASSERT_TRUE(launch("write_numbers", write_numbers, config, numbers, first, Mailbox::kNumbers).ok());
      const Status status = box->wait(nullptr);
      ASSERT_TRUE(status.ok()) << status.message();
      for (int i = 0; i < Mailbox::kNumbers; ++i) EXPECT_EQ((*box)[i], first + i);
    }
    // A kernel that leaves one out is no reason to wait for ever.
    box->clear();
    ASSERT_TRUE(launch("write_numbers", write_numbers, config, numbers, std::int64_t{0}, 3).ok());
    EXPECT_EQ(box->wait(nullptr).message(), "no kernel wrote what was waited for");
    testing::synchronize(backend);
  }
}

}  // namespace
}  // namespace strop
