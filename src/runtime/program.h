// A program: what a plan runs, read from its text (JSON) into numbered registers.
//
//   {"version": 1,
//    "inputs": [{"name": "input_ids", "dtype": "int64", "device": "cpu", "shape": [-1, -1]}, …],     -1: any size
//                                        or {"name": "longest", "dtype": "int"}: a number
//    "constants": [{"name": "embeddings.weight", "dtype": "float32", "device": "cpu", "shape": [97, 32]}, …],
//    "scalars": [{"name": "c0", "dtype": "float32", "value": 0.5}, …],             tensors without dimensions
//    "instructions": [{"op": "transpose", "args": ["%x", 1, 2], "out": ["y"]}, …],
//    "outputs": ["%y", …]}
//
// An argument is "%name" (a register), a number, true, false, null, a list of such, {"str": "gelu"},
// {"float": "inf" | "-inf" | "nan"}, {"dtype": "float32"}, {"device": "cuda", "index": 0}, {"layout": "strided"} or
// {"memory_format": "contiguous"}. A register is written once. When it is freed follows from its last use.
//
// "op": "call" is a foreign operation: "name": "aten::gather", "overload": "", "types": ["Tensor", "int?", …] and
// "results", with all arguments of its schema. "op": "python" calls the host's callable of number "callable".
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/host.h"
#include "runtime/tensor.h"
#include "strop/linear.h"

namespace strop::runtime {

struct Op;

struct Operand {
  enum class Kind : std::uint8_t {
    kRegister,
    kNone,
    kInt,
    kDouble,
    kBool,
    kString,
    kDType,
    kDevice,
    kLayout,
    kMemoryFormat,
    kList
  };
  Kind kind = Kind::kNone;
  std::int32_t reg = -1;
  std::int64_t integer = 0;  // of kInt and kBool; the index of a device
  double real = 0;           // of kDouble, and of kInt
  DType dtype = DType::kOther;
  DeviceType device = DeviceType::kCpu;
  std::string text;  // of kString, kLayout, kMemoryFormat
  std::vector<Operand> items;
};

struct Instruction {
  const Op* op = nullptr;
  std::vector<Operand> args;
  std::vector<std::int32_t> outs;
  std::vector<std::int32_t> frees;  // registers that are not read after it
  bool escapes = false;             // its result is, or may be seen through, an output of the program
  std::string label;                // for errors: the operation and its result's name
  std::unique_ptr<Foreign> foreign;
};

struct Value;

// What the text says of an input or constant.
struct Declared {
  std::string name;
  bool integer = false;  // a number, of which nothing else is said
  DType dtype = DType::kFloat32;
  DeviceType device = DeviceType::kCpu;
  Sizes shape;  // -1: any

  void check(const Tensor& t) const;  // throws Error
  void check(const Value& v) const;   // throws Error
};

struct Scalar {
  DType dtype = DType::kFloat32;
  alignas(8) unsigned char bytes[8] = {};
};

// Registers are numbered: constants, inputs, scalars, then results of instructions.
struct Program {
  std::vector<Declared> constants, inputs;
  std::vector<Scalar> scalars;
  std::vector<Instruction> instructions;
  std::vector<std::int32_t> outputs;
  std::int32_t registers = 0;

  std::int32_t first_input() const { return static_cast<std::int32_t>(constants.size()); }
  std::int32_t first_scalar() const { return first_input() + static_cast<std::int32_t>(inputs.size()); }
  std::int32_t first_result() const { return first_scalar() + static_cast<std::int32_t>(scalars.size()); }
};

DType dtype_named(std::string_view name);               // throws Error for one that is not known
Activation activation_named(std::string_view name);     // throws Error
std::unique_ptr<Program> parse(std::string_view text);  // throws Error
ForeignType foreign_type_named(std::string_view name);  // "Tensor?[]"; throws Error

}  // namespace strop::runtime
