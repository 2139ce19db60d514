#include "runtime/plan.h"

#include <exception>
#include <utility>

#include "runtime/ops.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

std::uint64_t hash_of(std::span<const Value> inputs) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  const auto add = [&](std::int64_t v) { hash = (hash ^ static_cast<std::uint64_t>(v)) * 0x100000001b3U; };
  for (const Value& input : inputs) {
    add(input.integer);
    add(input.tensor.rank);
    for (int d = 0; d < input.tensor.rank; ++d) add(input.tensor.shape[d]);
  }
  return hash;
}

}  // namespace

Status Plan::load(std::string_view text, std::unique_ptr<Plan>* plan) {
  try {
    plan->reset(new Plan(parse(text)));
  } catch (const Error& error) {
    return Status(error.code, error.what());
  } catch (const std::exception& error) {
    return Status(StatusCode::kRuntimeError, error.what());
  }
  return {};
}

std::unique_ptr<Frame> Plan::lease() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!frames_.empty()) {
      std::unique_ptr<Frame> frame = std::move(frames_.back());
      frames_.pop_back();
      return frame;
    }
  }
  return std::make_unique<Frame>(*program_);
}

Status Plan::run(Host& host, std::span<const Constant> constants, std::span<const Value> inputs,
                 std::vector<void*>* outputs) const {
  Status status;
  std::unique_ptr<Frame> frame;
  bool on_device = false;
  std::uint64_t key = 0;
  outputs->clear();
  try {
    if (constants.size() != program_->constants.size() || inputs.size() != program_->inputs.size())
      throw Error("expected " + std::to_string(program_->inputs.size()) + " inputs and " +
                      std::to_string(program_->constants.size()) + " constants, got " + std::to_string(inputs.size()) +
                      " and " + std::to_string(constants.size()),
                  StatusCode::kTypeError);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      program_->inputs[i].check(inputs[i]);
      on_device |= inputs[i].tensor.device != DeviceType::kCpu;
    }
    std::size_t device_bytes = 0;
    if (on_device) {
      key = hash_of(inputs);
      const std::lock_guard<std::mutex> lock(mutex_);
      device_bytes = device_bytes_.find(key);
    }
    frame = lease();
    frame->begin(host, constants, inputs, device_bytes);
    execute(*frame, outputs);
  } catch (const Error& error) {
    status = Status(error.code, error.what());
  } catch (const std::exception& error) {
    status = Status(StatusCode::kRuntimeError, error.what());
  }
  if (!status.ok()) {
    for (void* output : *outputs) host.release(output);
    outputs->clear();
  }
  if (frame != nullptr) {
    const std::size_t needed = on_device ? frame->device_arena().needed() : 0;
    frame->end();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (on_device && status.ok()) device_bytes_.set(key, needed);
    frames_.push_back(std::move(frame));
  }
  return status;
}

void Plan::execute(Frame& frame, std::vector<void*>* outputs) const {
  for (const Instruction& in : program_->instructions) {
    try {
      Call call(frame, in);
      in.op->run(call);
    } catch (const Error& error) {
      throw Error(in.label + ": " + error.what(), error.code);
    }
    for (const std::int32_t reg : in.frees) frame.free(reg);
  }
  Host& host = frame.host();
  for (const std::int32_t reg : program_->outputs) {
    Tensor t = frame.tensor(reg);
    void* handle = nullptr;
    if (t.block >= 0 && frame.block(t.block).kind == Block::Kind::kOwned) {
      const Block& block = frame.block(t.block);
      check(host.share(block.handle, block.whole, t, &handle));
      outputs->push_back(handle);
      continue;
    }
    // An input, a constant or a view of them: the caller may do with a result what it likes.
    const Tensor from = t;
    make_row_major(t, from.sizes());
    check(host.empty(t, &handle));
    outputs->push_back(handle);
    copy(host, t, from);
  }
}

std::size_t Plan::kept_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t bytes = 0;
  for (const std::unique_ptr<Frame>& frame : frames_) bytes += frame->cpu_arena().reserved();
  return bytes;
}

}  // namespace strop::runtime
