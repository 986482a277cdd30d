// The description of a model as JavaScript gives it (NativeArchitecture of src/native.ts).
#pragma once
#include "../engine/architecture.h"
#include "input.h"

namespace looplm::addon {

Architecture read_architecture(const Input& in);

}  // namespace looplm::addon
