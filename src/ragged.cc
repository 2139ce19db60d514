// The public API of packing: checks views, fills in a problem, runs a backend.
#include "strop/ragged.h"

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "base/backends.h"
#include "base/checks.h"
#include "kernels/ragged/pack_tokens.h"
#include "kernels/ragged/take_rows.h"
#include "kernels/ragged/token_index.h"

namespace strop {
namespace {

using namespace strop::checks;  // NOLINT(google-build-using-namespace)

// ---- token_index ----------------------------------------------------------------------------------------------------

Status check_mask(const TensorView& mask) {
  if (mask.dtype == DType::kOther) [[unlikely]]
    return type_error("mask", "bool, an integer or a float dtype", dtype_name(mask.dtype));
  if (mask.rank != 2) [[unlikely]]
    return value_error("mask", "shape (B, L)", shape_text(mask));
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (mask.shape[0] > kMost || mask.shape[1] > kMost || mask.shape[0] * mask.shape[1] > kMost) [[unlikely]]
    return value_error("mask", "fewer than 2^31 elements", "shape " + shape_text(mask));
  STROP_RETURN_IF_ERROR(check_device("mask", mask, STROP_WITH_CUDA != 0));
  return check_data("mask", mask, mask.numel() == 0);
}

struct Named {
  const char* name;
  const TensorView& view;
};

// Shape (n,) with neighbouring elements, memory that none of `others` has.
Status check_list(const Named& output, DType dtype, std::int64_t n, const Named& first,
                  std::initializer_list<Named> others) {
  const TensorView& view = output.view;
  if (view.dtype != dtype) [[unlikely]]
    return type_error(output.name, dtype_name(dtype), dtype_name(view.dtype));
  if (view.rank != 1 || view.shape[0] != n) [[unlikely]]
    return value_error(output.name, "shape " + tuple_text(&n, 1), shape_text(view));
  if (n > 1 && view.strides[0] != 1) [[unlikely]]
    return value_error(output.name, "a contiguous tensor", "strides " + strides_text(view));
  STROP_RETURN_IF_ERROR(check_same_device(output.name, view, first.view, first.name));
  STROP_RETURN_IF_ERROR(check_data(output.name, view, n == 0));
  for (const Named& other : others) {
    if (range_of(view).overlaps(range_of(other.view))) [[unlikely]]
      return value_error(output.name, "memory of its own", std::string("memory shared with ") + other.name);
  }
  return {};
}

// ---- Rows -----------------------------------------------------------------------------------------------------------

Status check_rows_of_x(const TensorView& x) {
  if (x.dtype == DType::kOther) [[unlikely]]
    return type_error("x", "a dtype of 1, 2, 4 or 8 bytes", dtype_name(x.dtype));
  if (x.rank != 2) [[unlikely]]
    return value_error("x", "2 dimensions (rows, n)", shape_text(x));
  if (x.shape[1] <= 0) [[unlikely]]
    return value_error("x", "rows of at least 1 element", "shape " + shape_text(x));
  STROP_RETURN_IF_ERROR(check_device("x", x, STROP_WITH_CUDA != 0));
  return check_data("x", x, x.shape[0] == 0);
}

Status check_index(const char* name, const TensorView& index, const TensorView& x) {
  if (index.dtype != DType::kInt32 && index.dtype != DType::kInt64) [[unlikely]]
    return type_error(name, "int32 or int64", dtype_name(index.dtype));
  if (index.rank != 1) [[unlikely]]
    return value_error(name, "1 dimension", index.rank == 0 ? shape_text(index) : "shape " + shape_text(index));
  STROP_RETURN_IF_ERROR(check_same_device(name, index, x, "x"));
  return check_data(name, index, index.shape[0] == 0);
}

Status check_out(const TensorView& out, const TensorView& x, const char* name, const TensorView& index) {
  if (out.dtype != x.dtype) [[unlikely]]
    return type_error("out", std::string(dtype_name(x.dtype)) + " like x", dtype_name(out.dtype));
  if (out.rank != 2 || out.shape[0] != index.shape[0] || out.shape[1] != x.shape[1]) [[unlikely]] {
    const std::int64_t shape[] = {index.shape[0], x.shape[1]};
    return value_error("out", "shape " + tuple_text(shape, 2) + " of " + name + " and x's rows", shape_text(out));
  }
  STROP_RETURN_IF_ERROR(check_same_device("out", out, x, "x"));
  STROP_RETURN_IF_ERROR(check_data("out", out, out.shape[0] == 0));
  STROP_RETURN_IF_ERROR(check_elements_apart("out", out));
  const char* const shared = share_memory(out, x) ? "x" : share_memory(out, index) ? name : nullptr;
  if (shared != nullptr) [[unlikely]]
    return value_error("out", "memory of its own", std::string("memory shared with ") + shared);
  return {};
}

// In host memory: numbers of rows of x and, where there may be none, negative ones.
Status check_numbers(const char* name, const ragged::TakeRows& p, bool maybe_none) {
  for (std::int64_t i = 0; p.repeated && i < p.rows; ++i) {
    if (p.index.at(i) >= 0 && p.x_rows > 0) continue;
    return value_error(name, p.x_rows > 0 ? "numbers from 0 on" : "no numbers, as x has no rows",
                       std::to_string(p.index.at(i)) + " at " + std::to_string(i));
  }
  if (p.repeated) return {};
  if (!maybe_none) return check_in_range(name, "numbers", p.index, p.rows, p.x_rows, "x");
  for (std::int64_t i = 0; i < p.rows; ++i) {
    const std::int64_t row = p.index.at(i);
    if (row >= p.x_rows) [[unlikely]] {
      return value_error(name, "numbers below " + std::to_string(p.x_rows) + ", the rows of x",
                         std::to_string(row) + " at " + std::to_string(i));
    }
  }
  return {};
}

// ---- pack_tokens ----------------------------------------------------------------------------------------------------

// Everything but the inputs, into p.
Status check_starts(const TensorView& cu, std::int64_t count, const TensorView& cu_out, const TensorView& first_out,
                    ragged::MoveTokens& p) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (cu.dtype != DType::kInt32 && cu.dtype != DType::kInt64) [[unlikely]]
    return type_error("cu", "int32 or int64", dtype_name(cu.dtype));
  if (cu.rank != 1 || cu.shape[0] < 1) [[unlikely]]
    return value_error("cu", "shape (B + 1,)", shape_text(cu));
  STROP_RETURN_IF_ERROR(check_device("cu", cu, STROP_WITH_CUDA != 0));
  STROP_RETURN_IF_ERROR(check_data("cu", cu, false));
  if (count < 0 || count > kMost) [[unlikely]]
    return value_error("count", "a number from 0 to 2^31 - 1", std::to_string(count));
  const std::int64_t numbers = cu_out.rank == 1 ? cu_out.shape[0] : 0;
  if (numbers < cu.shape[0] || numbers > kMost) [[unlikely]]
    return value_error("cu_out", "at least cu's " + std::to_string(cu.shape[0]) + " numbers", std::to_string(numbers));
  STROP_RETURN_IF_ERROR(check_list({"cu_out", cu_out}, DType::kInt32, numbers, {"cu", cu}, {{"cu", cu}}));
  STROP_RETURN_IF_ERROR(
      check_list({"first_out", first_out}, DType::kInt32, numbers - 1, {"cu", cu}, {{"cu", cu}, {"cu_out", cu_out}}));
  p.sequences = cu.shape[0] - 1;
  p.most = numbers - 1;
  p.count = count;
  p.cu = integers(cu);
  p.cu_out = static_cast<std::int32_t*>(cu_out.data);
  p.first_out = static_cast<std::int32_t*>(first_out.data);
  return {};
}

// Numbers of rows: int32 beside one another, at least `count`.
Status check_numbers(const char* name, const TensorView& index, std::int64_t count, const Named& first) {
  if (index.dtype != DType::kInt32) [[unlikely]]
    return type_error(name, "int32", dtype_name(index.dtype));
  if (index.rank != 1 || index.shape[0] < count || (index.shape[0] > 1 && index.strides[0] != 1)) [[unlikely]]
    return value_error(name, "at least " + std::to_string(count) + " contiguous numbers", shape_text(index));
  return check_same_device(name, index, first.view, first.name);
}

// One part into p; `count` rows of tokens.
Status check_part(const TokenRows& rows, std::int64_t count, const Named& first, ragged::MoveTokens& p) {
  const TensorView &x = rows.x, &out = rows.out;
  STROP_RETURN_IF_ERROR(check_rows_of_x(x));
  STROP_RETURN_IF_ERROR(check_same_device("x", x, first.view, first.name));
  if (x.shape[1] > 1 && x.strides[1] != 1) [[unlikely]]
    return value_error("x", "elements of a row beside one another", "strides " + strides_text(x));
  if (out.dtype != x.dtype) [[unlikely]]
    return type_error("out", std::string(dtype_name(x.dtype)) + " like x", dtype_name(out.dtype));
  const bool plain = rows.kind == TokenRows::Kind::kPlain, repeated = rows.kind == TokenRows::Kind::kRepeated;
  if (out.rank != 2 || (!plain && out.shape[0] < count) || out.shape[1] != x.shape[1]) [[unlikely]] {
    const std::int64_t shape[] = {count, x.shape[1]};
    return value_error("out", "at least shape " + tuple_text(shape, 2), shape_text(out));
  }
  if ((out.shape[1] > 1 && out.strides[1] != 1) || (out.shape[0] > 1 && out.strides[0] != out.shape[1])) [[unlikely]]
    return value_error("out", "a contiguous tensor", "strides " + strides_text(out));
  STROP_RETURN_IF_ERROR(check_same_device("out", out, first.view, first.name));
  STROP_RETURN_IF_ERROR(check_data("out", out, out.shape[0] == 0));
  if (share_memory(out, x)) [[unlikely]]
    return value_error("out", "memory of its own", "memory shared with x");
  const std::int64_t moved = plain ? out.shape[0] : count;
  const bool indexed = p.index != nullptr && !plain;
  if (moved > 0 && (repeated ? x.shape[0] == 0 : !indexed && x.shape[0] < moved)) [[unlikely]]
    return value_error("x", "a row for each of " + std::to_string(moved) + (plain ? " of out" : " tokens"),
                       shape_text(x));
  const int bytes = dtype_size(x.dtype);
  ragged::TokenPart& part = p.part[p.parts++];
  part.x = static_cast<const char*>(x.data), part.out = static_cast<char*>(out.data);
  part.stride_row = x.strides[0] * bytes, part.row_bytes = x.shape[1] * bytes;
  part.x_rows = x.shape[0], part.count = moved;
  part.indexed = indexed, part.repeated = repeated;
  return {};
}

// In host memory.
Status check_rows_there(const ragged::MoveTokens& p) {
  for (int k = 0; k < p.parts; ++k) {
    const ragged::TokenPart& part = p.part[k];
    for (std::int64_t t = 0; t < part.count; ++t) {
      const std::int64_t row = p.row(part, t);
      if (row >= 0 && row < part.x_rows) continue;
      return value_error("rows", "numbers of rows of x, below " + std::to_string(part.x_rows),
                         std::to_string(row) + " at " + std::to_string(t));
    }
  }
  return {};
}

Status check_number_of(const char* name, std::span<const TokenRows> parts) {
  if (parts.size() <= static_cast<std::size_t>(ragged::kMostParts)) return {};
  return value_error(name, "at most " + std::to_string(ragged::kMostParts), std::to_string(parts.size()));
}

#if STROP_EMULATED
// Of each part what is read and what is written.
void name_parts(std::span<const TokenRows> parts, const ragged::MoveTokens& p, std::vector<emu::NamedView>& named) {
  for (std::size_t k = 0; k < parts.size(); ++k) {
    TensorView out = parts[k].out;
    out.shape[0] = p.part[k].count;
    named.insert(named.end(), {{"x", parts[k].x}, {"out", out, emu::Access::kOutput}});
  }
}
#endif

enum class Numbers : std::uint8_t { kRows, kMaybeNone, kRepeated };

Status take_rows(const TensorView& x, const char* name, const TensorView& index, Numbers kind, const TensorView& out,
                 void* stream) {
  STROP_RETURN_IF_ERROR(check_rows_of_x(x));
  STROP_RETURN_IF_ERROR(check_index(name, index, x));
  STROP_RETURN_IF_ERROR(check_out(out, x, name, index));
  if (out.shape[0] == 0) return {};

  ragged::TakeRows p;
  p.rows = out.shape[0];
  p.n = out.shape[1];
  p.x_rows = x.shape[0];
  p.bytes = dtype_size(x.dtype);
  p.x = {x.data, x.strides[0], x.strides[1]};
  p.out = {out.data, out.strides[0], out.strides[1]};
  p.index = integers(index);
  p.repeated = kind == Numbers::kRepeated;
#if STROP_WITH_CUDA
  if (x.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"x", x}, {name, index}, {"out", out, emu::Access::kOutput});
    return ragged::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  STROP_RETURN_IF_ERROR(check_numbers(name, p, kind == Numbers::kMaybeNone));
  return ragged::run_cpu(p);
}

}  // namespace

Status token_index(const TensorView& mask, const TensorView& cu, const TensorView& rows, const TensorView& where,
                   const TensorView& summary, void* stream) {
  STROP_RETURN_IF_ERROR(check_mask(mask));
  ragged::Problem p;
  p.sequences = mask.shape[0];
  p.length = mask.shape[1];
  const Named first = {"mask", mask};
  STROP_RETURN_IF_ERROR(check_list({"cu", cu}, DType::kInt32, p.sequences + 1, first, {{"mask", mask}}));
  STROP_RETURN_IF_ERROR(check_list({"rows", rows}, DType::kInt32, p.positions(), first, {{"mask", mask}, {"cu", cu}}));
  STROP_RETURN_IF_ERROR(
      check_list({"where", where}, DType::kInt32, p.positions(), first, {{"mask", mask}, {"cu", cu}, {"rows", rows}}));
  STROP_RETURN_IF_ERROR(check_list({"summary", summary}, DType::kInt64, 4, first,
                                   {{"mask", mask}, {"cu", cu}, {"rows", rows}, {"where", where}}));
  p.mask = {mask.data, mask.strides[0], mask.strides[1], mask.dtype};
  p.cu = static_cast<std::int32_t*>(cu.data);
  p.rows = static_cast<std::int32_t*>(rows.data);
  p.where = static_cast<std::int32_t*>(where.data);
  p.summary = static_cast<std::int64_t*>(summary.data);
#if STROP_WITH_CUDA
  if (mask.device == DeviceType::kCuda) {
    STROP_EMULATOR_NAMES({"mask", mask}, {"cu", cu, emu::Access::kOutput}, {"rows", rows, emu::Access::kOutput},
                         {"where", where, emu::Access::kOutput}, {"summary", summary, emu::Access::kOutput});
    return ragged::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return ragged::run_cpu(p);
}

Status gather_rows(const TensorView& x, const TensorView& rows, const TensorView& out, void* stream) {
  return take_rows(x, "rows", rows, Numbers::kRows, out, stream);
}

Status gather_repeated_rows(const TensorView& x, const TensorView& rows, const TensorView& out, void* stream) {
  return take_rows(x, "rows", rows, Numbers::kRepeated, out, stream);
}

Status scatter_rows(const TensorView& x, const TensorView& where, const TensorView& out, void* stream) {
  return take_rows(x, "where", where, Numbers::kMaybeNone, out, stream);
}

Status pack_starts(const TensorView& cu, std::int64_t count, const TensorView& cu_out, const TensorView& first_out,
                   void* stream) {
  return pack_tokens({}, {}, cu, count, cu_out, first_out, stream);
}

Status pack_tokens(std::span<const TokenRows> inputs, const TensorView& rows, const TensorView& cu, std::int64_t count,
                   const TensorView& cu_out, const TensorView& first_out, void* stream) {
  ragged::MoveTokens p;
  STROP_RETURN_IF_ERROR(check_starts(cu, count, cu_out, first_out, p));
  STROP_RETURN_IF_ERROR(check_number_of("inputs", inputs));
  const Named first = {"cu", cu};
  if (rows.data != nullptr) {
    STROP_RETURN_IF_ERROR(check_numbers("rows", rows, count, first));
    p.index = static_cast<const std::int32_t*>(rows.data);
  }
  for (const TokenRows& input : inputs) STROP_RETURN_IF_ERROR(check_part(input, count, first, p));
#if STROP_WITH_CUDA
  if (cu.device == DeviceType::kCuda) {
#if STROP_EMULATED
    std::vector<emu::NamedView> named = {{"cu", cu},
                                         {"rows", rows},
                                         {"cu_out", cu_out, emu::Access::kOutput},
                                         {"first_out", first_out, emu::Access::kOutput}};
    name_parts(inputs, p, named);
    const emu::Names names(std::span<const emu::NamedView>{named});
#endif
    return ragged::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  STROP_RETURN_IF_ERROR(check_rows_there(p));
  return ragged::run_cpu(p);
}

Status unpack_tokens(std::span<const TokenRows> results, const TensorView& where, void* stream) {
  STROP_RETURN_IF_ERROR(check_number_of("results", results));
  if (results.empty()) return {};
  ragged::MoveTokens p;
  const Named first = {"x", results.front().x};
  if (where.data != nullptr) {
    STROP_RETURN_IF_ERROR(check_numbers("where", where, 0, first));
    p.index = static_cast<const std::int32_t*>(where.data);
  }
  for (const TokenRows& result : results) {
    if (result.kind == TokenRows::Kind::kRepeated) [[unlikely]]
      return value_error("results", "rows of tokens or plain ones", "repeated ones");
    const std::int64_t places = result.out.rank == 2 ? result.out.shape[0] : 0;
    if (result.kind == TokenRows::Kind::kTokens && p.index != nullptr && places != where.shape[0]) [[unlikely]] {
      return value_error("out", "a row for each of where's " + std::to_string(where.shape[0]) + " places",
                         shape_text(result.out));
    }
    STROP_RETURN_IF_ERROR(check_part(result, places, first, p));
  }
#if STROP_WITH_CUDA
  if (first.view.device == DeviceType::kCuda) {
#if STROP_EMULATED
    std::vector<emu::NamedView> named = {{"where", where}};
    name_parts(results, p, named);
    const emu::Names names(std::span<const emu::NamedView>{named});
#endif
    return ragged::run_cuda(p, stream);
  }
#else
  static_cast<void>(stream);
#endif
  return ragged::run_cpu(p);
}

}  // namespace strop
