// Numbers that a kernel writes and the host waits for: memory of the host that the device sees, looked at until it
// changes. A copy back with its synchronisation takes several times as long.
#pragma once

#include <cstdint>
#include <memory>

#include "strop/status.h"
#include "strop/tensor_view.h"

namespace strop {

// Of one writer and one reader at a time.
class Mailbox {
 public:
  static constexpr int kNumbers = 4;

  // Of the current device, whose number is `index`.
  static Status create(int index, std::unique_ptr<Mailbox>* made);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // (kNumbers,) int64 as the device sees it; a kernel writes numbers of 0 and more to all of them.
  TensorView view() const;
  // Before the kernel is launched.
  void clear();
  // Until the kernel, launched on `stream`, has written; the error of a stream on which work failed.
  Status wait(void* stream);
  std::int64_t operator[](int i) const { return numbers_[i]; }

 private:
  explicit Mailbox(int index) : index_(index) {}
  bool written() const;

  int index_;
  std::int64_t* numbers_ = nullptr;
};

}  // namespace strop
