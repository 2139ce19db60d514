#include "runtime/program.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "runtime/frame.h"
#include "runtime/ops.h"
#include "runtime/pointwise.h"

namespace strop::runtime {
namespace {

using Json = nlohmann::json;

std::string in_quotes(std::string_view text) { return '"' + std::string(text) + '"'; }

DeviceType device_named(const std::string& name) {
  if (name == "cpu") return DeviceType::kCpu;
  if (name == "cuda") return DeviceType::kCuda;
  throw Error("device " + in_quotes(name) + " is not known");
}

class Parser {
 public:
  explicit Parser(const Json& json) : json_(json) {}

  std::unique_ptr<Program> parse() {
    if (const int version = json_.at("version").get<int>(); version != 1)
      throw Error("a program of version " + std::to_string(version) + ", this library reads 1");
    for (const Json& item : json_.at("constants")) program_->constants.push_back(declared_tensor(item));
    for (const Json& item : json_.at("inputs")) program_->inputs.push_back(declared(item));
    if (json_.contains("scalars"))
      for (const Json& item : json_.at("scalars")) program_->scalars.push_back(scalar(item));
    for (const Json& item : json_.at("instructions")) program_->instructions.push_back(instruction(item));
    for (const Json& item : json_.at("outputs")) program_->outputs.push_back(read(item.get<std::string>()));
    program_->registers = next_;
    find_last_uses();
    find_what_escapes();
    return std::move(program_);
  }

 private:
  std::int32_t define(const std::string& name) {
    if (!registers_.emplace(name, next_).second) throw Error("register " + in_quotes(name) + " is written twice");
    return next_++;
  }

  std::int32_t read(const std::string& text) const {
    const auto found = text.rfind('%', 0) == 0 ? registers_.find(text.substr(1)) : registers_.end();
    if (found == registers_.end()) throw Error("register " + in_quotes(text) + " is read before it is written");
    return found->second;
  }

  Declared declared(const Json& item) {
    if (item.at("dtype") != "int") return declared_tensor(item);
    Declared d;
    d.name = item.at("name").get<std::string>();
    d.integer = true;
    define(d.name);
    return d;
  }

  Declared declared_tensor(const Json& item) {
    Declared d;
    d.name = item.at("name").get<std::string>();
    d.dtype = dtype_named(item.at("dtype").get<std::string>());
    d.device = device_named(item.value("device", "cpu"));
    for (const Json& size : item.at("shape")) d.shape.push(size.get<std::int64_t>());
    define(d.name);
    return d;
  }

  Scalar scalar(const Json& item) {
    Scalar s;
    s.dtype = dtype_named(item.at("dtype").get<std::string>());
    const Operand value = operand(item.at("value"));
    if (value.kind != Operand::Kind::kInt && value.kind != Operand::Kind::kDouble && value.kind != Operand::Kind::kBool)
      throw Error("a scalar that is no number");
    store_number(s.bytes, s.dtype, value.real, value.integer);
    define(item.at("name").get<std::string>());
    return s;
  }

  Operand operand(const Json& json) const {
    Operand o;
    if (json.is_null()) return o;
    if (json.is_boolean()) {
      o.kind = Operand::Kind::kBool;
      o.integer = json.get<bool>();
      o.real = static_cast<double>(o.integer);
    } else if (json.is_number_integer()) {
      o.kind = Operand::Kind::kInt;
      o.integer = json.get<std::int64_t>();
      o.real = static_cast<double>(o.integer);
    } else if (json.is_number_float()) {
      o.kind = Operand::Kind::kDouble;
      o.real = json.get<double>();
    } else if (json.is_string()) {
      o.kind = Operand::Kind::kRegister;
      o.reg = read(json.get<std::string>());
    } else if (json.is_array()) {
      o.kind = Operand::Kind::kList;
      for (const Json& item : json) o.items.push_back(operand(item));
    } else if (json.contains("str")) {
      o.kind = Operand::Kind::kString;
      o.text = json.at("str").get<std::string>();
    } else if (json.contains("float")) {
      o.kind = Operand::Kind::kDouble;
      const std::string text = json.at("float").get<std::string>();
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      if (text != "inf" && text != "-inf" && text != "nan") throw Error("float " + in_quotes(text) + " is not known");
      o.real = text == "inf" ? kInfinity : text == "-inf" ? -kInfinity : std::nan("");
    } else if (json.contains("dtype")) {
      o.kind = Operand::Kind::kDType;
      o.dtype = dtype_named(json.at("dtype").get<std::string>());
    } else if (json.contains("device")) {
      o.kind = Operand::Kind::kDevice;
      o.device = device_named(json.at("device").get<std::string>());
      o.integer = json.value("index", -1);
    } else if (json.contains("layout")) {
      o.kind = Operand::Kind::kLayout;
      o.text = json.at("layout").get<std::string>();
    } else if (json.contains("memory_format")) {
      o.kind = Operand::Kind::kMemoryFormat;
      o.text = json.at("memory_format").get<std::string>();
    } else {
      throw Error("an argument that is not known: " + json.dump());
    }
    return o;
  }

  Instruction instruction(const Json& item) {
    Instruction in;
    const std::string name = item.at("op").get<std::string>();
    in.label = name;
    try {
      in.op = find_op(name);
      if (in.op == nullptr) throw Error("it is not known");
      for (const Json& argument : item.at("args")) in.args.push_back(operand(argument));
      if (name == "call" || name == "python") {
        in.foreign = std::make_unique<Foreign>();
        in.foreign->name = in.label = item.at("name").get<std::string>();
        in.foreign->overload = item.value("overload", "");
        in.foreign->callable = item.value("callable", -1);
        for (const char* key : {"types", "results"}) {
          if (!item.contains(key)) continue;
          auto& types = key[0] == 't' ? in.foreign->types : in.foreign->results;
          for (const Json& type : item.at(key)) types.push_back(foreign_type_named(type.get<std::string>()));
        }
        if (name == "call" && in.foreign->types.size() != in.args.size())
          throw Error(std::to_string(in.args.size()) + " arguments, " + std::to_string(in.foreign->types.size()) +
                      " types");
        if (name == "python" && in.foreign->callable < 0) throw Error("no callable");
      }
      for (const Json& out : item.at("out")) in.outs.push_back(define(out.get<std::string>()));
      if (!in.outs.empty()) in.label += " (" + item.at("out")[0].get<std::string>() + ")";
    } catch (const Error& error) {
      throw Error("instruction " + std::to_string(program_->instructions.size()) + ", " + in.label + ": " +
                  error.what());
    }
    return in;
  }

  template <class F>
  static void each_register(const Operand& operand, F&& f) {
    if (operand.kind == Operand::Kind::kRegister) f(operand.reg);
    for (const Operand& item : operand.items) each_register(item, f);
  }

  // Constants, inputs and scalars stay for the whole run. A result that nothing reads is freed where it is made.
  void find_last_uses() {
    std::vector<bool> read_later(static_cast<std::size_t>(next_), false);
    for (const std::int32_t reg : program_->outputs) read_later[static_cast<std::size_t>(reg)] = true;
    for (std::size_t i = program_->instructions.size(); i-- > 0;) {
      Instruction& in = program_->instructions[i];
      const auto note = [&](std::int32_t reg) {
        if (reg < program_->first_result() || read_later[static_cast<std::size_t>(reg)]) return;
        read_later[static_cast<std::size_t>(reg)] = true;
        in.frees.push_back(reg);
      };
      for (const std::int32_t out : in.outs) note(out);
      for (const Operand& argument : in.args) each_register(argument, note);
    }
  }

  void find_what_escapes() {
    std::vector<bool> escapes(static_cast<std::size_t>(next_), false);
    for (const std::int32_t reg : program_->outputs) escapes[static_cast<std::size_t>(reg)] = true;
    for (std::size_t i = program_->instructions.size(); i-- > 0;) {
      Instruction& in = program_->instructions[i];
      for (const std::int32_t out : in.outs) in.escapes |= escapes[static_cast<std::size_t>(out)];
      if (in.escapes && in.op->views && !in.args.empty() && in.args[0].kind == Operand::Kind::kRegister)
        escapes[static_cast<std::size_t>(in.args[0].reg)] = true;
    }
  }

  const Json& json_;
  std::unique_ptr<Program> program_ = std::make_unique<Program>();
  std::unordered_map<std::string, std::int32_t> registers_;
  std::int32_t next_ = 0;
};

}  // namespace

void Declared::check(const Tensor& t) const {
  if (t.dtype != dtype)
    throw Error(name + ": expected " + dtype_name(dtype) + ", got " + dtype_name(t.dtype), StatusCode::kTypeError);
  if (t.device != device) throw Error(name + ": it is on another device than the plan was made for");
  if (t.rank != shape.count)
    throw Error(name + ": expected " + std::to_string(shape.count) + " dimensions, got " + std::to_string(t.rank));
  for (int d = 0; d < t.rank; ++d) {
    if (shape[d] >= 0 && t.shape[d] != shape[d])
      throw Error(name + ": expected size " + std::to_string(shape[d]) + " in dimension " + std::to_string(d) +
                  ", got " + std::to_string(t.shape[d]));
  }
}

void Declared::check(const Value& v) const {
  const bool number = v.kind == Value::Kind::kInt;
  if (number != integer || (!number && v.kind != Value::Kind::kTensor))
    throw Error(name + ": expected a" + (integer ? "n int" : " tensor"), StatusCode::kTypeError);
  if (!integer) check(v.tensor);
}

DType dtype_named(std::string_view name) {
  for (int i = 0; i < static_cast<int>(DType::kOther); ++i)
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  throw Error("dtype " + in_quotes(name) + " is not known");
}

Activation activation_named(std::string_view name) {
  static constexpr std::pair<const char*, Activation> kNames[] = {
      {"none", Activation::kNone},          {"relu", Activation::kRelu}, {"gelu", Activation::kGelu},
      {"gelu_tanh", Activation::kGeluTanh}, {"silu", Activation::kSilu}, {"tanh", Activation::kTanh}};
  for (const auto& [known, activation] : kNames)
    if (name == known) return activation;
  throw Error("activation " + in_quotes(name) + " is not known");
}

ForeignType foreign_type_named(std::string_view name) {
  ForeignType type;
  std::string_view rest = name;
  const auto cut = [&](std::string_view end) {
    if (!rest.ends_with(end)) return false;
    rest.remove_suffix(end.size());
    return true;
  };
  type.optional = cut("?");
  type.list = cut("[]");
  if (type.list) {
    type.optional_items = cut("?");
  }
  static constexpr std::pair<const char*, ForeignType::Base> kNames[] = {
      {"Tensor", ForeignType::Base::kTensor},
      {"int", ForeignType::Base::kInt},
      {"float", ForeignType::Base::kDouble},
      {"bool", ForeignType::Base::kBool},
      {"str", ForeignType::Base::kString},
      {"dtype", ForeignType::Base::kDType},
      {"device", ForeignType::Base::kDevice},
      {"layout", ForeignType::Base::kLayout},
      {"memory_format", ForeignType::Base::kMemoryFormat}};
  for (const auto& [known, base] : kNames) {
    if (rest == known) {
      type.base = base;
      return type;
    }
  }
  throw Error("type " + in_quotes(name) + " is not known");
}

std::unique_ptr<Program> parse(std::string_view text) {
  try {
    const Json json = Json::parse(text);
    return Parser(json).parse();
  } catch (const Json::exception& error) {
    throw Error(std::string("the text of the program: ") + error.what());
  }
}

}  // namespace strop::runtime
