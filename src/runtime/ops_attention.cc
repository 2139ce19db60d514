// Attention and rotary embeddings by the functions of include/strop.
#include "runtime/ops.h"
#include "runtime/views.h"
#include "strop/attention.h"
#include "strop/rotary.h"

namespace strop::runtime {
namespace {

// Scratch and stream of one call of strop::attention.
void run(Call& call, const AttentionInputs& in, const AttentionOptions& options, const Tensor& out) {
  AttentionExecution execution;
  execution.stream = call.host().stream();
  if (const std::size_t bytes = attention_workspace_bytes(in); bytes > 0)
    execution.workspace = call.temporary(out, DType::kUInt8, Sizes{static_cast<std::int64_t>(bytes)}).data;
  check(attention(in, options, view_of(out), execution));
}

// Arguments `i` to i + 2: scale?, window_left, window_right.
AttentionOptions options_of(Call& call, int i) {
  AttentionOptions options;
  if (call.given(i)) options.scale = call.real(i);
  if (call.integer(i + 1) >= 0) options.window_left = call.integer(i + 1);
  if (call.integer(i + 2) >= 0) options.window_right = call.integer(i + 2);
  return options;
}

// (q, k, v, mask?, padding?, scale?, window_left, window_right): as strop::attention, with queries that begin at the
// first key; a mask that is bool excludes padding.
void attention_op(Call& call) {
  const Tensor& q = call.tensor(0);
  AttentionInputs in;
  in.q = view_of(q);
  in.k = view_of(call.tensor(1));
  in.v = view_of(call.tensor(2));
  if (const Tensor* mask = call.tensor_or_null(3)) (mask->dtype == DType::kBool ? in.mask : in.bias) = view_of(*mask);
  if (const Tensor* padding = call.tensor_or_null(4)) {
    if (in.mask.data != nullptr) throw Error("a bool mask and padding");
    in.mask = view_of(unsqueeze(unsqueeze(*padding, 1), 1));
  }
  // In memory the heads of a token lie beside each other: models bring them together next, which is then a view.
  if (q.rank != 4) throw Error("q: expected 4 dimensions");
  Tensor out = q;
  make_row_major(out, Sizes{q.shape[0], q.shape[2], q.shape[1], q.shape[3]});
  out = call.make(0, transpose(out, 1, 2));
  run(call, in, options_of(call, 5), out);
}

// (q, k, v, cu, longest, scale?, window_left, window_right): (T, H, d), the sequences one behind the other. Rows behind
// the last sequence are left as the memory was.
void attention_packed_op(Call& call) {
  const Tensor& q = call.tensor(0);
  AttentionInputs in;
  in.q = view_of(q);
  in.k = view_of(call.tensor(1));
  in.v = view_of(call.tensor(2));
  in.cu_q = in.cu_k = view_of(call.tensor(3));
  in.max_q = in.max_k = call.integer(4);
  run(call, in, options_of(call, 5), call.make(0, q, q.dtype, q.sizes()));
}

// x (T, H, d), cos and sin broadcast to (T, 1, d).
void rotary_packed(Call& call) {
  const Tensor& x = call.tensor(0);
  const auto table = [&](int i) { return select(expand(call.tensor(i), {x.shape[0], 1, x.shape[2]}), 1, 0); };
  RotaryInputs in;
  in.x = view_of(x);
  in.cos = view_of(table(1));
  in.sin = view_of(table(2));
  check(rotary_embedding(in, view_of(call.make(0, x, x.dtype, x.sizes())), call.host().stream()));
}

// (x, cos, sin): x (B, H, L, d), or packed (T, H, d); cos and sin broadcast to (B, 1, L, d).
void rotary_op(Call& call) {
  const Tensor& x = call.tensor(0);
  if (x.rank == 3) return rotary_packed(call);
  if (x.rank != 4) throw Error("x: expected 4 dimensions, or 3 of packed tokens");
  const std::int64_t batch = x.shape[0], heads = x.shape[1], length = x.shape[2], columns = x.shape[3];
  const auto table = [&](int i) { return select(expand(call.tensor(i), {batch, 1, length, columns}), 1, 0); };
  const Tensor cos = table(1), sin = table(2);
  Tensor out = x;
  make_row_major(out, Sizes{batch, length, heads, columns});
  out = call.make(0, transpose(out, 1, 2));
  const Tensor from = transpose(x, 1, 2), to = transpose(out, 1, 2);  // (B, L, H, d)
  const auto turn = [&](const Tensor& a, const Tensor& c, const Tensor& s, const Tensor& b) {
    RotaryInputs in;
    in.x = view_of(a);
    in.cos = view_of(c);
    in.sin = view_of(s);
    check(rotary_embedding(in, view_of(b), call.host().stream()));
  };
  if (x.device == DeviceType::kCpu) {
    for (std::int64_t b = 0; b < batch; ++b)
      turn(select(from, 0, b), select(cos, 0, b), select(sin, 0, b), select(to, 0, b));
    return;
  }
  // One launch: tables that all sequences share are spread first, which is as much as one head.
  turn(call.rows(from, 2), call.rows(cos, 1), call.rows(sin, 1), call.rows(to, 2));
}

constexpr Op kOps[] = {
    {"strop.attention", &attention_op},
    {"strop.attention_packed", &attention_packed_op},
    {"strop.rotary", &rotary_op},
};

}  // namespace

std::span<const Op> attention_ops() { return kOps; }

}  // namespace strop::runtime
