// For the files of the public API: STROP_WITH_CUDA is 0 or 1, and where kernels run in the emulator it is told a call's
// tensors: where each begins and ends, and who may write it.
#pragma once

#ifndef STROP_WITH_CUDA
#define STROP_WITH_CUDA 0
#endif

#if STROP_EMULATED
#include <cstddef>
#include <cstdint>

#include "strop/emu.h"
#include "strop/tensor_view.h"

#define STROP_EMULATOR_NAMES(...) const emu::Names names({__VA_ARGS__})

namespace strop {

// An output that is an input's own memory is named once, as both.
inline emu::NamedView named_input(const char* name, const TensorView& view, const TensorView& output) {
  return {name, view, view.data != nullptr && view.data == output.data ? emu::Access::kInOut : emu::Access::kInput};
}
inline emu::NamedView named_output(const char* name, const TensorView& view, bool is_input) {
  return {name, is_input ? TensorView{} : view, emu::Access::kOutput};
}
inline emu::NamedView named_workspace(void* data, std::size_t bytes) {
  return {"workspace",
          TensorView::contiguous(bytes > 0 ? data : nullptr, DType::kUInt8, {static_cast<std::int64_t>(bytes)},
                                 DeviceType::kCuda),
          emu::Access::kScratch};
}

}  // namespace strop
#else
#define STROP_EMULATOR_NAMES(...) static_cast<void>(0)
#endif
