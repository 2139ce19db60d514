// strop-emu: runs one call of a loss in the emulator, holds it against the oracle, and says what memory it moves.
//
//   strop-emu policy_loss --shape 4,300 --report
//   strop-emu reverse_kl --shape 3,1000 --shared-kib 9 --map --schedules 5
//
// Exit status: 0 where all is well, 1 where the emulator has found something or a result is wrong, 2 for bad arguments.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/element.h"
#include "kernels/policy_loss/policy_loss.h"
#include "kernels/reverse_kl/reverse_kl.h"
#include "strop/emu.h"
#include "strop/losses.h"

namespace strop::emu {
namespace {

constexpr std::int64_t kMaxElements = std::int64_t{1} << 31;  // which no memory holds with all that is noted of them

struct Options {
  std::string operation, shape_text;
  std::vector<std::int64_t> shape;
  std::string loss = "grpo", dtype = "float32", mask = "none", strides = "contiguous", order;
  double beta = 0.1;
  bool forward = false, in_place = false, report = false, map = false;
  std::uint64_t seed = 1;
  int schedules = 0, shared_kib = 0;
  Device device;
};

// ---- Tensors --------------------------------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::int64_t integer(std::int64_t low, std::int64_t high) {  // both included
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;         // SplitMix64 (Steele, Lea, Flood 2014)
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return low + static_cast<std::int64_t>((z ^ z >> 31) % static_cast<std::uint64_t>(high - low + 1));
  }
  // A multiple of 1/64: up to 4 every dtype has them exactly, and no ratio of theirs lies so close to a clip limit that
  // a rounding decides on which side.
  double value(double low, double high) {
    return static_cast<double>(integer(std::lround(64 * low), std::lround(64 * high))) / 64;
  }

 private:
  std::uint64_t state_;
};

DType dtype_of(const std::string& name) {
  return name == "float16" ? DType::kFloat16 : name == "bfloat16" ? DType::kBFloat16 : DType::kFloat32;
}

// Memory on the emulated device, and the host's copy of it.
class Tensor {
 public:
  Tensor(DType dtype, const std::vector<std::int64_t>& shape, const std::string& strides = "contiguous") {
    const int rank = static_cast<int>(shape.size());
    view_.dtype = dtype, view_.rank = rank;
    std::copy(shape.begin(), shape.end(), view_.shape);
    const bool transposed = strides == "transposed" && rank >= 2, sliced = strides == "sliced";
    std::int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      const int d = transposed && i >= rank - 2 ? 2 * rank - 3 - i : i;
      view_.strides[d] = step;
      step *= shape[static_cast<std::size_t>(d)] + (sliced && d == rank - 1 ? 2 : 0);
    }
    first_ = sliced || strides == "misaligned" ? dtype_size(dtype) : 0;
    host_.resize(static_cast<std::size_t>(step + 2) * static_cast<std::size_t>(dtype_size(dtype)));
    if (cudaMalloc(&device_, host_.size()) != cudaSuccess) throw std::bad_alloc();
  }
  ~Tensor() { cudaFree(device_); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  TensorView host() { return view(host_.data(), DeviceType::kCpu); }
  TensorView device() const { return view(device_, DeviceType::kCuda); }
  std::int64_t numel() const { return view_.numel(); }
  DType dtype() const { return view_.dtype; }
  void upload() { cudaMemcpy(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice); }
  // What is on the device now, without what was uploaded.
  std::unique_ptr<Tensor> download() const {
    auto copy = std::unique_ptr<Tensor>(new Tensor(view_, first_, host_.size()));
    cudaMemcpy(copy->host_.data(), device_, host_.size(), cudaMemcpyDeviceToHost);
    return copy;
  }

  // Element i of the row-major order.
  double get(std::int64_t i) const { return load_element(host_.data() + byte(i), view_.dtype, 0); }
  void set(std::int64_t i, double value) {
    const auto f = static_cast<float>(value);
    const __half half = __float2half_rn(f);
    const __nv_bfloat16 bfloat16 = __float2bfloat16_rn(f);
    const bool nonzero = value != 0;
    const void* from = view_.dtype == DType::kFloat32    ? static_cast<const void*>(&f)
                       : view_.dtype == DType::kFloat16  ? static_cast<const void*>(&half)
                       : view_.dtype == DType::kBFloat16 ? static_cast<const void*>(&bfloat16)
                                                         : static_cast<const void*>(&nonzero);
    std::memcpy(host_.data() + byte(i), from, static_cast<std::size_t>(dtype_size(view_.dtype)));
  }

 private:
  Tensor(const TensorView& view, std::int64_t first, std::size_t bytes) : view_(view), first_(first), host_(bytes) {}
  TensorView view(void* data, DeviceType device) const {
    TensorView v = view_;
    v.data = static_cast<char*>(data) + first_;
    v.device = device;
    return v;
  }
  std::size_t byte(std::int64_t i) const {
    std::int64_t offset = 0;
    for (int d = view_.rank - 1; d >= 0; i /= view_.shape[d--]) offset += i % view_.shape[d] * view_.strides[d];
    return static_cast<std::size_t>(first_ + offset * dtype_size(view_.dtype));
  }

  TensorView view_;
  std::int64_t first_ = 0;  // byte of the first element
  std::vector<char> host_;
  void* device_ = nullptr;
};

// ---- Calls ----------------------------------------------------------------------------------------------------------

// One call of a loss: its tensors, and how to run it and its oracle.
class Call {
 public:
  Call(const Options& o, const std::vector<std::int64_t>& mask_shape)
      : fused(!o.forward),
        mask(DType::kBool, mask_shape, o.strides),
        loss(DType::kFloat32, {}),
        workspace_(DType::kUInt8, {kLossWorkspaceBytes}) {
    Random random(o.seed + 1000);
    const std::int64_t row = std::max<std::int64_t>(mask_shape.back(), 1);
    std::int64_t length = 0;
    for (std::int64_t i = 0; i < mask.numel(); ++i) {
      if (i % row == 0) length = random.integer(1, row);
      const bool valid = o.mask == "random"          ? random.integer(0, 9) < 7
                         : o.mask == "right_padding" ? i % row < length
                                                     : o.mask != "all_masked";
      mask.set(i, valid);
      count += valid;
    }
  }
  virtual ~Call() = default;
  virtual Status run() = 0;
  virtual void reference(double* loss, double* grad) = 0;
  virtual std::int64_t floor_bytes() = 0;

  const bool fused;
  Tensor mask, loss;
  std::int64_t count = 0;                 // valid tokens
  Tensor* grad = nullptr;                 // or none
  std::int64_t per_mask = 1;              // gradients for each element of the mask
  std::int64_t row = 1;                   // gradients that have one scale
  double loss_scale = 1, grad_scale = 0;  // what roundings are relative to; of gradients, where they are all smaller

 protected:
  Execution execution() const { return {workspace_.device().data, nullptr}; }

 private:
  Tensor workspace_;
};

class PolicyLoss : public Call {
 public:
  explicit PolicyLoss(const Options& o)
      : Call(o, o.shape),
        policy_(dtype_of(o.dtype), o.shape, o.strides),
        old_policy_(dtype_of(o.dtype), o.shape, o.strides),
        ref_(dtype_of(o.dtype), o.shape, o.strides),
        advantages_(dtype_of(o.dtype), {o.shape[0]}, o.strides),
        own_grad_(dtype_of(o.dtype), o.shape, o.strides == "misaligned" ? o.strides : "contiguous"),
        grpo_(o.loss == "grpo") {
    options_.beta = o.beta;
    Random random(o.seed);
    for (std::int64_t i = 0; i < policy_.numel(); ++i) {
      // Masked tokens hold what shows wherever it gets.
      const double nan = mask.get(i) != 0 ? 0 : std::numeric_limits<double>::quiet_NaN();
      const double policy = random.value(-3, -0.5);
      policy_.set(i, policy + nan);
      old_policy_.set(i, policy + random.value(-0.5, 0.5) + nan);
      ref_.set(i, policy + random.value(-0.5, 0.5) + nan);
    }
    for (std::int64_t b = 0; b < o.shape[0]; ++b) advantages_.set(b, random.value(-2, 2));
    for (Tensor* t : {&mask, &policy_, &old_policy_, &ref_, &advantages_}) t->upload();
    if (fused) grad = &own_grad_;
    row = o.shape[1];
    loss_scale = 1 + std::abs(o.beta);
  }

  Status run() override {
    const PolicyLossInputs inputs{policy_.device(), old_policy_.device(), ref_.device(), advantages_.device(),
                                  mask.device()};
    const TensorView grad_view = fused ? own_grad_.device() : TensorView{};
    return (grpo_ ? grpo_loss : bnpo_loss)(inputs, options_, loss.device(), grad_view, execution());
  }
  void reference(double* loss_out, double* grad_out) override { policy_loss::reference(problem(), loss_out, grad_out); }
  std::int64_t floor_bytes() override { return policy_loss::floor_bytes(problem(), count); }

 private:
  policy_loss::Problem problem() {
    const auto matrix = [](const TensorView& v) {
      return policy_loss::Matrix{v.data, v.strides[0], v.rank == 2 ? v.strides[1] : 0, v.dtype};
    };
    policy_loss::Problem p;
    p.batch = policy_.host().shape[0], p.tokens = policy_.host().shape[1];
    p.policy = matrix(policy_.host()), p.old_policy = matrix(old_policy_.host()), p.ref = matrix(ref_.host());
    p.advantages = matrix(advantages_.host()), p.mask = matrix(mask.host());
    p.reduction = grpo_ ? policy_loss::Reduction::kSequenceMean : policy_loss::Reduction::kTokenMean;
    p.beta = static_cast<float>(options_.beta);
    p.clip_low = static_cast<float>(1 - options_.eps), p.clip_high = static_cast<float>(1 + options_.eps);
    p.grad = fused ? own_grad_.host().data : nullptr;
    return p;
  }

  Tensor policy_, old_policy_, ref_, advantages_, own_grad_;
  PolicyLossOptions options_;
  bool grpo_;
};

class ReverseKl : public Call {
 public:
  explicit ReverseKl(const Options& o)
      : Call(o, {o.shape.begin(), o.shape.end() - 1}),
        student_(dtype_of(o.dtype), o.shape, o.strides),
        teacher_(dtype_of(o.dtype), o.shape, o.strides),
        own_grad_(dtype_of(o.dtype), o.shape, o.strides) {
    Random random(o.seed);
    row = per_mask = o.shape.back();
    for (std::int64_t i = 0; i < student_.numel(); ++i) {
      const double nan = mask.get(i / row) != 0 ? 0 : std::numeric_limits<double>::quiet_NaN();
      const double student = random.value(-2, 2);
      student_.set(i, student + nan);
      teacher_.set(i, student + random.value(-0.5, 0.5) + nan);
    }
    for (Tensor* t : {&mask, &teacher_}) t->upload();
    if (fused) grad = o.in_place ? &student_ : &own_grad_;
    grad_scale = 1.0 / static_cast<double>(std::max<std::int64_t>(count, 1)) / static_cast<double>(row);
  }

  Status run() override {
    student_.upload();  // each time: it may be overwritten
    return reverse_kl_loss({student_.device(), teacher_.device(), mask.device()}, loss.device(),
                           grad != nullptr ? grad->device() : TensorView{}, execution());
  }
  void reference(double* loss_out, double* grad_out) override { reverse_kl::reference(problem(), loss_out, grad_out); }
  std::int64_t floor_bytes() override { return reverse_kl::floor_bytes(problem(), count); }

 private:
  reverse_kl::Problem problem() {
    const auto logits = [](const TensorView& v) {
      const bool flat = v.rank == 2;
      return reverse_kl::Logits{v.data, flat ? 0 : v.strides[0], v.strides[flat ? 0 : 1], v.strides[flat ? 1 : 2],
                                v.dtype};
    };
    const TensorView v = student_.host(), m = mask.host();
    reverse_kl::Problem p;
    p.outer = v.rank == 2 ? 1 : v.shape[0], p.inner = v.shape[v.rank - 2], p.vocab = row;
    p.student = logits(v), p.teacher = logits(teacher_.host());
    p.mask = {m.data, m.rank == 1 ? 0 : m.strides[0], m.strides[m.rank - 1], m.dtype};
    if (grad != nullptr) p.grad = logits(grad->host());
    return p;
  }

  Tensor student_, teacher_, own_grad_;
};

// A line of the output: what it is about, and what there is to say.
[[gnu::format(printf, 2, 3)]] void say(const char* about, const char* format, ...) {
  std::printf("%-11s", about);
  std::va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
}

// ---- Judgement ------------------------------------------------------------------------------------------------------

// fp32 may be off by this many roundings of 2^-24, relative to the largest gradient of a row (or what the call says),
// and then the gradient is rounded to its dtype. Reverse KL needs the most: 2.5 for each of two logits up to 4 below
// the maximum, about as many for its exponential, 64 for the sums, and the same again for the mean; 256 is above that.
constexpr double kTolerance = 256 * 0x1p-24;

double unit_roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}
double subnormal_roundoff(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-134; }

// Says how the results compare with the oracle's; false where they do not agree.
bool compare(Call& call, const Tensor& loss, const Tensor* grad) {
  const std::int64_t n = grad == nullptr ? 0 : grad->numel();
  double expected_loss = 0;
  std::vector<double> expected(static_cast<std::size_t>(n));
  call.reference(&expected_loss, grad == nullptr ? nullptr : expected.data());

  const double loss_error = std::abs(loss.get(0) - expected_loss), allowed = kTolerance * call.loss_scale;
  bool agrees = loss_error <= allowed;  // false for NaN
  say("loss", "%.9g, the oracle's %.9g: off by %.2g, allowed %.2g", loss.get(0), expected_loss, loss_error, allowed);
  if (grad == nullptr) return agrees;

  double worst = 0;  // of what is allowed
  std::int64_t wrong = 0, first = -1;
  for (std::int64_t begin = 0; begin < n; begin += call.row) {
    double scale = call.grad_scale;
    for (std::int64_t i = begin; i < begin + call.row; ++i)
      scale = std::max(scale, std::abs(expected[static_cast<std::size_t>(i)]));
    for (std::int64_t i = begin; i < begin + call.row; ++i) {
      const double want = expected[static_cast<std::size_t>(i)], error = std::abs(grad->get(i) - want);
      const double tolerance = kTolerance * scale +
                               unit_roundoff(grad->dtype()) * (std::abs(want) + kTolerance * scale) +
                               subnormal_roundoff(grad->dtype());
      const bool right = call.mask.get(i / call.per_mask) != 0 ? error <= tolerance : grad->get(i) == 0;
      worst = std::max(worst, error / tolerance);
      if (!right && wrong++ == 0) first = i;
    }
  }
  if (wrong == 0) {
    say("gradient", "off by at most %.0f %% of what is allowed: 256 x 2^-24 of its row's largest, and one rounding",
        100 * worst);
  } else {
    say("gradient", "%lld elements are wrong, the first is %lld: %.9g, the oracle's %.9g",
        static_cast<long long>(wrong), static_cast<long long>(first), grad->get(first),
        expected[static_cast<std::size_t>(first)]);
  }
  return agrees && wrong == 0;
}

// ---- Report ---------------------------------------------------------------------------------------------------------

std::string grouped(std::int64_t n) {  // 1,234,567
  const std::string digits = std::to_string(n);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string ratio(std::int64_t a, std::int64_t b) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", b == 0 ? 0 : static_cast<double>(a) / static_cast<double>(b));
  return text;
}

// Columns as wide as they must be; the first `left` are aligned to the left.
void print_table(const std::vector<std::vector<std::string>>& rows, std::size_t left) {
  std::vector<std::size_t> widths(rows[0].size());
  for (const auto& r : rows) {
    for (std::size_t i = 0; i < r.size(); ++i) widths[i] = std::max(widths[i], r[i].size());
  }
  for (const auto& r : rows) {
    std::string line;
    for (std::size_t i = 0; i < r.size(); ++i) {
      const std::string space(widths[i] - r[i].size(), ' ');
      line += (i > 0 ? "  " : "") + (i < left ? r[i] + space : space + r[i]);
    }
    std::printf("%s\n", line.substr(0, line.find_last_not_of(' ') + 1).c_str());
  }
}

// From the folder of sources on.
std::string short_path(const Frame& f) {
  if (f.file.empty()) return "an unknown line";
  auto at = f.file.rfind("/src/");
  at = at == std::string::npos ? f.file.rfind('/') : at;
  return f.file.substr(at == std::string::npos ? 0 : at + 1) + ":" + std::to_string(f.line);
}

void print_report(const Counts& c, std::int64_t floor) {
  std::vector<std::vector<std::string>> rows = {{"buffer", "bytes", "read", "different", "written", "different"}};
  std::int64_t moved = 0, different = 0;
  for (const BufferCounts& b : c.buffers) {
    rows.push_back({b.name, grouped(b.size), grouped(b.reads), grouped(b.bytes_read), grouped(b.writes),
                    grouped(b.bytes_written)});
    moved += b.reads + b.writes, different += b.bytes_read + b.bytes_written;
  }
  std::printf("\n");
  print_table(rows, 1);
  say("floor", "%s bytes", grouped(floor).c_str());
  say("moved", "%s bytes by all threads together, %s x the floor", grouped(moved).c_str(), ratio(moved, floor).c_str());
  say("different", "%s bytes, %s x the floor", grouped(different).c_str(), ratio(different, floor).c_str());

  std::printf("\n");
  rows = {{"line", "buffer", "access", "threads", "warps", "moved", "least", "", "x"}};
  std::int64_t sectors[2] = {}, passes[2] = {};  // moved, and the least
  for (const LineCounts& l : c.lines) {
    rows.push_back({short_path(l.where), l.buffer, l.write ? "write" : "read", grouped(l.threads), grouped(l.warps),
                    grouped(l.moved), grouped(l.least), l.shared ? "passes" : "sectors", ratio(l.moved, l.least)});
    (l.shared ? passes : sectors)[0] += l.moved, (l.shared ? passes : sectors)[1] += l.least;
  }
  print_table(rows, 3);
  say("global", "warps move %s sectors of 32 bytes, %s x the least", grouped(sectors[0]).c_str(),
      ratio(sectors[0], sectors[1]).c_str());
  say("shared", "warps make %s passes over the banks, %s x the least", grouped(passes[0]).c_str(),
      ratio(passes[0], passes[1]).c_str());
  say("barriers", "%s; threads were switched %s times", grouped(c.barriers).c_str(), grouped(c.switches).c_str());
}

// ---- The program ----------------------------------------------------------------------------------------------------

struct Result {
  Status status;
  std::unique_ptr<Tensor> loss, grad;
};

bool same_bits(const Tensor* a, const Tensor* b) {
  if (a == nullptr) return b == nullptr;
  for (std::int64_t i = 0; i < a->numel(); ++i) {
    const double x = a->get(i), y = b->get(i);
    if (std::memcmp(&x, &y, sizeof x) != 0) return false;
  }
  return true;
}

Result run(Call& call) {
  Result r;
  r.status = call.run();
  cudaDeviceSynchronize();  // what was found has been printed
  r.loss = call.loss.download();
  if (call.grad != nullptr) r.grad = call.grad->download();
  return r;
}

// The same call under other schedules; false where another result comes out.
bool compare_schedules(Call& call, const Options& o, const Result& first) {
  set_counting(false);
  std::vector<Schedule> schedules = {{Order::kForward, 0}, {Order::kReverse, 0}};
  for (int i = 0; i < o.schedules; ++i) schedules.push_back({Order::kRandom, o.seed + static_cast<std::uint64_t>(i)});
  std::string different;
  for (const Schedule& s : schedules) {
    set_schedule(s);
    const Result again = run(call);
    if (again.status.ok() && same_bits(first.loss.get(), again.loss.get()) &&
        same_bits(first.grad.get(), again.grad.get())) {
      continue;
    }
    different += different.empty() ? "" : ", ";
    different += s.order == Order::kForward   ? "forward"
                 : s.order == Order::kReverse ? "reverse"
                                              : "random with seed " + std::to_string(s.seed);
  }
  say("schedules", "forward, reverse and %d random: %s%s", o.schedules,
      different.empty() ? "bitwise equal" : "other results with ", different.c_str());
  return different.empty();
}

int run(const Options& o) {
  set_devices({o.device});
  // A report names its schedule by the environment's variables, so that they replay it.
  const bool replays = std::getenv("STROP_EMU_ORDER") != nullptr || std::getenv("STROP_EMU_SEED") != nullptr;
  if (!o.order.empty() || !replays) {
    set_schedule({o.order == "forward"   ? Order::kForward
                  : o.order == "reverse" ? Order::kReverse
                                         : Order::kRandom,
                  o.seed});
  }
  set_counting(o.report || o.map);
  std::unique_ptr<Call> call;
  if (o.operation == "policy_loss") {
    call = std::make_unique<PolicyLoss>(o);
  } else {
    call = std::make_unique<ReverseKl>(o);
  }
  const Result result = run(*call);
  if (!result.status.ok()) {
    std::fprintf(stderr, "strop-emu: %s\n", result.status.message().c_str());
    return result.status.code() == StatusCode::kRuntimeError ? 1 : 2;
  }
  const Counts c = counts();
  std::printf("%s --shape %s: %s%s, %s, mask %s, strides %s, seed %llu\n", o.operation.c_str(), o.shape_text.c_str(),
              o.operation == "policy_loss" ? (o.loss + ", ").c_str() : "",
              o.forward    ? "the loss alone"
              : o.in_place ? "the gradient in place"
                           : "loss and gradient",
              o.dtype.c_str(), o.mask.c_str(), o.strides.c_str(), static_cast<unsigned long long>(o.seed));
  say("device", "sm_%d, %d multiprocessors, %zu KiB of shared memory a block", o.device.capability,
      o.device.multiprocessors, o.device.shared_bytes_per_block / 1024);
  say("kernel", "%s", c.kernel.c_str());
  say("launch", "grid %u, block %u, cluster %u, shared memory %s bytes", c.grid, c.block, c.cluster,
      grouped(static_cast<std::int64_t>(c.shared_bytes)).c_str());
  bool well = compare(*call, *result.loss, result.grad.get());
  if (o.report) print_report(c, call->floor_bytes());
  if (o.map) {
    std::printf(
        "\nWho touches what, a character for equal parts of a buffer: a digit or letter is a block (0 to 9, a to z,\n"
        "A to Z, and again), * several, . nobody.\n%s\n",
        memory_map().c_str());
  }
  if (o.schedules > 0) well = compare_schedules(*call, o, result) && well;
  say("findings", "%zu", reports().size());
  return well && reports().empty() ? 0 : 1;
}

// Throws what names the argument.
void parse_shape(Options& o) {
  const bool policy = o.operation == "policy_loss";
  const auto check = [&](bool right) {
    if (right) return;
    throw CLI::ValidationError("--shape", std::string("expected ") + (policy ? "B,T" : "N,C,V or R,V, V at least 1") +
                                              ", at most 2^31 elements, got " + o.shape_text);
  };
  std::int64_t elements = 1;
  for (const char *at = o.shape_text.data(), *end = at + o.shape_text.size(); at <= end; ++at) {
    std::int64_t n = 0;
    const auto [after, error] = std::from_chars(at, end, n);
    check(error == std::errc() && (after == end || *after == ','));
    check(n >= 0 && n <= kMaxElements && (elements *= std::max<std::int64_t>(n, 1)) <= kMaxElements);
    o.shape.push_back(n);
    at = after;
  }
  check(o.shape.size() == 2 || (o.shape.size() == 3 && !policy));
  check(policy || o.shape.back() > 0);
}

void add_options(CLI::App& app, Options& o) {
  const auto one_of = [](std::vector<std::string> names) { return CLI::IsMember(std::move(names)); };
  app.add_option("--shape", o.shape_text, "sizes, commas between")->required();
  app.add_flag("--forward", o.forward, "the loss alone, without its gradient");
  app.add_option("--dtype", o.dtype, "of the inputs but the mask")->check(one_of({"float32", "float16", "bfloat16"}));
  app.add_option("--mask", o.mask, "which tokens are masked; those hold NaN")
      ->check(one_of({"none", "random", "right_padding", "all_masked"}));
  app.add_option("--strides", o.strides, "how the tensors lie in memory")
      ->check(one_of({"contiguous", "sliced", "transposed", "misaligned"}));
  app.add_flag("--report", o.report, "bytes of every buffer, and accesses of every line");
  app.add_flag("--map", o.map, "which block touches what");
  app.add_option("--seed", o.seed, "of the inputs, and of random schedules")->check(CLI::NonNegativeNumber);
  app.add_option("--order", o.order, "which thread goes on first; random, or what STROP_EMU_ORDER says")
      ->check(one_of({"forward", "reverse", "random"}));
  app.add_option("--schedules", o.schedules, "also runs forward, reverse and N random ones, and compares")
      ->check(CLI::Range(1, 1000));
  app.add_option("--capability", o.device.capability, "80 or 90")->check(CLI::IsMember({80, 90}));
  app.add_option("--multiprocessors", o.device.multiprocessors, "of the device")->check(CLI::Range(1, 1000));
  app.add_option("--shared-kib", o.shared_kib, "shared memory that a block may have")->check(CLI::Range(4, 227));
}

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Runs a loss's CUDA kernel on the CPU, checks every access, and compares the result with an oracle.",
               "strop-emu");
  app.require_subcommand(0, 1);  // none is reported below, after arguments that are none of ours
  CLI::App* const policy = app.add_subcommand("policy_loss", "GRPO or BNPO; the shape is B,T");
  add_options(*policy, o);
  policy->add_option("--loss", o.loss, "grpo or bnpo")->check(CLI::IsMember({"grpo", "bnpo"}));
  policy->add_option("--beta", o.beta, "weight of the KL penalty");
  CLI::App* const reverse = app.add_subcommand("reverse_kl", "reverse KL divergence; the shape is N,C,V or R,V");
  add_options(*reverse, o);
  reverse->add_flag("--in-place", o.in_place, "the gradient takes the student's memory")->excludes("--forward");
  try {
    app.parse(argc, argv);
    if (!policy->parsed() && !reverse->parsed()) throw CLI::RequiredError("policy_loss or reverse_kl");
    o.operation = policy->parsed() ? "policy_loss" : "reverse_kl";
    parse_shape(o);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help is an error, too
    std::fprintf(stderr, "strop-emu: %s\n", e.what());
    return 2;
  }
  if (o.shared_kib > 0) o.device.shared_bytes_per_block = static_cast<std::size_t>(o.shared_kib) * 1024;
  try {
    return run(o);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "strop-emu: --shape: not enough memory for %s\n", o.shape_text.c_str());
    return 2;
  }
}

}  // namespace
}  // namespace strop::emu

int main(int argc, char** argv) { return strop::emu::main(argc, argv); }
