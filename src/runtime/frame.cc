#include "runtime/frame.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "runtime/pointwise.h"
#include "runtime/views.h"

namespace strop::runtime {
namespace {

constexpr std::size_t kPage = 4096;

bool holds(const char* data, std::size_t bytes, const void* at) {
  const char* const p = static_cast<const char*>(at);
  return bytes > 0 && p >= data && p < data + bytes;
}

[[noreturn, gnu::noinline]] void wrong_kind(const char* wanted) {
  throw Error(std::string("an argument that is no ") + wanted, StatusCode::kTypeError);
}

}  // namespace

Status Frame::CpuMemory::allocate(std::size_t bytes, void** data, void** handle) {
  *handle = nullptr;
  *data = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (*data != nullptr) return {};
  return Status(StatusCode::kRuntimeError, "no memory for " + std::to_string(bytes) + " bytes of intermediates");
}

void Frame::CpuMemory::release(void* data, void*) { std::free(data); }

Status Frame::DeviceMemory::allocate(std::size_t bytes, void** data, void** handle) {
  return host->allocate(device, index, bytes, data, handle);
}

void Frame::DeviceMemory::release(void*, void* handle) { host->release(handle); }

Frame::Frame(const Program& program) : program_(program), registers_(static_cast<std::size_t>(program.registers)) {
  for (std::size_t i = 0; i < program.scalars.size(); ++i) {
    Value& value = registers_[static_cast<std::size_t>(program.first_scalar()) + i];
    value.kind = Value::Kind::kTensor;
    // Nobody writes to it: there is no operation in place.
    value.tensor.data = const_cast<unsigned char*>(program.scalars[i].bytes);
    value.tensor.dtype = program.scalars[i].dtype;
  }
}

Frame::~Frame() = default;

void Frame::begin(Host& host, std::span<const Constant> constants, std::span<const Value> inputs,
                  std::size_t device_bytes) {
  host_ = &host;
  constants_ = constants;
  device_memory_.host = &host;
  device_memory_.index = -1;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    Value& value = registers_[static_cast<std::size_t>(program_.first_input()) + i];
    value = inputs[i];
    if (value.kind != Value::Kind::kTensor) continue;
    const Tensor& given = inputs[i].tensor;
    value.tensor.block = new_block();
    Block& block = blocks_[static_cast<std::size_t>(value.tensor.block)];
    block.kind = Block::Kind::kBorrowed;
    block.data = static_cast<char*>(given.data);
    block.bytes = static_cast<std::size_t>(given.bytes());
    if (given.device != DeviceType::kCpu && device_memory_.index < 0) {
      device_memory_.device = given.device;
      device_memory_.index = given.device_index;
    }
  }
  check(cpu_arena_.reserve(cpu_bytes_));
  if (device_memory_.index >= 0) check(device_arena_.reserve(device_bytes));
}

void Frame::end() {
  for (Block& block : blocks_)
    if (block.kind == Block::Kind::kOwned) host_->release(block.handle);
  blocks_.clear();
  unused_.clear();
  for (std::int32_t reg = program_.first_result(); reg < program_.registers; ++reg)
    registers_[static_cast<std::size_t>(reg)].kind = Value::Kind::kNone;
  cpu_bytes_ = std::max(cpu_bytes_, cpu_arena_.needed());
  // The slab is kept where it is one piece and nothing was left in it, as after an error.
  if (cpu_arena_.chunks() > 1 || !cpu_arena_.all_free()) cpu_arena_.clear();
  device_arena_.clear();
  host_ = nullptr;
  constants_ = {};
}

std::int32_t Frame::new_block() {
  if (!unused_.empty()) {
    const std::int32_t i = unused_.back();
    unused_.pop_back();
    return i;
  }
  blocks_.emplace_back();
  return static_cast<std::int32_t>(blocks_.size()) - 1;
}

const Tensor& Frame::tensor(std::int32_t reg) const {
  if (reg < program_.first_input()) return constants_[static_cast<std::size_t>(reg)].tensor;
  const Value& value = registers_[static_cast<std::size_t>(reg)];
  if (value.kind != Value::Kind::kTensor) [[unlikely]]
    wrong_kind("tensor");
  return value.tensor;
}

void Frame::set_int(std::int32_t reg, Value::Kind kind, std::int64_t v) {
  Value& value = registers_[static_cast<std::size_t>(reg)];
  value.kind = kind;
  value.integer = v;
  value.real = static_cast<double>(v);
}

void Frame::set_double(std::int32_t reg, double v) {
  Value& value = registers_[static_cast<std::size_t>(reg)];
  value.kind = Value::Kind::kDouble;
  value.real = v;
}

void Frame::set_view(std::int32_t reg, const Tensor& tensor) {
  put(reg, tensor);
  if (tensor.block >= 0) ++blocks_[static_cast<std::size_t>(tensor.block)].references;
}

void Frame::put(std::int32_t reg, const Tensor& t) {
  Value& value = registers_[static_cast<std::size_t>(reg)];
  value.kind = Value::Kind::kTensor;
  value.tensor = t;
}

void Frame::allocate(Tensor& t, bool escapes) {
  if (escapes) {
    void* handle = nullptr;
    check(host_->empty(t, &handle));
    t.block = own(t, handle);
    return;
  }
  const std::size_t bytes = static_cast<std::size_t>(t.bytes());
  if (bytes == 0) {
    t.data = &nothing;
    t.block = kNoBlock;
    return;
  }
  if (t.device != DeviceType::kCpu && t.device_index != device_memory_.index) {
    if (device_memory_.index >= 0) throw Error("tensors of two GPUs in one plan");
    device_memory_.device = t.device;
    device_memory_.index = t.device_index;
  }
  Arena& arena = t.device == DeviceType::kCpu ? cpu_arena_ : device_arena_;
  std::size_t size = 0;
  check(arena.allocate(bytes, &t.data, &size));
  t.block = new_block();
  Block& block = blocks_[static_cast<std::size_t>(t.block)];
  block.kind = Block::Kind::kArena;
  block.references = 1;
  block.data = static_cast<char*>(t.data);
  block.bytes = size;
  block.whole.device = t.device;
}

std::int32_t Frame::own(const Tensor& t, void* handle) {
  const std::int32_t i = new_block();
  Block& block = blocks_[static_cast<std::size_t>(i)];
  block.kind = Block::Kind::kOwned;
  block.references = 1;
  block.data = static_cast<char*>(t.data);
  block.bytes = static_cast<std::size_t>(t.bytes());
  block.handle = handle;
  block.whole = t;
  block.whole.block = i;
  return i;
}

void Frame::free(std::int32_t reg) {
  Value& value = registers_[static_cast<std::size_t>(reg)];
  if (value.kind == Value::Kind::kTensor) unref(value.tensor.block);
  value.kind = Value::Kind::kNone;
}

void Frame::unref(std::int32_t i) {
  if (i < 0) return;  // a constant, a scalar, or nothing
  Block& block = blocks_[static_cast<std::size_t>(i)];
  if (block.kind == Block::Kind::kBorrowed || --block.references > 0) return;
  if (block.kind == Block::Kind::kOwned) {
    host_->release(block.handle);
  } else {
    (block.whole.device == DeviceType::kCpu ? cpu_arena_ : device_arena_).release(block.data, block.bytes);
  }
  block.kind = Block::Kind::kUnused;
  block.references = 0;
  unused_.push_back(i);
}

// ---- Call -----------------------------------------------------------------------------------------------------------

Call::~Call() {
  for (int i = 0; i < temporary_count_; ++i) frame_.unref(temporaries_[i]);
}

const Operand& Call::operand(int i) const {
  if (i >= count()) [[unlikely]]
    throw Error("argument " + std::to_string(i) + " is missing", StatusCode::kTypeError);
  return in_.args[static_cast<std::size_t>(i)];
}

bool Call::given(int i) const { return i < count() && !is_none(in_.args[static_cast<std::size_t>(i)]); }

const std::string& Call::text(int i) const {
  const Operand& o = operand(i);
  if (o.kind != Operand::Kind::kString) [[unlikely]]
    wrong_kind("string");
  return o.text;
}

DType Call::dtype(int i) const {
  const Operand& o = operand(i);
  if (o.kind != Operand::Kind::kDType) [[unlikely]]
    wrong_kind("dtype");
  return o.dtype;
}

Sizes Call::sizes(int i) const {
  const Operand& o = operand(i);
  Sizes s;
  if (o.kind == Operand::Kind::kList) {
    for (const Operand& item : o.items) s.push(integer_of(item));
  } else {
    s.push(integer_of(o));
  }
  return s;
}

const std::vector<Operand>& Call::items(int i) const {
  const Operand& o = operand(i);
  if (o.kind != Operand::Kind::kList) [[unlikely]]
    wrong_kind("list");
  return o.items;
}

Value Call::value_of(const Operand& o) const {
  Value v;
  switch (o.kind) {
    case Operand::Kind::kRegister:
      if (is_tensor(o)) wrong_kind("number");
      return frame_.value(o.reg);
    case Operand::Kind::kInt:
      v.kind = Value::Kind::kInt;
      break;
    case Operand::Kind::kBool:
      v.kind = Value::Kind::kBool;
      break;
    case Operand::Kind::kDouble:
      v.kind = Value::Kind::kDouble;
      break;
    case Operand::Kind::kNone:
      break;
    default:
      wrong_kind("number");
  }
  v.integer = o.integer;
  v.real = o.real;
  return v;
}

bool Call::is_tensor(const Operand& o) const {
  return o.kind == Operand::Kind::kRegister &&
         (o.reg < static_cast<std::int32_t>(frame_.constants()) || frame_.value(o.reg).kind == Value::Kind::kTensor);
}

bool Call::is_none(const Operand& o) const {
  return o.kind == Operand::Kind::kNone ||
         (o.kind == Operand::Kind::kRegister && !is_tensor(o) && frame_.value(o.reg).kind == Value::Kind::kNone);
}

const Tensor& Call::tensor_of(const Operand& o) const {
  if (o.kind != Operand::Kind::kRegister) [[unlikely]]
    wrong_kind("tensor");
  return frame_.tensor(o.reg);
}

std::int64_t Call::integer_of(const Operand& o) const {
  if (o.kind == Operand::Kind::kInt || o.kind == Operand::Kind::kBool) return o.integer;
  if (o.kind == Operand::Kind::kRegister && !is_tensor(o)) {
    const Value& v = frame_.value(o.reg);
    if (v.kind == Value::Kind::kInt || v.kind == Value::Kind::kBool) return v.integer;
  }
  wrong_kind("integer");
}

double Call::real_of(const Operand& o) const {
  if (o.kind == Operand::Kind::kDouble || o.kind == Operand::Kind::kInt) return o.real;
  if (o.kind == Operand::Kind::kRegister && !is_tensor(o)) {
    const Value& v = frame_.value(o.reg);
    if (v.kind == Value::Kind::kDouble || v.kind == Value::Kind::kInt) return v.real;
  }
  wrong_kind("number");
}

std::int32_t Call::reg(int out) const {
  if (out >= outs()) [[unlikely]]
    throw Error("more results than registers for them");
  return in_.outs[static_cast<std::size_t>(out)];
}

Tensor Call::make(int out, const Tensor& like, DType dtype, const Sizes& shape) {
  Tensor t;
  t.dtype = dtype;
  t.device = like.device;
  t.device_index = like.device_index;
  make_row_major(t, shape);
  return make(out, t);
}

Tensor Call::make(int out, const Tensor& t) {
  Tensor made = t;
  const std::int32_t to = reg(out);
  frame_.allocate(made, in_.escapes);
  frame_.put(to, made);
  return made;
}

void Call::adopt(int out, const Tensor& t, void* handle) {
  Tensor made = t;
  const std::int32_t to = reg(out);
  const auto alias = [&](const Operand& o) {
    if (!is_tensor(o)) return false;
    const Tensor& argument = tensor_of(o);
    if (argument.block >= 0) {
      const Block& block = frame_.block(argument.block);
      if (!holds(block.data, block.bytes, t.data)) return false;
    } else if (!holds(static_cast<char*>(argument.data), static_cast<std::size_t>(argument.bytes()), t.data)) {
      return false;
    }
    made.block = argument.block;
    return true;
  };
  for (const Operand& argument : in_.args) {
    bool shares = alias(argument);
    for (const Operand& item : argument.items) shares = shares || alias(item);
    if (!shares) continue;
    frame_.set_view(to, made);
    host().release(handle);
    return;
  }
  made.block = frame_.own(made, handle);
  frame_.put(to, made);
}

Tensor Call::temporary(const Tensor& like, DType dtype, const Sizes& shape) {
  if (temporary_count_ == static_cast<int>(std::size(temporaries_))) throw Error("too many temporaries");
  Tensor t;
  t.dtype = dtype;
  t.device = like.device;
  t.device_index = like.device_index;
  make_row_major(t, shape);
  frame_.allocate(t, false);
  temporaries_[temporary_count_++] = t.block;
  return t;
}

Tensor Call::row_major(const Tensor& t) {
  if (t.contiguous()) return t;
  const Tensor made = temporary(t, t.dtype, t.sizes());
  copy(host(), made, t);
  return made;
}

Tensor Call::rows(const Tensor& t, int kept) {
  Tensor view;
  if (flattened(t, kept, view)) return view;
  flattened(row_major(t), kept, view);
  return view;
}

void copy(Host& host, const Tensor& to, const Tensor& from) {
  if (to.device == DeviceType::kCpu && from.device == DeviceType::kCpu && copy_on_cpu(to, from)) return;
  check(host.copy(to, from));
}

}  // namespace strop::runtime
