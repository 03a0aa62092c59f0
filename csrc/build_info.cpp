// resobj_d2._build_info: how the kernel libraries were built. setup.py writes the entries.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "How the kernel libraries of resobj_d2 were built.";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
#include "build_info_entries.inc"
    };
  });
}
