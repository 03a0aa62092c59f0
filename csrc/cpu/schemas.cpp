// Defines the operators of resobj_d2. The build writes schemas.inc, a line for each schema of
// resobj_d2/ops/_schemas.py. The library of the CUDA kernels defines nothing.

#include <torch/csrc/stable/library.h>

// Newer than the stable ABI that this is compiled for: null before torch 2.12.
extern "C" {
__attribute__((weak)) AOTITorchError torch_library_def_with_tags(TorchLibraryHandle, const char*,
                                                                 const int32_t*, int32_t);
__attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();
}

namespace {

const char* const schemas[] = {
#include "schemas.inc"
};

AOTITorchError define(TorchLibraryHandle library, const char* schema) {
  if (torch_library_def_with_tags == nullptr || torch_tag_pt2_compliant_tag == nullptr) {
    return aoti_torch_library_def(library, schema);
  }
  const int32_t tag = torch_tag_pt2_compliant_tag();
  return torch_library_def_with_tags(library, schema, &tag, 1);
}

// False if Python has defined them, or another library: the kernels then serve those operators. An
// exception would end the process.
bool define_operators() {
  // Not deleted, since that would undefine them.
  TorchLibraryHandle library;
  if (aoti_torch_library_init_def("resobj_d2", __FILE__, __LINE__, &library)) return false;
  for (const char* schema : schemas) {
    if (define(library, schema)) return false;
  }
  return true;
}

[[maybe_unused]] const bool defined = define_operators();

}  // namespace
