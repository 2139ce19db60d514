// Times of the C++ API on the CPU, without Python and torch: Google Benchmark.
//
//   losses_bench --benchmark_filter=grpo     # times are of one call; GB/s count what must be read and written once
//
// Inputs: policy logprobs -|N(0, 1)|, old and reference 0.1 N(0, 1) beside them, 3 of 4 tokens valid; logits
// 2 N(0, 1), the teacher's 0.3 N(0, 1) beside the student's, all rows valid. Buffers are reused from call to call, so
// small shapes are warm in cache.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "strop/losses.h"
#include "strop/parallel.h"

namespace {

using strop::DType;
using strop::TensorView;

struct Buffer {
  std::vector<std::uint8_t> bytes;
  DType dtype;

  Buffer(DType type, std::int64_t n) : bytes(static_cast<std::size_t>(n * strop::dtype_size(type))), dtype(type) {}
  void set(std::int64_t i, float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (dtype == DType::kFloat32) {
      std::memcpy(bytes.data() + 4 * i, &bits, 4);
    } else {
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
  }
  TensorView view(std::initializer_list<std::int64_t> shape) {
    return TensorView::contiguous(bytes.data(), dtype, shape);
  }
};

alignas(16) char workspace[strop::kLossWorkspaceBytes];

void finish(benchmark::State& state, const strop::Status& status, std::int64_t bytes) {
  if (!status.ok()) state.SkipWithError(status.message().c_str());
  state.SetBytesProcessed(state.iterations() * bytes);
  state.counters["threads"] = strop::num_threads();
}

using PolicyLoss = strop::Status (*)(const strop::PolicyLossInputs&, const strop::PolicyLossOptions&, const TensorView&,
                                     const TensorView&, const strop::Execution&);

void policy_loss(benchmark::State& state, PolicyLoss function, DType dtype, double beta, bool fused) {
  const std::int64_t batch = state.range(0), tokens = state.range(1), n = batch * tokens;
  Buffer policy(dtype, n), old_policy(dtype, n), ref(dtype, n), grad(dtype, n), advantages(DType::kFloat32, batch),
      mask(DType::kBool, n), loss(DType::kFloat32, 1);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < n; ++i) {
    const float p = -std::abs(normal(bits));
    policy.set(i, p);
    old_policy.set(i, p + 0.1F * normal(bits));
    ref.set(i, p + 0.1F * normal(bits));
    mask.bytes[static_cast<std::size_t>(i)] = bits() % 4 != 0;
  }
  for (std::int64_t i = 0; i < batch; ++i) advantages.set(i, normal(bits));
  const strop::PolicyLossInputs inputs{policy.view({batch, tokens}), old_policy.view({batch, tokens}),
                                       ref.view({batch, tokens}), advantages.view({batch}), mask.view({batch, tokens})};
  strop::PolicyLossOptions options;
  options.beta = beta;
  const TensorView loss_view = loss.view({}), grad_view = fused ? grad.view({batch, tokens}) : TensorView{};
  strop::Status status;
  for (auto _ : state) {
    status = function(inputs, options, loss_view, grad_view, {workspace, nullptr});
    benchmark::ClobberMemory();
  }
  finish(state, status, n * ((2 + (beta != 0) + fused) * strop::dtype_size(dtype) + 1));
}

void reverse_kl(benchmark::State& state, DType dtype, bool fused) {
  const std::int64_t rows = state.range(0), vocab = state.range(1), n = rows * vocab;
  Buffer student(dtype, n), teacher(dtype, n), grad(dtype, fused ? n : 0), mask(DType::kBool, rows),
      loss(DType::kFloat32, 1);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  std::vector<float> table(1 << 16);
  for (float& x : table) x = normal(bits);
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = 2 * table[bits() % table.size()];
    student.set(i, x);
    teacher.set(i, x + 0.3F * table[bits() % table.size()]);
  }
  for (auto& valid : mask.bytes) valid = 1;
  const strop::ReverseKlInputs inputs{student.view({rows, vocab}), teacher.view({rows, vocab}), mask.view({rows})};
  const TensorView loss_view = loss.view({}), grad_view = fused ? grad.view({rows, vocab}) : TensorView{};
  strop::Status status;
  for (auto _ : state) {
    status = strop::reverse_kl_loss(inputs, loss_view, grad_view, {workspace, nullptr});
    benchmark::ClobberMemory();
  }
  finish(state, status, n * (2 + fused) * strop::dtype_size(dtype));
}

void register_all() {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const std::string suffix = std::string("/") + strop::dtype_name(dtype);
    for (bool fused : {false, true}) {
      const std::string variant = fused ? "" : "_fwd";
      for (double beta : {0.1, 0.0}) {
        for (const auto& [name, function] :
             {std::pair{"grpo_loss", &strop::grpo_loss}, {"bnpo_loss", &strop::bnpo_loss}}) {
          const std::string title = name + variant + (beta != 0 ? "/beta" : "/no_beta") + suffix;
          auto* bench = benchmark::RegisterBenchmark(title.c_str(), policy_loss, function, dtype, beta, fused);
          for (const auto& [batch, tokens] :
               {std::pair{16, 1024}, {16, 2781}, {32, 2048}, {64, 4096}, {128, 2781}, {128, 8192}}) {
            bench->Args({batch, tokens});
          }
          bench->UseRealTime()->Unit(benchmark::kMicrosecond);
        }
      }
      benchmark::RegisterBenchmark(("reverse_kl" + variant + suffix).c_str(), reverse_kl, dtype, fused)
          ->Args({64, 248320})
          ->Args({512, 32000})
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
