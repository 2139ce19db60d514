// Reads a plan file: model.h has its text. Every index and every count is checked here, so that a run may rely on them.
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/cpu_host.h"
#include "runtime/model.h"

namespace strop::runtime {
namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;

// f(), and the place in front of what is wrong in it.
template <class F>
auto within(const std::string& place, F&& f) {
  try {
    return f();
  } catch (const Error& error) {
    throw Error(place + ": " + error.what(), error.code);
  } catch (const Json::exception& error) {
    throw Error(place + ": " + error.what());
  }
}

ModelSize size_of(const Json& json, const Json* most) {
  if (json.is_number_integer())
    return {json.get<std::int64_t>() < 0 ? ModelSize::Kind::kOther : ModelSize::Kind::kFixed, json.get<std::int64_t>()};
  const std::string name = json.get<std::string>();
  if (name != "batch" && name != "length") throw Error("size \"" + name + "\" is not known");
  return {name == "batch" ? ModelSize::Kind::kBatch : ModelSize::Kind::kLength,
          most != nullptr ? most->get<std::int64_t>() : -1};
}

ModelArgument argument_of(const Json& json, bool input) {
  ModelArgument a;
  a.name = json.at("name").get<std::string>();
  a.dtype = dtype_named(json.at("dtype").get<std::string>());
  const Json& shape = json.at("shape");
  if (shape.size() > static_cast<std::size_t>(kMaxRank))
    throw Error(a.name + " has " + std::to_string(shape.size()) + " dimensions, at most " + std::to_string(kMaxRank) +
                " are taken");
  for (std::size_t d = 0; d < shape.size(); ++d)
    a.shape.push_back(size_of(shape[d], input ? &json.at("most").at(d) : nullptr));
  return a;
}

class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path) {}

  std::unique_ptr<SavedModel> read();

 private:
  Part part(const Json& json, const char* name, std::size_t inputs, std::size_t results);
  static void check_operations(const Part& part);
  void add_weights(Part& part, const Json& names);
  std::unique_ptr<PackedParts> packed(const Json& json);
  static PackedParts::Source pack(const Json& json, std::size_t before, std::size_t sized, std::size_t* used);

  Safetensors file_;
  std::unique_ptr<SavedModel> saved_ = std::make_unique<SavedModel>();
  std::map<std::string, std::size_t> known_;  // weights that were read, among saved_->weights
};

void Reader::check_operations(const Part& part) {
  const std::vector<std::string> missing = missing_operations(part.plan->program());
  if (missing.empty()) return;
  std::string names;
  for (const std::string& name : missing) names += (names.empty() ? "" : ", ") + name;
  throw Error("operations that need PyTorch: " + names);
}

void Reader::add_weights(Part& part, const Json& names) {
  const std::vector<Declared>& declared = part.plan->program().constants;
  if (names.size() != declared.size())
    throw Error(std::to_string(declared.size()) + " constants and " + std::to_string(names.size()) + " weights");
  for (std::size_t i = 0; i < declared.size(); ++i) {
    const std::string name = names[i].get<std::string>();
    const auto [found, is_new] = known_.emplace(name, saved_->weights.size());
    if (is_new) saved_->weights.push_back(file_.read(name));
    Constant constant{saved_->weights[found->second].tensor};
    within("tensor \"" + name + "\"", [&] { declared[i].check(constant.tensor); });
    constant.tensor.block = kConstantBlock - static_cast<std::int32_t>(i);
    part.constants.push_back(constant);
  }
}

Part Reader::part(const Json& json, const char* name, std::size_t inputs, std::size_t results) {
  return within(name, [&] {
    const Json& text = json.at("program");
    Part part;
    std::size_t outputs = 0;
    if (!text.is_null()) {
      check(Plan::load(text.dump(), &part.plan));
      outputs = part.plan->program().outputs.size();
      if (part.plan->program().inputs.size() != inputs)
        throw Error("a program of " + std::to_string(part.plan->program().inputs.size()) + " inputs, not " +
                    std::to_string(inputs));
      check_operations(part);
      add_weights(part, json.at("weights"));
    }
    for (const Json& item : json.at("results")) {
      const bool input = item.contains("input");
      const auto index = item.at(input ? "input" : "output").get<std::size_t>();
      if (index >= (input ? inputs : outputs)) throw Error("result " + item.dump() + " is not there");
      part.results.push_back({input, index});
    }
    if (results != 0 && part.results.size() != results)
      throw Error(std::to_string(part.results.size()) + " results, not " + std::to_string(results));
    return part;
  });
}

PackedParts::Source Reader::pack(const Json& json, std::size_t before, std::size_t sized, std::size_t* used) {
  PackedParts::Source source;
  const std::string from = json.at("from").get<std::string>();
  if (from != "before" && from != "sized") throw Error("\"" + from + "\" is not known");
  source.sized = from == "sized";
  if (++used[source.sized] > (source.sized ? sized : before)) throw Error("more is packed than " + from + " gives");
  source.how.as_it_is = json.value("as_it_is", false);
  if (source.how.as_it_is) return source;
  source.how.layout = {json.at("batch").get<int>(), json.at("length").get<int>()};
  source.how.batched = json.at("batched").get<bool>();
  const auto [b, l] = source.how.layout;
  const bool by_sequence = l < 0 || source.how.batched;
  if (b < (by_sequence ? 0 : -1) || b == l) throw Error("a layout that there cannot be: " + json.dump());
  return source;
}

std::unique_ptr<PackedParts> Reader::packed(const Json& json) {
  auto p = std::make_unique<PackedParts>();
  const std::size_t inputs = saved_->inputs.size();
  p->mask = json.at("mask").get<std::size_t>();
  if (p->mask >= inputs || saved_->inputs[p->mask].shape.size() != 2) throw Error("\"mask\": no input of 2 dimensions");
  bool seen[2] = {};
  for (const ModelArgument& input : saved_->inputs) {
    for (const ModelSize& size : input.shape) {
      seen[0] |= size.kind == ModelSize::Kind::kBatch;
      seen[1] |= size.kind == ModelSize::Kind::kLength;
    }
  }
  if (!seen[0] || !seen[1]) throw Error("no input has a batch and a length");
  p->wants_first = json.at("wants_first").get<bool>();
  p->wants_whole = json.at("wants_whole").get<bool>();
  p->before = part(json.at("before"), "before", inputs, 0);
  p->sized = part(json.at("sized"), "sized", inputs, 0);
  std::size_t used[2] = {};
  for (const Json& item : json.at("packs"))
    p->packs.push_back(pack(item, p->before.results.size(), p->sized.results.size(), used));
  for (const Json& item : json.at("rows")) {
    const Layout layout{item.at("batch").get<int>(), item.at("length").get<int>()};
    if (layout.batch < 0 || layout.batch == layout.length) throw Error("a layout that there cannot be: " + item.dump());
    p->rows.push_back(layout);
  }
  p->body = part(json.at("body"), "body", p->packs.size() + 3, p->rows.size());
  if (p->body.plan == nullptr || !p->body.plan->program().inputs.back().integer)
    throw Error("body: its last input is no number");
  for (const Part::Result& result : p->body.results)
    if (result.input) throw Error("body: a result that is an input");
  p->after = part(json.at("after"), "after", inputs + p->rows.size(), saved_->outputs.size());
  return p;
}

std::unique_ptr<SavedModel> Reader::read() {
  const std::string* const text = file_.metadata("strop_plan");
  if (text == nullptr) throw Error("a safetensors file without a plan: strop.save_plan writes those that have one");
  const Json json = within("the plan", [&] { return Json::parse(*text); });
  const int version = within("the plan", [&] { return json.at("version").get<int>(); });
  if (version != kVersion)
    throw Error("a plan of version " + std::to_string(version) + " (by strop " + json.value("strop", "?") +
                "), this library reads " + std::to_string(kVersion));
  within("the plan", [&] {
    for (const Json& item : json.at("inputs")) saved_->inputs.push_back(argument_of(item, true));
    for (const Json& item : json.at("outputs")) saved_->outputs.push_back(argument_of(item, false));
    if (saved_->inputs.empty() || saved_->outputs.empty()) throw Error("no inputs or no outputs");
    saved_->padded = part(json.at("padded"), "padded", saved_->inputs.size(), saved_->outputs.size());
    if (const Json& found = json.at("packed"); !found.is_null())
      saved_->packed = within("packed", [&] { return packed(found); });
  });
  return std::move(saved_);
}

}  // namespace

std::unique_ptr<SavedModel> SavedModel::read(const std::string& path) {
  return within(path, [&] { return Reader(path).read(); });
}

}  // namespace strop::runtime
