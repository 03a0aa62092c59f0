// Matching of anchors on the CPU, in O(R + M) memory besides the result.
//
// Anchors are processed in blocks of 128 consecutive ones. These are close to each other, so most
// ground truths miss a block's bounding box and are skipped. A first pass finds the best box of
// every anchor and, for each ground truth, the highest IoU in each group of 32 blocks and the
// blocks that reach it. For low-quality matches a second pass revisits only the blocks that reach
// the maximum over all groups; the same arithmetic makes its IoUs bit-identical.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "box_lanes.h"
#include "cpu_backend.h"
#include "instruction_sets.h"
#include "resobj/bits.h"
#include "resobj/match_anchors_host.h"

namespace resobj {
namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kBlocksPerGroup = 32;  // one bit each in GroupBest::blocks
constexpr int64_t kGroup = kBlock * kBlocksPerGroup;

// As wide as T, so that loops over both vectorise.
template <typename T>
using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <typename T>
struct KnownBox {
  Box<T> box;
  T area;
};

// The highest IoU of a ground truth in a group, and the blocks where an anchor has it.
template <typename T>
struct GroupBest {
  T iou;
  uint32_t blocks;
};

// The boxes of all images, which blocks of anchors are compared with.
template <typename T>
class KnownBoxes {
 public:
  explicit KnownBoxes(const RaggedBoxes& ragged)
      : offsets_(ragged.offsets), boxes_(ragged.total()) {
    for (std::vector<T>& values : corners_) values.resize(boxes_.size() + kTested);
    const T* values = ragged.boxes.const_data_ptr<T>();
    for (size_t i = 0; i < boxes_.size(); ++i) {
      const Box<T> box = get_box(values, i);
      boxes_[i] = {box, area(box)};
      for (int c = 0; c < 4; ++c) corners_[c][i] = values[4 * i + c];
    }
  }

  bool empty() const { return boxes_.empty(); }
  const KnownBox<T>* of_image(int64_t image) const { return boxes_.data() + offsets_[image]; }

  // Calls f(row) for each box of an image that may intersect `other`. The test is cheap: it leaves
  // out only boxes whose intersection is certainly empty.
  template <typename F>
  void for_each_near(int64_t image, const Box<T>& other, const F& f) const {
    const int64_t end = offsets_[image + 1];
    for (int64_t first = offsets_[image]; first < end; first += kTested) {
      const T* x1 = corners_[0].data() + first;
      const T* y1 = corners_[1].data() + first;
      const T* x2 = corners_[2].data() + first;
      const T* y2 = corners_[3].data() + first;
      uint8_t near[kTested];  // may go on into the next image
      for (int k = 0; k < kTested; ++k) {
        near[k] = (x1[k] < other.x2) & (other.x1 < x2[k]) & (y1[k] < other.y2) & (other.y1 < y2[k]);
      }
      for (int k = 0; k < kTested; k += sizeof(uint64_t)) {
        uint64_t bits;
        std::memcpy(&bits, near + k, sizeof(bits));
        if (bits == 0) continue;
        for (int64_t i = first + k; i < std::min<int64_t>(first + k + sizeof(bits), end); ++i) {
          if (near[i - first]) f(i - offsets_[image]);
        }
      }
    }
  }

 private:
  // Boxes at a time; loops of up to 16 would be unrolled instead.
  static constexpr int kTested = 32;

  const std::vector<int64_t>& offsets_;
  std::vector<KnownBox<T>> boxes_;
  std::vector<T> corners_[4];  // padded
};

template <typename T>
struct AnchorBlock {
  alignas(64) T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  // The smallest box around all anchors. NaN coordinates are ignored, as they intersect nothing.
  Box<T> bounds;

  // Padded with copies of the last anchor, so that every loop runs over a whole block.
  void load(const T* anchors, int64_t count) {
    T padded[4 * kBlock];
    if (count < kBlock) {
      std::copy(anchors, anchors + 4 * count, padded);
      for (int64_t j = count; j < kBlock; ++j) {
        std::copy(anchors + 4 * (count - 1), anchors + 4 * count, padded + 4 * j);
      }
      anchors = padded;
    }
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    BoxLanes<T> around;
    around.x1 = around.y1 = typename BoxLanes<T>::Vector{} + kInfinity;
    around.x2 = around.y2 = typename BoxLanes<T>::Vector{} - kInfinity;
    for (int64_t j = 0; j < kBlock; j += kBoxLanes) {
      BoxLanes<T> boxes;
      boxes.load(anchors + 4 * j);
      const auto areas = (boxes.x2 - boxes.x1) * (boxes.y2 - boxes.y1);
      std::memcpy(x1 + j, &boxes.x1, sizeof(boxes.x1));
      std::memcpy(y1 + j, &boxes.y1, sizeof(boxes.y1));
      std::memcpy(x2 + j, &boxes.x2, sizeof(boxes.x2));
      std::memcpy(y2 + j, &boxes.y2, sizeof(boxes.y2));
      std::memcpy(area + j, &areas, sizeof(areas));
      around.x1 = boxes.x1 < around.x1 ? boxes.x1 : around.x1;
      around.y1 = boxes.y1 < around.y1 ? boxes.y1 : around.y1;
      around.x2 = boxes.x2 > around.x2 ? boxes.x2 : around.x2;
      around.y2 = boxes.y2 > around.y2 ? boxes.y2 : around.y2;
    }
    bounds = {kInfinity, kInfinity, -kInfinity, -kInfinity};
    for (int k = 0; k < kBoxLanes; ++k) {
      bounds = {smaller(around.x1[k], bounds.x1), smaller(around.y1[k], bounds.y1),
                larger(around.x2[k], bounds.x2), larger(around.y2[k], bounds.y2)};
    }
  }

  Box<T> box(int64_t j) const { return Box<T>{x1[j], y1[j], x2[j], y2[j]}; }
};

// The best box so far of each anchor of a block. IoUs are non-negative, so their bits as integers
// have the same order, and an integer maximum vectorises, unlike a float one.
template <typename T>
struct BlockMatch {
  alignas(64) Integer<T> iou_bits[kBlock];
  alignas(64) Integer<T> index[kBlock];

  // Compares with ground truth `row` and returns its highest IoU with an anchor of the block.
  // `first`: nothing was compared before; row 0 is the best one of anchors without overlap.
  template <bool first>
  T update(const AnchorBlock<T>& block, const KnownBox<T>& gt, Integer<T> row) {
    Integer<T> highest = 0;
    for (int64_t j = 0; j < kBlock; ++j) {
      const auto value = bit_cast<Integer<T>>(
          overlap<Overlap::kIou>(gt.box, gt.area, block.box(j), block.area[j]));
      const Integer<T> best = first ? 0 : iou_bits[j];
      const Integer<T> best_row = first ? 0 : index[j];
      iou_bits[j] = larger(value, best);
      // Strictly greater, so that the first of several boxes with the same IoU stays.
      index[j] = value > best ? row : best_row;
      highest = larger(value, highest);
    }
    return bit_cast<T>(highest);
  }

  void write(const MatchRule<T>& rule, int64_t count, int64_t* out_index, T* out_iou,
             int8_t* out_label) const {
    // A constant number of thresholds, so that they are compared in one loop.
    switch (rule.num_thresholds) {
      case 1:
        return write_with<1>(rule, count, out_index, out_iou, out_label);
      case 2:
        return write_with<2>(rule, count, out_index, out_iou, out_label);
      default:
        return write_with<kMaxThresholds>(rule, count, out_index, out_iou, out_label);
    }
  }

 private:
  template <int thresholds>
  void write_with(const MatchRule<T>& rule, int64_t count, int64_t* __restrict__ out_index,
                  T* __restrict__ out_iou, int8_t* __restrict__ out_label) const {
    // Copies, since a select between values in memory does not vectorise.
    Integer<T> threshold[thresholds], above[thresholds];
    for (int t = 0; t < thresholds; ++t) {
      // Positive, so its bits have the same order too. Those that are not used are out of reach.
      const T used = t < rule.num_thresholds ? rule.thresholds[t] : T(2);
      threshold[t] = bit_cast<Integer<T>>(used);
      above[t] = rule.labels[t + 1];
    }
    const Integer<T> below = rule.labels[0];
    for (int64_t j = 0; j < count; ++j) {
      Integer<T> label = below;
      for (int t = 0; t < thresholds; ++t) label = iou_bits[j] >= threshold[t] ? above[t] : label;
      out_label[j] = static_cast<int8_t>(label);
    }
    for (int64_t j = 0; j < count; ++j) out_index[j] = index[j];
    for (int64_t j = 0; j < count; ++j) out_iou[j] = bit_cast<T>(iou_bits[j]);
  }
};

template <typename T>
class Matcher {
 public:
  Matcher(const MatchArguments& arguments, const MatchRule<T>& rule, MatchResult& result)
      : arguments_(arguments),
        rule_(rule),
        anchors_(arguments.anchors.const_data_ptr<T>()),
        gts_(arguments.gts),
        regions_(arguments.regions),
        num_groups_(ceil_div(arguments.num_anchors, kGroup)),
        gt_index_(result.gt_index.mutable_data_ptr<int64_t>()),
        ious_(result.ious.mutable_data_ptr<T>()),
        label_(result.label.mutable_data_ptr<int8_t>()) {}

  void run() {
    const bool low_quality = arguments_.allow_low_quality && !gts_.empty();
    if (low_quality) group_bests_.resize(num_groups_ * arguments_.gts.total());
    for_each_group([&](int64_t image, int64_t group) { match_group(image, group); });
    if (!low_quality && regions_.empty()) return;
    if (low_quality) find_best_ious();
    for_each_group([&](int64_t image, int64_t group) {
      if (low_quality) mark_low_quality(image, group);
      if (arguments_.regions.size(image) > 0) ignore_covered(image, group);
    });
  }

 private:
  template <typename F>
  void for_each_group(const F& f) {
    const int64_t tasks = arguments_.num_images * num_groups_;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      run_vectorized([&] {
        for (int64_t task = begin; task < end; ++task) f(task / num_groups_, task % num_groups_);
      });
    });
  }

  // Calls f(index of the block in the group, its first anchor, number of anchors).
  template <typename F>
  void for_each_block(int64_t group, const F& f) {
    for (int64_t b = 0; b < kBlocksPerGroup; ++b) {
      const int64_t first = group * kGroup + b * kBlock;
      if (first >= arguments_.num_anchors) return;
      f(b, first, std::min(kBlock, arguments_.num_anchors - first));
    }
  }

  const T* anchors_of(int64_t image, int64_t first) const {
    return anchors_ + 4 * (image * arguments_.anchor_stride + first);
  }

  int64_t position(int64_t image, int64_t first) const {
    return image * arguments_.num_anchors + first;
  }

  // One value per ground truth of the image.
  GroupBest<T>* bests_of(int64_t image, int64_t group) {
    const int64_t row = arguments_.gts.offsets[image] * num_groups_;
    return group_bests_.data() + row + group * arguments_.gts.size(image);
  }

  void match_group(int64_t image, int64_t group) {
    const KnownBox<T>* gts = gts_.of_image(image);
    const int64_t num_gts = arguments_.gts.size(image);
    GroupBest<T>* bests = group_bests_.empty() ? nullptr : bests_of(image, group);
    AnchorBlock<T> block;
    BlockMatch<T> match;
    for_each_block(group, [&](int64_t b, int64_t first, int64_t count) {
      bool any = false;
      if (num_gts > 0) {
        block.load(anchors_of(image, first), count);
        gts_.for_each_near(image, block.bounds, [&](int64_t row) {
          const Integer<T> number = static_cast<Integer<T>>(row);
          const T highest = any ? match.template update<false>(block, gts[row], number)
                                : match.template update<true>(block, gts[row], number);
          any = true;
          if (bests != nullptr) note(bests[row], highest, b);
        });
      }
      const int64_t out = position(image, first);
      if (any) {
        match.write(rule_, count, gt_index_ + out, ious_ + out, label_ + out);
      } else {
        std::fill_n(gt_index_ + out, count, int64_t(num_gts > 0 ? 0 : -1));
        std::fill_n(ious_ + out, count, T(0));
        std::fill_n(label_ + out, count, rule_.labels[0]);
      }
    });
  }

  static void note(GroupBest<T>& best, T highest, int64_t block) {
    if (highest < best.iou) return;
    const uint32_t others = highest > best.iou ? 0 : best.blocks;
    best = {highest, others | uint32_t(1) << block};
  }

  // The highest IoU of each ground truth with any anchor.
  void find_best_ious() {
    best_ious_.assign(arguments_.gts.total(), T(0));
    flooded_.assign(arguments_.num_images, false);
    for (int64_t image = 0; image < arguments_.num_images; ++image) {
      T* best = best_ious_.data() + arguments_.gts.offsets[image];
      const int64_t num_gts = arguments_.gts.size(image);
      for (int64_t group = 0; group < num_groups_; ++group) {
        const GroupBest<T>* bests = bests_of(image, group);
        for (int64_t row = 0; row < num_gts; ++row) best[row] = larger(bests[row].iou, best[row]);
      }
      flooded_[image] =
          arguments_.d2_compat && std::find(best, best + num_gts, T(0)) != best + num_gts;
    }
  }

  void mark_low_quality(int64_t image, int64_t group) {
    if (flooded_[image]) {
      const int64_t begin = group * kGroup;
      const int64_t end = std::min(begin + kGroup, arguments_.num_anchors);
      std::fill(label_ + position(image, begin), label_ + position(image, end), int8_t(1));
      return;
    }
    const GroupBest<T>* bests = bests_of(image, group);
    const int64_t offset = arguments_.gts.offsets[image];
    for (int64_t row = 0; row < arguments_.gts.size(image); ++row) {
      const T best = best_ious_[offset + row];
      if (best == T(0) || bests[row].iou != best) continue;
      for_each_block(group, [&](int64_t b, int64_t first, int64_t count) {
        if ((bests[row].blocks >> b & 1) == 0) return;
        mark_equal(anchors_of(image, first), gts_.of_image(image)[row], best, count,
                   label_ + position(image, first));
      });
    }
  }

  static void mark_equal(const T* anchors, const KnownBox<T>& gt, T best, int64_t count,
                         int8_t* label) {
    AnchorBlock<T> block;
    block.load(anchors, count);
    Integer<T> equal[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) {
      equal[j] = overlap<Overlap::kIou>(gt.box, gt.area, block.box(j), block.area[j]) == best;
    }
    for (int64_t j = 0; j < count; ++j) label[j] = equal[j] ? int8_t(1) : label[j];
  }

  void ignore_covered(int64_t image, int64_t group) {
    const KnownBox<T>* regions = regions_.of_image(image);
    const T least = static_cast<T>(arguments_.ignore_iof);
    AnchorBlock<T> block;
    Integer<T> covered[kBlock];
    for_each_block(group, [&](int64_t, int64_t first, int64_t count) {
      block.load(anchors_of(image, first), count);
      std::fill(covered, covered + kBlock, 0);
      regions_.for_each_near(image, block.bounds, [&](int64_t r) {
        for (int64_t j = 0; j < kBlock; ++j) {
          const T share =
              overlap<Overlap::kIof>(regions[r].box, regions[r].area, block.box(j), block.area[j]);
          covered[j] |= share >= least;
        }
      });
      int8_t* label = label_ + position(image, first);
      for (int64_t j = 0; j < count; ++j) {
        label[j] = ((covered[j] != 0) & (label[j] != 1)) ? int8_t(-1) : label[j];
      }
    });
  }

  const MatchArguments& arguments_;
  const MatchRule<T>& rule_;
  const T* anchors_;
  const KnownBoxes<T> gts_;
  const KnownBoxes<T> regions_;
  const int64_t num_groups_;
  int64_t* gt_index_;
  T* ious_;
  int8_t* label_;
  // By image, then group, then ground truth.
  std::vector<GroupBest<T>> group_bests_;
  std::vector<T> best_ious_;
  std::vector<char> flooded_;
};

// The backend of match_anchors, and part of that of reassign_anchors.
struct MatchingCpu : CpuBackend {
  template <typename T>
  static void match(const MatchArguments& arguments, const MatchRule<T>& rule,
                    MatchResult& result) {
    Matcher<T>(arguments, rule, result).run();
  }
};

}  // namespace
}  // namespace resobj
