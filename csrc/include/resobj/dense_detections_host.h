// dense_detections on the host, shared by both backends. A backend has
//   detect(inputs, options, result)
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "resobj/dense_detections_math.h"
#include "resobj/tensor_checks.h"

namespace resobj {

constexpr const char* kDenseOp = "dense_detections";
constexpr int64_t kMaxImageSize = std::numeric_limits<int32_t>::max();
// More candidates than fit into memory; twice as many still are a number.
constexpr int64_t kMaxTopk = int64_t(1) << 48;

using Tensors = std::vector<Tensor>;

struct DenseOptions {
  double score_thresh;
  int64_t topk;
  double nms_thresh;
  int64_t max_detections;
  std::vector<int64_t> image_sizes;  // height and width of each image, or empty
};

struct DenseResult {
  Tensor boxes, scores, classes, factors, rows, counts;
};

// Maps in the form that the kernels read; `tensors` keeps any copies alive.
template <typename T>
struct DenseInputs {
  int64_t num_images;
  std::vector<DenseLevel<T>> levels;
  ScoreRule<T> rule;
  DeltaRule<T> deltas;
  Tensors tensors;
};

// Whether the cells of all rows are evenly spaced.
inline bool has_even_cells(const Tensor& map) {
  return map.size(2) <= 1 || map.size(3) <= 1 || map.stride(2) == map.size(3) * map.stride(3);
}

template <typename T>
MapView<T> view_map(const Tensor& map) {
  // The stride of a dimension of size 1 is arbitrary.
  const int64_t cell = map.size(3) > 1 ? map.stride(3) : map.stride(2);
  return {map.const_data_ptr<T>(), map.stride(0), map.stride(1), cell};
}

template <typename T>
MapView<T> keep_map(DenseInputs<T>& inputs, const Tensor& map) {
  inputs.tensors.push_back(has_even_cells(map) ? map : torch::stable::contiguous(map));
  return view_map<T>(inputs.tensors.back());
}

// Like keep_map, for logits: scanning all of them needs planes or rows.
template <typename T>
MapView<T> keep_dense_map(DenseInputs<T>& inputs, const Tensor& map) {
  const int64_t channels = map.size(1);
  const int64_t cells = map.size(2) * map.size(3);
  const MapView<T> view = keep_map(inputs, map);
  if (has_planes(view, channels, cells) || has_rows(view, channels, cells)) return view;
  inputs.tensors.back() = torch::stable::contiguous(map);
  return view_map<T>(inputs.tensors.back());
}

inline void check_map(const Tensor& map, const std::string& name, int64_t channels,
                      const Tensor& like) {
  STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == like.size(0) && map.size(1) == channels &&
                      map.size(2) == like.size(2) && map.size(3) == like.size(3),
                  kDenseOp, ": ", name, " must have ", channels,
                  " channels and the images and cells of cls_logits");
}

inline void check_dense(const Tensors& cls_logits, const Tensors& deltas, const Tensors& anchors,
                        const Tensors& factor_logits, int64_t num_classes, size_t num_factors) {
  const size_t levels = cls_logits.size();
  STD_TORCH_CHECK(levels >= 1 && levels <= kMaxDenseLevels, kDenseOp,
                  ": cls_logits must have 1 to ", kMaxDenseLevels, " levels");
  STD_TORCH_CHECK(anchors.size() == levels && (deltas.empty() || deltas.size() == levels), kDenseOp,
                  ": deltas and anchors must have the levels of cls_logits");
  STD_TORCH_CHECK(num_factors >= 1 && num_factors <= kMaxDenseFactors, kDenseOp,
                  ": exponents must have 1 to ", kMaxDenseFactors, " numbers");
  STD_TORCH_CHECK(factor_logits.size() == (num_factors - 1) * levels, kDenseOp,
                  ": factor_logits must have a map per level for each exponent after the first");
  STD_TORCH_CHECK(num_classes >= 1, kDenseOp, ": num_classes must be at least 1");
  const auto check = [&](const char* name, const Tensors& tensors) {
    for (const Tensor& tensor : tensors) {
      check_devices(kDenseOp, {{"cls_logits", cls_logits[0]}, {name, tensor}});
      check_dtypes(kDenseOp, {{"cls_logits", cls_logits[0]}, {name, tensor}});
    }
  };
  check("cls_logits", cls_logits);
  check("deltas", deltas);
  check("anchors", anchors);
  check("factor_logits", factor_logits);
  for (size_t l = 0; l < levels; ++l) {
    const Tensor& cls = cls_logits[l];
    STD_TORCH_CHECK(
        cls.dim() == 4 && cls.size(1) % num_classes == 0 && cls.size(0) == cls_logits[0].size(0),
        kDenseOp, ": cls_logits must have shape (images, anchors * classes, H, W)");
    const int64_t per_cell = cls.size(1) / num_classes;
    if (!deltas.empty()) check_map(deltas[l], "deltas", 4 * per_cell, cls);
    for (size_t f = 0; f + 1 < num_factors; ++f) {
      check_map(factor_logits[f * levels + l], "factor_logits", per_cell, cls);
    }
    const Tensor& boxes = anchors[l];
    const int64_t dim = boxes.dim();
    STD_TORCH_CHECK((dim == 2 || (dim == 3 && boxes.size(0) == cls.size(0))) &&
                        boxes.size(dim - 1) == 4 &&
                        boxes.size(dim - 2) == per_cell * cls.size(2) * cls.size(3),
                    kDenseOp, ": anchors must have one box per anchor of cls_logits, (R, 4) or ",
                    "(images, R, 4)");
  }
}

inline void check_dense_options(const DenseOptions& options, const std::vector<double>& exponents,
                                const std::vector<double>& floors,
                                const std::vector<double>& weights, int64_t num_images) {
  STD_TORCH_CHECK(floors.size() == exponents.size(), kDenseOp,
                  ": floors must have one number for each exponent");
  for (const double exponent : exponents) {
    STD_TORCH_CHECK(exponent >= 0 && exponent < INFINITY, kDenseOp,
                    ": exponents must be at least 0 and finite");
  }
  // Below it a score is 0, which passes a negative threshold; the scan skips what is below a floor.
  STD_TORCH_CHECK(options.score_thresh >= 0 ||
                      std::all_of(floors.begin(), floors.end(), [](double f) { return f <= 0; }),
                  kDenseOp, ": score_thresh must be 0 or more with floors");
  STD_TORCH_CHECK(weights.size() == 4, kDenseOp, ": weights must be four numbers");
  STD_TORCH_CHECK(options.topk >= 1, kDenseOp, ": topk must be at least 1");
  STD_TORCH_CHECK(options.max_detections >= 1, kDenseOp, ": max_detections must be at least 1");
  STD_TORCH_CHECK(options.max_detections <= std::numeric_limits<int32_t>::max(), kDenseOp,
                  ": max_detections must be below 2^31");
  STD_TORCH_CHECK(options.nms_thresh >= 0, kDenseOp, ": nms_thresh must be at least 0");
  STD_TORCH_CHECK(options.image_sizes.empty() ||
                      static_cast<int64_t>(options.image_sizes.size()) == 2 * num_images,
                  kDenseOp, ": image_sizes must be height and width of each image");
  for (const int64_t size : options.image_sizes) {
    STD_TORCH_CHECK(size >= 0 && size <= kMaxImageSize, kDenseOp,
                    ": image_sizes must be between 0 and ", kMaxImageSize);
  }
}

template <typename T>
DenseInputs<T> parse_dense(const Tensors& cls_logits, const Tensors& deltas, const Tensors& anchors,
                           const Tensors& factor_logits, int64_t num_classes,
                           const std::vector<double>& exponents, const std::vector<double>& floors,
                           double score_thresh, const std::vector<double>& weights,
                           double scale_clamp) {
  DenseInputs<T> inputs{};
  inputs.num_images = cls_logits[0].size(0);
  int64_t first_row = 0;
  for (size_t l = 0; l < cls_logits.size(); ++l) {
    DenseLevel<T> level{};
    level.num_anchors = cls_logits[l].size(1) / num_classes;
    level.num_cells = cls_logits[l].size(2) * cls_logits[l].size(3);
    level.first_row = first_row;
    first_row += level.num_rows();
    level.cls = keep_dense_map(inputs, cls_logits[l]);
    if (!deltas.empty()) level.deltas = keep_map(inputs, deltas[l]);
    for (size_t f = 0; f + 1 < exponents.size(); ++f) {
      level.factors[f] = keep_map(inputs, factor_logits[f * cls_logits.size() + l]);
    }
    const Tensor& boxes = anchors[l];
    const int64_t dim = boxes.dim();
    const bool packed = boxes.stride(dim - 1) == 1 && boxes.stride(dim - 2) == 4 &&
                        (dim == 2 || boxes.stride(0) % 4 == 0);
    inputs.tensors.push_back(packed ? boxes : torch::stable::contiguous(boxes));
    level.anchors = inputs.tensors.back().template const_data_ptr<T>();
    level.anchor_stride = dim == 3 ? inputs.tensors.back().stride(0) / 4 : 0;
    inputs.levels.push_back(level);
  }
  inputs.rule.num_classes = num_classes;
  inputs.rule.num_factors = static_cast<int>(exponents.size());
  inputs.rule.score_thresh = static_cast<T>(score_thresh);
  for (size_t f = 0; f < exponents.size(); ++f) {
    inputs.rule.exponents[f] = static_cast<T>(exponents[f]);
    inputs.rule.floors[f] = static_cast<T>(floors[f]);
  }
  STD_TORCH_CHECK(!std::isnan(scale_clamp), kDenseOp, ": scale_clamp must be a number");
  for (int d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(is_positive<T>(weights[d]), kDenseOp, ": weights must be positive");
  }
  for (int d = 0; d < 4; ++d) inputs.deltas.factors[d] = static_cast<T>(1 / weights[d]);
  inputs.deltas.scale_clamp = static_cast<T>(scale_clamp);
  return inputs;
}

template <typename T>
DetectionOutputs<T> point_at(DenseResult& result) {
  return {result.boxes.mutable_data_ptr<T>(),         result.scores.mutable_data_ptr<T>(),
          result.classes.mutable_data_ptr<int64_t>(), result.factors.mutable_data_ptr<T>(),
          result.rows.mutable_data_ptr<int64_t>(),    result.counts.mutable_data_ptr<int64_t>()};
}

// Uninitialised.
inline DenseResult allocate_dense(const Tensor& like, int64_t max_detections, int64_t num_factors) {
  const int64_t n = like.size(0);
  const int64_t d = max_detections;
  const auto allocate = [&](std::vector<int64_t> shape, ScalarType dtype) {
    return torch::stable::new_empty(like, shape, dtype);
  };
  const ScalarType real = like.scalar_type();
  return {allocate({n, d, 4}, real),          allocate({n, d}, real),
          allocate({n, d}, ScalarType::Long), allocate({n, d, num_factors}, real),
          allocate({n, d}, ScalarType::Long), allocate({n}, ScalarType::Long)};
}

namespace host {

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> dense_detections(
    const Tensors& cls_logits, const Tensors& deltas, const Tensors& anchors,
    const Tensors& factor_logits, int64_t num_classes, const std::vector<double>& exponents,
    const std::vector<double>& floors, double score_thresh, int64_t topk, double nms_thresh,
    int64_t max_detections, const std::vector<double>& weights, double scale_clamp,
    const std::vector<int64_t>& image_sizes) {
  check_dense(cls_logits, deltas, anchors, factor_logits, num_classes, exponents.size());
  const DenseOptions options{score_thresh, smaller(topk, kMaxTopk), nms_thresh, max_detections,
                             image_sizes};
  check_dense_options(options, exponents, floors, weights, cls_logits[0].size(0));
  const typename Backend::DeviceGuard guard(cls_logits[0]);
  DenseResult result =
      allocate_dense(cls_logits[0], max_detections, static_cast<int64_t>(exponents.size()));
  dispatch_float(cls_logits[0], [&](auto scalar) {
    const auto inputs =
        parse_dense<decltype(scalar)>(cls_logits, deltas, anchors, factor_logits, num_classes,
                                      exponents, floors, score_thresh, weights, scale_clamp);
    Backend::detect(inputs, options, result);
  });
  return {result.boxes, result.scores, result.classes, result.factors, result.rows, result.counts};
}

}  // namespace host
}  // namespace resobj
