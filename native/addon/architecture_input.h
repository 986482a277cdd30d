// Reads the description of a model that JavaScript passes (NativeArchitecture of src/native.ts).
#pragma once
#include "../engine/architecture.h"
#include "input.h"

namespace looplm::addon {

Architecture read_architecture(const Input& in);

}  // namespace looplm::addon
