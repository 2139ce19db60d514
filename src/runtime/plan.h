// Plan: a program that can be run, by any number of threads at the same time.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/arena.h"
#include "runtime/frame.h"
#include "runtime/host.h"
#include "runtime/program.h"

namespace strop::runtime {

class Plan {
 public:
  // What is wrong with a text is said by the status.
  static Status load(std::string_view text, std::unique_ptr<Plan>* plan);

  const Program& program() const { return *program_; }

  // Computes the outputs: tensors of the host's, the caller's to release. After an error there are none, and nothing
  // is held. Constants and inputs are as the program declares them, in its order, inputs tensors or integers; they stay
  // where they are for as long as it runs.
  Status run(Host& host, std::span<const Constant> constants, std::span<const Value> inputs,
             std::vector<void*>* outputs) const;

  // Bytes of slabs that are kept between calls, all threads' together.
  std::size_t kept_bytes() const;

 private:
  explicit Plan(std::unique_ptr<Program> program) : program_(std::move(program)) {}

  std::unique_ptr<Frame> lease() const;
  void execute(Frame& frame, std::vector<void*>* outputs) const;

  std::unique_ptr<const Program> program_;
  mutable std::mutex mutex_;  // of what follows
  mutable std::vector<std::unique_ptr<Frame>> frames_;
  mutable SizeCache device_bytes_;
};

}  // namespace strop::runtime
