// The one exception class of the engine: a code for programs, the operation, and a message that gives the cause and what to
// do.
#pragma once
#include <stdexcept>
#include <string>

namespace looplm {

struct Error : std::runtime_error {
  Error(std::string code, std::string operation, const std::string& message)
      : std::runtime_error(message), code(std::move(code)), operation(std::move(operation)) {}
  std::string code;  // one of src/errors.ts: INVALID_ARGUMENT, INVALID_SHAPE, INVALID_FILE, OUT_OF_MEMORY, ABORTED, ...
  std::string operation;
};

}  // namespace looplm
