// Status: what every public C++ function returns.
#pragma once

#include <string>
#include <utility>

namespace strop {

enum class StatusCode {
  kOk = 0,
  kTypeError,     // an argument has the wrong dtype or kind; Python raises TypeError
  kValueError,    // an argument has the wrong shape, device, layout or value; Python raises ValueError
  kRuntimeError,  // the CUDA runtime refused; Python raises RuntimeError
};

// A code and, unless it is kOk, a message that names the argument, what was expected and what came.
// An ok Status allocates nothing.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

}  // namespace strop
