// Frame: the registers and the memory of one run of a plan; Call: how an operation sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/arena.h"
#include "runtime/host.h"
#include "runtime/program.h"
#include "runtime/tensor.h"

namespace strop::runtime {

struct Value {
  enum class Kind : std::uint8_t { kNone, kInt, kDouble, kBool, kTensor };
  Kind kind = Kind::kNone;
  std::int64_t integer = 0;  // of kInt and kBool
  double real = 0;
  Tensor tensor;

  Value() = default;
  Value(const Tensor& t) : kind(Kind::kTensor), tensor(t) {}  // NOLINT(google-explicit-constructor)
  explicit Value(std::int64_t v) : kind(Kind::kInt), integer(v), real(static_cast<double>(v)) {}
};

// A constant of the program as it is at present: the host's tensor, and what is in it.
struct Constant {
  Tensor tensor;
  void* handle = nullptr;
};

// Memory that registers share through views. It is given back when the last of them is freed.
struct Block {
  enum class Kind : std::uint8_t {
    kUnused,
    kBorrowed,  // an input's
    kArena,     // a piece of the slab
    kOwned      // a tensor of the host's: a foreign result, or what becomes an output
  };
  Kind kind = Kind::kUnused;
  int references = 0;
  char* data = nullptr;
  std::size_t bytes = 0;
  void* handle = nullptr;
  Tensor whole;  // of kOwned
};

// Blocks of constants are counted down from here: constant i is kConstantBlock - i.
inline constexpr std::int32_t kConstantBlock = -2;

class Frame {
 public:
  explicit Frame(const Program& program);
  ~Frame();
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  void begin(Host& host, std::span<const Constant> constants, std::span<const Value> inputs, std::size_t device_bytes);
  // Gives back all that the run still holds, whether it came to its end or not.
  void end();

  const Tensor& tensor(std::int32_t reg) const;
  const Value& value(std::int32_t reg) const { return registers_[static_cast<std::size_t>(reg)]; }
  void set_int(std::int32_t reg, Value::Kind kind, std::int64_t v);
  void set_double(std::int32_t reg, double v);
  void set_none(std::int32_t reg) { registers_[static_cast<std::size_t>(reg)].kind = Value::Kind::kNone; }
  // A tensor in memory that belongs to tensor.block already.
  void set_view(std::int32_t reg, const Tensor& tensor);
  // New memory for t's shape and strides; sets t.data and t.block, with one reference.
  void allocate(Tensor& t, bool escapes);
  // A tensor of the host's.
  std::int32_t own(const Tensor& t, void* handle);
  void put(std::int32_t reg, const Tensor& t);  // takes over the reference of t.block
  void free(std::int32_t reg);
  void unref(std::int32_t block);

  Host& host() const { return *host_; }
  const Block& block(std::int32_t i) const { return blocks_[static_cast<std::size_t>(i)]; }
  const Constant& constant(std::int32_t i) const { return constants_[static_cast<std::size_t>(i)]; }
  std::size_t constants() const { return constants_.size(); }
  const Arena& device_arena() const { return device_arena_; }
  const Arena& cpu_arena() const { return cpu_arena_; }

 private:
  std::int32_t new_block();

  class CpuMemory final : public MemorySource {
   public:
    Status allocate(std::size_t bytes, void** data, void** handle) override;
    void release(void* data, void* handle) override;
  };
  class DeviceMemory final : public MemorySource {
   public:
    Status allocate(std::size_t bytes, void** data, void** handle) override;
    void release(void* data, void* handle) override;
    Host* host = nullptr;
    DeviceType device = DeviceType::kCuda;
    int index = -1;  // not known yet
  };

  const Program& program_;
  Host* host_ = nullptr;
  std::span<const Constant> constants_;
  std::vector<Value> registers_;
  std::vector<Block> blocks_;
  std::vector<std::int32_t> unused_;
  CpuMemory cpu_memory_;
  DeviceMemory device_memory_;
  Arena cpu_arena_{cpu_memory_};
  Arena device_arena_{device_memory_};
  std::size_t cpu_bytes_ = 0;  // the most that a run needed
};

// One instruction in one run. An argument of another kind than the operation wants throws Error.
class Call {
 public:
  Call(Frame& frame, const Instruction& instruction) : frame_(frame), in_(instruction) {}
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  int count() const { return static_cast<int>(in_.args.size()); }
  const Operand& operand(int i) const;
  bool given(int i) const;  // and not None
  const Tensor& tensor(int i) const { return tensor_of(operand(i)); }
  const Tensor* tensor_or_null(int i) const { return given(i) ? &tensor(i) : nullptr; }
  std::int64_t integer(int i) const { return integer_of(operand(i)); }
  double real(int i) const { return real_of(operand(i)); }
  bool flag(int i) const { return integer_of(operand(i)) != 0; }
  const std::string& text(int i) const;
  DType dtype(int i) const;
  Sizes sizes(int i) const;  // a list of integers, or one
  const std::vector<Operand>& items(int i) const;

  // Of any operand: also of the items of a list.
  Value value_of(const Operand& operand) const;  // numbers and None; not tensors
  const Tensor& tensor_of(const Operand& operand) const;
  std::int64_t integer_of(const Operand& operand) const;
  double real_of(const Operand& operand) const;
  bool is_tensor(const Operand& operand) const;
  bool is_none(const Operand& operand) const;

  int outs() const { return static_cast<int>(in_.outs.size()); }
  void set_int(int out, std::int64_t v) { frame_.set_int(reg(out), Value::Kind::kInt, v); }
  void set_bool(int out, bool v) { frame_.set_int(reg(out), Value::Kind::kBool, v); }
  void set_double(int out, double v) { frame_.set_double(reg(out), v); }
  void set_none(int out) { frame_.set_none(reg(out)); }
  void set_view(int out, const Tensor& t) { frame_.set_view(reg(out), t); }
  // A new row-major tensor on like's device.
  Tensor make(int out, const Tensor& like, DType dtype, const Sizes& shape);
  // With the strides that t has.
  Tensor make(int out, const Tensor& t);
  // What a host's operation returned. Where it shares memory with an argument it is treated as a view of that.
  void adopt(int out, const Tensor& t, void* handle);

  // Row-major memory until the operation ends.
  Tensor temporary(const Tensor& like, DType dtype, const Sizes& shape);
  // t, or a row-major copy of it for as long as the operation takes.
  Tensor row_major(const Tensor& t);
  // (rows, then the last `kept` dimensions), a copy where strides do not allow a view.
  Tensor rows(const Tensor& t, int kept);

  Host& host() const { return frame_.host(); }
  Frame& frame() const { return frame_; }
  const Instruction& instruction() const { return in_; }

 private:
  std::int32_t reg(int out) const;

  Frame& frame_;
  const Instruction& in_;
  std::int32_t temporaries_[8];
  int temporary_count_ = 0;
};

// to = from, of one shape; of one dtype, or on the CPU of two that cast_on_cpu takes.
void copy(Host& host, const Tensor& to, const Tensor& from);

}  // namespace strop::runtime
