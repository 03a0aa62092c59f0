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

template <typename T>
std::vector<KnownBox<T>> load_boxes(const RaggedBoxes& ragged) {
  std::vector<KnownBox<T>> boxes(ragged.total());
  const T* values = ragged.boxes.const_data_ptr<T>();
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box<T> box = get_box(values, i);
    boxes[i] = {box, area(box)};
  }
  return boxes;
}

// A cheap test: false only if the intersection is certainly empty.
template <typename T>
bool may_intersect(const Box<T>& a, const Box<T>& b) {
  return (a.x1 < b.x2) & (b.x1 < a.x2) & (a.y1 < b.y2) & (b.y1 < a.y2);
}

template <typename T>
struct AnchorBlock {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];

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
    for (int64_t j = 0; j < kBlock; ++j) {
      const Box<T> box = get_box(anchors, j);
      x1[j] = box.x1;
      y1[j] = box.y1;
      x2[j] = box.x2;
      y2[j] = box.y2;
      area[j] = resobj::area(box);
    }
  }

  Box<T> box(int64_t j) const { return Box<T>{x1[j], y1[j], x2[j], y2[j]}; }

  // The smallest box around all anchors. NaN coordinates are ignored, as they intersect nothing.
  Box<T> bounds() const {
    return Box<T>{lowest(x1), lowest(y1), -lowest_negated(x2), -lowest_negated(y2)};
  }

 private:
  static constexpr int64_t kLanes = 32;

  template <typename F>
  static T fold(const F& value) {
    T lanes[kLanes];
    std::fill(lanes, lanes + kLanes, std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      for (int64_t k = 0; k < kLanes; ++k) lanes[k] = smaller(value(j + k), lanes[k]);
    }
    for (int64_t k = 1; k < kLanes; ++k) lanes[0] = smaller(lanes[0], lanes[k]);
    return lanes[0];
  }

  static T lowest(const T* values) {
    return fold([values](int64_t j) { return values[j]; });
  }

  static T lowest_negated(const T* values) {
    return fold([values](int64_t j) { return -values[j]; });
  }
};

// The best box so far of each anchor of a block. IoUs are non-negative, so their bits as integers
// have the same order, and an integer maximum vectorises, unlike a float one.
template <typename T>
struct BlockMatch {
  Integer<T> iou_bits[kBlock];
  Integer<T> index[kBlock];

  void reset(Integer<T> first) {
    std::fill(iou_bits, iou_bits + kBlock, Integer<T>(0));
    std::fill(index, index + kBlock, first);
  }

  // Compares with ground truth `row` and returns its highest IoU with an anchor of the block.
  T update(const AnchorBlock<T>& block, const KnownBox<T>& gt, Integer<T> row) {
    Integer<T> highest = 0;
    for (int64_t j = 0; j < kBlock; ++j) {
      const auto value = bit_cast<Integer<T>>(
          overlap<Overlap::kIou>(gt.box, gt.area, block.box(j), block.area[j]));
      const Integer<T> best = iou_bits[j];
      iou_bits[j] = larger(value, best);
      // Strictly greater, so that the first of several boxes with the same IoU stays.
      index[j] = value > best ? row : index[j];
      highest = larger(value, highest);
    }
    return bit_cast<T>(highest);
  }

  void write(const MatchRule<T>& rule, int64_t count, int64_t* out_index, T* out_iou,
             int8_t* out_label) const {
    Integer<T> label[kBlock];
    std::fill(label, label + kBlock, Integer<T>(rule.labels[0]));
    for (int t = 0; t < rule.num_thresholds; ++t) {
      // Positive, so its bits have the same order too.
      const auto threshold = bit_cast<Integer<T>>(rule.thresholds[t]);
      const Integer<T> above = rule.labels[t + 1];
      for (int64_t j = 0; j < kBlock; ++j) label[j] = iou_bits[j] >= threshold ? above : label[j];
    }
    for (int64_t j = 0; j < count; ++j) out_index[j] = index[j];
    for (int64_t j = 0; j < count; ++j) out_iou[j] = bit_cast<T>(iou_bits[j]);
    for (int64_t j = 0; j < count; ++j) out_label[j] = static_cast<int8_t>(label[j]);
  }
};

template <typename T>
class Matcher {
 public:
  Matcher(const MatchArguments& arguments, const MatchRule<T>& rule, MatchResult& result)
      : arguments_(arguments),
        rule_(rule),
        anchors_(arguments.anchors.const_data_ptr<T>()),
        gts_(load_boxes<T>(arguments.gts)),
        regions_(load_boxes<T>(arguments.regions)),
        num_groups_(ceil_div(arguments.num_anchors, kGroup)),
        gt_index_(result.gt_index.mutable_data_ptr<int64_t>()),
        ious_(result.ious.mutable_data_ptr<T>()),
        label_(result.label.mutable_data_ptr<int8_t>()) {}

  void run() {
    const bool low_quality = arguments_.allow_low_quality && !gts_.empty();
    if (low_quality) group_bests_.resize(num_groups_ * gts_.size());
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
    const KnownBox<T>* gts = gts_.data() + arguments_.gts.offsets[image];
    const int64_t num_gts = arguments_.gts.size(image);
    GroupBest<T>* bests = group_bests_.empty() ? nullptr : bests_of(image, group);
    AnchorBlock<T> block;
    BlockMatch<T> match;
    for_each_block(group, [&](int64_t b, int64_t first, int64_t count) {
      match.reset(num_gts > 0 ? 0 : -1);
      if (num_gts > 0) {
        block.load(anchors_of(image, first), count);
        const Box<T> bounds = block.bounds();
        for (int64_t row = 0; row < num_gts; ++row) {
          if (!may_intersect(gts[row].box, bounds)) continue;
          const T highest = match.update(block, gts[row], static_cast<Integer<T>>(row));
          if (bests != nullptr) note(bests[row], highest, b);
        }
      }
      const int64_t out = position(image, first);
      match.write(rule_, count, gt_index_ + out, ious_ + out, label_ + out);
    });
  }

  static void note(GroupBest<T>& best, T highest, int64_t block) {
    if (highest < best.iou) return;
    const uint32_t others = highest > best.iou ? 0 : best.blocks;
    best = {highest, others | uint32_t(1) << block};
  }

  // The highest IoU of each ground truth with any anchor.
  void find_best_ious() {
    best_ious_.assign(gts_.size(), T(0));
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
        mark_equal(anchors_of(image, first), gts_[offset + row], best, count,
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
    const KnownBox<T>* regions = regions_.data() + arguments_.regions.offsets[image];
    const int64_t num_regions = arguments_.regions.size(image);
    const T least = static_cast<T>(arguments_.ignore_iof);
    AnchorBlock<T> block;
    Integer<T> covered[kBlock];
    for_each_block(group, [&](int64_t, int64_t first, int64_t count) {
      block.load(anchors_of(image, first), count);
      const Box<T> bounds = block.bounds();
      std::fill(covered, covered + kBlock, 0);
      for (int64_t r = 0; r < num_regions; ++r) {
        if (!may_intersect(regions[r].box, bounds)) continue;
        for (int64_t j = 0; j < kBlock; ++j) {
          const T share =
              overlap<Overlap::kIof>(regions[r].box, regions[r].area, block.box(j), block.area[j]);
          covered[j] |= share >= least;
        }
      }
      int8_t* label = label_ + position(image, first);
      for (int64_t j = 0; j < count; ++j) {
        label[j] = ((covered[j] != 0) & (label[j] != 1)) ? int8_t(-1) : label[j];
      }
    });
  }

  const MatchArguments& arguments_;
  const MatchRule<T>& rule_;
  const T* anchors_;
  const std::vector<KnownBox<T>> gts_;
  const std::vector<KnownBox<T>> regions_;
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
