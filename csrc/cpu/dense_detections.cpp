// dense_detections on the CPU. The class logits are scanned in memory order; a comparison picks out
// those that may pass the threshold, and only these few get a score. Each part of a level keeps its
// best `topk`; once it has that many, the scan only looks for better ones. The result does not
// depend on the number of threads, since neither the parts nor the total order of candidates do.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu_backend.h"
#include "nms.h"
#include "resobj/dense_detections_host.h"

namespace resobj {
namespace {

constexpr int64_t kPart = int64_t(1) << 20;  // logits per task
constexpr int64_t kChunk = 4096;             // logits scanned before hits are processed
constexpr int64_t kStep = 64;                // logits, or cells, that one test may skip
constexpr int64_t kSparse = 8;               // 1/kSparse of the cells or less counts as few

// The best `size` of the candidates offered, in any order.
template <typename T>
class TopCandidates {
 public:
  TopCandidates(int64_t size, T score_thresh) : size_(size), score_thresh_(score_thresh) {}

  // Returns whether the lowest score that can still enter has risen.
  bool offer(const Candidate<T>& candidate) {
    if (!(candidate.score > score_thresh_)) return false;
    if (full_ && !is_better(candidate, kept_[size_ - 1])) return false;
    kept_.push_back(candidate);
    if (static_cast<int64_t>(kept_.size()) < 2 * size_ + kSpare) return false;
    cut();
    return true;
  }

  // Scores below this cannot enter.
  T least() const { return full_ ? kept_[size_ - 1].score : score_thresh_; }

  // Leaves the best ones, the worst of them last.
  void cut() {
    if (static_cast<int64_t>(kept_.size()) < size_) return;
    std::nth_element(kept_.begin(), kept_.begin() + (size_ - 1), kept_.end(), is_better<T>);
    kept_.resize(size_);
    full_ = true;
  }

  const std::vector<Candidate<T>>& candidates() const { return kept_; }

 private:
  static constexpr int64_t kSpare = 256;

  int64_t size_;
  T score_thresh_;
  bool full_ = false;
  std::vector<Candidate<T>> kept_;
};

// Writes the indices in [0, count) that pass to `hits` and returns their number.
template <typename Flag, typename Passes>
int64_t find_hits(int64_t count, const Passes& passes, int32_t* hits) {
  int64_t num_hits = 0;
  int64_t j = 0;
  for (; j + kStep <= count; j += kStep) {
    Flag any = 0;
    for (int64_t k = 0; k < kStep; ++k) any |= passes(j + k);
    if (any == 0) continue;
    uint8_t flags[kStep];
    for (int64_t k = 0; k < kStep; ++k) flags[k] = passes(j + k);
    for (int64_t word = 0; word < kStep; word += sizeof(uint64_t)) {
      uint64_t bits;
      std::memcpy(&bits, flags + word, sizeof(bits));
      if (bits == 0) continue;
      for (int64_t k = word; k < word + int64_t(sizeof(uint64_t)); ++k) {
        hits[num_hits] = static_cast<int32_t>(j + k);
        num_hits += flags[k];
      }
    }
  }
  for (; j < count; ++j) {
    hits[num_hits] = static_cast<int32_t>(j);
    num_hits += passes(j);
  }
  return num_hits;
}

// The logits of one image and level in memory order: either planes, one per anchor of a cell and
// class, or rows, one per anchor, of K classes.
template <typename T>
class LevelScan {
 public:
  LevelScan(const DenseLevel<T>& level, const ScoreRule<T>& rule, int64_t image, int32_t number,
            int64_t topk)
      : level_(level),
        rule_(rule),
        image_(image),
        number_(number),
        channels_(level.num_anchors * rule.num_classes),
        planes_(has_planes(level.cls, channels_, level.num_cells)),
        logits_(level.cls.data + image * level.cls.image),
        best_(topk, rule.score_thresh) {
    raise_bounds();
  }

  // Parts consist of whole planes or rows.
  static int64_t num_units(const DenseLevel<T>& level, const ScoreRule<T>& rule) {
    const int64_t channels = level.num_anchors * rule.num_classes;
    return has_planes(level.cls, channels, level.num_cells) ? channels : level.num_rows();
  }

  std::vector<Candidate<T>> run(int64_t begin, int64_t end) {
    if (!may_skip_) {
      scan_all(begin, end);
    } else if (planes_) {
      scan_planes(begin, end);
    } else {
      scan_rows(begin, end);
    }
    best_.cut();
    return best_.candidates();
  }

 private:
  void raise_bounds() {
    may_skip_ = false;
    for (int f = 0; f < rule_.num_factors; ++f) {
      bounds_[f] = lowest_logit(best_.least(), rule_.exponents[f], rule_.floors[f]);
      may_skip_ |= f > 0 && bounds_[f] > -std::numeric_limits<T>::infinity();
    }
  }

  // Whether the factors of an anchor let any class pass.
  bool is_active(int64_t anchor, int64_t cell) const {
    bool active = true;
    for (int f = 1; f < rule_.num_factors; ++f) {
      active &= level_.factors[f - 1].at(image_, anchor, cell) >= bounds_[f];
    }
    return active;
  }

  void scan_all(int64_t begin, int64_t end) {
    const int64_t unit = planes_ ? level_.num_cells : rule_.num_classes;
    const auto passes = [this](int64_t element) { return logits_[element] >= bounds_[0]; };
    scan(begin * unit, end * unit, passes, [this](int64_t element) {
      if (planes_) {
        visit(element / level_.num_cells, element % level_.num_cells);
      } else {
        visit(element % channels_, element / channels_);
      }
    });
  }

  // The planes of an anchor's classes share the bounds set by its factors.
  void scan_planes(int64_t begin, int64_t end) {
    std::vector<T> cell_bounds(level_.num_cells);
    std::vector<int32_t> cells;
    int64_t last_anchor = -1;
    for (int64_t channel = begin; channel < end; ++channel) {
      const int64_t anchor = channel / rule_.num_classes;
      if (anchor != last_anchor) {
        run_vectorized([&] { bound_cells(anchor, cell_bounds); });
        list_cells(cell_bounds, cells);
      }
      last_anchor = anchor;
      const T* plane = logits_ + channel * level_.num_cells;
      // If few cells can pass they are read one by one; otherwise the whole plane is streamed.
      const int64_t few = static_cast<int64_t>(cells.size());
      if (few * kSparse <= level_.num_cells) {
        scan(
            0, few, [&](int64_t i) { return plane[cells[i]] >= bounds_[0]; },
            [&](int64_t i) { visit(channel, cells[i]); });
      } else {
        scan(
            0, level_.num_cells, [&](int64_t cell) { return plane[cell] >= cell_bounds[cell]; },
            [&](int64_t cell) { visit(channel, cell); });
      }
    }
  }

  // What a class logit must reach in each cell; infinity where a factor lets no class pass.
  void bound_cells(int64_t anchor, std::vector<T>& cell_bounds) const {
    std::fill(cell_bounds.begin(), cell_bounds.end(), bounds_[0]);
    for (int f = 1; f < rule_.num_factors; ++f) {
      const MapView<T>& map = level_.factors[f - 1];
      const T* logits = map.data + image_ * map.image + anchor * map.channel;
      for (int64_t cell = 0; cell < level_.num_cells; ++cell) {
        const T known = cell_bounds[cell];
        cell_bounds[cell] = logits[cell * map.cell] >= bounds_[f] ? known : kNever;
      }
    }
  }

  static void list_cells(const std::vector<T>& cell_bounds, std::vector<int32_t>& cells) {
    const int64_t num_cells = static_cast<int64_t>(cell_bounds.size());
    cells.resize(num_cells);
    int64_t count = 0;
    for (int64_t cell = 0; cell < num_cells; ++cell) {
      cells[count] = static_cast<int32_t>(cell);
      count += cell_bounds[cell] != kNever;
    }
    cells.resize(count);
  }

  void scan_rows(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row;
      while (row < end && is_active(row % level_.num_anchors, row / level_.num_anchors)) ++row;
      if (row > first) scan_all(first, row);
    }
  }

  // Visits the indices from begin to end that pass.
  template <typename Passes, typename Visit>
  void scan(int64_t begin, int64_t end, const Passes& passes, const Visit& visit_number) {
    using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // so that loops vectorise
    int32_t hits[kChunk + 1];
    for (; begin < end; begin += kChunk) {
      const int64_t count = std::min(kChunk, end - begin);
      int64_t num_hits = 0;
      run_vectorized([&] {
        num_hits = find_hits<Flag>(count, [&](int64_t j) { return passes(begin + j); }, hits);
      });
      for (int64_t h = 0; h < num_hits; ++h) visit_number(begin + hits[h]);
    }
  }

  void visit(int64_t channel, int64_t cell) {
    const int64_t anchor = channel / rule_.num_classes;
    if (!is_active(anchor, cell)) return;
    const int64_t k = channel % rule_.num_classes;
    const int64_t row = cell * level_.num_anchors + anchor;
    T probabilities[kMaxDenseFactors];
    load_probabilities(level_, rule_, image_, row, k, probabilities);
    const T score = fused_score(rule_, probabilities);
    if (best_.offer({score, number_, row * rule_.num_classes + k})) raise_bounds();
  }

  static constexpr T kNever = std::numeric_limits<T>::infinity();

  const DenseLevel<T>& level_;
  const ScoreRule<T>& rule_;
  const int64_t image_;
  const int32_t number_;
  const int64_t channels_;
  const bool planes_;
  const T* logits_;
  TopCandidates<T> best_;
  T bounds_[kMaxDenseFactors];
  bool may_skip_;
};

struct Part {
  int64_t image;
  int32_t level;
  int64_t begin, end;  // planes or rows
};

template <typename T>
std::vector<Part> make_parts(const DenseInputs<T>& inputs) {
  std::vector<Part> parts;
  for (int64_t image = 0; image < inputs.num_images; ++image) {
    for (size_t l = 0; l < inputs.levels.size(); ++l) {
      const DenseLevel<T>& level = inputs.levels[l];
      const int64_t logits = level.num_rows() * inputs.rule.num_classes;
      if (logits == 0) continue;
      const int64_t units = LevelScan<T>::num_units(level, inputs.rule);
      int64_t per_part = std::max<int64_t>(kPart / (logits / units), 1);
      // Parts of whole anchors, if these are not much larger: see bound_cells.
      const int64_t num_classes = inputs.rule.num_classes;
      if (2 * per_part >= num_classes) per_part = ceil_div(per_part, num_classes) * num_classes;
      for (int64_t begin = 0; begin < units; begin += per_part) {
        const int64_t end = std::min(begin + per_part, units);
        parts.push_back({image, static_cast<int32_t>(l), begin, end});
      }
    }
  }
  return parts;
}

template <typename T>
using PartCandidates = std::vector<std::vector<Candidate<T>>>;

// Merges the candidates of an image's parts, best first.
template <typename T>
std::vector<Candidate<T>> merge(const std::vector<Part>& parts, const PartCandidates<T>& of_parts,
                                int64_t image, const DenseInputs<T>& inputs, int64_t topk) {
  std::vector<Candidate<T>> merged;
  size_t p = 0;
  while (p < parts.size() && parts[p].image != image) ++p;
  while (p < parts.size() && parts[p].image == image) {
    TopCandidates<T> best(topk, inputs.rule.score_thresh);
    const int32_t level = parts[p].level;
    for (; p < parts.size() && parts[p].image == image && parts[p].level == level; ++p) {
      for (const Candidate<T>& candidate : of_parts[p]) best.offer(candidate);
    }
    best.cut();
    merged.insert(merged.end(), best.candidates().begin(), best.candidates().end());
  }
  std::sort(merged.begin(), merged.end(), is_better<T>);
  return merged;
}

// Suppresses the candidates of an image, given best first, and writes those that are left.
template <typename T>
void write_detections(const DenseInputs<T>& inputs, const DenseOptions& options, int64_t image,
                      const std::vector<Candidate<T>>& candidates,
                      const DetectionOutputs<T>& outputs) {
  const int64_t num_classes = inputs.rule.num_classes;
  const int64_t first_slot = image * options.max_detections;
  // Maps without a channel allow any number of classes.
  GreedyNms<T> nms(candidates.empty() ? 0 : num_classes, round_down<T>(options.nms_thresh));
  int64_t count = 0;
  run_vectorized([&] {
    for (const Candidate<T>& candidate : candidates) {
      if (count == options.max_detections) break;
      const DenseLevel<T>& level = inputs.levels[candidate.level];
      Box<T> box = decode_box(level, inputs.deltas, image, candidate.position / num_classes);
      if (!is_finite(box) || !nms.offer(candidate.position % num_classes, box)) continue;
      if (!options.image_sizes.empty()) {
        box = clip(box, static_cast<T>(options.image_sizes[2 * image]),
                   static_cast<T>(options.image_sizes[2 * image + 1]));
      }
      outputs.write(first_slot + count++, level, inputs.rule, image, candidate, box);
    }
  });
  outputs.counts[image] = count;
  for (; count < options.max_detections; ++count) {
    outputs.pad(first_slot + count, inputs.rule.num_factors);
  }
}

struct Cpu : CpuBackend {
  template <typename T>
  static void detect(const DenseInputs<T>& inputs, const DenseOptions& options,
                     DenseResult& result) {
    const std::vector<Part> parts = make_parts(inputs);
    PartCandidates<T> of_parts(parts.size());
    const int64_t num_parts = static_cast<int64_t>(parts.size());
    torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const Part& part = parts[p];
        LevelScan<T> scan(inputs.levels[part.level], inputs.rule, part.image, part.level,
                          options.topk);
        of_parts[p] = scan.run(part.begin, part.end);
      }
    });
    const DetectionOutputs<T> outputs = point_at<T>(result);
    torch::stable::parallel_for(0, inputs.num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        write_detections(inputs, options, image,
                         merge(parts, of_parts, image, inputs, options.topk), outputs);
      }
    });
  }
};

}  // namespace
}  // namespace resobj

STABLE_TORCH_LIBRARY_IMPL(resobj_d2, CPU, m) {
  using namespace resobj;
  m.impl("dense_detections", TORCH_BOX(&host::dense_detections<Cpu>));
}
