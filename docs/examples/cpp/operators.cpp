// Calls three operators from C++ and prints their results. Needs LibTorch >= 2.10 and no Python:
//
//   TORCH=/path/to/libtorch    # or $(python -c "import torch; print(torch.__path__[0])")
//   c++ -std=c++20 -O1 operators.cpp -o operators -I$TORCH/include \
//       -L$TORCH/lib -Wl,-rpath,$TORCH/lib -ltorch_cpu -lc10 -ldl
//   ./operators /path/to/libresobj_cpu.so
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <dlfcn.h>

#include <cstdio>
#include <string_view>
#include <tuple>

using at::Tensor;

// An operator as a C++ function; what follows its name is the schema of resobj_d2/ops/_schemas.py.
template <typename Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void print(const char* what, const Tensor& values) {
  std::printf("%s:", what);
  const Tensor flat = values.to(at::kDouble).flatten();
  for (int64_t i = 0; i < flat.numel(); ++i) std::printf(" %.6f", flat[i].item<double>());
  std::printf("\n");
}

void run() {
  const Tensor boxes =
      at::tensor({0.0f, 0.0f, 4.0f, 4.0f, 1.0f, 0.0f, 5.0f, 4.0f, 8.0f, 8.0f, 9.0f, 10.0f})
          .view({3, 4});
  const Tensor scores = at::tensor({0.7f, 0.9f, 0.8f});
  const Tensor classes = at::zeros({3}, at::kLong);

  const auto iou = find_operator<Tensor(const Tensor&, const Tensor&, std::string_view)>(
      "resobj_d2::pairwise_box_iou");
  print("giou", iou.call(boxes, boxes, "giou"));

  const auto nms =
      find_operator<Tensor(const Tensor&, const Tensor&, const Tensor&, double, int64_t)>(
          "resobj_d2::batched_nms");
  print("kept", nms.call(boxes, scores, classes, /*iou_threshold=*/0.5, /*max_output=*/-1));

  // Two images of three anchors, one residual step.
  const Tensor logits = at::tensor({2.0f, -1.0f, 0.0f, 0.5f, -0.5f, 1.5f}).view({2, 3});
  const Tensor residuals = at::full({1, 2, 3}, 0.25f);
  const Tensor labels = at::tensor({1, 1, 0, 0, -1, 1}, at::kInt).to(at::kChar).view({2, 3});
  const auto loss = find_operator<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, std::string_view, std::string_view,
      std::string_view, c10::SymIntArrayRef)>("resobj_d2::residual_objectness_bce");
  const auto [losses, counts, thresholds, score_sums, numbers] =
      loss.call(logits, residuals, labels, "all", "image", "update", {});
  print("losses", losses);
  print("counts", counts);
  print("thresholds", thresholds);
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s libresobj_cpu.so\n", argv[0]);
    return 2;
  }
  // Loading it defines the operators.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "error: %s\n", dlerror());
    return 1;
  }
  try {
    run();
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what_without_backtrace());
    return 1;
  }
}
